# Aliases: every command here also works without just.

# Starts the server with its default configuration.
run *args:
    cargo run --release -- serve {{args}}

# Checks formatting, lints, documentation and dependencies.
check:
    .ci/check

# Runs all tests.
test:
    ./test

# Runs the tests of the server, `durability` excepted, on a store without a journal: they pass because of what the boundary of stores says, not because of the embedded engine.
naive-store *args:
    cargo build -p keypeg --example naive_server
    KEYPEG_BINARY={{justfile_directory()}}/target/debug/examples/naive_server cargo test -p keypeg --test server -- --skip durability:: {{args}}

# Runs the tests of the server on one of two servers that share a log and forward to each other: a log in memory, or `postgres`, or `s3`.
cluster-server *args:
    crates/keypeg/tests/cluster/run {{args}}

# Runs all benchmarks and writes bench/RESULTS.md, 40 minutes; or only some: `just bench cost tail`.
bench *parts:
    bench/all {{parts}}

# Counts instructions per call and compares them with bench/cost.json, half a minute; --bless updates that file.
cost *args:
    bench/cost {{args}}

# Runs the model test and the simulation under random seeds; prints each seed that fails and continues.
soak seeds="2000" rounds="1":
    crates/keypeg-engine/tests/sim/soak {{seeds}} {{rounds}}

# Runs the tests of the server with one HTTP thread each, which then runs turns of the engine: about 4 min.
test-one-core:
    KEYPEG_TEST_HTTP_THREADS=1 cargo test -p keypeg --test server

# Plays several servers on one shared log under many seeds, with failovers, lost answers and pauses.
soak-shards seeds="850":
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-shard --test servers -- --nocapture nothing

# Sends many more requests from the OpenAPI document than ./test does, under a new seed each time.
soak-api cases="500" seconds="1800":
    KEYPEG_API_CASES={{cases}} KEYPEG_API_SECONDS={{seconds}} KEYPEG_API_SEED=$(date +%s) crates/keypeg/tests/schemathesis/run

# Cuts the power under load, on a separate file system: needs root, loop devices, strace.
power-cuts cuts="200":
    cargo build --release -p keypeg
    KEYPEG_BINARY=$PWD/target/release/keypeg KEYPEG_POWER_CUTS={{cuts}} cargo test -p keypeg --test server -- --nocapture durability::power::

# Kills the server under load with SIGKILL.
kills rounds="500":
    cargo build --release -p keypeg
    KEYPEG_BINARY=$PWD/target/release/keypeg KEYPEG_KILL_ROUNDS={{rounds}} cargo test -p keypeg --test server -- --nocapture durability::kill::

# Kills, pauses and parts servers that share PostgreSQL, and the primary, under recorded load; `just cluster kill=2` is short. Parting needs root.
cluster *scenarios="kill=50 pause=20 failover=20 partition=60 restart=3 handover=10":
    cargo build --release -p keypeg
    bench/cluster {{scenarios}}

# Runs such faults while guards of the shared log are switched off, which must be seen: `just cluster-without chain rollback=6`.
cluster-without guards *scenarios="pause=5":
    cargo build --release -p keypeg --example sabotaged_server --features sabotage
    bench/cluster --servers 3 --without {{guards}} {{scenarios}}

# Measures 1, 2 and 4 servers on PostgreSQL and on an S3 double: requests, processor time, latency, takeovers.
cluster-load *args:
    cargo build --release -p keypeg
    bench/cluster load {{args}}
    bench/cluster load --store s3 {{args}}

# Rotates the seal key under SIGKILL.
rotations rounds="50":
    cargo build --release -p keypeg
    KEYPEG_BINARY=$PWD/target/release/keypeg KEYPEG_ROTATION_ROUNDS={{rounds}} cargo test -p keypeg --test server -- --nocapture durability::sealing::a_rotation

# Tests many more mutants of directories, requests, configurations and ids than ./test does.
soak-fuzz runs="100000" seed="2":
    KEYPEG_FUZZ_RUNS={{runs}} KEYPEG_SEED={{seed}} cargo test --release -p keypeg-core -p keypeg-engine --test fuzz -- --nocapture
    KEYPEG_FUZZ_RUNS={{runs}} KEYPEG_SEED={{seed}} cargo test --release -p keypeg --test server -- --nocapture http::fuzz:: fast_path::mutants

# Runs a mixed load and samples memory, file descriptors and the data directory: they must not grow.
soak-server length="30m":
    bench/soak {{length}}

# Compares many connections with few, on a fast disk and on slow ones.
overload:
    bench/overload

# Runs loads that try to take memory, time or places from other callers, in memory control groups; `just abuse --list` names them. Needs root.
abuse *args:
    bench/abuse {{args}}

# Measures what ten open dashboards and a scraper cost, with one pool and with 10 000; about four minutes.
observe *args:
    bench/observe {{args}}

# Twenty jobs of two minutes share five accounts by `keypeg exec --wait`, 8 minutes; fails if accounts are idle.
jobs *args:
    cargo build --release -p keypeg
    bench/jobs {{args}}

# Runs the tests of the proxies with one wait of 70 s, longer than proxies wait without a configuration.
proxies seconds="70":
    KEYPEG_PROXY_WAIT={{seconds}} cargo test -p keypeg --test server -- --nocapture deploy::proxies::

# Builds the wheel of the Python package with the program from a release, and prints its path, below target/python.
python-wheel *args:
    clients/python/wheel {{args}}

# 200 processes share 20 keys for a minute by the Python package, while some of them and the server are killed.
python-share *args:
    cargo build --release -p keypeg
    clients/python/test --collect-only -q
    KEYPEG_BINARY={{justfile_directory()}}/target/release/keypeg target/python/venv/bin/python clients/python/tests/share.py {{args}}

# Builds the Debian package from a release and prints its path, below target/debian.
package *args:
    deploy/debian/build {{args}}

# Builds the container image from a release, target/oci/keypeg.tar, and prints its digest.
image *args:
    deploy/oci/build {{args}}

# Boots systemd in namespaces and checks the unit there: needs root and mmdebstrap.
systemd:
    mkdir -p target/systemd
    [ -f target/systemd/root.tar ] || mmdebstrap --variant=minbase --include=systemd,adduser,dbus bookworm target/systemd/root.tar
    deploy/systemd/test "$(deploy/debian/build)" target/systemd/root.tar

# Lists the components of the program, with versions and licences: target/sbom/keypeg.cdx.json.
sbom:
    mkdir -p target/sbom
    deploy/sbom >target/sbom/keypeg.cdx.json

# Runs exactly what CI runs.
ci:
    .ci/run

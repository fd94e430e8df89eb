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

# Runs all benchmarks and writes bench/RESULTS.md, 40 minutes; or only some: `just bench cost tail`.
bench *parts:
    bench/all {{parts}}

# Counts instructions per call and compares them with bench/cost.json, half a minute; --bless updates that file.
cost *args:
    bench/cost {{args}}

# Runs the model test and the simulation under many more seeds than ./test does.
soak seeds="2000":
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-core --test model
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-engine --test sim -- --nocapture
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-engine --features sabotage --test sim -- --nocapture

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

# Twenty jobs of two minutes share five accounts by `keypeg exec --wait`, 8 minutes; fails if accounts are idle.
jobs *args:
    cargo build --release -p keypeg
    bench/jobs {{args}}

# Runs exactly what CI runs.
ci:
    .ci/run

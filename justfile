# Thin aliases: everything here works without just.

# The server on its embedded default.
run *args:
    cargo run --release -- serve {{args}}

# Formatting, lints, documentation.
check:
    .ci/check

# All tests.
test:
    ./test

# Writes bench/RESULTS.md: the core, beside peers, many keys, the tail: 40 minutes, or such as `just bench cost tail`.
bench *parts:
    bench/all {{parts}}

# Instructions a call takes, compared with bench/cost.json: half a minute; --bless keeps them.
cost *args:
    bench/cost {{args}}

# Many more seeds than a test run plays, of the core beside its model and of the simulation.
soak seeds="2000":
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-core --test model
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-engine --test sim -- --nocapture
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-engine --features sabotage --test sim -- --nocapture

# Many more requests made from the OpenAPI document than a test run sends, from another seed each time.
soak-api cases="500" seconds="1800":
    KEYPEG_API_CASES={{cases}} KEYPEG_API_SECONDS={{seconds}} KEYPEG_API_SEED=$(date +%s) crates/keypeg/tests/schemathesis/run

# Power cuts under load, on a file system of their own: needs root, loop devices, strace.
power-cuts cuts="200":
    cargo build --release -p keypeg
    KEYPEG_BINARY=$PWD/target/release/keypeg KEYPEG_POWER_CUTS={{cuts}} cargo test -p keypeg --test server -- --nocapture power::

# SIGKILL under load.
kills rounds="500":
    cargo build --release -p keypeg
    KEYPEG_BINARY=$PWD/target/release/keypeg KEYPEG_KILL_ROUNDS={{rounds}} cargo test -p keypeg --test server -- --nocapture kill::

# Mutants of directories, requests, configurations and ids, many more than a test run feeds.
soak-fuzz runs="100000" seed="2":
    KEYPEG_FUZZ_RUNS={{runs}} KEYPEG_SEED={{seed}} cargo test --release -p keypeg-core -p keypeg-engine --test fuzz -- --nocapture
    KEYPEG_FUZZ_RUNS={{runs}} KEYPEG_SEED={{seed}} cargo test --release -p keypeg --test server -- --nocapture fuzz:: quick::mutants

# Mixed load while memory, descriptors and the directory are sampled: flat is a pass.
soak-server length="30m":
    cargo build --release -p keypeg
    python3 bench/soak.py {{length}}

# Many connections against few, on a fast disk and on slow ones: ratios.
overload:
    cargo build --release -p keypeg
    python3 bench/overload.py

# Exactly what CI calls.
ci:
    .ci/run

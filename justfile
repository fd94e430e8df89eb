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

# What the core costs, to 10 million keys.
bench:
    cargo bench -p keypeg-core --bench cost

# Many more seeds beside the model than a test run plays.
soak seeds="2000":
    KEYPEG_SEEDS={{seeds}} cargo test --release -p keypeg-core --test model

# Many more requests made from the OpenAPI document than a test run sends, from another seed each time.
soak-api cases="500" seconds="1800":
    KEYPEG_API_CASES={{cases}} KEYPEG_API_SECONDS={{seconds}} KEYPEG_API_SEED=$(date +%s) crates/keypeg/tests/schemathesis/run

# Exactly what CI calls.
ci:
    .ci/run

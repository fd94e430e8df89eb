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

# Exactly what CI calls.
ci:
    .ci/run

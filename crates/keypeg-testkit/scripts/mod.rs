//! The scripts that the pools and every store run: the contract, as tables.
//!
//! A test target mounts this directory as a module beside its functions `check` and `check_within`,
//! which run a script (`keypeg-core/tests/script.rs`, `keypeg-engine/tests/conformance.rs`). Each
//! script begins with the pool `default` and its policy: lease TTL 60 s, keep-alive TTL 300 s.
//! `keypeg-core/tests/support/world.rs` documents the calls. What only the pools have (their budget,
//! their two clocks, their numbers) is in `keypeg-core/tests`.

use super::{check, check_within};

mod borrowers;
mod draining;
mod idempotency;
mod keys;
mod leases;
mod pools;
mod quarantine;
mod waiting;

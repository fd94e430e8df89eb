//! End-to-end tests: each test starts the real binary on a free port and uses it over HTTP.
//!
//! Each module covers one subject. No test asserts that something was fast, only that the result
//! is right and that nothing ends before its time.

#![expect(clippy::unwrap_used, reason = "a test fails on an unexpected error")]

mod access;
mod api;
mod audit;
mod bad_input;
#[cfg(feature = "cli")]
mod bench;
mod browser;
mod cli;
#[cfg(feature = "cli")]
mod client;
#[cfg(feature = "cli")]
mod commands;
mod django;
#[cfg(feature = "cli")]
mod events;
mod fast_path;
mod faults;
mod framing;
mod fuzz;
mod health;
mod idempotency;
mod import;
mod kill;
mod leaks;
mod list;
mod max_leases;
mod metrics;
mod modules;
mod openapi;
mod power;
mod problems;
mod refusals;
mod restart;
mod routes;
mod shares;
mod simple;
mod support;
mod tidy;
mod timing;
mod token_files;
mod wait;

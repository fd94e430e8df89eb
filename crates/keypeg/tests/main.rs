//! End-to-end tests: each test starts the real binary on a free port and uses it over HTTP.
//!
//! Each folder holds the modules that protect one part of the contract, each module covers one
//! subject. No test asserts that something was fast, only that the result is right and that nothing
//! ends before its time.

#![expect(clippy::unwrap_used, reason = "a test fails on an unexpected error")]

mod access;
mod api;
mod bad_input;
mod cli;
mod cluster;
#[cfg(feature = "cli")]
mod deploy;
mod durability;
mod http;
mod meta;
mod support;
mod tls;

//! The server from outside: the real binary, on a port of its own, over HTTP.
//!
//! Each module is one subject. Nothing here asserts that something was fast, only that it was
//! right and never early.

#![expect(clippy::unwrap_used, reason = "a test that is surprised ends")]

mod access;
mod api;
mod audit;
mod bad_input;
#[cfg(feature = "cli")]
mod bench;
mod browser;
mod canary;
mod cli;
#[cfg(feature = "cli")]
mod client;
#[cfg(feature = "cli")]
mod commands;
#[cfg(feature = "cli")]
mod events;
mod faults;
mod framing;
mod fuzz;
mod health;
mod import;
mod kill;
mod list;
mod max_leases;
mod metrics;
mod once;
mod openapi;
mod plain;
mod power;
mod problems;
mod quick;
mod refusals;
mod restart;
mod routes;
mod seed;
mod shares;
mod support;
mod tidy;
mod timing;
mod token_files;
mod wait;

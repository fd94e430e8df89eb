//! What a client is promised: each call of the canonical API and of the two compatibility APIs, its
//! answers, its refusals and its times.

mod canonical;
#[cfg(feature = "cli")]
mod client;
mod django;
mod drain;
#[cfg(feature = "cli")]
mod events;
#[cfg(feature = "cli")]
mod guard;
mod health;
mod history;
mod idempotency;
mod import;
mod labels;
mod list;
mod metrics;
mod ops;
mod problems;
mod quarantine;
mod refusals;
mod simple;
mod timing;
mod verify;
mod wait;

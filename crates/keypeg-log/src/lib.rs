//! The contract of a replicated log that several servers share: one log for each shard of the pools.
//!
//! A store outside Keypeg (PostgreSQL, an object store) replicates the log and decides which server
//! may append. This crate owns the trait, its types, an in-memory log with faults, and the suite that
//! every log passes. It does not know pools, engines, networks or clocks. Invariant: a frame is
//! appended after exactly the frame that its writer has seen last, or not at all.

pub mod conformance;
mod error;
mod frame;
mod heartbeat;
mod log;
pub mod memory;
mod race;
mod shard;
mod snapshot;
mod wait;

pub use error::LogError;
pub use frame::{Frame, FrameId, FrameKind, HEAD_LEN, PAYLOAD_MAX, Tail};
pub use heartbeat::{ADDRESS_MAX, Heartbeat, NAME_MAX, ServerName};
pub use log::{Append, Call, Completed, Guarantee, ProbeReport, SharedLog};
pub use race::race;
pub use shard::Shard;
pub use snapshot::{MANIFEST_LEN, PART_MAX, Snapshot, SnapshotId};
pub use wait::wait;

//! One shard of the pools on a shared log: a server follows its log, takes it over, appends to it,
//! and writes its snapshots.
//!
//! It connects the engine, which knows no store, with a log, which knows no pools. All of it blocks
//! and runs on a plain thread, one for each shard. Invariant: only an append decides which server
//! owns a shard; whatever was read stands when an append of the reader's own is acknowledged.

mod appender;
mod executor;
mod follower;
mod node;
mod ownership;
mod payload;
mod snapshot;
mod tails;

pub use appender::Appender;
pub use executor::{Executor, Patience};
pub use follower::{EngineOptions, FollowError, FollowOptions, Follower, Progress};
pub use node::{
    MakeClock, MakeRandom, MakeScratch, Node, NodeError, NodeOptions, NodeView, SNAPSHOT_AFTER,
};
pub use ownership::{LiveServers, owner_order, shard_of_pool};
pub use snapshot::{SnapshotWriter, remove_older};
pub use tails::Tails;

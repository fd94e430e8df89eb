//! The engine: lanes bring requests, a turn applies them to the pools, one write and one sync make
//! the turn's records durable (group commit), and only then the replies leave.
//!
//! It is the embedded store behind the boundary of keypeg-store. It owns a thread and a journal, and
//! knows nothing of tokio or HTTP. Time and randomness are arguments: [`Clock`] and
//! [`RandomSource`](keypeg_core::RandomSource).

pub mod backup;
mod batch;
pub mod checkpointer;
mod clock;
mod commit_log;
mod core_turns;
pub mod disk;
mod end;
mod engine;
pub mod feed;
mod frame;
mod journal;
mod journal_reader;
mod keyset;
mod layout;
mod lookups;
mod meta;
mod permissions;
mod preallocator;
mod preview;
mod progress;
mod published;
mod record;
mod recover;
mod replica;
mod restore;
mod rotation;
mod scratch;
mod seal;
mod shard;
mod start;
pub mod state;
mod thread;
mod times;
mod turn;
mod unlock;

pub use clock::{Clock, ClockReading};
pub use commit_log::{CommitLog, LogBatch};
pub use end::{AbortOnPanic, end_process, set_exit_hook};
pub use engine::{Engine, check_data_dir, rotate_seal_key};
pub use journal::SEGMENT_LEN;
pub use replica::{Replica, ReplicaConfig, ReplicaError, SHARDS_MAX, ShardIdentity};
pub use restore::{
    BackupCheck, RestoreError, RestoreOptions, RestoreReport, check_backup, check_backup_in,
    restore, restore_onto,
};
pub use rotation::{RotationError, SealControl, SealUse};
pub use scratch::Scratch;
pub use seal::{SEAL_KEY_LEN, SEAL_KEYS_MAX, SealKey, SealKeyId, SealKeys, SealOptions};
pub use shard::{ShardControl, ShardEnd, ShardEngine};
pub use start::{EngineConfig, StartError};

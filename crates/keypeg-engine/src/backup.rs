//! Backups: a consistent copy of the data while the engine goes on, and what a restore makes of it.
//!
//! `desk.rs` is where the threads meet, `copy.rs` writes a backup, `format.rs` and `head.rs` know
//! its bytes, `restore.rs` of the crate reads it. A backup changes nothing but the journal, to which the engine
//! writes its leases again, as it does before it deletes segments.

mod channel;
mod copy;
mod desk;
mod format;
mod head;
mod shards;
mod split;
mod thread;

pub use copy::Backup;
pub(crate) use copy::{BackupParts, EngineBackups};
pub(crate) use desk::{BackupDesk, EngineTask, Ticket};
pub use format::BackupError;
pub(crate) use format::{BackupCounts, ChunkKind, ChunkParser, read_trailer};
pub(crate) use head::{BackupHead, batches, inconsistent, split_row};
pub use shards::{EachBatch, ShardParts, ShardsBackup};
pub(crate) use split::meta_of;
pub use split::{PoolShards, SplitError};
pub use thread::{BackupThread, SendBytes};

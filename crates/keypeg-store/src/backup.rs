//! Backups of a store's data: bytes in an order that only the store understands.
//!
//! A backup is not a call of a lane: it runs beside the calls, and its bytes leave at the pace of
//! its reader. Nothing here knows the content of a backup, HTTP or an async runtime.

use std::fmt;
use std::task::{Context, Poll};

/// Creates backups. One runs at a time.
pub trait BackupSource: fmt::Debug + Send + Sync {
    /// Begins a backup of the data as of a moment between this call and the first bytes. Returns at
    /// once.
    fn begin(&self) -> Result<Box<dyn BackupStream>, BackupRefused>;
}

/// The bytes of a backup. Dropping it ends the backup.
pub trait BackupStream: fmt::Debug + Send + Sync {
    /// Polls for the next bytes. Returns `None` after the last ones. After an error the backup is
    /// not complete, and a reader of its bytes detects that.
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Vec<u8>, BackupRefused>>>;
}

/// Why there is no backup, or why it ended before it was complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupRefused {
    /// Another backup runs.
    #[error("another backup is running")]
    Running,
    /// The disk is full, so that the data that a backup reads cannot be kept beside new data.
    #[error("the disk is full")]
    StorageFull,
    /// The store is stopping.
    #[error("the server is stopping")]
    ShuttingDown,
    /// The data cannot be read.
    #[error("{0}")]
    Failed(String),
}

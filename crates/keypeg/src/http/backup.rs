//! The body of a backup: it reads the backup at its client's pace, and buffers one piece.
//!
//! A client that reads too slowly is disconnected as with any other response. If the backup fails,
//! the response ends without its last chunk, so that every client can tell.

use crate::clock;
use bytes::Bytes;
use keypeg_store::{BackupRefused, BackupStream};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

/// When this server has passed the last byte of a complete backup to a connection, in seconds since
/// 1970; 0 before the first one.
#[derive(Debug, Default)]
pub(super) struct LastBackup(AtomicU64);

impl LastBackup {
    pub(super) fn seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A backup that is sent.
#[derive(Debug)]
pub(super) struct BackupBody {
    stream: Box<dyn BackupStream>,
    /// The bytes that were read before the response began.
    first: Option<Vec<u8>>,
    last_backup: Arc<LastBackup>,
}

impl BackupBody {
    /// Waits for the first bytes of a backup, so that a refusal can still be a problem. At the end of the
    /// backup sets `last_backup`.
    pub(super) async fn begin(
        mut stream: Box<dyn BackupStream>,
        last_backup: Arc<LastBackup>,
    ) -> Result<Self, BackupRefused> {
        let first = poll_fn(|cx| stream.poll_next(cx)).await.transpose()?;
        Ok(Self { stream, first, last_backup })
    }

    /// Returns the next bytes to send; `None` at the end.
    pub(super) fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BackupRefused>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first.into())));
        }
        let next = ready!(self.stream.poll_next(cx));
        if next.is_none() {
            self.last_backup.0.store(clock::wall_ms() / 1_000, Ordering::Relaxed);
        }
        Poll::Ready(next.map(|bytes| bytes.map(Bytes::from)))
    }
}

//! The body of a backup: it reads the backup at its client's pace, and buffers one piece.
//!
//! A client that reads too slowly is disconnected as with any other response. If the backup fails,
//! the response ends without its last chunk, so that every client can tell.

use bytes::Bytes;
use keypeg_store::{BackupRefused, BackupStream};
use std::future::poll_fn;
use std::task::{Context, Poll};

/// A backup that is sent.
#[derive(Debug)]
pub(super) struct BackupBody {
    stream: Box<dyn BackupStream>,
    /// The bytes that were read before the response began.
    first: Option<Vec<u8>>,
}

impl BackupBody {
    /// Waits for the first bytes of a backup, so that a refusal can still be a problem.
    pub(super) async fn begin(mut stream: Box<dyn BackupStream>) -> Result<Self, BackupRefused> {
        let first = poll_fn(|cx| stream.poll_next(cx)).await.transpose()?;
        Ok(Self { stream, first })
    }

    /// Returns the next bytes to send; `None` at the end.
    pub(super) fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, BackupRefused>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first.into())));
        }
        self.stream.poll_next(cx).map_ok(Bytes::from)
    }
}

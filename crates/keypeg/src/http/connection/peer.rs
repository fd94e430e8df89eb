//! The client's side of a connection, shared by hyper and the request in progress.
//!
//! hyper does not read while a request is in progress, so a request that waits reads by itself, to
//! detect the end of the client. Bytes that arrive meanwhile are kept for hyper, in their order.
//! Does not know what the bytes mean.

use super::stream::Connection;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// The most bytes that are kept for hyper; at this number the server stops reading from the
/// connection (back-pressure).
const READ_AHEAD_MAX: usize = 16 << 10;

/// A handle to the client. Only the task of its connection locks it, and never across a wait.
#[derive(Clone, Debug)]
pub(crate) struct Peer(Arc<Mutex<PeerState>>);

#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) connection: Connection,
    /// Bytes that were read before hyper asked for them.
    read_ahead: Vec<u8>,
    /// Whether the request in progress ends without an answer.
    is_abandoned: bool,
    /// Whether the server is stopping.
    is_stopping: bool,
    /// Whether the last request ended before its body was read to the end.
    has_unread_body: bool,
}

impl Peer {
    pub(super) fn new(connection: Connection, read_ahead: Vec<u8>) -> Self {
        let state = PeerState {
            connection,
            read_ahead,
            is_abandoned: false,
            is_stopping: false,
            has_unread_body: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, PeerState> {
        // A poisoned lock is usable: a panic interrupts no change of more than one field.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads for hyper: first the bytes that were read ahead.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let PeerState { connection, read_ahead, .. } = &mut *self.lock();
        if read_ahead.is_empty() {
            return Pin::new(connection).poll_read(cx, buffer);
        }
        let len = read_ahead.len().min(buffer.remaining());
        buffer.put_slice(&read_ahead[..len]);
        read_ahead.drain(..len);
        Poll::Ready(Ok(()))
    }

    /// Calls `write` with the connection.
    pub(super) fn with<T>(&self, write: impl FnOnce(Pin<&mut Connection>) -> T) -> T {
        write(Pin::new(&mut self.lock().connection))
    }

    /// Returns the connection; `None` while another handle exists.
    pub(super) fn into_connection(self) -> Option<Connection> {
        let state = Arc::into_inner(self.0)?.into_inner();
        Some(state.unwrap_or_else(PoisonError::into_inner).connection)
    }

    /// Becomes ready when the client has closed its sending side, or with the error of a broken
    /// connection. Not while [`READ_AHEAD_MAX`] bytes are kept.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let PeerState { connection, read_ahead, .. } = &mut *self.lock();
        while read_ahead.len() < READ_AHEAD_MAX {
            let mut bytes = [0; 1 << 10];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *connection).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => read_ahead.extend_from_slice(buffer.filled()),
            }
        }
        Poll::Pending
    }

    /// Ends the connection without an answer to the request in progress, which never completes.
    pub(crate) async fn abandon<T>(&self) -> T {
        self.lock().is_abandoned = true;
        std::future::pending().await
    }

    /// Returns whether the request in progress ends without an answer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    /// Shortens the time of a head that is incomplete.
    pub(super) fn stop(&self) {
        self.lock().is_stopping = true;
    }

    /// Returns whether the server is stopping.
    pub(super) fn is_stopping(&self) -> bool {
        self.lock().is_stopping
    }

    /// Notes that a request ended before its body was read to the end.
    pub(crate) fn leave_body_unread(&self) {
        self.lock().has_unread_body = true;
    }

    /// Returns whether the last request ended before its body was read to the end.
    pub(crate) fn take_unread_body(&self) -> bool {
        std::mem::take(&mut self.lock().has_unread_body)
    }
}

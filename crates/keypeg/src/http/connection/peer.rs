//! The client's side of a connection, shared by hyper and the request in progress.
//!
//! hyper does not read while a request is in progress, so a request that waits reads by itself, to
//! detect the end of the client. Bytes that arrive meanwhile are kept for hyper, in their order.
//! Does not know what the bytes mean.

use super::stream::Connection;
use super::write_watch::{WriteWatch, Written};
use crate::http::timeouts::Timeouts;
use crate::share::Held;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    write_watch: WriteWatch,
    /// What hyper writes.
    written: Written,
    /// What the response holds that hyper writes: its place among the requests in flight, and its
    /// bytes. Given back when the socket has accepted it.
    under_way: [Option<Held>; 2],
    /// The next request, which waits until the socket has accepted the response before it.
    next_request: Option<Waker>,
}

impl PeerState {
    /// Passes on the result of writing, or fails once the client has accepted too little.
    fn unless_too_slow<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        limits: &Timeouts,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let error = ready!(self.write_watch.poll_blocked(limits, self.written, cx));
            self.connection.discard_unread();
            return Poll::Ready(Err(error));
        }
        result
    }
}

impl Peer {
    pub(super) fn new(connection: Connection, read_ahead: Vec<u8>) -> Self {
        let state = PeerState {
            connection,
            read_ahead,
            is_abandoned: false,
            is_stopping: false,
            has_unread_body: false,
            write_watch: WriteWatch::default(),
            written: Written::Response,
            under_way: [None, None],
            next_request: None,
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

    /// Calls `write` with the connection, and ends the response of a client that is too slow.
    pub(super) fn poll_write(
        &self,
        limits: &Timeouts,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Connection>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.lock();
        let written = write(Pin::new(&mut state.connection), cx);
        let written = ready!(state.unless_too_slow(written, limits, cx));
        if let Ok(len) = &written {
            state.write_watch.progress(*len);
        }
        Poll::Ready(written)
    }

    /// Returns whether the client was too slow. Then it gets no time to read the rest.
    pub(super) fn was_too_slow(&self) -> bool {
        self.lock().write_watch.has_failed()
    }

    /// Flushes what hyper has written: TLS keeps some of it until the socket accepts it. Ends the
    /// response of a client that is too slow.
    pub(super) fn poll_flush(
        &self,
        limits: &Timeouts,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.lock();
        let flushed = Pin::new(&mut state.connection).poll_flush(cx);
        let flushed = ready!(state.unless_too_slow(flushed, limits, cx));
        state.write_watch.complete(state.written);
        state.under_way = [None, None];
        if let Some(next_request) = state.next_request.take() {
            next_request.wake();
        }
        Poll::Ready(flushed)
    }

    /// Closes the sending side, for which TLS writes too.
    pub(super) fn poll_shutdown(
        &self,
        limits: &Timeouts,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.lock();
        let shut_down = Pin::new(&mut state.connection).poll_shutdown(cx);
        state.unless_too_slow(shut_down, limits, cx)
    }

    /// Keeps what a response holds until the socket has accepted the response. To be called right
    /// before hyper gets it.
    pub(super) fn hold(&self, under_way: [Option<Held>; 2], is_stream: bool) {
        let state = &mut *self.lock();
        state.under_way = under_way;
        state.written = if is_stream { Written::Stream } else { Written::Response };
    }

    /// Waits until the socket has accepted the response before this request: hyper would read and
    /// answer further requests, and collect the heads of their responses without a bound.
    pub(super) fn poll_accepted(&self, cx: &mut Context<'_>) -> Poll<()> {
        let state = &mut *self.lock();
        if !state.write_watch.is_blocked() {
            return Poll::Ready(());
        }
        state.next_request = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Returns the connection; `None` while another handle exists.
    pub(super) fn into_connection(self) -> Option<Connection> {
        let state = Arc::into_inner(self.0)?.into_inner();
        Some(state.unwrap_or_else(PoisonError::into_inner).connection)
    }

    /// Becomes ready when the client has closed its sending side, or with the error of a broken
    /// connection. Not while [`READ_AHEAD_MAX`] bytes are kept.
    pub(super) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
    pub(super) async fn abandon<T>(&self) -> T {
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
    pub(super) fn leave_body_unread(&self) {
        self.lock().has_unread_body = true;
    }

    /// Returns whether the last request ended before its body was read to the end.
    pub(super) fn take_unread_body(&self) -> bool {
        std::mem::take(&mut self.lock().has_unread_body)
    }
}

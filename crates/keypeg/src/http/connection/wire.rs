//! Watches the bytes of a connection on their way to and from hyper.
//!
//! hyper drops a Content-Length that stands beside a Transfer-Encoding before a service can see it,
//! and it has one timer for both heads and idle connections. So [`Framing`] follows the bytes, to
//! detect both headers in one head, a head that takes too long, and a close while bytes are still
//! arriving. hyper's own error responses go through [`HyperErrorFilter`].

use super::client::Client;
use super::fast_path::ReadAhead;
use super::framing::Framing;
use super::hyper_errors::HyperErrorFilter;
use super::peer::Peer;
use super::places::Place;
use super::stream::Connection;
use crate::clock;
use crate::http::timeouts::{STOP_HEAD_TIME, Timeouts};
use crate::share::{CallerId, Held};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, timeout};

/// How long the server reads and discards a client's bytes after the last response.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How many bytes it discards at most.
const LINGER_MAX: usize = 16 << 20;

/// The bytes of a head that do not count against the memory of all heads: those of a connection.
const HEAD_FREE: usize = 8 << 10;
/// The most bytes of a head that are read at once.
const HEAD_PART: usize = (8 << 10) - 1;

/// A connection whose bytes are watched.
#[derive(Debug)]
pub(super) struct WatchedConnection {
    peer: Peer,
    place: Arc<Place>,
    timeouts: Timeouts,
    /// How long the head being awaited may take; shorter if a part of it arrived before.
    head_time: Duration,
    framing: Framing,
    /// Shared with the service: the number of heads that it may trust.
    clear_heads: Arc<AtomicU64>,
    error_filter: HyperErrorFilter,
    head_timer: Timer,
    /// The bytes of the head being awaited that have arrived.
    head_len: usize,
    /// Its part of the memory of all heads.
    head_room: Vec<Held>,
    caller: CallerId,
    /// Whether something was sent since the present head began.
    has_sent_in_head: bool,
}

/// A timer that exists only while something is awaited.
type Timer = Option<Pin<Box<Sleep>>>;

impl WatchedConnection {
    /// Watches a connection of which the fast path has read the first bytes.
    pub(super) fn new(
        connection: Connection,
        error_filter: HyperErrorFilter,
        read_ahead: ReadAhead,
        timeouts: Timeouts,
        Client { sender, place }: Client,
    ) -> Self {
        let ReadAhead { bytes, waited, answered_any } = read_ahead;
        let bytes_len = bytes.len();
        Self {
            peer: Peer::new(connection, bytes),
            place,
            timeouts,
            head_time: timeouts.head.saturating_sub(waited),
            framing: Framing::new(answered_any),
            clear_heads: Arc::default(),
            error_filter,
            head_timer: None,
            head_len: bytes_len,
            head_room: Vec::new(),
            caller: CallerId::of_address(Some(sender.ip)),
            has_sent_in_head: false,
        }
    }

    /// Returns the client, which requests in progress watch.
    pub(super) fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Returns the number of complete heads before the first one that two readers could take for
    /// different requests.
    pub(super) fn clear_heads(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.clear_heads)
    }

    /// Ends the connection after hyper has. A client that is still sending gets the time to receive
    /// its response, see [`linger`].
    pub(super) async fn end(mut self) {
        if self.peer.was_too_slow() {
            return;
        }
        let is_refused_http2 = self.framing.is_http2() && self.error_filter.refuse_http2();
        if is_refused_http2 || !self.error_filter.unsent().is_empty() {
            // hyper sends nothing to the complete preface of HTTP/2, nor when it cannot read.
            let write_time = self.timeouts.write;
            let sent = std::future::poll_fn(|cx| self.poll_replacement(cx));
            let _ = timeout(write_time, sent).await;
        }
        let Self { peer, framing, has_sent_in_head, .. } = self;
        // A head that a stop has cut off has no response that could be lost.
        let is_cut_off = peer.is_stopping() && framing.awaits_head() && !has_sent_in_head;
        if let Some(connection) = peer.into_connection()
            && !framing.is_between_messages()
        {
            let time = if is_cut_off { STOP_HEAD_TIME } else { LINGER_TIME };
            Box::pin(linger_for(connection, time)).await;
        }
    }
}

/// Lets a client that is still sending receive its response (lingering close): a close with unread
/// bytes would reset the connection, and the client could lose the response. To be called when the
/// whole response has been sent.
pub(super) async fn linger(connection: Connection) {
    linger_for(connection, LINGER_TIME).await;
}

async fn linger_for(mut connection: Connection, time: Duration) {
    let discard = async move {
        // A client whose request timed out gets no response, but learns of the end at once.
        let _ = connection.shutdown().await;
        let mut discarded = [0; 4096];
        let mut left = LINGER_MAX;
        while let Ok(len @ 1..) = connection.read(&mut discarded).await
            && left > 0
        {
            left = left.saturating_sub(len);
        }
    };
    // After `time` the connection is closed, also if the client still sends.
    let _ = timeout(time, discard).await;
}

/// Fails once `time` has passed since the first call that found no running timer.
fn poll_timer(timer: &mut Timer, time: Duration, cx: &mut Context<'_>) -> Poll<io::Error> {
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
    sleep.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
}

impl AsyncRead for WatchedConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.framing.is_broken() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        // hyper reads no further head before the response to the last one is complete.
        if this.framing.is_in_head() && this.place.is_busy() {
            this.place.end(clock::stopwatch());
        }
        if this.framing.is_in_head() && !this.has_head_room() {
            return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
        }
        let before = buffer.filled().len();
        let read = this.poll_part(cx, buffer);
        if read.is_ready() {
            let part = &buffer.filled()[before..];
            this.framing.follow(part);
            this.head_len += part.len();
            this.clear_heads.store(this.framing.clear_heads(), Ordering::Relaxed);
        }
        let head_ended = this.framing.take_head_ended();
        if head_ended || !this.framing.awaits_head() {
            this.head_timer = None;
            this.head_time = this.timeouts.head;
            this.head_len = 0;
            this.head_room = Vec::new();
            this.has_sent_in_head = false;
        }
        if this.peer.is_stopping() && this.head_time > STOP_HEAD_TIME {
            this.head_timer = None;
            this.head_time = STOP_HEAD_TIME;
        }
        if this.framing.awaits_head() && read.is_pending() {
            let time = this.head_time;
            return poll_timer(&mut this.head_timer, time, cx).map(Err);
        }
        read
    }
}

impl AsyncWrite for WatchedConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.has_sent_in_head |= this.framing.awaits_head();
        if this.error_filter.intercept(bytes, this.framing.is_http2()) {
            return Poll::Ready(Ok(bytes.len()));
        }
        this.peer.poll_write(&this.timeouts, cx, |connection, cx| connection.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.has_sent_in_head |= this.framing.awaits_head();
        if let [bytes] = bytes
            && this.error_filter.intercept(bytes, this.framing.is_http2())
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        this.peer.poll_write(&this.timeouts, cx, |connection, cx| {
            connection.poll_write_vectored(cx, bytes)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.peer.lock().connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        this.peer.poll_flush(&this.timeouts, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        this.peer.poll_shutdown(&this.timeouts, cx)
    }
}

impl WatchedConnection {
    /// Reads the next bytes. Of a large head it reads less at once than hyper's smallest buffer,
    /// because hyper doubles the buffer after reads that fill it.
    fn poll_part(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.head_len < HEAD_PART / 2 || !self.framing.is_in_head() {
            return self.peer.poll_read(cx, buffer);
        }
        let len = buffer.remaining().min(HEAD_PART);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(len));
        let read = self.peer.poll_read(cx, &mut part);
        let len = part.filled().len();
        buffer.advance(len);
        read
    }

    /// Returns whether the head may continue: what is beyond [`HEAD_FREE`] bytes counts against the
    /// memory of all heads, which callers share.
    fn has_head_room(&mut self) -> bool {
        let heads = self.error_filter.heads();
        while self.head_len >= HEAD_FREE + self.head_room.len() * HEAD_PART {
            let Ok(held) = heads.admit(&self.caller, HEAD_PART as u64) else {
                self.error_filter.refuse_head();
                return false;
            };
            self.head_room.push(held);
        }
        true
    }

    /// Sends the replacement of hyper's own error response, which hyper regards as sent.
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.error_filter.unsent().is_empty() {
            let unsent = self.error_filter.unsent();
            let written = self
                .peer
                .poll_write(&self.timeouts, cx, |connection, cx| connection.poll_write(cx, unsent));
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => self.error_filter.mark_sent(len),
            }
        }
        Poll::Ready(Ok(()))
    }
}

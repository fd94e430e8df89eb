//! The answer of another server, streamed to the client of this one.
//!
//! It ends with the connection to the other server, so a client that leaves ends its request there.
//! A stream of events also ends when its client closes its sending side, and when the pool is no
//! longer served there: a server that hangs must not look like a pool without events.

use super::connection::request_peer::RequestPeer;
use crate::share::Held;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, interval};

/// How often a stream of events looks whether the pool is still served where it comes from.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// What an answer of unknown length counts as: about what the kernel keeps of it between the servers.
const UNKNOWN_BYTES: u64 = 256 << 10;

/// What to do with the connection once the answer is complete.
type OnEnd = Box<dyn FnOnce() + Send + Sync>;

/// The body of an answer.
pub(super) struct ForwardedAnswer {
    incoming: Incoming,
    on_end: Option<OnEnd>,
    stream: Option<StreamWatch>,
    /// The room that the answer takes until the client has accepted it.
    room: Option<Box<Held>>,
    /// What the answer holds, and its client.
    held: Option<Box<(RequestPeer, [Option<Held>; 2])>>,
}

/// What ends a stream of events before its sender does.
pub(super) struct StreamWatch {
    peer: RequestPeer,
    is_served_there: Box<dyn Fn() -> bool + Send + Sync>,
    looks: Interval,
}

impl fmt::Debug for ForwardedAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_stream = self.stream.is_some();
        f.debug_struct("ForwardedAnswer").field("is_stream", &is_stream).finish_non_exhaustive()
    }
}

impl StreamWatch {
    /// `is_served_there` returns whether the pool is still served where the stream comes from.
    pub(super) fn new(
        peer: RequestPeer,
        is_served_there: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { peer, is_served_there: Box::new(is_served_there), looks: interval(LOOK_TIME) }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.peer.poll_closed(cx).is_ready() {
            return Poll::Ready(());
        }
        while self.looks.poll_tick(cx).is_ready() {
            if !(self.is_served_there)() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl ForwardedAnswer {
    /// `on_end` keeps the connection for the next request. It is dropped unused if the answer does
    /// not arrive to its end.
    pub(super) fn new(
        incoming: Incoming,
        on_end: impl FnOnce() + Send + Sync + 'static,
        stream: Option<StreamWatch>,
    ) -> Self {
        Self { incoming, on_end: Some(Box::new(on_end)), stream, room: None, held: None }
    }

    /// Returns whether it is a stream of events.
    pub(super) fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// Returns the bytes that the answer counts as: those that it has, or a part of an answer of
    /// unknown length. Event streams have a share of their own, at the server that sends them.
    pub(super) fn counted_bytes(&self) -> Option<u64> {
        (!self.is_stream()).then(|| self.incoming.size_hint().exact().unwrap_or(UNKNOWN_BYTES))
    }

    pub(super) fn set_room(&mut self, room: Held) {
        self.room = Some(Box::new(room));
    }

    pub(super) fn take_room(&mut self) -> Option<Held> {
        self.room.take().map(|room| *room)
    }

    /// Keeps what the answer holds until its last bytes have arrived, and then until the client has
    /// accepted them: hyper sends what has arrived so far as if it were all.
    pub(super) fn hold(&mut self, peer: RequestPeer, held: [Option<Held>; 2]) {
        self.held = Some(Box::new((peer, held)));
    }

    fn note_last_bytes(&mut self) {
        if let Some(held) = self.held.take() {
            let (peer, held) = *held;
            peer.hold(held, false);
        }
    }

    /// Returns the next bytes to send; `None` at the end.
    pub(super) fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Some(bytes) = data(frame) else { continue };
                    if self.incoming.is_end_stream() {
                        self.note_last_bytes();
                    }
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Poll::Ready(None) => {
                    self.note_last_bytes();
                    if let Some(on_end) = self.on_end.take() {
                        on_end();
                    }
                    return Poll::Ready(None);
                }
                // A stream that breaks ends: its client connects again, and resumes.
                Poll::Ready(Some(Err(_))) if self.is_stream() => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => {
                    let Some(watch) = &mut self.stream else { return Poll::Pending };
                    return watch.poll_ended(cx).map(|()| None);
                }
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.is_stream() { SizeHint::default() } else { self.incoming.size_hint() }
    }
}

fn data(frame: Frame<Bytes>) -> Option<Bytes> {
    frame.into_data().ok().filter(|bytes| !bytes.is_empty())
}

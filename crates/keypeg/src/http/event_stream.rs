//! The event stream of one client: reads the engine's feed of a pool.
//!
//! A stream reads the feed at its client's pace and buffers one frame at most (back-pressure):
//! while the client does not read, the stream does not read the feed either. A client that does not
//! read a frame within the connection's write timeout is disconnected. A stream ends when the pool
//! is deleted, the server stops, or the client closes its sending side.

mod frame;

use super::connection::request_peer::RequestPeer;
use crate::access::{Gate, Shown};
use crate::share::Held;
use bytes::Bytes;
use keypeg_store::{FeedBatch, Subscriber};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// The most events in one frame, which is what a stream holds for a client that does not read.
const FRAME_EVENTS_MAX: usize = 32;
/// How long a stream that has caught up collects events before it sends the next frame.
const BATCH_DELAY: Duration = Duration::from_millis(20);
/// The longest silence of a stream, so that dead connections are detected and proxies keep the
/// stream open.
const HEARTBEAT_TIME: Duration = Duration::from_secs(15);
/// The first frame: a browser reconnects 1 s after it loses the connection.
const OPENING: &str = "retry: 1000\n\n";
/// An empty comment.
const HEARTBEAT: &str = ":\n\n";

/// The token that an event stream was admitted with.
#[derive(Debug)]
pub(super) struct StreamPermit {
    gate: Arc<Gate>,
    shown: Shown,
}

impl StreamPermit {
    pub(super) fn new(gate: Arc<Gate>, shown: Shown) -> Self {
        Self { gate, shown }
    }

    /// Returns whether the gate would still admit the stream.
    fn is_valid(&self) -> bool {
        self.gate.still_admits(&self.shown)
    }
}

/// One client's event stream.
#[derive(Debug)]
pub(super) struct EventStream {
    subscriber: Box<dyn Subscriber>,
    /// Once the permit is no longer valid, the stream sends no event and ends when the next event
    /// or heartbeat is due.
    permit: Option<StreamPermit>,
    #[expect(dead_code, reason = "kept for its drop")]
    place: Held,
    peer: RequestPeer,
    opened: bool,
    /// Whether the stream collects events until `batch_timer` fires.
    collecting: bool,
    batch_timer: Pin<Box<Sleep>>,
    heartbeat_timer: Pin<Box<Sleep>>,
}

impl EventStream {
    pub(super) fn new(
        subscriber: Box<dyn Subscriber>,
        permit: Option<StreamPermit>,
        place: Held,
        peer: RequestPeer,
    ) -> Self {
        let batch_timer = Box::pin(sleep(BATCH_DELAY));
        let heartbeat_timer = Box::pin(sleep(HEARTBEAT_TIME));
        let (opened, collecting) = (false, false);
        Self { subscriber, permit, place, peer, opened, collecting, batch_timer, heartbeat_timer }
    }

    fn is_permitted(&self) -> bool {
        self.permit.as_ref().is_none_or(StreamPermit::is_valid)
    }

    /// Returns the next bytes to send; `None` at the end.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if !self.opened {
            self.opened = true;
            return Poll::Ready(Some(OPENING.into()));
        }
        if self.collecting {
            ready!(self.batch_timer.as_mut().poll(cx));
            self.collecting = false;
        }
        let next = self.subscriber.poll_next(cx, FRAME_EVENTS_MAX);
        if next.is_ready() && !self.is_permitted() {
            return Poll::Ready(None);
        }
        match next {
            Poll::Ready(Some(batch)) => {
                let is_full =
                    matches!(&batch, FeedBatch::Events(events) if events.len() == FRAME_EVENTS_MAX);
                self.collecting = !is_full;
                if self.collecting {
                    self.batch_timer.as_mut().set(sleep(BATCH_DELAY));
                }
                self.heartbeat_timer.as_mut().set(sleep(HEARTBEAT_TIME));
                Poll::Ready(Some(frame::text(&*self.subscriber, batch).into()))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                // A client that has closed gets what is there already, then the end.
                if self.peer.poll_closed(cx).is_ready() {
                    return Poll::Ready(None);
                }
                ready!(self.heartbeat_timer.as_mut().poll(cx));
                if !self.is_permitted() {
                    return Poll::Ready(None);
                }
                self.heartbeat_timer.as_mut().set(sleep(HEARTBEAT_TIME));
                Poll::Ready(Some(HEARTBEAT.into()))
            }
        }
    }
}

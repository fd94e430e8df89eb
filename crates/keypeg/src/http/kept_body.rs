//! The body of a request that this server may have to send more than once: to another server, or to
//! its own store after that. What was read first is kept, up to a bound.
//!
//! One reader reads at a time. A body of which more was read than is kept has no second reader. Does
//! not know what the body contains, nor who reads it.

use crate::share::{CallerId, Held, ReservedBudget};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

/// The most bytes of a body that are kept.
const KEPT_MAX: usize = 64 << 10;
/// The bytes that need no room: most bodies are not longer.
const KEPT_FREE: usize = 4 << 10;

/// A body with what was read of it.
#[derive(Debug)]
pub(super) struct KeptBody(Mutex<State>);

#[derive(Debug)]
struct State {
    incoming: Incoming,
    chunks: Vec<Bytes>,
    kept: usize,
    /// The memory of bodies and the caller to count for, once the request is admitted.
    room: Option<(Arc<ReservedBudget>, CallerId)>,
    held: Vec<Held>,
    /// Whether more was read than is kept.
    is_lost: bool,
    /// Whether the client has sent all of it.
    was_read: bool,
    /// Whether what the client sent is no body, or it left before the end of it.
    has_failed: bool,
    /// The number of the reader that may read.
    reader: u64,
}

/// Reads a body from its beginning.
#[derive(Debug)]
pub(super) struct Reader {
    body: Arc<KeptBody>,
    number: u64,
    /// The chunk to return next.
    next: usize,
}

impl KeptBody {
    pub(super) fn new(incoming: Incoming) -> Arc<Self> {
        let was_read = incoming.is_end_stream();
        Arc::new(Self(Mutex::new(State {
            incoming,
            chunks: Vec::new(),
            kept: 0,
            room: None,
            held: Vec::new(),
            is_lost: false,
            was_read,
            has_failed: false,
            reader: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is usable: no panic interrupts a change of more than one field.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the memory of bodies and the caller whose share the kept bytes count against.
    pub(super) fn set_room(&self, bodies: &Arc<ReservedBudget>, caller: CallerId) {
        self.lock().room = Some((Arc::clone(bodies), caller));
    }

    /// Returns a reader of the whole body; `None` if a part of it is no longer kept. An earlier
    /// reader gets no more of it.
    pub(super) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.lock();
        if state.is_lost {
            return None;
        }
        state.reader += 1;
        Some(Reader { body: Arc::clone(self), number: state.reader, next: 0 })
    }

    /// Returns whether the client has not sent a whole and valid body. No server applies such a request.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().has_failed
    }

    /// Returns whether the whole body has been read from the client.
    pub(super) fn was_read(&self) -> bool {
        let state = self.lock();
        state.was_read || state.incoming.is_end_stream()
    }
}

impl State {
    /// Keeps a chunk if there is room for it.
    fn keep(&mut self, chunk: &Bytes) {
        let total = self.kept + chunk.len();
        let more = total.saturating_sub(KEPT_FREE.max(self.kept));
        if !self.is_lost && total <= KEPT_MAX {
            let held = match (&self.room, more) {
                (Some((bodies, caller)), 1..) => bodies.admit(caller, more as u64).map(Some),
                _ => Ok(None),
            };
            if let Ok(held) = held {
                self.held.extend(held);
                self.kept = total;
                self.chunks.push(chunk.clone());
                return;
            }
        }
        self.is_lost = true;
        self.chunks.clear();
        self.held.clear();
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let mut state = this.body.lock();
        if state.reader != this.number {
            // The attempt that it belongs to has ended, so nothing polls it again.
            return Poll::Pending;
        }
        if let Some(chunk) = state.chunks.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if state.was_read {
            return Poll::Ready(None);
        }
        loop {
            let frame = ready!(Pin::new(&mut state.incoming).poll_frame(cx)).transpose();
            state.has_failed |= frame.is_err();
            let Some(frame) = frame? else {
                state.was_read = true;
                return Poll::Ready(None);
            };
            // Trailers are of no use to any route.
            let Ok(chunk) = frame.into_data() else { continue };
            state.keep(&chunk);
            this.next = state.chunks.len();
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.body.lock();
        self.next >= state.chunks.len() && (state.was_read || state.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.body.lock();
        let kept: usize = state.chunks.iter().skip(self.next).map(Bytes::len).sum();
        let mut hint =
            if state.was_read { SizeHint::with_exact(0) } else { state.incoming.size_hint() };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + kept as u64);
        }
        hint.set_lower(hint.lower() + kept as u64);
        hint
    }
}

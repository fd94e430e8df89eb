//! Lanes: how requests reach the engine's thread and answers leave it, in bulk.
//!
//! One lane a core of the server. Requests are pushed under a lock that is held for a push; the
//! engine swaps the whole queue out. Answers come back as one `Vec` and one wake-up, and
//! [`Lane::run_delivery`], a future that runs on the lane's own core, hands each to its call. A lane is
//! bounded: over the bound a call is answered [`RequestError::Overloaded`] at once; calls that give
//! back or keep alive have room of their own. Knows nothing of what a request means, but that a
//! grant nobody received must be taken back, and that whoever waits in line and has gone must leave.

use crate::core::sabotage::{Sabotage, enabled};
use crate::request::{Call, Principal, Reply, Request, RequestError};
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;

/// Requests that may wait in one lane before new work is refused.
pub const LANE_MAX: usize = 16_384;
/// DiskSpace above [`LANE_MAX`] for calls that give back, keep alive or delete.
pub const LANE_RESERVE: usize = 16_384;

/// The end of a lane that a core of the server holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lane {
    shared: Arc<Shared>,
}

/// The end of a lane that the engine's thread holds.
#[derive(Debug)]
pub(crate) struct EngineLane {
    shared: Arc<Shared>,
    asked: Vec<(Slot, Request)>,
    answers: Vec<(Slot, Reply)>,
}

/// A call's place in its lane.
pub(crate) type Slot = u32;

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    outbox: Mutex<Outbox>,
    calls: Mutex<Calls>,
    wakeup: Wakeup,
    /// How many places fewer than [`LANE_MAX`] it has, and its reserve as many fewer.
    narrowed: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inbox {
    queue: Vec<(Slot, Request)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Outbox {
    answers: Vec<(Slot, Reply)>,
    deliverer: Option<Waker>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Calls {
    states: Vec<CallState>,
    free: Vec<Slot>,
}

#[derive(Debug)]
enum CallState {
    Free,
    Waiting(Option<Waker>),
    Dropped,
    Answered(Reply),
}

/// Wakes the engine's thread; rings once for any number of pushes until it is heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wakeup {
    inner: Arc<WakeupInner>,
}

#[derive(Debug, Default)]
struct WakeupInner {
    rung: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Wakeup {
    /// Names the thread to wake; rings before this are remembered.
    pub(crate) fn listen(&self) {
        self.inner.thread.get_or_init(std::thread::current);
    }

    pub(crate) fn notify(&self) {
        if !self.inner.rung.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.inner.thread.get()
        {
            thread.unpark();
        }
    }

    /// Tells whether it rang since the last time it was asked.
    pub(crate) fn take(&self) -> bool {
        self.inner.rung.swap(false, Ordering::AcqRel)
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while a lane's lock is held would be a bug in this file; its data is whole at every
    // point a push or a pop can panic.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Makes a lane: the server's end and the engine's.
pub(crate) fn lane(wakeup: &Wakeup) -> (Lane, EngineLane) {
    let shared = Arc::new(Shared { wakeup: wakeup.clone(), ..Shared::default() });
    (
        Lane { shared: Arc::clone(&shared) },
        EngineLane { shared, asked: Vec::new(), answers: Vec::new() },
    )
}

impl Lane {
    /// Has at most so many requests wait before new work is refused, up to [`LANE_MAX`], and as
    /// many again of the others.
    pub fn set_capacity(&self, requests: usize) {
        self.shared.narrowed.store(LANE_MAX - requests.min(LANE_MAX), Ordering::Relaxed);
    }

    /// Asks; the future gives the answer. A refusal for want of room is there at once. SegmentDrop
    /// the future before its answer was taken lets the request run, but for one that waits in
    /// line, which leaves it; a grant is then taken back.
    pub fn submit(&self, request: Request) -> PendingReply {
        let slot = locked(&self.shared.calls).open();
        let waits = request.call.may_wait();
        match self.push(slot, request) {
            Ok(()) => PendingReply { lane: self.clone(), slot: Some(slot), waits, refused: None },
            Err(refusal) => {
                locked(&self.shared.calls).close(slot);
                PendingReply { lane: self.clone(), slot: None, waits, refused: Some(refusal) }
            }
        }
    }

    fn push(&self, slot: Slot, request: Request) -> Result<(), RequestError> {
        let narrowed = self.shared.narrowed.load(Ordering::Relaxed);
        let (most, reserve) = (LANE_MAX - narrowed, LANE_RESERVE - narrowed);
        // What the server asks for itself takes grants back that nobody received, or is for those who
        // look after it; connections bound how much that can be.
        let room = if request.by == Principal::Server {
            usize::MAX
        } else if request.call.is_new_work() {
            most
        } else {
            most + reserve
        };
        {
            let mut inbox = locked(&self.shared.inbox);
            if inbox.closed {
                return Err(RequestError::ShuttingDown);
            }
            if inbox.queue.len() >= room {
                return Err(RequestError::Overloaded);
            }
            inbox.queue.push((slot, request));
        }
        self.shared.wakeup.notify();
        Ok(())
    }

    /// Tells the engine that nobody is left to take this call's answer. Has room of its own: there
    /// is at most one for each call. To be called while the slot is held, so that whoever gets it
    /// next asks after this.
    fn leave(&self, slot: Slot) {
        {
            let mut inbox = locked(&self.shared.inbox);
            if inbox.closed {
                return;
            }
            inbox.queue.push((slot, Request { by: Principal::Server, call: Call::CancelWait }));
        }
        self.shared.wakeup.notify();
    }

    /// Hands answers to their calls until the engine has closed the lane and all are handed out.
    /// To be run once, on the lane's own core.
    pub async fn run_delivery(&self) {
        let mut batch = Vec::new();
        while self.next_batch(&mut batch).await {
            let mut taken_back = Vec::new();
            {
                let mut calls = locked(&self.shared.calls);
                for (slot, reply) in batch.drain(..) {
                    calls.answer(slot, reply, &mut taken_back);
                }
            }
            for call in taken_back {
                drop(self.submit(Request { by: Principal::Server, call }));
            }
        }
    }

    async fn next_batch(&self, batch: &mut Vec<(Slot, Reply)>) -> bool {
        std::future::poll_fn(|context| {
            let mut outbox = locked(&self.shared.outbox);
            if !outbox.answers.is_empty() {
                mem::swap(&mut outbox.answers, batch);
                return Poll::Ready(true);
            }
            if outbox.closed {
                return Poll::Ready(false);
            }
            outbox.deliverer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl EngineLane {
    /// Takes all that was asked, in order.
    pub(crate) fn take(&mut self, mut each: impl FnMut(Slot, Request)) {
        mem::swap(&mut locked(&self.shared.inbox).queue, &mut self.asked);
        for (slot, request) in self.asked.drain(..) {
            each(slot, request);
        }
    }

    /// Puts an answer aside until [`EngineLane::flush`].
    pub(crate) fn answer(&mut self, slot: Slot, reply: Reply) {
        self.answers.push((slot, reply));
    }

    /// Gives the answers put aside away, with one wake-up.
    pub(crate) fn flush(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let waker = {
            let mut outbox = locked(&self.shared.outbox);
            if outbox.answers.is_empty() {
                mem::swap(&mut outbox.answers, &mut self.answers);
            } else {
                outbox.answers.append(&mut self.answers);
            }
            outbox.deliverer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Refuses calls to come; those already pushed can still be taken and answered.
    pub(crate) fn close_inbox(&self) {
        locked(&self.shared.inbox).closed = true;
    }

    /// Says that no answer will come after those flushed.
    pub(crate) fn close_outbox(&self) {
        let waker = {
            let mut outbox = locked(&self.shared.outbox);
            outbox.closed = true;
            outbox.deliverer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Calls {
    fn open(&mut self) -> Slot {
        if let Some(slot) = self.free.pop() {
            self.states[slot as usize] = CallState::Waiting(None);
            return slot;
        }
        let slot = Slot::try_from(self.states.len()).expect("invariant: connections are bounded");
        self.states.push(CallState::Waiting(None));
        slot
    }

    fn close(&mut self, slot: Slot) -> CallState {
        self.free.push(slot);
        mem::replace(&mut self.states[slot as usize], CallState::Free)
    }

    fn answer(&mut self, slot: Slot, reply: Reply, taken_back: &mut Vec<Call>) {
        match mem::replace(&mut self.states[slot as usize], CallState::Free) {
            CallState::Waiting(waker) => {
                self.states[slot as usize] = CallState::Answered(reply);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            CallState::Dropped => {
                self.free.push(slot);
                taken_back.extend(undo_undelivered(&reply));
            }
            CallState::Free | CallState::Answered(_) => {
                unreachable!("invariant: a call is answered once")
            }
        }
    }
}

/// What undoes a reply that nobody received: a grant is given back, all else stands.
pub fn undo_undelivered(reply: &Reply) -> Option<Call> {
    if enabled(Sabotage::KeepUndelivered) {
        return None;
    }
    let Reply::Granted { lease, pool, again: false, .. } = reply else { return None };
    Some(Call::RevokeUndelivered { pool: pool.clone(), lease: lease.id })
}

/// The answer to one call, to come.
#[derive(Debug)]
#[must_use = "a call that is dropped is not answered"]
pub struct PendingReply {
    lane: Lane,
    slot: Option<Slot>,
    /// Whether its answer can be long in coming.
    waits: bool,
    refused: Option<RequestError>,
}

impl Future for PendingReply {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        if let Some(refusal) = self.refused.take() {
            return Poll::Ready(Reply::Refused(refusal));
        }
        let slot = self.slot.expect("invariant: not polled after it is ready");
        let mut calls = locked(&self.lane.shared.calls);
        if let CallState::Waiting(waker) = &mut calls.states[slot as usize] {
            match waker {
                Some(old) if old.will_wake(context.waker()) => {}
                _ => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let state = calls.close(slot);
        drop(calls);
        self.slot = None;
        match state {
            CallState::Answered(reply) => Poll::Ready(reply),
            CallState::Free | CallState::Waiting(_) | CallState::Dropped => {
                unreachable!("invariant: a call that is polled waits or is answered")
            }
        }
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let mut unread = Vec::new();
        {
            let mut calls = locked(&self.lane.shared.calls);
            let state = &mut calls.states[slot as usize];
            if let CallState::Answered(reply) = state {
                unread.extend(undo_undelivered(reply));
                calls.close(slot);
            } else {
                *state = CallState::Dropped;
                if self.waits {
                    self.lane.leave(slot);
                }
            }
        }
        for call in unread {
            drop(self.lane.submit(Request { by: Principal::Server, call }));
        }
    }
}

#[cfg(test)]
mod tests;

//! Lanes: bounded queues that carry requests to the engine's thread and replies back, in bulk.
//!
//! Each core of the server has one lane. A request is pushed under a lock that is held only for
//! the push; the engine swaps the whole queue out (double buffering). Replies return as one `Vec`
//! with one wake-up, and [`Lane::run_delivery`], a future on the lane's own core, passes each to
//! its call. A full lane refuses a call with [`RequestError::Overloaded`] at once (back-pressure);
//! calls that release or keep alive have a reserve. A lane knows nothing of what a request means,
//! except that an undelivered grant must be revoked, and that a waiter whose client has
//! disconnected must leave the wait queue.

use crate::request::{Call, Principal, Reply, Request, RequestError};
use crate::wakeup::Wakeup;
use keypeg_core::sabotage::{Sabotage, enabled};
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// The most requests queued in one lane; above it new work is refused.
pub const LANE_MAX: usize = 16_384;
/// The places above [`LANE_MAX`] that are reserved for calls that release, keep alive or delete.
pub const LANE_RESERVE: usize = 16_384;

/// The server's end of a lane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Lane {
    shared: Arc<Shared>,
}

/// The engine thread's end of a lane.
#[derive(Debug)]
pub struct EngineLane {
    shared: Arc<Shared>,
    items: Vec<(CallSlot, LaneItem)>,
    replies: Vec<(CallSlot, Reply)>,
    /// The refused keep-alives that the store knows of.
    seen_refusals: u64,
    /// The calls that were taken and are not answered; `None` if nothing asks for them.
    taken: Option<TakenCalls>,
}

/// Calls as a set of their slots.
#[derive(Debug, Default)]
struct TakenCalls(Vec<bool>);

impl TakenCalls {
    fn set(&mut self, slot: CallSlot, is_taken: bool) {
        if slot.index() >= self.0.len() {
            self.0.resize(slot.index() + 1, false);
        }
        self.0[slot.index()] = is_taken;
    }
}

/// What a store takes from a lane.
#[derive(Clone, Debug)]
pub enum LaneItem {
    /// A new call. The store answers it exactly once.
    Request(Request),
    /// The client of this call has disconnected, so the call must leave its wait queue. It is not a
    /// call: the store still answers the call once, with [`Reply::Done`] if it waited. Ignored if
    /// the call is answered already.
    Abandoned,
}

impl From<Request> for LaneItem {
    fn from(request: Request) -> Self {
        Self::Request(request)
    }
}

/// The index of a call in its lane's slab. A slot is reused after its call has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallSlot(pub u32);

impl CallSlot {
    fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    outbox: Mutex<Outbox>,
    calls: Mutex<Calls>,
    wakeup: Wakeup,
    /// By how many places a configured capacity is below [`LANE_MAX`]; the reserve shrinks by as
    /// many.
    capacity_cut: AtomicUsize,
    /// The number of refused keep-alives, see [`Lane::note_refused_keep_alive`].
    refused_keep_alives: AtomicU64,
}

#[derive(Debug, Default)]
struct Inbox {
    queue: Vec<(CallSlot, LaneItem)>,
    /// Why it takes no request; `None` if it does.
    refusal: Option<RequestError>,
}

#[derive(Debug, Default)]
struct Outbox {
    replies: Vec<(CallSlot, Reply)>,
    delivery_waker: Option<Waker>,
    closed: bool,
}

/// The calls of one lane: a slab with a free list.
#[derive(Debug, Default)]
struct Calls {
    states: Vec<CallState>,
    free: Vec<CallSlot>,
}

#[derive(Debug)]
enum CallState {
    Free,
    Pending(Option<Waker>),
    Dropped,
    Answered(Reply),
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under this lock would be a bug of this file, and the data is consistent at every
    // point where a push or a pop can panic: a poisoned lock is safe to use.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Creates a lane and returns the server's end and the engine's end.
pub fn lane(wakeup: &Wakeup) -> (Lane, EngineLane) {
    let shared = Arc::new(Shared { wakeup: wakeup.clone(), ..Shared::default() });
    (
        Lane { shared: Arc::clone(&shared) },
        EngineLane {
            shared,
            items: Vec::new(),
            replies: Vec::new(),
            seen_refusals: 0,
            taken: None,
        },
    )
}

impl Lane {
    /// Sets how many requests are queued before new work is refused, at most [`LANE_MAX`]. The
    /// reserve for the other calls gets the same size.
    pub fn set_capacity(&self, requests: usize) {
        self.shared.capacity_cut.store(LANE_MAX - requests.min(LANE_MAX), Ordering::Relaxed);
    }

    /// Returns the number of requests that the store has not taken yet, at this instant.
    pub fn depth(&self) -> usize {
        locked(&self.shared.inbox).queue.len()
    }

    /// Notes that the server refused a keep-alive, or what could have become one, because a limit
    /// was reached.
    /// Time during which clients cannot keep their keys alive purges no key: see
    /// [`EngineLane::take_refused_keep_alives`].
    pub fn note_refused_keep_alive(&self) {
        self.shared.refused_keep_alives.fetch_add(1, Ordering::Relaxed);
    }

    /// Submits a request; the future returns its reply. A full or closed lane refuses at once.
    ///
    /// Dropping the future does not stop the request, except that a waiter leaves the wait queue;
    /// a grant that then reaches no client is revoked.
    pub fn submit(&self, request: Request) -> PendingReply {
        let slot = locked(&self.shared.calls).open();
        let may_wait = request.call.may_wait();
        match self.push(slot, request) {
            Ok(()) => {
                PendingReply { lane: self.clone(), slot: Some(slot), may_wait, refusal: None }
            }
            Err(refusal) => {
                locked(&self.shared.calls).close(slot);
                PendingReply { lane: self.clone(), slot: None, may_wait, refusal: Some(refusal) }
            }
        }
    }

    fn push(&self, slot: CallSlot, request: Request) -> Result<(), RequestError> {
        let cut = self.shared.capacity_cut.load(Ordering::Relaxed);
        let (capacity, reserve) = (LANE_MAX - cut, LANE_RESERVE - cut);
        // The server's own requests revoke undelivered grants or serve its operators; the number
        // of connections bounds them.
        let queue_max = if request.by == Principal::Server {
            usize::MAX
        } else if request.call.is_new_work() {
            capacity
        } else {
            capacity + reserve
        };
        {
            let mut inbox = locked(&self.shared.inbox);
            if let Some(why) = &inbox.refusal {
                let why = why.clone();
                drop(inbox);
                if why == RequestError::NotOwner {
                    // The store looks whether that is still so.
                    self.shared.wakeup.notify();
                }
                return Err(why);
            }
            if inbox.queue.len() >= queue_max {
                drop(inbox);
                if request.call.keeps_alive() {
                    self.note_refused_keep_alive();
                }
                return Err(RequestError::Overloaded);
            }
            inbox.queue.push((slot, LaneItem::Request(request)));
        }
        self.shared.wakeup.notify();
        Ok(())
    }

    /// Informs the store that the client of this call has disconnected. The notice is exempt from the
    /// capacity: there is at most one for each call. It must be pushed before the slot is free, so
    /// that the next call in this slot is queued behind it.
    fn abandon(&self, slot: CallSlot) {
        {
            let mut inbox = locked(&self.shared.inbox);
            if inbox.refusal.is_some() {
                return;
            }
            inbox.queue.push((slot, LaneItem::Abandoned));
        }
        self.shared.wakeup.notify();
    }

    /// Passes replies to their calls until the engine has closed the lane and all replies are
    /// delivered. Must run once, on the lane's own core.
    pub async fn run_delivery(&self) {
        let mut batch = Vec::new();
        while self.next_batch(&mut batch).await {
            let mut revocations = Vec::new();
            {
                let mut calls = locked(&self.shared.calls);
                for (slot, reply) in batch.drain(..) {
                    calls.answer(slot, reply, &mut revocations);
                }
            }
            for call in revocations {
                drop(self.submit(Request::new(Principal::Server, call)));
            }
        }
    }

    async fn next_batch(&self, batch: &mut Vec<(CallSlot, Reply)>) -> bool {
        std::future::poll_fn(|context| {
            let mut outbox = locked(&self.shared.outbox);
            if !outbox.replies.is_empty() {
                mem::swap(&mut outbox.replies, batch);
                return Poll::Ready(true);
            }
            if outbox.closed {
                return Poll::Ready(false);
            }
            outbox.delivery_waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl EngineLane {
    /// Takes all queued items, in their order.
    pub fn take(&mut self, mut each: impl FnMut(CallSlot, LaneItem)) {
        mem::swap(&mut locked(&self.shared.inbox).queue, &mut self.items);
        for (slot, item) in self.items.drain(..) {
            if let (Some(taken), LaneItem::Request(_)) = (&mut self.taken, &item) {
                taken.set(slot, true);
            }
            each(slot, item);
        }
    }

    /// Remembers from now on which calls are taken and not answered, so that
    /// [`EngineLane::fail_taken`] can answer them.
    pub fn remember_taken(&mut self) {
        self.taken.get_or_insert_default();
    }

    /// Buffers a reply to each call that was taken and is not answered: the store has lost them.
    pub fn fail_taken(&mut self, reply: &Reply) {
        let Some(TakenCalls(taken)) = &mut self.taken else { return };
        for (index, is_taken) in (0..).zip(taken) {
            if mem::take(is_taken) {
                self.replies.push((CallSlot(index), reply.clone()));
            }
        }
    }

    /// Refuses the queued requests, and every further one at once. Those that were taken stay.
    pub fn refuse(&mut self, why: &RequestError) {
        {
            let mut inbox = locked(&self.shared.inbox);
            inbox.refusal = Some(why.clone());
            mem::swap(&mut inbox.queue, &mut self.items);
        }
        for (slot, item) in self.items.drain(..) {
            // A call that is abandoned is one that was taken.
            if let LaneItem::Request(_) = item {
                self.replies.push((slot, Reply::Refused(why.clone())));
            }
        }
        self.flush();
    }

    /// Takes requests again after [`EngineLane::refuse`].
    pub fn accept(&mut self) {
        locked(&self.shared.inbox).refusal = None;
    }

    /// Returns the number of keep-alives that the server refused since the last call, because a
    /// limit was reached. If there are any, the time since the last turn must not count towards a
    /// purge, nor the time until their clients have tried again.
    pub fn take_refused_keep_alives(&mut self) -> u64 {
        let count = self.shared.refused_keep_alives.load(Ordering::Relaxed);
        count - mem::replace(&mut self.seen_refusals, count)
    }

    /// Buffers a reply until [`EngineLane::flush`].
    pub fn answer(&mut self, slot: CallSlot, reply: Reply) {
        if let Some(taken) = &mut self.taken {
            taken.set(slot, false);
        }
        self.replies.push((slot, reply));
    }

    /// Sends the buffered replies, with one wake-up.
    pub fn flush(&mut self) {
        if self.replies.is_empty() {
            return;
        }
        let waker = {
            let mut outbox = locked(&self.shared.outbox);
            if outbox.replies.is_empty() {
                mem::swap(&mut outbox.replies, &mut self.replies);
            } else {
                outbox.replies.append(&mut self.replies);
            }
            outbox.delivery_waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Refuses further requests; those already queued can still be taken and answered.
    pub fn close_inbox(&self) {
        locked(&self.shared.inbox).refusal = Some(RequestError::ShuttingDown);
    }

    /// Marks the replies flushed so far as the last ones.
    pub fn close_outbox(&self) {
        let waker = {
            let mut outbox = locked(&self.shared.outbox);
            outbox.closed = true;
            outbox.delivery_waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Calls {
    fn open(&mut self) -> CallSlot {
        if let Some(slot) = self.free.pop() {
            self.states[slot.index()] = CallState::Pending(None);
            return slot;
        }
        let slot = u32::try_from(self.states.len()).expect("invariant: connections are bounded");
        self.states.push(CallState::Pending(None));
        CallSlot(slot)
    }

    fn close(&mut self, slot: CallSlot) -> CallState {
        self.free.push(slot);
        mem::replace(&mut self.states[slot.index()], CallState::Free)
    }

    fn answer(&mut self, slot: CallSlot, reply: Reply, revocations: &mut Vec<Call>) {
        match mem::replace(&mut self.states[slot.index()], CallState::Free) {
            CallState::Pending(waker) => {
                self.states[slot.index()] = CallState::Answered(reply);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            CallState::Dropped => {
                self.free.push(slot);
                revocations.extend(undo_undelivered(&reply));
            }
            CallState::Free | CallState::Answered(_) => {
                unreachable!("invariant: a call is answered once")
            }
        }
    }
}

/// Returns the call that undoes a reply no client received: a grant is revoked, all other replies
/// need no undo.
pub fn undo_undelivered(reply: &Reply) -> Option<Call> {
    if enabled(Sabotage::KeepUndelivered) {
        return None;
    }
    let Reply::Granted { lease, pool, redelivered: false, .. } = reply else { return None };
    Some(Call::RevokeUndelivered { pool: pool.clone(), lease: lease.id })
}

/// The future reply to one call.
#[derive(Debug)]
#[must_use = "a call whose future is dropped returns no reply"]
pub struct PendingReply {
    lane: Lane,
    slot: Option<CallSlot>,
    /// Whether the call can enter a wait queue.
    may_wait: bool,
    refusal: Option<RequestError>,
}

impl Future for PendingReply {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        if let Some(refusal) = self.refusal.take() {
            return Poll::Ready(Reply::Refused(refusal));
        }
        let slot = self.slot.expect("invariant: not polled after it is ready");
        let mut calls = locked(&self.lane.shared.calls);
        if let CallState::Pending(waker) = &mut calls.states[slot.index()] {
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
            CallState::Free | CallState::Pending(_) | CallState::Dropped => {
                unreachable!("invariant: a polled call is pending or answered")
            }
        }
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let mut revocation = None;
        {
            let mut calls = locked(&self.lane.shared.calls);
            let state = &mut calls.states[slot.index()];
            if let CallState::Answered(reply) = state {
                revocation = undo_undelivered(reply);
                calls.close(slot);
            } else {
                *state = CallState::Dropped;
                if self.may_wait {
                    self.lane.abandon(slot);
                }
            }
        }
        if let Some(call) = revocation {
            drop(self.lane.submit(Request::new(Principal::Server, call)));
        }
    }
}

#[cfg(test)]
mod tests;

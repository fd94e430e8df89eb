//! The engine thread's loop: it takes requests from the lanes, runs a turn, sends the replies, and
//! sleeps until a deadline or a new request.
//!
//! [`Run`] owns the [`EngineState`] and the engine's ends of the lanes, and knows nothing of what a
//! request means, nor which thread runs its turns. A reply leaves only after its turn has returned,
//! and so is durable.

use crate::state::{CallId, CommitError, EngineState, NextWakeup};
use keypeg_store::{CallSlot, EngineLane, LaneItem, Reply, RequestError, Wakeup};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often serving time is counted while a key's purge deadline runs.
const SERVING_TICK: Duration = Duration::from_millis(100);

/// How long calls that were begun may delay the hand-over of a shard.
const HAND_OVER_MAX_US: u64 = 2_000_000;

/// A running engine: what its turns need.
pub(crate) struct Run {
    pub(crate) state: EngineState,
    pub(crate) lanes: Vec<EngineLane>,
    pub(crate) signals: Signals,
    pub(crate) end: LaneEnd,
    /// What was taken from the lanes and no turn has executed.
    requests: VecDeque<(CallId, LaneItem)>,
    replies: Vec<(CallId, Reply)>,
    stopping_since_us: Option<u64>,
}

/// What other threads tell a running engine.
#[derive(Clone)]
pub(crate) struct Signals {
    /// Wakes the engine's thread.
    pub(crate) wakeup: Wakeup,
    /// What the checkpointer notifies, if it is not the wakeup above.
    pub(crate) lookups: Option<Wakeup>,
    /// What requests notify, if it is not the wakeup above.
    pub(crate) requests: Option<Wakeup>,
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) cancels_waits: Arc<AtomicBool>,
}

/// What becomes of the lanes when the engine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// They are closed: what is queued is executed first.
    Closed,
    /// Another engine may take them: what is queued stays.
    Kept,
}

/// What follows a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterTurn {
    /// Another turn.
    Turn,
    /// A pause of at most this time, without an end if `None`.
    Pause(Option<Duration>),
    /// The end: a stop was requested, and every request is answered.
    End,
}

impl Signals {
    /// Makes the current thread the one that is woken.
    pub(crate) fn listen(&self) {
        self.wakeup.listen();
        if let Some(lookups) = &self.lookups {
            lookups.listen();
        }
    }

    /// Sleeps until the thread is woken, at most for this time; not at all if it was since the last
    /// turn.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let lookups = self.lookups.as_ref().is_some_and(Wakeup::is_notified);
        if self.wakeup.is_notified() || lookups {
            return;
        }
        match timeout {
            None => std::thread::park(),
            Some(timeout) => std::thread::park_timeout(timeout),
        }
    }

    /// Takes all notifications, before a turn that looks at all that they can be about.
    fn take_notices(&self) {
        for wakeup in self.lookups.iter().chain(&self.requests).chain([&self.wakeup]) {
            let _ = wakeup.take();
        }
    }

    /// Returns what is notified when a request arrives.
    fn arrivals(&self) -> Vec<Wakeup> {
        self.requests.iter().chain([&self.wakeup]).cloned().collect()
    }
}

impl Run {
    pub(crate) fn new(
        mut state: EngineState,
        lanes: Vec<EngineLane>,
        signals: Signals,
        end: LaneEnd,
    ) -> Self {
        state.set_arrivals(signals.arrivals());
        let (requests, replies, stopping_since_us) = (VecDeque::new(), Vec::new(), None);
        Self { state, lanes, signals, end, requests, replies, stopping_since_us }
    }

    /// Runs turns on this thread until a stop is requested and every request is answered.
    pub(crate) fn run(&mut self) -> Result<(), CommitError> {
        self.signals.listen();
        loop {
            match self.turn()? {
                AfterTurn::Turn => {}
                AfterTurn::Pause(timeout) => self.signals.sleep(timeout),
                AfterTurn::End => return self.close(),
            }
        }
    }

    /// Takes what is queued, runs one turn and sends its replies.
    pub(crate) fn turn(&mut self) -> Result<AfterTurn, CommitError> {
        self.signals.take_notices();
        let stopping = self.signals.stopping.load(Ordering::Acquire);
        if stopping && self.end == LaneEnd::Closed {
            self.lanes.iter().for_each(EngineLane::close_inbox);
        }
        if stopping || self.signals.cancels_waits.load(Ordering::Acquire) {
            self.state.cancel_waits();
        }
        if !stopping || self.end == LaneEnd::Closed {
            self.take_requests();
        }
        let next = match self.state.turn(&mut self.requests, &mut self.replies) {
            Ok(next) => next,
            Err(error) => {
                if self.end == LaneEnd::Kept {
                    self.refuse_unexecuted();
                }
                return Err(error);
            }
        };
        self.send_replies();
        free_deleted_pools(&mut self.state);
        if stopping && self.requests.is_empty() && self.state.pending_count() == 0 {
            return Ok(AfterTurn::End);
        }
        if stopping && self.end == LaneEnd::Kept {
            // What waits for the checkpointer may wait for one that has failed.
            let now_us = self.state.stopwatch_us();
            if now_us - *self.stopping_since_us.get_or_insert(now_us) > HAND_OVER_MAX_US {
                self.refuse_unexecuted();
                return Ok(AfterTurn::End);
            }
        }
        if !self.requests.is_empty() || next.due_in_us == Some(0) {
            return Ok(AfterTurn::Turn);
        }
        Ok(AfterTurn::Pause(pause(next, stopping)))
    }

    /// Logs the stop, and ends the lanes if no other engine takes them.
    pub(crate) fn close(&mut self) -> Result<(), CommitError> {
        self.state.close()?;
        if self.end == LaneEnd::Closed {
            self.lanes.iter().for_each(EngineLane::close_outbox);
        }
        Ok(())
    }

    /// Refuses, after a failed commit, the requests that were surely not applied: those that waited
    /// in line, and those that no turn has executed.
    fn refuse_unexecuted(&mut self) {
        self.state.abandon_waits(&mut self.replies);
        for (call_id, item) in self.requests.drain(..) {
            if let LaneItem::Request(_) = item {
                self.replies.push((call_id, Reply::Refused(RequestError::NotOwner)));
            }
        }
        self.send_replies();
    }

    fn take_requests(&mut self) {
        let refused = self.lanes.iter_mut().map(EngineLane::take_refused_keep_alives).sum();
        if refused > 0 {
            self.state.note_refused_keep_alives(refused);
        }
        for (index, lane) in (0..).zip(&mut self.lanes) {
            lane.take(|CallSlot(slot), item| {
                self.requests.push_back((CallId { lane: index, slot }, item));
            });
        }
    }

    fn send_replies(&mut self) {
        for (call_id, reply) in self.replies.drain(..) {
            self.lanes[call_id.lane as usize].answer(CallSlot(call_id.slot), reply);
        }
        self.lanes.iter_mut().for_each(EngineLane::flush);
    }
}

/// Returns how long there is nothing to do without a notification.
fn pause(next: NextWakeup, stopping: bool) -> Option<Duration> {
    let due = next.due_in_us.map(Duration::from_micros);
    let tick = next.counts_serving.then_some(SERVING_TICK);
    let stop = stopping.then_some(SERVING_TICK);
    [due, tick, stop].into_iter().flatten().min()
}

/// Frees deleted pools on a separate thread, since that takes O(keys).
fn free_deleted_pools(state: &mut EngineState) {
    let pools = state.take_deleted_pools();
    if !pools.is_empty() {
        // When no thread can be created, the closure is dropped and frees the pools here: slow,
        // but correct.
        let spawned = std::thread::Builder::new().name("keypeg-free".into()).spawn(|| drop(pools));
        drop(spawned);
    }
}

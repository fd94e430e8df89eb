//! The engine thread's loop: it takes requests from the lanes, runs a turn, sends the replies, and
//! sleeps until a deadline or a new request.
//!
//! It owns the [`EngineState`] and the engine's ends of the lanes, and knows nothing of what a
//! request means. A reply leaves only after its turn has returned, and so is durable.

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

/// The data of the engine thread.
pub(crate) struct Run<'a> {
    pub(crate) state: EngineState,
    pub(crate) lanes: &'a mut [EngineLane],
    pub(crate) wakeup: Wakeup,
    /// What the checkpointer notifies, if it is not the wakeup of the lanes.
    pub(crate) lookups: Option<Wakeup>,
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) cancels_waits: Arc<AtomicBool>,
    pub(crate) end: LaneEnd,
}

/// What becomes of the lanes when the engine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneEnd {
    /// They are closed: what is queued is executed first.
    Closed,
    /// Another engine may take them: what is queued stays.
    Kept,
}

impl Run<'_> {
    /// Runs turns until a stop is requested and every request is answered.
    pub(crate) fn run(&mut self) -> Result<(), CommitError> {
        self.wakeup.listen();
        self.state.set_arrivals(self.wakeup.clone());
        if let Some(lookups) = &self.lookups {
            lookups.listen();
        }
        let mut requests = VecDeque::new();
        let mut replies = Vec::new();
        let mut stopping_since_us = None;
        loop {
            let stopping = self.stopping.load(Ordering::Acquire);
            if stopping && self.end == LaneEnd::Closed {
                self.lanes.iter().for_each(EngineLane::close_inbox);
            }
            if stopping || self.cancels_waits.load(Ordering::Acquire) {
                self.state.cancel_waits();
            }
            if !stopping || self.end == LaneEnd::Closed {
                self.take_requests(&mut requests);
            }
            let next = match self.state.turn(&mut requests, &mut replies) {
                Ok(next) => next,
                Err(error) => {
                    if self.end == LaneEnd::Kept {
                        self.refuse_unexecuted(&mut requests, &mut replies);
                    }
                    return Err(error);
                }
            };
            self.send_replies(&mut replies);
            free_deleted_pools(&mut self.state);
            if stopping && requests.is_empty() && self.state.pending_count() == 0 {
                break;
            }
            if stopping && self.end == LaneEnd::Kept {
                // What waits for the checkpointer may wait for one that has failed.
                let now_us = self.state.stopwatch_us();
                if now_us - *stopping_since_us.get_or_insert(now_us) > HAND_OVER_MAX_US {
                    self.refuse_unexecuted(&mut requests, &mut replies);
                    break;
                }
            }
            if requests.is_empty() {
                self.sleep(next);
            }
        }
        self.state.close()?;
        if self.end == LaneEnd::Closed {
            self.lanes.iter().for_each(EngineLane::close_outbox);
        }
        Ok(())
    }

    /// Refuses, after a failed commit, the requests that were surely not applied: those that waited
    /// in line, and those that no turn has executed.
    fn refuse_unexecuted(
        &mut self,
        requests: &mut VecDeque<(CallId, LaneItem)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        self.state.abandon_waits(replies);
        for (call_id, item) in requests.drain(..) {
            if let LaneItem::Request(_) = item {
                replies.push((call_id, Reply::Refused(RequestError::NotOwner)));
            }
        }
        self.send_replies(replies);
    }

    fn take_requests(&mut self, requests: &mut VecDeque<(CallId, LaneItem)>) {
        let refused = self.lanes.iter_mut().map(EngineLane::take_refused_keep_alives).sum();
        if refused > 0 {
            self.state.note_refused_keep_alives(refused);
        }
        for (index, lane) in (0..).zip(&mut *self.lanes) {
            lane.take(|CallSlot(slot), item| {
                requests.push_back((CallId { lane: index, slot }, item));
            });
        }
    }

    fn send_replies(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        for (call_id, reply) in replies.drain(..) {
            self.lanes[call_id.lane as usize].answer(CallSlot(call_id.slot), reply);
        }
        self.lanes.iter_mut().for_each(EngineLane::flush);
    }

    /// Sleeps until a notification or the next deadline.
    fn sleep(&mut self, next: NextWakeup) {
        if self.take_notice() || next.due_in_us == Some(0) {
            return;
        }
        let due = next.due_in_us.map(Duration::from_micros);
        let tick = next.counts_serving.then_some(SERVING_TICK);
        let stop = self.stopping.load(Ordering::Acquire).then_some(SERVING_TICK);
        match [due, tick, stop].into_iter().flatten().min() {
            None => std::thread::park(),
            Some(timeout) => std::thread::park_timeout(timeout),
        }
        // This only resets the flag: the next turn takes all requests in any case.
        let _ = self.take_notice();
    }

    fn take_notice(&self) -> bool {
        let lookups = self.lookups.as_ref().is_some_and(Wakeup::take);
        self.wakeup.take() | lookups
    }
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

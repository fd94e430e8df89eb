//! The thread around the works: takes what the lanes bring, plays a turn, gives the answers back,
//! and sleeps until something is due or asked.

use crate::lanes::{EngineLane, Wakeup};
use crate::request::{Reply, Request};
use crate::state::{CallId, CommitError, EngineState, NextWakeup};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often serving time is counted while a keep-alive deadline runs.
const SERVING_TICK: Duration = Duration::from_millis(100);

/// What the thread owns.
pub(crate) struct Run {
    pub(crate) works: EngineState,
    pub(crate) lanes: Vec<EngineLane>,
    pub(crate) wakeup: Wakeup,
    pub(crate) stopping: Arc<AtomicBool>,
    pub(crate) turns_away: Arc<AtomicBool>,
}

impl Run {
    /// Plays turns until it is told to stop and nothing is left to answer.
    pub(crate) fn run(mut self) -> Result<(), CommitError> {
        self.wakeup.listen();
        let mut asked = VecDeque::new();
        let mut replies = Vec::new();
        loop {
            let stopping = self.stopping.load(Ordering::Acquire);
            if stopping {
                self.lanes.iter().for_each(EngineLane::close_inbox);
            }
            if stopping || self.turns_away.load(Ordering::Acquire) {
                self.works.cancel_waits();
            }
            self.take(&mut asked);
            let next = self.works.turn(&mut asked, &mut replies)?;
            self.answer(&mut replies);
            free_elsewhere(&mut self.works);
            if stopping && asked.is_empty() && self.works.late() == 0 {
                break;
            }
            if asked.is_empty() {
                self.sleep(next);
            }
        }
        self.works.close()?;
        self.lanes.iter().for_each(EngineLane::close_outbox);
        Ok(())
    }

    fn take(&mut self, asked: &mut VecDeque<(CallId, Request)>) {
        for (at, lane) in (0..).zip(&mut self.lanes) {
            lane.take(|slot, request| asked.push_back((CallId { lane: at, slot }, request)));
        }
    }

    fn answer(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        for (call_id, reply) in replies.drain(..) {
            self.lanes[call_id.lane as usize].answer(call_id.slot, reply);
        }
        self.lanes.iter_mut().for_each(EngineLane::flush);
    }

    /// Sleeps until the wakeup rings or something is due.
    fn sleep(&mut self, next: NextWakeup) {
        if self.wakeup.take() || next.due_in_us == Some(0) {
            return;
        }
        let due = next.due_in_us.map(Duration::from_micros);
        let tick = next.counts_serving.then_some(SERVING_TICK);
        match [due, tick].into_iter().flatten().min() {
            None => std::thread::park(),
            Some(length) => std::thread::park_timeout(length),
        }
        // Asked for what it resets: whatever rang is taken in the next turn.
        let _ = self.wakeup.take();
    }
}

/// Frees removed pools on a thread of their own: that takes O(n).
fn free_elsewhere(works: &mut EngineState) {
    let gone = works.take_deleted_pools();
    if !gone.is_empty() {
        // Where no thread can be had they are freed here: slow, but right.
        let spawned = std::thread::Builder::new().name("keypeg-free".into()).spawn(|| drop(gone));
        drop(spawned);
    }
}

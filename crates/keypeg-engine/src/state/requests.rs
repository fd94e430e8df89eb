//! The requests of one turn: which are executed, in which order, and how much work they may cost.
//!
//! First imports whose lookups are complete and requests carried over from the last turn, then
//! short calls in the order of their arrival, then long calls, see `long_calls.rs`. Knows nothing of
//! what a call does.

use super::long_calls::LongBudget;
use super::work::{Admission, CallId, QueuedRequest};
use super::{BATCH_FULL, EngineState, SETTLE_MAX_US, SHORT_UNITS_PER_TURN, TURN_MAX, step};
use crate::journal::DiskSpace;
use crate::turn::{self, TurnRequest};
use keypeg_store::{Call, LaneItem, Principal, Reply, Request, RequestError};
use std::collections::VecDeque;

/// What the requests of one turn have in common.
pub(super) struct TurnLimits {
    /// The expiries that requests may still cause.
    pub(super) expiries: u32,
    /// The work of long calls.
    pub(super) long: LongBudget,
    /// The work of short calls so far, in units.
    short_units: u32,
    pub(super) ended_by_time: bool,
    /// The answers so far to reads of the server itself.
    own_reads: usize,
    pub(super) disk_space: DiskSpace,
    pub(super) checkpointer_lags: bool,
    /// This clock continues while the deciding ones are frozen, so that no request is carried over
    /// without end.
    pub(super) now_us: u64,
}

/// What the requests of one turn did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Executed {
    /// Whether a deadline ended something.
    pub(super) ended_by_time: bool,
    /// The answers to reads of the server itself, which no client sees as the state of its keys.
    pub(super) own_reads: usize,
}

/// Returns whether a request is a read that the server makes for its metrics, its history or its
/// watchdog.
fn is_own_read(request: &Request) -> bool {
    request.by == Principal::Server
        && matches!(request.call, Call::ListPools { .. } | Call::GetPool { .. })
}

impl EngineState {
    /// Executes the requests of this turn.
    pub(super) fn execute_requests(
        &mut self,
        requests: &mut VecDeque<(CallId, LaneItem)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> Executed {
        let mut turn = TurnLimits {
            expiries: self.expiries_left,
            long: LongBudget::of_turn(),
            short_units: 0,
            ended_by_time: false,
            own_reads: 0,
            disk_space: self.disk_space(),
            checkpointer_lags: self.checkpointer_lags(),
            now_us: self.unfrozen_us,
        };
        self.executed_long_calls.clear();
        self.execute_older_requests(&mut turn, replies);
        self.execute_new_requests(&mut turn, requests, replies);
        self.execute_long_calls(&mut turn, replies);
        self.long_units = turn.long.spent();
        if self.carried_over.is_empty() && self.long_calls.len() == 0 {
            self.abandoned.clear();
        }
        if self.cancels_waits {
            self.cancel_all_waits(&self.why_no_waits(), replies);
        }
        Executed { ended_by_time: turn.ended_by_time, own_reads: turn.own_reads }
    }

    /// Executes checked imports, then carried-over requests: all of them.
    fn execute_older_requests(
        &mut self,
        turn: &mut TurnLimits,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        let checked_count = self.checked_imports.len();
        for index in 0..checked_count + self.carried_over.len() {
            let older = if index < checked_count {
                self.checked_imports.pop_front()
            } else {
                self.carried_over.pop_front()
            };
            let Some(queued) = older else { break };
            if queued.is_long {
                turn.long.spend(queued.units);
            }
            self.execute_request(turn, queued, true, replies);
        }
    }

    /// Executes new short calls, until the turn is full, and queues the long ones among them.
    fn execute_new_requests(
        &mut self,
        turn: &mut TurnLimits,
        requests: &mut VecDeque<(CallId, LaneItem)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        for _ in 0..TURN_MAX {
            if self.batch.bytes().len() >= BATCH_FULL || turn.short_units >= SHORT_UNITS_PER_TURN {
                break;
            }
            match requests.pop_front() {
                Some((call_id, LaneItem::Request(request))) => {
                    let queued = QueuedRequest::new(call_id, request, turn.now_us);
                    turn.short_units += if queued.is_long { 1 } else { queued.units };
                    self.execute_request(turn, queued, false, replies);
                }
                Some((call_id, LaneItem::Abandoned)) => self.abandon(call_id, replies),
                None => break,
            }
        }
    }

    /// Executes long calls within the turn's budget.
    fn execute_long_calls(&mut self, turn: &mut TurnLimits, replies: &mut Vec<(CallId, Reply)>) {
        while self.batch.bytes().len() < BATCH_FULL {
            self.withdraw_staged(turn);
            let Some(queued) = self.long_calls.next(&mut turn.long) else { break };
            if queued.keys_to_add().is_some() {
                self.add_keys(turn, queued, replies);
            } else {
                // Settling begins now: the wait in the queue is not part of it.
                let queued = QueuedRequest { since_us: turn.now_us, ..queued };
                self.execute_request(turn, queued, true, replies);
            }
        }
    }

    /// Executes or refuses a request, or puts it where it waits: for a lookup, for the next turn,
    /// or among the long calls, if it is new and long. `is_older` is set for a request of an
    /// earlier part of the turn or of an earlier turn.
    fn execute_request(
        &mut self,
        turn: &mut TurnLimits,
        queued: QueuedRequest,
        is_older: bool,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        let call_id = queued.call_id;
        if self.skip_abandoned(call_id, is_older, replies) {
            return;
        }
        if queued.is_long && !is_older {
            if !self.long_calls.push(queued) {
                replies.push((call_id, Reply::Refused(RequestError::Overloaded)));
            }
            return;
        }
        let queued = match self.admit(queued, turn.disk_space, turn.checkpointer_lags) {
            Admission::Parked => return,
            Admission::Execute(queued) => queued,
            Admission::Answered(reply) => {
                replies.push((call_id, reply));
                return;
            }
        };
        self.execute_admitted(turn, queued, replies);
    }

    /// Executes a request in one step.
    pub(super) fn execute_admitted(
        &mut self,
        turn: &mut TurnLimits,
        queued: QueuedRequest,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        let call_id = queued.call_id;
        if queued.is_long {
            self.executed_long_calls.push(call_id);
        }
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = turn.expiries;
        let request = TurnRequest {
            waiter_id: call_id.waiter_id(),
            request: &queued.request,
            prepared: queued.prepared.as_deref(),
            retired: queued.retired(),
        };
        let reply = turn::execute(&mut self.pools, &mut step, request, &mut self.deleted_pools);
        turn.expiries = step.budget;
        turn.ended_by_time |= step.ended_by_time;
        self.drain_wait_outcomes(replies);
        match reply {
            Some(reply)
                if turn::is_settling(&reply) && turn.now_us - queued.since_us < SETTLE_MAX_US =>
            {
                self.carried_over.push_back(QueuedRequest { checked: None, ..queued });
            }
            Some(reply) => {
                turn.own_reads += usize::from(is_own_read(&queued.request));
                let (reply, _) = self.with_known_values(turn, &queued, reply, u32::MAX);
                replies.push((call_id, reply));
            }
            None => {}
        }
    }
}

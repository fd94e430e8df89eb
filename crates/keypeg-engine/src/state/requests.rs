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
        let mut taken = 0;
        for (call_id, item) in requests.iter_mut().take(TURN_MAX) {
            if self.batch.bytes().len() >= BATCH_FULL || turn.short_units >= SHORT_UNITS_PER_TURN {
                break;
            }
            taken += 1;
            let LaneItem::Request(request) = item else {
                self.abandon(*call_id, replies);
                continue;
            };
            let (units, is_long) = (request.call.units(), request.call.is_long());
            turn.short_units += if is_long { 1 } else { units };
            // Nearly every request is executed where it is: a move would cost as much as a look-up.
            let stays = is_long || matches!(request.call, Call::Import { .. });
            if !stays && self.execute_in_place(turn, *call_id, request, replies) {
                continue;
            }
            let LaneItem::Request(request) = std::mem::replace(item, LaneItem::Abandoned) else {
                unreachable!("invariant: it is a request")
            };
            let queued = QueuedRequest::new(*call_id, request, turn.now_us);
            if stays {
                self.execute_request(turn, queued, false, replies);
            } else {
                self.carried_over.push_back(queued);
            }
        }
        requests.drain(..taken);
    }

    /// Executes or refuses a new short request that needs no lookup. Returns `false` if it must be
    /// executed again in the next turn.
    fn execute_in_place(
        &mut self,
        turn: &mut TurnLimits,
        call_id: CallId,
        request: &Request,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> bool {
        self.skip_abandoned(call_id, false, replies);
        let (space, lags) = (turn.disk_space, turn.checkpointer_lags);
        if let Some(reply) = self.answer_at_once(request, space, lags) {
            replies.push((call_id, reply));
            return true;
        }
        let waiter_id = call_id.waiter_id();
        let request = TurnRequest { waiter_id, request, prepared: None, retired: &[] };
        self.execute_in_one_step(turn, &request, turn.now_us, replies)
    }

    /// Executes long calls within the turn's budget.
    fn execute_long_calls(&mut self, turn: &mut TurnLimits, replies: &mut Vec<(CallId, Reply)>) {
        if self.long_calls.are_postponed {
            self.long_calls.postpone();
            return;
        }
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
        mut queued: QueuedRequest,
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
        match self.admit(&mut queued, turn.disk_space, turn.checkpointer_lags) {
            Admission::NeedsLookup { ids, bytes } => self.park(queued, ids, bytes),
            Admission::Execute => self.execute_admitted(turn, queued, replies),
            Admission::Answered(reply) => replies.push((call_id, reply)),
        }
    }

    /// Executes a request in one step, now or again in the next turn.
    pub(super) fn execute_admitted(
        &mut self,
        turn: &mut TurnLimits,
        mut queued: QueuedRequest,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        if queued.is_long {
            self.executed_long_calls.push(queued.call_id);
        }
        if !self.execute_in_one_step(turn, &queued.in_one_step(), queued.since_us, replies) {
            queued.checked = None;
            self.carried_over.push_back(queued);
        }
    }

    /// Executes a request that was taken at `since_us` in one step. Returns `false` if it must be
    /// executed again in the next turn, because much is due.
    fn execute_in_one_step(
        &mut self,
        turn: &mut TurnLimits,
        request: &TurnRequest<'_>,
        since_us: u64,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> bool {
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = turn.expiries;
        let reply = turn::execute(&mut self.pools, &mut step, *request, &mut self.deleted_pools);
        turn.expiries = step.budget;
        turn.ended_by_time |= step.ended_by_time;
        self.drain_wait_outcomes(replies);
        let Some(reply) = reply else { return true };
        if turn::is_settling(&reply) && turn.now_us - since_us < SETTLE_MAX_US {
            return false;
        }
        turn.own_reads += usize::from(is_own_read(request.request));
        let (reply, _) = self.with_known_values(turn, request, reply, u32::MAX);
        replies.push((CallId::of(request.waiter_id), reply));
        true
    }
}

//! Calls that add many keys, and repeats of such calls: each turn does a part, within its budget.
//!
//! First a call is prepared and admitted, then its keys are staged, then all become keys in one
//! step, whose facts are in one batch. Before that step no call and no fact shows one of them, so a
//! crash between two turns leaves nothing. What a refused call has staged is withdrawn after its
//! reply. Knows nothing of what is staged.

use super::requests::TurnLimits;
use super::work::{Adding, Admission, CallId, QueuedRequest, Withdrawal};
use super::{EngineState, SETTLE_MAX_US, disk_space, step};
use crate::turn::{self, TurnRequest};
use keypeg_core::{AddKeys, KeysToAdd, Refusal, RepeatedKeys, StageOutcome};
use keypeg_store::{Call, Reply, Request, RequestError};

/// The units of work that listing the known values of a refused import may always take, beyond the
/// budget of its turn: they are 256 values.
const LISTED_UNITS_MIN: u32 = 768;

impl EngineState {
    /// Removes what refused calls have staged, within the turn's budget.
    pub(super) fn withdraw_staged(&mut self, turn: &mut TurnLimits) {
        while turn.long.left() > 0
            && let Some(Withdrawal { name, pool }) = self.withdrawals.front()
        {
            let mut units = turn.long.left();
            let is_done = self.pools.withdraw_staged(name, *pool, &mut units);
            turn.long.spend(turn.long.left() - units);
            if is_done {
                self.withdrawals.pop_front();
            }
        }
    }

    /// Does the next part of a call that adds keys.
    pub(super) fn add_keys(
        &mut self,
        turn: &mut TurnLimits,
        mut queued: QueuedRequest,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        if matches!(queued.adding, Adding::NotBegun | Adding::Settles | Adding::InOneStep) {
            let Some(begun) = self.begin_adding(turn, queued, replies) else { return };
            queued = begun;
        } else if matches!(queued.adding, Adding::Staged { .. }) {
            let (space, lags) = (turn.disk_space, turn.checkpointer_lags);
            if let Some(refusal) = disk_space::refusal(&queued.request.call, space, lags) {
                self.withdraw(&queued);
                self.executed_long_calls.push(queued.call_id);
                replies.push((queued.call_id, Reply::Refused(refusal)));
                return;
            }
        }
        let outcome = self.adding_step(turn, &mut queued);
        self.drain_wait_outcomes(replies);
        let reply = match outcome {
            Ok(StageOutcome::Incomplete) => return self.long_calls.set_current(queued),
            Ok(StageOutcome::Complete(keys)) => Reply::Keys(keys),
            Ok(StageOutcome::PoolChanged) => {
                self.withdraw(&queued);
                queued.adding = Adding::InOneStep;
                return self.long_calls.set_current(queued);
            }
            Ok(StageOutcome::Refused(refusal)) => {
                self.withdraw(&queued);
                let waits = turn.now_us - queued.since_us < SETTLE_MAX_US;
                if refusal == Refusal::Settling && waits {
                    queued.adding = Adding::Settles;
                    turn.long.spend(turn.long.left());
                    return self.long_calls.set_current(queued);
                }
                let units = turn.long.left().max(LISTED_UNITS_MIN);
                let (reply, spent) = {
                    let request = queued.in_one_step();
                    self.with_known_values(turn, &request, refusal.into(), units)
                };
                turn.long.spend(spent);
                reply
            }
            Err(refusal) => Reply::from(refusal),
        };
        self.executed_long_calls.push(queued.call_id);
        replies.push((queued.call_id, reply));
    }

    /// Prepares and admits a call. Returns it where its first step follows.
    fn begin_adding(
        &mut self,
        turn: &mut TurnLimits,
        queued: QueuedRequest,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> Option<QueuedRequest> {
        let call_id = queued.call_id;
        if self.skip_abandoned(call_id, true, replies) {
            return None;
        }
        let mut queued = self.prepare(turn, queued)?;
        if !matches!(queued.adding, Adding::Settles) {
            // Settling begins now: the wait in the queue is not part of it.
            queued.since_us = turn.now_us;
        }
        match self.admit(&mut queued, turn.disk_space, turn.checkpointer_lags) {
            Admission::NeedsLookup { ids, bytes } => {
                self.park(queued, ids, bytes);
                return None;
            }
            Admission::Execute => {}
            Admission::Answered(reply) => {
                self.executed_long_calls.push(call_id);
                replies.push((call_id, reply));
                return None;
            }
        }
        if matches!(queued.adding, Adding::InOneStep) {
            turn.long.spend(queued.units);
            self.execute_admitted(turn, queued, replies);
            return None;
        }
        queued.adding = if self.has_stored_answer(&queued.request) {
            Adding::Repeats(RepeatedKeys::default())
        } else {
            let checkpointed = self.progress.checkpointed();
            let checked = queued.checked.as_ref().map(|checked| checked.checkpointed);
            let checkpointed = checked.unwrap_or(checkpointed);
            Adding::Staged { pool: None, checkpointed }
        };
        Some(queued)
    }

    /// Prepares the keys that a call adds, within the turn's budget. Returns the call where nothing
    /// is left to prepare.
    fn prepare(
        &mut self,
        turn: &mut TurnLimits,
        mut queued: QueuedRequest,
    ) -> Option<QueuedRequest> {
        let refusal =
            disk_space::refusal(&queued.request.call, turn.disk_space, turn.checkpointer_lags);
        // A call that is answered without changing a pool needs no keys.
        let needs_none = refusal.is_some() || self.has_stored_answer(&queued.request);
        if needs_none || queued.checked.is_some() {
            return Some(queued);
        }
        let mut prepared = queued.prepared.take();
        let (pool, keys) = queued.keys_to_add()?;
        let left = turn.long.left();
        let random = &mut *self.random;
        let spent = self.pools.prepare_keys(pool, keys, &mut prepared, random, left);
        turn.long.spend(spent);
        let count = prepared.as_ref().map_or(0, |prepared| prepared.count());
        let is_complete = count >= keys.count() || spent == 0 && left > 0;
        queued.prepared = prepared;
        if is_complete && turn.long.left() > 0 {
            return Some(queued);
        }
        self.long_calls.set_current(queued);
        None
    }

    /// Stages keys, or collects those of a stored answer, within the turn's budget. The error is
    /// that the pool does not exist.
    fn adding_step(
        &mut self,
        turn: &mut TurnLimits,
        queued: &mut QueuedRequest,
    ) -> Result<StageOutcome, Refusal> {
        let mut units = turn.long.left();
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = turn.expiries;
        let mut adding = std::mem::replace(&mut queued.adding, Adding::NotBegun);
        let Request { by, idempotency, call, .. } = &queued.request;
        let idempotency = idempotency.as_deref();
        let idempotency = idempotency.map(|idempotency| turn::idempotency_key(by, idempotency));
        let (name, keys) = queued.keys_to_add().expect("invariant: the call adds keys");
        let mut add = AddKeys::new(keys);
        #[expect(clippy::wildcard_enum_match_arm, reason = "only these two add keys")]
        match call {
            Call::Generate { labels, .. } => add.labels = labels,
            Call::Import { options, labels, .. } => (add.options, add.labels) = (*options, labels),
            _ => {}
        }
        let add = AddKeys {
            retired: queued.retired(),
            prepared: queued.prepared.as_deref(),
            idempotency: idempotency.as_ref(),
            ..add
        };
        let outcome = self.pools.with_pool(name, &mut step, |pool, shared, step| {
            Ok(match (&mut adding, add.idempotency) {
                (Adding::Repeats(keys), Some(key)) => {
                    pool.repeat_keys(shared, step, (key, keys), &mut units)
                }
                (Adding::Staged { pool: Some(staged), .. }, _) if *staged != pool.id() => {
                    StageOutcome::PoolChanged
                }
                (Adding::Staged { pool: staged, .. }, _) => {
                    *staged = Some(pool.id());
                    pool.stage_keys(shared, step, &add, &mut units)
                }
                _ => unreachable!("invariant: the call has begun"),
            })
        });
        turn.expiries = step.budget;
        turn.ended_by_time |= step.ended_by_time;
        turn.long.spend(turn.long.left() - units);
        queued.adding = adding;
        outcome
    }

    /// Adds the further known values to the refusal of an import that brings one, for about
    /// `units_max` units of work: a client that skips them needs no call for each. Returns the units
    /// that it took.
    pub(super) fn with_known_values(
        &mut self,
        turn: &mut TurnLimits,
        TurnRequest { request, retired, prepared, .. }: &TurnRequest<'_>,
        reply: Reply,
        units_max: u32,
    ) -> (Reply, u32) {
        let (
            Reply::Refused(RequestError::Refused(Refusal::KeyExists { index })),
            Call::Import { pool, values, options, .. },
        ) = (&reply, &request.call)
        else {
            return (reply, 0);
        };
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = turn.expiries;
        let import = AddKeys {
            options: *options,
            retired,
            prepared: *prepared,
            ..AddKeys::new(KeysToAdd::Imported(values))
        };
        let mut units = units_max;
        let known = self.pools.with_pool(pool, &mut step, |pool, shared, step| {
            Ok(pool.known_values(shared, step, (&import, *index), &mut units))
        });
        turn.expiries = step.budget;
        turn.ended_by_time |= step.ended_by_time;
        match known {
            Ok(known) if known.more || known.indices.len() > 1 => {
                let refusal = RequestError::KeysExist(Box::new(known));
                (Reply::Refused(refusal), units_max - units)
            }
            _ => (reply, units_max - units),
        }
    }

    /// Notes that what a call has staged is to be removed.
    fn withdraw(&mut self, queued: &QueuedRequest) {
        if let (Adding::Staged { pool: Some(pool), .. }, Some((name, _))) =
            (&queued.adding, queued.keys_to_add())
        {
            self.withdrawals.push_back(Withdrawal { name: name.clone(), pool: *pool });
        }
    }
}

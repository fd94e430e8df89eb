//! Counts the rare states that calls and replies of a simulation reach.

use super::{Candidate, Simulation};
use crate::clients::Action;
use crate::model::{Checked, State, ensure, pool_of};
use keypeg_core::{KeyRef, LeaseId, Secret};
use keypeg_engine::state::{CallId, EngineState};
use keypeg_store::{Call, Caller, Principal, Reply, RequestError};
use std::collections::BTreeMap;
use std::sync::Arc;

fn caller() -> Caller {
    Caller::new("client-a", None)
}

/// The one principal that sends all calls.
pub(super) fn principal() -> Principal {
    Principal::Token(Arc::new(caller()))
}

/// Checks that every lease and every wait is counted for that principal, across restarts too.
pub(super) fn check_caller_counts(engine: &EngineState) -> Checked {
    let counts = engine.pools().iter().map(|pool| pool.counts().leased + pool.waiter_count());
    let (counted, all) = (caller().borrower(), counts.sum::<u64>());
    let counted = engine.pools().lease_count(counted);
    ensure!(counted == all, "uncounted: {all} leases and waits, of which {counted} are counted");
    Ok(())
}

impl Simulation {
    /// Checks that a grant is revoked that no client received, unless a repeat received it.
    pub(super) fn check_revoked(&mut self, lease: LeaseId) -> Checked {
        let is_running = |candidate: &Candidate| {
            let mut keys = candidate.model.pools.values().flat_map(|pool| &pool.keys);
            keys.any(|key| matches!(&key.state, State::Leased(of) if of.id == Some(lease)))
        };
        if self.models.iter().any(|candidate| candidate.model.was_redelivered(lease)) {
            self.coverage.count("an undelivered grant was redelivered");
            return Ok(());
        }
        ensure!(
            !self.models.iter().all(is_running),
            "not revoked: {lease:?}, which no client received"
        );
        self.coverage.count("an undelivered grant was revoked");
        Ok(())
    }

    /// Appends the long calls that the turn executed, in their order, and those that it refused.
    pub(super) fn take_executed(
        &mut self,
        actions: &mut Vec<(u32, Action)>,
        replies: &[(CallId, Reply)],
    ) {
        let engine = self.engine.as_ref().expect("the engine runs");
        let executed: Vec<_> = engine.executed_long_calls().to_vec();
        let before = self.queued.len();
        for CallId { slot, .. } in executed {
            actions.extend(self.queued.remove(&slot).map(|action| (slot, action)));
        }
        for (CallId { slot, .. }, _) in replies {
            let Some(action) = self.queued.remove(slot) else { continue };
            if matches!(action.call(), Some(Call::ListKeys { .. } | Call::KeepAliveMany { .. })) {
                self.coverage.count("a long call was refused, because too many were queued");
            }
            actions.push((*slot, action));
        }
        if !self.queued.is_empty() && self.queued.len() < before {
            self.coverage.count("a long call was executed while others were queued");
        }
    }

    pub(super) fn count_call(&mut self, call: &Call) {
        let model = &self.models[0].model;
        let pool = pool_of(call).and_then(|pool| model.pools.get(pool.as_str()));
        let Some(pool) = pool else { return };
        let leased = pool.keys.iter().any(|key| matches!(key.state, State::Leased(_)));
        match call {
            Call::PutPool { .. } if leased => {
                self.coverage.count("a policy changed while keys were leased");
            }
            Call::DeletePool { .. } if leased => {
                self.coverage.count("a pool was deleted while keys were leased");
            }
            Call::DeletePool { .. } if !pool.wait_queue.is_empty() => {
                self.coverage.count("a pool was deleted while a call waited");
            }
            Call::Import { values, options, .. } => {
                let is_retired = |value: &&Secret| pool.retired.contains_key(value.reveal());
                let is_generated = |value: &Secret| !value.reveal().starts_with("value-");
                if let Some(value) = values.iter().find(is_retired) {
                    self.coverage.count(match (options.allow_retired, is_generated(value)) {
                        (true, _) => "an import brought a retired value back",
                        (false, true) => "an import named a generated value of a removed key",
                        (false, false) => "an import named an imported value of a removed key",
                    });
                }
            }
            Call::KeepAliveAll { .. } if pool.keys.iter().any(|key| !key.keepalive) => {
                self.coverage.count("all keys were kept alive, one of them without a deadline");
            }
            _ => {}
        }
        let Candidate { model, lease_ms: lease } = &self.models[0];
        let lease = *lease;
        let of_lease = |id: &LeaseId| {
            let mut keys = model.pools.values().flat_map(|pool| &pool.keys);
            keys.find_map(|key| match &key.state {
                State::Leased(lease) if lease.id == Some(*id) => Some(lease.until),
                _ => None,
            })
        };
        let purge_at = |key: &KeyRef| {
            let KeyRef::Id(id) = key else { return None };
            pool.keys.iter().find(|known| known.id == Some(*id)).and_then(|known| known.purge_at)
        };
        let at_deadline = match call {
            Call::Renew { lease: id, .. } if of_lease(id) == Some(lease) => {
                "a renewal arrived at the very deadline"
            }
            Call::Release { lease: id, .. } if of_lease(id) == Some(lease) => {
                "a release arrived at the very deadline"
            }
            Call::KeepAlive { key, .. } if purge_at(key) == Some(self.last_turn.serving_ms) => {
                "a keep-alive arrived at the very deadline"
            }
            Call::KeepAlive { key, .. } if purge_at(key) == Some(self.last_turn.serving_ms + 1) => {
                "a keep-alive arrived a millisecond before the deadline"
            }
            _ => return,
        };
        self.coverage.count(at_deadline);
    }

    pub(super) fn count_replies(&mut self, replies: &BTreeMap<u32, Reply>) {
        let model = &self.models[0].model;
        let mut tokens = 0;
        for (slot, reply) in replies {
            let waited =
                model.pools.values().any(|pool| pool.wait_queue.iter().any(|w| w.slot == *slot));
            match reply {
                Reply::Granted { .. } if waited => {
                    self.coverage.count("a waiter was granted a key");
                }
                Reply::Granted { redelivered: true, .. } => {
                    self.coverage.count("a repeat returned the same lease");
                }
                Reply::Granted { .. } => self.coverage.count("grants"),
                Reply::Refused(RequestError::StorageFull) if waited => {
                    self.coverage.count("a wait was cancelled on a full disk");
                }
                Reply::Refused(RequestError::StorageFull) => {
                    self.coverage.count("a call was refused on a full disk");
                }
                Reply::Refused(RequestError::Overloaded) => {
                    self.coverage.count("new keys were refused while the checkpointer lagged");
                }
                Reply::Refused(RequestError::Refused(keypeg_core::Refusal::WaitQueueFull {
                    ..
                })) => {
                    self.coverage.count("the wait queue was full");
                }
                Reply::Refused(RequestError::Refused(keypeg_core::Refusal::Settling)) => {
                    self.coverage.count("a call was refused while much was due");
                }
                Reply::Refused(RequestError::Refused(keypeg_core::Refusal::UnknownPool))
                    if waited => {}
                _ => {}
            }
            tokens += u64::from(matches!(reply, Reply::Granted { .. }));
        }
        self.coverage.add("tokens", tokens);
    }
}

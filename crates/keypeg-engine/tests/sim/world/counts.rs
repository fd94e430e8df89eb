//! What a simulation counts of its calls and of what it was told: that rare states were reached.

use super::World;
use crate::model::{Checked, State, ensure, pool_of};
use keypeg_engine::core::{KeyRef, LeaseId};
use keypeg_engine::state::EngineState;
use keypeg_engine::{Call, Caller, Principal, Reply, RequestError};
use std::collections::BTreeMap;
use std::sync::Arc;

fn caller() -> Caller {
    Caller::new("somebody", None)
}

/// Everybody asks in one name.
pub(super) fn somebody() -> Principal {
    Principal::Token(Arc::new(caller()))
}

/// Every lease, and every wait for one, is counted in that name, over restarts too.
pub(super) fn all_is_somebodys(works: &EngineState) -> Checked {
    let counts = works.pools().iter().map(|pool| pool.counts().leased + pool.waiter_count());
    let (counted, all) = (caller().borrower(), counts.sum::<u64>());
    let counted = works.pools().lease_count(counted);
    ensure!(counted == all, "uncounted: {all} leases and waits, of which {counted} are somebody's");
    Ok(())
}

impl World {
    pub(super) fn count_call(&mut self, call: &Call) {
        let model = &self.models[0].0;
        let pool = pool_of(call).and_then(|pool| model.pools.get(pool.as_str()));
        let Some(pool) = pool else { return };
        let leased = pool.keys.iter().any(|key| matches!(key.state, State::Leased(_)));
        match call {
            Call::PutPool { .. } if leased => {
                self.tally.count("a policy changed while keys were leased");
            }
            Call::DeletePool { .. } if leased => {
                self.tally.count("a pool was dropped while keys were leased");
            }
            Call::DeletePool { .. } if !pool.line.is_empty() => {
                self.tally.count("a pool was dropped while somebody waited");
            }
            _ => {}
        }
        let (model, lease) = &self.models[0];
        let lease = *lease;
        let of_lease = |id: &LeaseId| {
            let mut keys = model.pools.values().flat_map(|pool| &pool.keys);
            keys.find_map(|key| match &key.state {
                State::Leased(lease) if lease.id == Some(*id) => Some(lease.until),
                _ => None,
            })
        };
        let life = |key: &KeyRef| {
            let KeyRef::Id(id) = key else { return None };
            pool.keys.iter().find(|known| known.id == Some(*id)).and_then(|known| known.life)
        };
        let at_deadline = match call {
            Call::Renew { lease: id, .. } if of_lease(id) == Some(lease) => {
                "a renewal came at the very deadline"
            }
            Call::Release { lease: id, .. } if of_lease(id) == Some(lease) => {
                "a release came at the very deadline"
            }
            Call::KeepAlive { key, .. } if life(key) == Some(self.serving.0) => {
                "a keep-alive came at the very deadline"
            }
            Call::KeepAlive { key, .. } if life(key) == Some(self.serving.0 + 1) => {
                "a keep-alive came a millisecond before the deadline"
            }
            _ => return,
        };
        self.tally.count(at_deadline);
    }

    pub(super) fn count_replies(&mut self, replies: &BTreeMap<u32, Reply>) {
        let model = &self.models[0].0;
        let mut tokens = 0;
        for (slot, reply) in replies {
            let waited = model.pools.values().any(|pool| pool.line.iter().any(|w| w.slot == *slot));
            match reply {
                Reply::Granted { .. } if waited => self.tally.count("somebody in line was served"),
                Reply::Granted { redelivered: true, .. } => {
                    self.tally.count("a repeat was told of the same lease");
                }
                Reply::Granted { .. } => self.tally.count("grants"),
                Reply::Refused(RequestError::StorageFull) if waited => {
                    self.tally.count("somebody in line was sent away from a full disk");
                }
                Reply::Refused(RequestError::StorageFull) => {
                    self.tally.count("the disk was full for a call");
                }
                Reply::Refused(RequestError::Overloaded) => {
                    self.tally.count("new keys waited for the carrier");
                }
                Reply::Refused(RequestError::Refused(
                    keypeg_engine::core::Refusal::WaitQueueFull { .. },
                )) => {
                    self.tally.count("the line was full");
                }
                Reply::Refused(RequestError::Refused(keypeg_engine::core::Refusal::Settling)) => {
                    self.tally.count("a call was told to come again");
                }
                Reply::Refused(RequestError::Refused(
                    keypeg_engine::core::Refusal::UnknownPool,
                )) if waited => {}
                _ => {}
            }
            tokens += u64::from(matches!(reply, Reply::Granted { .. }));
        }
        self.tally.add("tokens", tokens);
    }
}

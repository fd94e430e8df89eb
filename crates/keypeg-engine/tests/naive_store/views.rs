//! What the naive store reports of a pool: its counts, and why no key is available.

use super::{NaivePool, State};
use keypeg_core::{KeyCounts, NoKeyCause, PoolName, Refusal};
use keypeg_store::PoolView;

impl NaivePool {
    pub(super) fn counts(&self) -> KeyCounts {
        let mut counts = KeyCounts::default();
        for key in &self.keys {
            match key.state {
                State::Available => counts.available += 1,
                State::Leased(_) => counts.leased += 1,
                State::Resting(_) => counts.resting += 1,
                State::Quarantined => counts.quarantined += 1,
            }
        }
        counts
    }

    pub(super) fn next_hold_end(&self) -> Option<u64> {
        let ends = self.keys.iter().filter_map(|key| match &key.state {
            State::Leased(lease) => Some(lease.until + lease.rest),
            State::Resting(until) => Some(*until),
            State::Available | State::Quarantined => None,
        });
        ends.min()
    }

    pub(super) fn no_key(&self, now: u64) -> Refusal {
        let counts = self.counts();
        let total = counts.total();
        let cause = match total {
            0 => NoKeyCause::PoolEmpty,
            _ if counts.leased == total => NoKeyCause::AllLeased,
            _ if counts.resting == total => NoKeyCause::AllResting,
            _ if counts.quarantined == total => NoKeyCause::AllQuarantined,
            _ => NoKeyCause::NoneFree,
        };
        let next_hold_end_in_ms = self.next_hold_end().map(|end| end - now);
        Refusal::NoKey { cause, counts, next_hold_end_in_ms }
    }

    pub(super) fn view(&self, name: &PoolName) -> PoolView {
        PoolView {
            name: name.clone(),
            policy: self.policy.clone(),
            counts: self.counts(),
            waiting: self.waiters.len() as u64,
            next_hold_end_at_ms: self.next_hold_end(),
            next_purge_at_ms: self.keys.iter().filter_map(|key| key.purge_at).min(),
        }
    }
}

//! What the naive store reports: keys, leases, counts, and why no key is available.

use super::pool::{Key, NaivePool, State};
use keypeg_core::{
    Borrower, KeyCounts, KeyNumber, KeyView, LeaseView, NoKeyCause, PoolName, Refusal,
};
use keypeg_store::PoolView;

impl Key {
    pub(super) fn view(&self, now: u64) -> KeyView {
        let rests_until_ms =
            if let State::Resting(until) = self.state { Some(until) } else { None };
        KeyView {
            id: self.id,
            number: KeyNumber::default(),
            state: self.state(),
            label: self.label.clone(),
            created_at_ms: self.created_at,
            expires_at_ms: self.purge_at,
            rests_until_ms,
            draining: self.draining,
            reason: self.reason.clone(),
            keepalive: self.keepalive,
            lease: self.lease_view(now),
        }
    }

    /// Returns the lease that runs on the key.
    pub(super) fn lease_view(&self, now: u64) -> Option<LeaseView> {
        let State::Leased(lease) = &self.state else { return None };
        Some(LeaseView {
            id: lease.id,
            key_id: self.id,
            token: lease.token,
            holder: lease.holder.clone(),
            label: self.label.clone(),
            granted_at_ms: lease.granted_at,
            expires_at_ms: lease.until,
            expires_in_ms: lease.until.saturating_sub(now),
            key_expires_at_ms: self.purge_at,
        })
    }
}

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
            counts.draining += u64::from(key.draining);
        }
        counts
    }

    /// Returns the number of the borrower's leases; a waiter counts as a lease.
    pub(super) fn lease_count(&self, borrower: Borrower) -> usize {
        let leases = self.keys.iter().filter_map(|key| match &key.state {
            State::Leased(lease) => Some(&lease.by),
            State::Available | State::Resting(_) | State::Quarantined => None,
        });
        let waiters = self.waiters.iter().map(|waiter| &waiter.terms.by);
        leases.chain(waiters).filter(|by| by.borrower().id() == borrower.id()).count()
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
            _ if self.policy.draining => NoKeyCause::Draining,
            0 => NoKeyCause::PoolEmpty,
            _ if counts.leased == total => NoKeyCause::AllLeased,
            _ if counts.resting == total => NoKeyCause::AllResting,
            _ if counts.quarantined == total => NoKeyCause::AllQuarantined,
            _ => NoKeyCause::NoneFree,
        };
        let next_hold_end = self.next_hold_end().filter(|_| !self.policy.draining);
        let next_hold_end_in_ms = next_hold_end.map(|end| end.saturating_sub(now));
        Refusal::NoKey { cause, counts, next_hold_end_in_ms }
    }

    pub(super) fn view(&self, name: &PoolName) -> PoolView {
        PoolView {
            name: name.clone(),
            policy: self.policy.clone(),
            counts: self.counts(),
            waiting: self.waiters.len() as u64,
            activity: self.activity,
            next_hold_end_at_ms: self.next_hold_end(),
            next_purge_at_ms: self.keys.iter().filter_map(|key| key.purge_at).min(),
        }
    }
}

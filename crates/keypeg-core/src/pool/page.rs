//! Pages of a pool's keys, in the order of their slots: a key never changes its slot, so one that
//! is there during a whole listing is listed exactly once.
//!
//! A page looks at a bounded number of slots, whatever the pool's size; what is due of them ends
//! first, so no page shows a key or a lease that is over.

use super::{Pool, StepContext};
use crate::key::{KeyPage, KeyState, KeyView, ListOptions};
use crate::refusal::Refusal;
use crate::shared::SharedState;

/// Slots that one page looks at.
const LOOK_MAX: u32 = 4_096;

impl Pool {
    /// Lists at most `limit` keys, of one state or of all, from a cursor on. O(page).
    pub fn list_keys(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        options: ListOptions,
    ) -> Result<KeyPage, Refusal> {
        let ListOptions { state, limit, cursor } = options;
        let mut at = match cursor {
            None => 0,
            Some(cursor) => {
                ledger.ids.position(self.number, ledger.run, cursor).ok_or(Refusal::BadCursor)?
            }
        };
        let end = self.slots.len().min(at.saturating_add(LOOK_MAX));
        // Where nothing of the pool is due, no key of the page is.
        let due = self.is_due(step.now);
        let mut keys = Vec::new();
        while at < end && keys.len() < limit {
            if self.slots.state(at).is_some()
                && (!due || self.settle_key(ledger, step, at))
                && state.is_none_or(|state| self.slots.state(at) == Some(state))
            {
                keys.push(self.key_view(ledger, step.now, at));
            }
            at += 1;
        }
        let more = at < self.slots.len();
        let next = more.then(|| ledger.ids.cursor(self.number, ledger.run, at));
        Ok(KeyPage { keys, next })
    }

    /// Shows a key that is in and of which nothing is due.
    pub(super) fn key_view(&self, ledger: &SharedState, now: crate::Now, slot: u32) -> KeyView {
        let state = self.slots.state(slot).expect("invariant: keys that are shown are in");
        let hold = self.slots.place(slot);
        let lease = (state == KeyState::Leased).then(|| self.lease_view(&ledger.ids, now, hold));
        let rests_until_ms = (state == KeyState::Resting)
            .then(|| now.lease_to_wall_ms(self.returns.deadline(hold, &self.holds)));
        KeyView {
            id: self.id_of(&ledger.ids, slot),
            state,
            created_at_ms: self.slots.created_ms(slot),
            expires_at_ms: now.serving_to_wall_ms(self.lives.deadline(slot, &self.slots)),
            rests_until_ms,
            reason: self.reason(slot).map(Into::into),
            lease,
        }
    }
}

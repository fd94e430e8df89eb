//! Pages of a pool's keys, in the order of their slots, and the views of keys and leases.
//!
//! A key never changes its slot, so a key that exists during a whole listing is listed exactly
//! once. A page examines a bounded number of slots, whatever the pool's size, and ends what is due
//! of them first, so no page shows a key or a lease that is due.

use super::Pool;
use crate::clocks::{Now, US_PER_MS};
use crate::holds::{Hold, ShownLease};
use crate::ids::IdHashKey;
use crate::indices::{HoldIndex, ItemIndex, SlotIndex};
use crate::key::{KeyPage, KeyState, KeyView, ListOptions};
use crate::lease::LeaseView;
use crate::refusal::Refusal;
use crate::sabotage::{TestLimit, limit};
use crate::shared::SharedState;
use crate::step::StepContext;

/// The most slots that one page examines.
const EXAMINED_MAX: u32 = 4_096;

fn examined_max() -> u32 {
    u32::try_from(limit(TestLimit::PageSlots, u64::from(EXAMINED_MAX))).unwrap_or(EXAMINED_MAX)
}

impl Pool {
    /// Lists keys, from a cursor on. O(page).
    pub fn list_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        options: ListOptions,
    ) -> Result<KeyPage, Refusal> {
        let ListOptions { state, label, limit, cursor } = options;
        let mut next = match cursor {
            None => 0,
            Some(cursor) => {
                let slot = shared.ids.verify_cursor(self.id, shared.run_id, cursor);
                slot.ok_or(Refusal::BadCursor)?
            }
        };
        let end = self.slots.len().min(next.saturating_add(examined_max()));
        // `None` where no key of the pool has the label. The page examines its slots all the same,
        // so that it ends what is due of them.
        let label = label.map(|label| self.labels.find(&label));
        // Where nothing in the pool is due, no key of the page is.
        let has_due = self.has_due(step.now);
        let mut keys = Vec::new();
        while next < end && keys.len() < limit {
            let slot = SlotIndex::new(next);
            let was_used = self.slots.state(slot).is_some();
            let exists = was_used && (!has_due || self.expire_key(shared, step, slot));
            if was_used && !exists && shared.clocks_frozen {
                return Err(Refusal::StorageFull);
            }
            let has_label = || match label {
                None => true,
                Some(None) => false,
                Some(Some(text)) => self.slots.has_label(slot) && self.labels.is(slot, text),
            };
            let is_in_state = || state.is_none_or(|state| self.slots.state(slot) == Some(state));
            if exists && is_in_state() && has_label() {
                keys.push(self.key_view(shared, step.now, slot));
            }
            next += 1;
        }
        let has_more = next < self.slots.len();
        let next = has_more.then(|| shared.ids.cursor(self.id, shared.run_id, next));
        Ok(KeyPage { keys, next })
    }

    /// Returns the view of a key of which nothing is due.
    pub(super) fn key_view(&self, shared: &SharedState, now: Now, slot: SlotIndex) -> KeyView {
        let state = self.slots.state(slot).expect("invariant: a shown key exists");
        let lease = (state == KeyState::Leased)
            .then(|| self.lease_view(&shared.ids, now, self.slots.hold(slot)));
        let rests_until_ms = (state == KeyState::Resting).then(|| {
            let hold = self.slots.hold(slot);
            now.lease_to_wall_ms(self.hold_ends.deadline(hold, &self.holds))
        });
        KeyView {
            id: self.key_id(&shared.ids, slot),
            number: self.slots.number(slot),
            state,
            label: self.label(slot).map(Into::into),
            created_at_ms: self.slots.created_ms(slot),
            expires_at_ms: now.serving_to_wall_ms(self.key_ends.deadline(slot, &self.slots)),
            rests_until_ms,
            draining: self.slots.is_draining(slot),
            reason: self.reason(slot).map(Into::into),
            keepalive: self.slots.keepalive(slot),
            lease,
        }
    }

    pub(super) fn lease_view(&self, ids: &IdHashKey, now: Now, hold: HoldIndex) -> LeaseView {
        let Hold { slot, token, granted_us, ref holder_or_reason, .. } = *self.holds.get(hold);
        let until_us = self.hold_ends.deadline(hold, &self.holds);
        let lease = ShownLease { granted_us, until_us, holder: holder_or_reason.as_deref() };
        self.view_of_lease(ids, now, (slot, token), lease)
    }

    /// Returns the view of a lease of a key, given what the pool would have to look up.
    pub(super) fn view_of_lease(
        &self,
        ids: &IdHashKey,
        now: Now,
        (slot, token): (SlotIndex, u64),
        ShownLease { granted_us, until_us, holder }: ShownLease<'_>,
    ) -> LeaseView {
        LeaseView {
            id: ids.lease_id(self.id, token),
            key_id: self.key_id(ids, slot),
            token,
            holder: holder.map(Into::into),
            label: self.label(slot).map(Into::into),
            granted_at_ms: now.lease_to_wall_ms(granted_us),
            expires_at_ms: now.lease_to_wall_ms(until_us),
            expires_in_ms: until_us.saturating_sub(now.lease_us) / US_PER_MS,
            key_expires_at_ms: now.serving_to_wall_ms(self.key_ends.deadline(slot, &self.slots)),
        }
    }
}

//! The labels of keys: given when keys are added, changed by a call, and shown with each key and
//! each lease.
//!
//! A label changes nothing about how a key is lent.

use super::Pool;
use crate::event::Event;
use crate::fact::{CreatedKeys, Fact, PackedValues};
use crate::heap::Changed;
use crate::indices::SlotIndex;
use crate::key::{KeyRef, KeyView, NewKey};
use crate::numbers::KeyNumber;
use crate::prepared::KeysToAdd;
use crate::refusal::Refusal;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;
use crate::slot_texts::SlotTexts;
use crate::staged::AddKeys;
use crate::step::StepContext;

impl Pool {
    /// Gives a key a label, or removes the one that it has. An empty label is none. O(1).
    pub fn set_label(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
        label: Option<&str>,
    ) -> Result<KeyView, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let label = label.filter(|label| !label.is_empty());
        if self.label(slot) != label {
            let bytes = label.map_or(0, SlotTexts::bytes_of);
            if bytes > 0 && !shared.has_memory_for_keys(bytes) {
                return Err(Refusal::KeyMemoryFull { max: shared.key_bytes_max() });
            }
            self.put_label(slot, label);
            let key = self.slots.number(slot);
            if !enabled(Sabotage::ForgetLabel) {
                step.facts.record(&Fact::KeyLabelled { pool: self.id, key, label });
            }
            self.emit(step, || Event::Labelled { key: self.key_id(&shared.ids, slot), label });
        }
        Ok(self.key_view(shared, step.now, slot))
    }

    /// Returns the label of a key. A key without one costs no lookup.
    #[inline]
    pub(super) fn label(&self, slot: SlotIndex) -> Option<&str> {
        self.slots.has_label(slot).then(|| self.labels.get(slot))
    }

    /// Replaces the label of a key.
    pub(super) fn put_label(&mut self, slot: SlotIndex, label: Option<&str>) {
        let has_label = self.slots.has_label(slot);
        if !has_label && label.is_none() {
            return;
        }
        self.note_change(Changed::OTHER);
        if has_label {
            self.labels.remove(slot);
        }
        if let Some(label) = label {
            self.labels.add(slot, label);
        }
        self.slots.set_has_label(slot, label.is_some());
    }

    /// Records keys that a call has added, with their labels.
    pub(super) fn record_created(
        &self,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
        (first, keys): (KeyNumber, &[NewKey]),
        values: PackedValues<'_>,
    ) {
        let imported = matches!(call.keys, KeysToAdd::Imported(_));
        let keepalive = !imported || call.options.keepalive;
        let packed = call.labels.pack(keys.len());
        let labels = call.labels.recorded(&packed);
        let at_ms = keys.first().map_or(0, |key| key.created_at_ms);
        let created = CreatedKeys { first, at_ms, imported, keepalive, labels, values };
        created.record(self.id, step.facts);
        self.emit(step, || Event::KeysCreated { imported, keys });
    }
}

//! The invariants of a pool between any two steps. For tests, and for small pools in debug builds.

use super::Pool;
use crate::borrowers::Borrowers;
use crate::deadlines::HeapIndex;
use crate::fact::IdempotentResult;
use crate::idempotency_store::AnswerCounts;
use crate::ids::KeyId;
use crate::indices::{AnswerIndex, ItemIndex, NOT_IN_HEAP, SlotIndex};
use crate::key::KeyState;
use crate::shared::SharedState;

impl Pool {
    /// Returns the ids of all keys, in no order. O(n).
    pub fn key_ids(&self, shared: &SharedState) -> Vec<KeyId> {
        self.slots.used().map(|slot| self.key_id(&shared.ids, slot)).collect()
    }

    /// Panics unless the pool's structures agree with each other. O(n).
    pub fn check_invariants(&self, shared: &SharedState) {
        let mut by_state = [0_u64; 4];
        let (mut reasons, mut kept_alive, mut labels) = (0, 0, 0);
        let (mut draining, mut drain_reasons) = (0, 0);
        let mut borrowers = Borrowers::default();
        self.wait_queue.borrowers().for_each(|borrower| borrowers.add(borrower));
        for slot in self.slots.used() {
            let state = self.slots.state(slot).expect("a used slot");
            by_state[state as usize] += 1;
            let id = self.key_id(&shared.ids, slot);
            assert_eq!(self.find(&shared.ids, id), Some(slot), "a key is found by its id");
            let imported = self.slots.imported(slot);
            assert!(imported || !self.retired.contains(id), "only an import revives a value");
            let has_deadline = self.slots.heap_position(slot) != NOT_IN_HEAP;
            let keepalive = self.slots.keepalive(slot);
            assert_eq!(has_deadline, keepalive, "the keys with a keep-alive have a deadline");
            kept_alive += usize::from(keepalive);
            labels += usize::from(self.label(slot).is_some_and(|label| !label.is_empty()));
            let is_draining = self.slots.is_draining(slot);
            assert!(!is_draining || state == KeyState::Leased, "only a leased key is draining");
            draining += u64::from(is_draining);
            drain_reasons += usize::from(is_draining && self.reason(slot).is_some());
            let quarantined = state == KeyState::Quarantined;
            reasons += usize::from(quarantined && self.reason(slot).is_some());
            if matches!(state, KeyState::Leased | KeyState::Resting) {
                let hold = self.slots.hold(slot);
                let record = self.holds.get(hold);
                assert_eq!(record.slot, slot, "a hold and its key agree");
                if state == KeyState::Leased {
                    borrowers.add(record.borrower);
                }
                assert!(self.hold_ends.deadline(hold, &self.holds) > 0, "a hold has an end");
                let by_token = self.holds.find_by_token(record.token);
                assert_eq!(by_token, Some(hold), "a hold is found by its token");
                assert!(record.token < shared.next_token, "tokens only increase");
            }
        }
        assert_eq!(borrowers, self.borrowers, "leases and waits are counted by borrower");
        assert_eq!(self.reasons.len(), reasons, "every reason belongs to a quarantined key");
        assert_eq!(self.labels.len(), labels, "every label belongs to a key");
        self.labels.check_invariants();
        assert_eq!(self.draining, draining, "the draining keys are counted");
        assert_eq!(
            self.drain_reasons.len(),
            drain_reasons,
            "each reason belongs to a draining key"
        );
        self.drain_reasons.check_invariants();
        let counts = self.counts();
        let counted = [counts.available, counts.leased, counts.resting, counts.quarantined];
        assert_eq!(counted, by_state, "the counters agree with the keys");
        let total = usize::try_from(counts.total() + self.staged_count()).expect("small");
        assert_eq!(self.by_id.len(), total, "the index contains every key and staged value once");
        self.check_staged();
        assert_eq!(self.key_ends.len(), kept_alive, "each of them has one deadline");
        assert_eq!(self.hold_ends.len(), self.holds.len(), "every hold has one end");
        let here = shared.waiters.values().filter(|waiter| waiter.pool == self.index).count();
        assert!(here >= self.wait_queue.len(), "every waiter is found by its id");
        assert_eq!(self.bytes(), self.counted_bytes(), "the bytes of the pool are counted");
        self.check_idempotency();
        self.wait_queue.check_invariants();
        self.available.check_invariants(&self.slots);
        self.key_ends.check_invariants(&self.slots);
        self.hold_ends.check_invariants(&self.holds);
    }

    fn check_staged(&self) {
        let Some(staged) = &self.staged else { return };
        let has_slot = |(_, slot): &(usize, &SlotIndex)| **slot != SlotIndex::NONE;
        for (place, slot) in staged.slots.iter().enumerate().filter(has_slot) {
            let stored = self.slots.staged_place(*slot).map(|place| place as usize);
            assert_eq!(stored, Some(place), "a slot and its place agree");
            assert_eq!(self.slots.heap_position(*slot), NOT_IN_HEAP, "a staged value has no end");
            let (id, value) = (staged.keys[place].id, self.slots.value(*slot));
            assert_eq!(self.find_any_value(id, value), Some(*slot), "a staged value is found");
        }
    }

    /// Adds this pool's stored answers to counts.
    pub(crate) fn add_answers_to(&self, counts: &mut AnswerCounts) {
        self.idempotency.add_to(counts);
    }

    fn check_idempotency(&self) {
        let indices = (0..self.idempotency.end().get()).map(AnswerIndex::new);
        let stored = indices.filter_map(|answer| self.idempotency.get_any(answer));
        let count = stored.clone().count();
        assert_eq!(count, self.idempotency.len(), "every stored answer is found by its id");
        for answer in stored {
            if let IdempotentResult::Lease { key, token, .. } = answer.record.result {
                let hold = self.holds.find_by_token(token).filter(|hold| {
                    let slot = self.holds.get(*hold).slot;
                    let leased = self.slots.state(slot) == Some(KeyState::Leased);
                    leased && self.slots.number(slot) == key
                });
                let runs = self.idempotency.find_by_token(token).is_some();
                assert_eq!(runs, hold.is_some(), "an answer knows whether its lease runs");
            }
        }
        for (id, waiting) in &self.idempotency.waiting {
            let request = self.wait_queue.request(waiting.waiter);
            let request = request.map(|request| (request.id, request.body));
            assert_eq!(request, Some((*id, waiting.body)), "a waiter is found by its key");
        }
    }
}

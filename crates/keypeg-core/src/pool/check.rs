//! What must hold of a pool between any two steps. For tests, and for small pools in debug builds.

use super::Pool;
use crate::borrowers::Borrowers;
use crate::deadlines::{HeapIndex, NO_INDEX};
use crate::fact::IdempotentResult;
use crate::ids::KeyId;
use crate::key::KeyState;
use crate::shared::SharedState;

impl Pool {
    /// The ids of all keys, in no order. O(n).
    pub fn key_ids(&self, ledger: &SharedState) -> Vec<KeyId> {
        let slots = (0..self.slots.len()).filter(|slot| self.slots.state(*slot).is_some());
        slots.map(|slot| self.id_of(&ledger.ids, slot)).collect()
    }

    /// Panics unless the pool's parts agree with each other. O(n).
    pub fn check_invariants(&self, ledger: &SharedState) {
        let mut by_state = [0_u64; 4];
        let mut reasons = 0;
        let mut borrowers = Borrowers::default();
        self.line.borrowers().for_each(|by| borrowers.add(by));
        let keys = (0..self.slots.len()).filter_map(|slot| Some((slot, self.slots.state(slot)?)));
        for (slot, state) in keys {
            by_state[state as usize] += 1;
            let id = self.id_of(&ledger.ids, slot);
            assert_eq!(self.find(&ledger.ids, id), Some(slot), "a key is found by its id");
            assert!(!self.retired.contains(id), "a retired value is not in the pool");
            assert_ne!(HeapIndex::place(&self.slots, slot), NO_INDEX, "every key has a deadline");
            let set_aside = state == KeyState::Quarantined;
            reasons += usize::from(set_aside && self.reason(slot).is_some());
            if matches!(state, KeyState::Leased | KeyState::Resting) {
                let hold = self.slots.place(slot);
                let record = self.holds.get(hold);
                assert_eq!(record.slot, slot, "a hold and its key agree");
                if state == KeyState::Leased {
                    borrowers.add(record.borrower);
                }
                assert!(self.returns.deadline(hold, &self.holds) > 0, "a hold ends");
                assert_eq!(self.holds.find(record.token), Some(hold), "a hold is found by token");
                assert!(record.token < ledger.next_token, "tokens only grow");
            }
        }
        assert_eq!(borrowers, self.borrowers, "leases and waits are counted by borrower");
        assert_eq!(self.reasons.len(), reasons, "a reason is of a key out of rotation");
        let counts = self.counts();
        let told = [counts.available, counts.leased, counts.resting, counts.quarantined];
        assert_eq!(told, by_state, "counts are counters that agree with the keys");
        let total = usize::try_from(counts.total()).expect("small");
        assert_eq!(self.by_id.len(), total, "the index holds every key once");
        assert_eq!(self.lives.len(), total, "every key has one keep-alive deadline");
        assert_eq!(self.returns.len(), self.holds.len(), "every hold has one end");
        let listed = |waiters: &&(u32, u32)| waiters.0 == self.seat;
        let waiting = ledger.waiters.values().filter(listed).count();
        assert!(waiting >= self.line.len(), "everybody in line is found by waiter_id");
        self.check_answers();
        self.line.check_invariants();
        self.available.check_invariants(&self.slots);
        self.lives.check_invariants(&self.slots);
        self.returns.check_invariants(&self.holds);
    }

    fn check_answers(&self) {
        let kept = (0..self.replays.end()).filter_map(|at| self.replays.at(at));
        assert_eq!(kept.clone().count(), self.replays.len(), "every answer is found by its id");
        for answer in kept.map(|kept| kept.answer) {
            if let IdempotentResult::Lease { key, token, .. } = answer.result {
                let hold = self.holds.find(token).filter(|hold| {
                    let slot = self.holds.get(*hold).slot;
                    let leased = self.slots.state(slot) == Some(KeyState::Leased);
                    leased && self.slots.number(slot) == key
                });
                let runs = self.replays.of_token(token).is_some();
                assert_eq!(runs, hold.is_some(), "an answer knows whether its lease runs");
            }
        }
        for (id, (at, body)) in &self.replays.waiting {
            let asked = self.line.asked(*at).map(|asked| (asked.id, asked.body));
            assert_eq!(asked, Some((*id, *body)), "who waits under a key is found by it");
        }
    }
}

//! When pools are expired: the next deadline of every pool on each clock, and the rotation of the
//! pools of which something is due.
//!
//! A pool with much that is due is expired a slice at a time, in rotation, so that it delays no
//! other. A pool is either in the rotation or, by its deadlines, in the heaps.

use super::{PoolEntries, Pools, SWEPT_POOLS_MAX};
use crate::clocks::{NextDue, Now};
use crate::deadlines::{Deadlines, HeapIndex};
use crate::indices::{HeapPosition, ItemIndex, PoolIndex};
use crate::step::StepContext;

/// The budget that one pool gets before it is the next one's turn.
const SLICE: u32 = 256;
/// Pools that one call moves into the rotation, at most.
const ROTATED_MAX: usize = 1_024;
/// Expired answers of each kind that one turn removes, at most.
const REMOVED_ANSWERS_MAX: usize = 2_048;
/// Borrowers of deleted pools that one turn subtracts from the shared counts, at most, of leases and
/// of stored answers.
const SETTLED_MAX: usize = 2_048;
/// Keys and waiters up to which a debug build checks a pool after each step.
const CHECKED_MAX: u64 = 32;

impl Pools {
    /// Returns whether anything in any pool is due. O(1).
    pub(super) fn has_due(&self, now: Now) -> bool {
        let NextDue { lease_us, serving_us } = self.next_due();
        lease_us.is_some_and(|at_us| now.has_expired(at_us))
            || serving_us.is_some_and(|at_us| now.is_purge_due(at_us))
    }

    /// Ends what is due, pools in rotation, within the step's budget; returns whether more is due.
    pub fn expire(&mut self, step: &mut StepContext<'_>) -> bool {
        self.rotate_in_due_pools(step.now);
        self.sweep_answers(step.now);
        self.shared.borrowers.settle(SETTLED_MAX);
        self.shared.answers.settle_removed(SETTLED_MAX);
        self.continue_expiry(step)
    }

    /// Continues [`Self::expire`] in the same turn, with a new budget.
    pub fn continue_expiry(&mut self, step: &mut StepContext<'_>) -> bool {
        self.refuse_removed_waiters(step);
        while step.budget > 0
            && let Some(index) = self.rotation.pop_front()
        {
            let entry = &mut self.entries.0[index.get() as usize];
            let Some(entry) = entry else { continue };
            let mut slice = StepContext {
                budget: SLICE.min(step.budget),
                now: step.now,
                ended_by_time: false,
                random: step.random,
                facts: step.facts,
            };
            let before = slice.budget;
            entry.pool.expire(&mut self.shared, &mut slice);
            let (after, ended_by_time) = (slice.budget, slice.ended_by_time);
            step.budget -= before - after;
            step.ended_by_time |= ended_by_time;
            if entry.pool.has_due(step.now) {
                self.rotation.push_back(index);
                self.count_bytes(index);
            } else {
                entry.in_rotation = false;
                self.schedule(index);
            }
        }
        !self.rotation.is_empty() || !self.removed_queues.is_empty()
    }

    /// Removes expired answers, some pools in each call: an answer without a repeat must not occupy
    /// shared room.
    fn sweep_answers(&mut self, now: Now) {
        let mut left = REMOVED_ANSWERS_MAX;
        for _ in 0..SWEPT_POOLS_MAX.min(self.entries.len()) {
            let index = self.answer_sweep.checked_sub(1).unwrap_or(self.entries.len() - 1);
            let Self { entries, shared, .. } = self;
            let entry = entries.0.get_mut(index).and_then(Option::as_mut);
            let has_more =
                entry.is_some_and(|entry| entry.pool.remove_due_answers(shared, now, &mut left));
            if self.entries.0[index].is_some() {
                self.count_bytes(PoolIndex::of(index));
            }
            if has_more {
                return;
            }
            self.answer_sweep = index;
        }
    }

    /// Moves pools of which something is due into the rotation: some in each call.
    fn rotate_in_due_pools(&mut self, now: Now) {
        for _ in 0..ROTATED_MAX {
            let lease = self.lease_deadlines.first().filter(|(at_us, _)| now.has_expired(*at_us));
            let serving = || self.serving_deadlines.first();
            let purge = || serving().filter(|(at_us, _)| now.is_purge_due(*at_us));
            let Some((_, index)) = lease.or_else(purge) else { return };
            self.rotate_in(index);
        }
    }

    fn rotate_in(&mut self, index: PoolIndex) {
        self.unschedule(index);
        self.entries.get_mut(index).in_rotation = true;
        self.rotation.push_back(index);
    }

    /// Returns the next deadline on each clock; 0 when something is due already.
    pub fn next_due(&self) -> NextDue {
        if !self.rotation.is_empty() || !self.removed_queues.is_empty() {
            return NextDue { lease_us: Some(0), serving_us: Some(0) };
        }
        NextDue {
            lease_us: self.lease_deadlines.first().map(|(at_us, _)| at_us),
            serving_us: self.serving_deadlines.first().map(|(at_us, _)| at_us),
        }
    }

    /// Updates a pool's next deadlines; a pool in rotation is examined anyway.
    pub(crate) fn schedule(&mut self, index: PoolIndex) {
        let Self { entries, shared, .. } = self;
        let entry = entries.get_mut(index);
        entry.pool.count_bytes(shared);
        if cfg!(debug_assertions) {
            let size = entry.pool.counts().total() + shared.waiters.len() as u64;
            if size <= CHECKED_MAX {
                entry.pool.check_invariants(shared);
            }
        }
        if entry.in_rotation {
            return;
        }
        let due = NextDue {
            lease_us: entry.pool.next_lease_deadline_us(),
            serving_us: entry.pool.next_purge_us(),
        };
        let before = entry.scheduled;
        if due == before {
            return;
        }
        entry.scheduled = due;
        let Self { entries, lease_deadlines, serving_deadlines, .. } = self;
        if due.lease_us != before.lease_us {
            update(lease_deadlines, index, due.lease_us, &mut LeasePositions(entries));
        }
        if due.serving_us != before.serving_us {
            update(serving_deadlines, index, due.serving_us, &mut ServingPositions(entries));
        }
    }

    /// Removes a pool from both heaps of deadlines.
    pub(super) fn unschedule(&mut self, index: PoolIndex) {
        self.entries.get_mut(index).scheduled = NextDue::NOTHING;
        self.lease_deadlines.cancel(index, &mut LeasePositions(&mut self.entries));
        self.serving_deadlines.cancel(index, &mut ServingPositions(&mut self.entries));
    }
}

/// Sets or cancels a pool's deadline.
fn update(
    heap: &mut Deadlines<PoolIndex>,
    index: PoolIndex,
    due_us: Option<u64>,
    positions: &mut impl HeapIndex<Item = PoolIndex>,
) {
    match due_us {
        Some(due_us) => heap.set(index, due_us, positions),
        None => heap.cancel(index, positions),
    }
}

/// The pools' positions in the heap of deadlines in lease time.
struct LeasePositions<'a>(&'a mut PoolEntries);
/// The pools' positions in the heap of deadlines in serving time.
struct ServingPositions<'a>(&'a mut PoolEntries);

impl HeapIndex for LeasePositions<'_> {
    type Item = PoolIndex;

    fn heap_position(&self, item: PoolIndex) -> HeapPosition {
        self.0.get(item).lease_position
    }

    fn set_heap_position(&mut self, item: PoolIndex, position: HeapPosition) {
        self.0.get_mut(item).lease_position = position;
    }
}

impl HeapIndex for ServingPositions<'_> {
    type Item = PoolIndex;

    fn heap_position(&self, item: PoolIndex) -> HeapPosition {
        self.0.get(item).serving_position
    }

    fn set_heap_position(&mut self, item: PoolIndex, position: HeapPosition) {
        self.0.get_mut(item).serving_position = position;
    }
}

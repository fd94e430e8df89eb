//! All pools of a server: found by name, and expired in rotation when something of them is due.
//!
//! Keeps the next deadline of every pool on each clock. A pool with much that is due is expired a
//! slice at a time, in rotation, so that it delays no other.

use crate::RandomSource;
use crate::borrowers::{Borrower, Borrowers};
use crate::clocks::Now;
use crate::deadlines::{Deadlines, HeapIndex};
use crate::fact::{Fact, FactSink};
use crate::ids::{IdHashKey, KeyId};
use crate::indices::{HeapPosition, ItemIndex, NOT_IN_HEAP, PoolIndex};
use crate::key::Secret;
use crate::numbers::{PoolId, WaiterId};
use crate::policy::{Policy, PolicyPatch, PoolName};
use crate::pool::{IdempotencyKey, IdempotentCall, Pool, PoolCursor, StepContext};
use crate::refusal::Refusal;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{Counters, JournalPositions, Limits, SharedState, WaitOutcome, WaiterLocation};
use crate::wait_queue::WaitQueue;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// The budget that one pool gets before it is the next one's turn.
const SLICE: u32 = 256;
/// Pools that one call of a sweep examines.
const SWEPT_POOLS_MAX: usize = 16;
/// Retired values that one call of a sweep evicts from one pool, at most.
const EVICTED_MAX: usize = 256;
/// Expired answers that one turn removes from one pool, at most.
const REMOVED_ANSWERS_MAX: usize = 4_096;
/// Keys and waiters up to which a debug build checks a pool after each step.
const CHECKED_MAX: u64 = 32;

/// All pools of a server.
#[derive(Clone, Debug)]
pub struct Pools {
    entries: PoolEntries,
    free: Vec<PoolIndex>,
    by_name: HashMap<PoolName, PoolIndex, foldhash::fast::RandomState>,
    shared: SharedState,
    /// The next end of a lease, a rest or a wait of each pool, in lease time.
    lease_deadlines: Deadlines<PoolIndex>,
    /// The next purge of each pool, in serving time.
    serving_deadlines: Deadlines<PoolIndex>,
    /// Pools of which something is due.
    rotation: VecDeque<PoolIndex>,
    /// Wait queues of deleted pools, whose waiters are still to be refused.
    removed_queues: VecDeque<WaitQueue>,
    /// Entries below this one are still to be swept for checkpointed retired values.
    retired_sweep: usize,
    /// Entries below this one are still to be swept for expired answers.
    answer_sweep: usize,
}

/// How far a snapshot has been written; the default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCursor {
    pool: PoolIndex,
    within: PoolCursor,
}

/// The next deadline of all pools on each clock, in microseconds; `None` when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue {
    /// The next end of a lease, a rest or a wait, in lease time.
    pub lease_us: Option<u64>,
    /// The next purge, in serving time.
    pub serving_us: Option<u64>,
}

/// The ids that the database must look up before an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdsToCheck {
    /// The pool.
    pub pool: PoolId,
    /// One id for each value, in the order of the request.
    pub ids: Vec<KeyId>,
}

#[derive(Clone, Debug)]
struct PoolEntry {
    pool: Pool,
    lease_position: HeapPosition,
    serving_position: HeapPosition,
    in_rotation: bool,
}

/// A slab of pools; the free list is beside it.
#[derive(Clone, Debug, Default)]
struct PoolEntries(Vec<Option<PoolEntry>>);

impl PoolEntries {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, index: PoolIndex) -> &PoolEntry {
        self.0[index.get() as usize].as_ref().expect(EXISTS)
    }

    fn get_mut(&mut self, index: PoolIndex) -> &mut PoolEntry {
        self.0[index.get() as usize].as_mut().expect(EXISTS)
    }
}

impl Pools {
    /// Creates a server without pools; its first fencing token is at least `first_token`.
    pub fn new(ids: IdHashKey, limits: Limits, first_token: u64) -> Self {
        Self {
            entries: PoolEntries::default(),
            free: Vec::new(),
            by_name: HashMap::default(),
            shared: SharedState::new(ids, limits, first_token),
            lease_deadlines: Deadlines::default(),
            serving_deadlines: Deadlines::default(),
            rotation: VecDeque::new(),
            removed_queues: VecDeque::new(),
            retired_sweep: 0,
            answer_sweep: 0,
        }
    }

    /// Creates a pool, or changes the policy of an existing one; returns whether it was created. A
    /// new pool takes the fields that the patch omits from `base`.
    pub fn create_or_update(
        &mut self,
        step: &mut StepContext<'_>,
        name: &PoolName,
        base: &Policy,
        patch: PolicyPatch,
    ) -> Result<bool, Refusal> {
        if let Some(&index) = self.by_name.get(name) {
            let pool = &mut self.entries.get_mut(index).pool;
            let policy = pool.policy().with_patch(patch).map_err(Refusal::Invalid)?;
            pool.set_policy(policy.clone());
            step.facts.record(&Fact::PolicyChanged { pool: pool.id(), policy });
            return Ok(false);
        }
        let policy = base.with_patch(patch).map_err(Refusal::Invalid)?;
        let max = self.shared.limits.pools;
        if self.by_name.len() >= max {
            return Err(Refusal::TooManyPools { max });
        }
        let id = self.shared.counters.next_pool;
        self.insert(id, name.clone(), policy.clone());
        step.facts.record(&Fact::PoolCreated { pool: id, name: name.as_str(), policy });
        Ok(true)
    }

    /// Inserts a new pool and returns its index.
    pub(crate) fn insert(&mut self, id: PoolId, name: PoolName, policy: Policy) -> PoolIndex {
        let counters = &mut self.shared.counters;
        counters.next_pool = counters.next_pool.max(PoolId(id.0 + 1));
        let entry = PoolEntry {
            pool: Pool::new(id, name.clone(), policy),
            lease_position: NOT_IN_HEAP,
            serving_position: NOT_IN_HEAP,
            in_rotation: false,
        };
        let index = if let Some(index) = self.free.pop() {
            self.entries.0[index.get() as usize] = Some(entry);
            index
        } else {
            self.entries.0.push(Some(entry));
            PoolIndex::of(self.entries.len() - 1)
        };
        self.entries.get_mut(index).pool.index = index;
        self.by_name.insert(name, index);
        index
    }

    /// Deletes a pool with all its keys and returns it, so that the caller can free its memory, which
    /// is O(n), elsewhere. O(log pools).
    pub fn remove(&mut self, step: &mut StepContext<'_>, name: &PoolName) -> Result<Pool, Refusal> {
        if name.as_str() == PoolName::DEFAULT {
            return Err(Refusal::DefaultPool);
        }
        let index = *self.by_name.get(name).ok_or(Refusal::UnknownPool)?;
        let mut pool = self.remove_at(index);
        let queue = pool.take_wait_queue();
        if !queue.is_empty() {
            self.removed_queues.push_back(queue);
        }
        step.facts.record(&Fact::PoolDeleted { pool: pool.id() });
        Ok(pool)
    }

    pub(crate) fn remove_at(&mut self, index: PoolIndex) -> Pool {
        self.lease_deadlines.cancel(index, &mut LeasePositions(&mut self.entries));
        self.serving_deadlines.cancel(index, &mut ServingPositions(&mut self.entries));
        let entry = self.entries.0[index.get() as usize].take().expect(EXISTS);
        self.by_name.remove(entry.pool.name());
        self.free.push(index);
        self.shared.key_count -= entry.pool.counts().total();
        entry.pool.uncount_answers(&mut self.shared);
        entry.pool.uncount_borrowers(&mut self.shared);
        entry.pool
    }

    /// Applies one step to the pool of that name; keys that it makes available go to waiters first.
    pub fn with_pool<T>(
        &mut self,
        name: &PoolName,
        step: &mut StepContext<'_>,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let index = *self.by_name.get(name).ok_or(Refusal::UnknownPool)?;
        let pool = &mut self.entries.get_mut(index).pool;
        let result = apply(pool, &mut self.shared, step);
        if !enabled(Sabotage::NewcomerFirst) {
            pool.serve_wait_queue(&mut self.shared, step);
        }
        self.schedule(index);
        if matches!(result, Err(Refusal::TooManyLeases { .. })) && self.has_due(step.now) {
            // One of the borrower's leases may be due, in a pool whose turn has not come.
            return Err(Refusal::Settling);
        }
        result
    }

    /// Returns whether anything in any pool is due. O(1).
    fn has_due(&self, now: Now) -> bool {
        let NextDue { lease_us, serving_us } = self.next_due();
        lease_us.is_some_and(|at_us| at_us <= now.lease_us)
            || serving_us.is_some_and(|at_us| at_us <= now.serving_us)
    }

    /// Removes a waiting request from its wait queue; returns false when it does not wait. O(log n).
    pub fn cancel_wait(&mut self, waiter_id: WaiterId) -> bool {
        let Some(&location) = self.shared.waiters.get(&waiter_id) else { return false };
        let WaiterLocation { pool, waiter } = location;
        // After a deletion the entry may be empty or another pool's; then the waiter is in one of
        // `removed_queues` and is refused soon.
        let Some(entry) = &mut self.entries.0[pool.get() as usize] else { return false };
        let cancelled = entry.pool.cancel_wait(&mut self.shared, waiter, waiter_id);
        self.schedule(pool);
        cancelled
    }

    /// Removes and returns the outcomes of waits since the last call. To be called after every step.
    pub fn drain_wait_outcomes(&mut self) -> std::vec::Drain<'_, WaitOutcome> {
        self.shared.wait_outcomes.drain(..)
    }

    /// Removes all waiting requests and passes each one's id to `each`. O(waiters): for a stop.
    pub fn cancel_all_waits(&mut self, mut each: impl FnMut(WaiterId)) {
        for (waiter_id, _) in self.shared.waiters.drain() {
            each(waiter_id);
        }
        self.removed_queues.clear();
        for index in (0..self.entries.len()).map(PoolIndex::of) {
            if let Some(entry) = &mut self.entries.0[index.get() as usize] {
                entry.pool.clear_wait_queue(&mut self.shared);
                self.schedule(index);
            }
        }
    }

    /// Returns the number of waiting requests in all pools together. O(1).
    pub fn waiter_count(&self) -> usize {
        self.shared.waiters.len()
    }

    /// Returns the number of leases of a borrower; its waiting requests count as leases. O(1).
    pub fn lease_count(&self, borrower: Borrower) -> u64 {
        self.shared.borrowers.lease_count(borrower.id)
    }

    /// Refuses the waiters of deleted pools, within the step's budget.
    fn refuse_removed_waiters(&mut self, step: &mut StepContext<'_>) {
        while step.budget > 0
            && let Some(queue) = self.removed_queues.front_mut()
        {
            step.budget -= 1;
            match queue.head() {
                None => drop(self.removed_queues.pop_front()),
                Some(head) => {
                    let waiter_id = queue.remove(head).id;
                    self.shared.waiters.remove(&waiter_id);
                    let outcome = Err(Refusal::UnknownPool);
                    self.shared.wait_outcomes.push(WaitOutcome { waiter_id, outcome });
                }
            }
        }
    }

    /// Returns the pool of that name.
    pub fn get(&self, name: &PoolName) -> Option<&Pool> {
        self.by_name.get(name).map(|&index| &self.entries.get(index).pool)
    }

    /// Returns all pools, in no order. O(pools).
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.entries.0.iter().flatten().map(|entry| &entry.pool)
    }

    pub(crate) fn pool_mut(&mut self, index: PoolIndex) -> (&mut Pool, &mut SharedState) {
        (&mut self.entries.get_mut(index).pool, &mut self.shared)
    }

    pub(crate) fn pool_at(&self, index: PoolIndex) -> &Pool {
        &self.entries.get(index).pool
    }

    /// Writes leases, rests and stored answers as facts, at most `max` from a cursor on. Returns where
    /// to continue, or `None` when all pools are written. O(max).
    pub fn write_snapshot(
        &self,
        from: SnapshotCursor,
        max: u32,
        facts: &mut dyn FactSink,
    ) -> Option<SnapshotCursor> {
        let start = |index: u32| {
            let pool = PoolIndex::new(index);
            SnapshotCursor { pool, within: PoolCursor::default() }
        };
        let len = PoolIndex::of(self.entries.len()).get();
        let first = from.pool.get();
        for index in first..len.min(first + max) {
            let Some(PoolEntry { pool, .. }) = &self.entries.0[index as usize] else { continue };
            let within = if index == first { from.within } else { PoolCursor::default() };
            if !pool.is_written(within) {
                return Some(match pool.write_snapshot(within, max, facts) {
                    Some(within) => SnapshotCursor { pool: PoolIndex::new(index), within },
                    None => start(index + 1),
                });
            }
        }
        let next = first + max;
        (next < len).then(|| start(next))
    }

    pub(crate) fn shared_mut(&mut self) -> &mut SharedState {
        &mut self.shared
    }

    /// Draws the id of this run of the server, so that cursors of other runs are invalid in it.
    pub fn set_run_id(&mut self, random: &mut dyn RandomSource) {
        let mut run_id = [0; 8];
        random.fill(&mut run_id);
        self.shared.run_id = u64::from_le_bytes(run_id);
    }

    /// Sets where the journal and the database stand. Retired values that are checkpointed are
    /// evicted from memory: some pools in each call, a bounded number of values in each.
    pub fn set_positions(&mut self, positions: JournalPositions) {
        let checkpointed = positions.checkpointed;
        let has_advanced = checkpointed > self.shared.positions.checkpointed;
        self.shared.positions = positions;
        if has_advanced && self.retired_sweep == 0 {
            self.retired_sweep = self.entries.len();
        }
        for _ in 0..SWEPT_POOLS_MAX {
            let Some(index) = self.retired_sweep.checked_sub(1) else { return };
            let entry = self.entries.0.get_mut(index).and_then(Option::as_mut);
            if entry.is_some_and(|entry| entry.pool.evict_retired(checkpointed, EVICTED_MAX)) {
                return;
            }
            self.retired_sweep = index;
        }
    }

    /// Sets whether no fact can be stored. Then no key is purged and no lease expires in memory, but
    /// requests still treat due leases and keys as ended.
    pub fn set_clocks_frozen(&mut self, frozen: bool) {
        self.shared.clocks_frozen = frozen;
    }

    /// Returns whether the answer to a request with an Idempotency-Key is stored. O(1).
    pub fn has_stored_answer(
        &self,
        name: &PoolName,
        call: IdempotentCall,
        key: &IdempotencyKey<'_>,
        now_us: u64,
    ) -> bool {
        self.get(name).is_some_and(|pool| pool.has_stored_answer(&self.shared, call, key, now_us))
    }

    /// Returns the ids that the database must look up before an import into the pool of that name;
    /// `None` when there is nothing to look up. O(values).
    pub fn ids_to_check(&self, name: &PoolName, values: &[Secret]) -> Option<IdsToCheck> {
        let pool = self.get(name)?;
        pool.ids_to_check(&self.shared, values).map(|ids| IdsToCheck { pool: pool.id(), ids })
    }

    /// Returns the id of this run of the server, which is not secret.
    pub fn run_id(&self) -> u64 {
        self.shared.run_id
    }

    /// Returns the counters that never decrease.
    pub fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// Returns the next fencing token.
    pub fn next_token(&self) -> u64 {
        self.shared.next_token
    }

    /// Returns the number of keys in all pools together. O(1).
    pub fn key_count(&self) -> u64 {
        self.shared.key_count
    }

    /// Ends what is due, pools in rotation, within the step's budget; returns whether more is due.
    pub fn expire(&mut self, step: &mut StepContext<'_>) -> bool {
        self.rotate_in_due_pools(step.now);
        self.sweep_answers(step.now);
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
        for _ in 0..SWEPT_POOLS_MAX.min(self.entries.len()) {
            let index = self.answer_sweep.checked_sub(1).unwrap_or(self.entries.len() - 1);
            let Self { entries, shared, .. } = self;
            let entry = entries.0.get_mut(index).and_then(Option::as_mut);
            let has_more = entry.is_some_and(|entry| {
                entry.pool.remove_due_answers(shared, now, REMOVED_ANSWERS_MAX)
            });
            if has_more {
                return;
            }
            self.answer_sweep = index;
        }
    }

    fn rotate_in_due_pools(&mut self, now: Now) {
        while let Some((at_us, index)) = self.lease_deadlines.first()
            && at_us <= now.lease_us
        {
            self.rotate_in(index);
        }
        while let Some((at_us, index)) = self.serving_deadlines.first()
            && at_us <= now.serving_us
        {
            self.rotate_in(index);
        }
    }

    fn rotate_in(&mut self, index: PoolIndex) {
        self.lease_deadlines.cancel(index, &mut LeasePositions(&mut self.entries));
        self.serving_deadlines.cancel(index, &mut ServingPositions(&mut self.entries));
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
        let entry = self.entries.get(index);
        let size = entry.pool.counts().total() + self.shared.waiters.len() as u64;
        if cfg!(debug_assertions) && size <= CHECKED_MAX {
            entry.pool.check_invariants(&self.shared);
        }
        if entry.in_rotation {
            return;
        }
        let (lease_us, purge_us) =
            (entry.pool.next_lease_deadline_us(), entry.pool.next_purge_us());
        let Self { entries, lease_deadlines, serving_deadlines, .. } = self;
        update(lease_deadlines, index, lease_us, &mut LeasePositions(entries));
        update(serving_deadlines, index, purge_us, &mut ServingPositions(entries));
    }

    /// Returns the ids of a pool's keys, in no order: for tests. O(n).
    pub fn key_ids(&self, name: &PoolName) -> Vec<KeyId> {
        self.get(name).map_or_else(Vec::new, |pool| pool.key_ids(&self.shared))
    }

    /// Panics unless the pools and their shared state agree. O(n).
    pub fn check_invariants(&self) {
        for pool in self.iter() {
            pool.check_invariants(&self.shared);
        }
        let keys: u64 = self.iter().map(|pool| pool.counts().total()).sum();
        assert_eq!(keys, self.shared.key_count, "the shared state counts the keys of all pools");
        let mut borrowers = Borrowers::default();
        for pool in self.iter() {
            borrowers.add_all(pool.borrowers());
        }
        let counted = &self.shared.borrowers;
        assert_eq!(borrowers, *counted, "the shared state counts the leases of all pools");
        let entries = self.by_name.len() + self.free.len();
        assert_eq!(entries, self.entries.len(), "every entry is in use or free");
    }
}

const EXISTS: &str = "invariant: an index in use belongs to a pool";

/// Sets or cancels a pool's deadline, without touching the heap where nothing changed.
fn update(
    heap: &mut Deadlines<PoolIndex>,
    index: PoolIndex,
    due_us: Option<u64>,
    positions: &mut impl HeapIndex<Item = PoolIndex>,
) {
    let in_heap = positions.heap_position(index) != NOT_IN_HEAP;
    let present_us = in_heap.then(|| heap.deadline(index, positions));
    match due_us {
        _ if due_us == present_us => {}
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

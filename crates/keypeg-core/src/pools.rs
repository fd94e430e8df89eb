//! All pools of a server: found by name, with the state that they share.
//!
//! After each step it serves the pool's wait queue and updates the pool's deadlines, by which
//! `pools/schedule.rs` expires it in time.

mod adding;
mod listing;
mod schedule;

use crate::borrowers::{Borrower, Borrowers};
use crate::clocks::NextDue;
use crate::deadlines::Deadlines;
use crate::fact::{Fact, FactSink};
use crate::idempotency_store::{AnswerCounts, IdempotencyKey};
use crate::ids::{IdHashKey, IdempotentCall, KeyId};
use crate::indices::{HeapPosition, ItemIndex, NOT_IN_HEAP, PoolIndex};
use crate::numbers::{PoolId, WaiterId};
use crate::policy::{Policy, PolicyPatch, PoolName};
use crate::pool::{HeldKeys, Pool, PoolCursor, RestoredHolds};
use crate::random::RandomSource;
use crate::refusal::Refusal;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{Counters, JournalPositions, Limits, SharedState, WaiterLocation};
use crate::step::StepContext;
use crate::wait_outcome::WaitOutcome;
use crate::wait_queue::WaitQueue;
pub use adding::IdsToCheck;
use hashbrown::HashMap;
pub use listing::{PoolFilter, PoolListOptions, PoolPattern};
use std::collections::{BTreeMap, VecDeque};

/// Pools that one call of a sweep examines.
const SWEPT_POOLS_MAX: usize = 16;
/// Retired values that one call of a sweep evicts from one pool, at most.
const EVICTED_MAX: usize = 256;

/// All pools of a server.
#[derive(Clone, Debug)]
pub struct Pools {
    entries: PoolEntries,
    free: Vec<PoolIndex>,
    by_name: HashMap<PoolName, PoolIndex, foldhash::fast::RandomState>,
    /// The pool that was looked up last: most servers have one busy pool, whose name is then not
    /// hashed.
    latest: PoolIndex,
    /// The same pools in the order of their names, for listings.
    by_order: BTreeMap<PoolName, PoolIndex>,
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

#[derive(Clone, Debug)]
struct PoolEntry {
    pool: Pool,
    lease_position: HeapPosition,
    serving_position: HeapPosition,
    in_rotation: bool,
    /// Its deadlines in the heaps.
    scheduled: NextDue,
}

/// A slab of pools; the free list is beside it. An entry is large, so that the slab has only its
/// address: growing it moves and reserves little.
#[derive(Clone, Debug, Default)]
struct PoolEntries(Vec<Option<Box<PoolEntry>>>);

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
            latest: PoolIndex::default(),
            by_order: BTreeMap::new(),
            shared: SharedState::new(ids, limits, first_token),
            lease_deadlines: Deadlines::default(),
            serving_deadlines: Deadlines::default(),
            rotation: VecDeque::new(),
            removed_queues: VecDeque::new(),
            retired_sweep: 0,
            answer_sweep: 0,
        }
    }

    /// Reserves more fencing tokens and records it, as a backup needs: before the first grant no fact
    /// says where the tokens begin.
    pub fn reserve_tokens(&mut self, facts: &mut dyn FactSink) {
        self.shared.reserve_tokens(facts);
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
            let draining = policy.draining && !enabled(Sabotage::ForgetPoolDrain);
            let policy = Policy { draining, ..policy };
            step.facts.record(&Fact::PolicyChanged { pool: pool.id(), policy });
            // A pool that drains now refuses its waiters, and one that no longer drains serves them.
            if pool.waiter_count() > 0 {
                pool.expire(&mut self.shared, step);
            }
            self.schedule(index);
            return Ok(false);
        }
        let policy = base.with_patch(patch).map_err(Refusal::Invalid)?;
        let max = self.shared.limits.pools;
        if self.by_name.len() >= max {
            return Err(Refusal::TooManyPools { max });
        }
        if !self.shared.has_memory_for_keys(POOL_BYTES) {
            return Err(Refusal::MemoryFull { max: self.shared.key_bytes_max() });
        }
        let id = self.shared.counters.next_pool;
        self.insert(id, name.clone(), policy.clone());
        step.facts.record(&Fact::PoolCreated { pool: id, name: name.as_str(), policy });
        Ok(true)
    }

    /// Inserts a new pool and returns its index.
    pub(crate) fn insert(&mut self, id: PoolId, name: PoolName, policy: Policy) -> PoolIndex {
        self.shared.raise_next_pool(PoolId(id.0 + 1));
        let entry = PoolEntry {
            pool: Pool::new(id, name.clone(), policy),
            lease_position: NOT_IN_HEAP,
            serving_position: NOT_IN_HEAP,
            in_rotation: false,
            scheduled: NextDue::NOTHING,
        };
        let index = if let Some(index) = self.free.pop() {
            self.entries.0[index.get() as usize] = Some(Box::new(entry));
            index
        } else {
            self.entries.0.push(Some(Box::new(entry)));
            PoolIndex::of(self.entries.len() - 1)
        };
        self.entries.get_mut(index).pool.index = index;
        self.by_name.insert(name.clone(), index);
        self.by_order.insert(name, index);
        self.shared.pool_bytes += POOL_BYTES;
        self.count_bytes(index);
        index
    }

    /// Counts the bytes that a step on a pool has changed. O(1).
    #[inline]
    fn count_bytes(&mut self, index: PoolIndex) {
        self.entries.get_mut(index).pool.count_bytes(&mut self.shared);
    }

    /// Returns the bytes of all pools together. What a step takes is counted at its end. O(1).
    pub fn bytes(&self) -> u64 {
        self.shared.bytes()
    }

    /// Sets how many bytes the other shards of this server take of the limit.
    pub fn set_bytes_elsewhere(&mut self, bytes: u64) {
        self.shared.bytes_elsewhere = bytes;
    }

    /// Deletes a pool with all its keys and returns it, so that the caller can free its memory,
    /// which is O(n), elsewhere. O(log pools).
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
        self.unschedule(index);
        let mut entry = self.entries.0[index.get() as usize].take().expect(EXISTS);
        self.by_name.remove(entry.pool.name());
        self.by_order.remove(entry.pool.name());
        self.free.push(index);
        self.shared.pool_bytes -= entry.pool.counted_bytes() + POOL_BYTES;
        let counts = entry.pool.counts();
        self.shared.key_count -= counts.total();
        self.shared.hold_count -= counts.leased_or_resting();
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
        let index = self.find(name).ok_or(Refusal::UnknownPool)?;
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

    /// Finds a pool.
    fn find(&mut self, name: &PoolName) -> Option<PoolIndex> {
        let latest = self.entries.0.get(self.latest.get() as usize)?.as_deref();
        if latest.is_none_or(|entry| entry.pool.name() != name) {
            self.latest = *self.by_name.get(name)?;
        }
        Some(self.latest)
    }

    /// Removes a waiting request from its wait queue; returns false when it does not wait. O(log
    /// n).
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

    /// Removes and returns the outcomes of waits since the last call. To be called after every
    /// step.
    pub fn drain_wait_outcomes(&mut self) -> std::vec::Drain<'_, WaitOutcome> {
        self.shared.wait_outcomes.drain(..)
    }

    /// Removes all waiting requests and passes each one's id to `each`. O(waiters and pools), or O(1)
    /// where none waits: for a stop and a full disk.
    pub fn cancel_all_waits(&mut self, mut each: impl FnMut(WaiterId)) {
        if self.shared.waiters.is_empty() {
            return;
        }
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
        self.shared.borrowers.count(borrower.id)
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

    /// Writes leases, rests and stored answers as facts, at most `max` from a cursor on. Returns
    /// where to continue, or `None` when all pools are written. O(max).
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
            let Some(PoolEntry { pool, .. }) = self.entries.0[index as usize].as_deref() else {
                continue;
            };
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

    /// Writes the holds of all pools after a restore, as facts. O(keys).
    pub fn write_restored_holds(&self, terms: RestoredHolds, facts: &mut dyn FactSink) -> HeldKeys {
        let mut held = HeldKeys::default();
        for pool in self.iter() {
            pool.write_restored_holds(terms, &mut held, facts);
        }
        held
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
            let has_more = entry.map(|entry| entry.pool.evict_retired(checkpointed, EVICTED_MAX));
            if has_more.is_some() {
                self.count_bytes(PoolIndex::of(index));
            }
            if has_more == Some(true) {
                return;
            }
            self.retired_sweep = index;
        }
    }

    /// Sets whether no fact can be stored. Then no key is purged and no lease expires in memory,
    /// but requests still treat due leases and keys as ended.
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

    /// Returns how many records [`Self::write_snapshot`] writes: one for each lease, rest and stored
    /// answer. O(1).
    pub fn snapshot_record_count(&self) -> u64 {
        self.shared.hold_count + self.shared.answers.len() as u64
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
        let holds: u64 = self.iter().map(|pool| pool.counts().leased_or_resting()).sum();
        assert_eq!(holds, self.shared.hold_count, "the shared state counts the holds of all pools");
        let mut borrowers = Borrowers::default();
        for pool in self.iter() {
            borrowers.add_all(pool.borrowers());
        }
        let counted = &self.shared.borrowers;
        assert_eq!(borrowers, *counted, "the shared state counts the leases of all pools");
        let mut answers = AnswerCounts::new(self.shared.answers.max);
        for pool in self.iter() {
            pool.add_answers_to(&mut answers);
        }
        assert_eq!(answers, self.shared.answers, "the shared state counts the stored answers");
        assert_eq!(self.by_order.len(), self.by_name.len(), "both indices have all pools");
        let bytes: usize = self.iter().map(|pool| pool.bytes() + POOL_BYTES).sum();
        assert_eq!(bytes, self.shared.pool_bytes, "the shared state counts the bytes of all pools");
        let entries = self.by_name.len() + self.free.len();
        assert_eq!(entries, self.entries.len(), "every entry is in use or free");
    }
}

/// The bytes of a pool beside its structures: its entry, its places in lists and heaps, its name and
/// policy.
const POOL_BYTES: usize = size_of::<PoolEntry>() + 160;

const EXISTS: &str = "invariant: an index in use belongs to a pool";

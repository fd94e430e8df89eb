//! Many pools: found by name, and ended in turn when something of them is due.
//!
//! Keeps the soonest deadline of every pool on each clock. A pool with much that is due is served
//! a slice at a time, in rotation, so that it delays no other.

use crate::RandomSource;
use crate::borrowers::{Borrower, Borrowers};
use crate::clocks::Now;
use crate::deadlines::{Deadlines, HeapIndex, NO_INDEX};
use crate::fact::{Fact, FactSink};
use crate::ids::{IdHashKey, KeyId};
use crate::key::Secret;
use crate::numbers::{PoolId, WaiterId};
use crate::policy::{Policy, PolicyPatch, PoolName};
use crate::pool::{IdempotencyKey, IdempotentCall, Pool, StepContext};
use crate::refusal::Refusal;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{Counters, JournalPositions, Limits, SharedState, WaitOutcome};
use crate::wait_queue::WaitQueue;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Ends one pool gets before the next one's turn.
const SLICE: u32 = 256;
/// Seats that a mark looks at, and retired values that leave one of them.
const SEATS_A_MARK: usize = 16;
const LEAVE_A_MARK: usize = 256;
/// Answers whose time is over that a turn forgets of one pool, at most.
const FORGET_A_TURN: usize = 4_096;
/// Keys and waiters up to which a debug build checks a pool after each step.
const CHECKED_MAX: u64 = 32;

/// All pools of a server.
#[derive(Clone, Debug)]
pub struct Pools {
    seats: Vec<Option<PoolEntry>>,
    free: Vec<u32>,
    by_name: HashMap<PoolName, u32, foldhash::fast::RandomState>,
    ledger: SharedState,
    /// The soonest return, or end of a wait, of each pool, in lease time.
    returns: Deadlines,
    /// The soonest purge of each pool, in serving time.
    lives: Deadlines,
    /// Pools of which something is due.
    rotation: VecDeque<u32>,
    /// Lines of removed pools: who stands there is still to be told.
    orphans: VecDeque<WaitQueue>,
    /// Seats below this one may keep retired values that a database has.
    leaving: usize,
    /// Seats below this one may keep answers whose time is over.
    forgetting: usize,
}

/// How far a retelling has come; the default is its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCursor {
    seat: u32,
    hold: u32,
    answer: u32,
}

/// When the pools next need a turn, on each clock, in microseconds; `None` when nothing is due ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue {
    /// The earliest end of a lease, a rest or a wait, lease time.
    pub lease_us: Option<u64>,
    /// The earliest purge, serving time.
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
    return_place: u32,
    life_place: u32,
    in_rotation: bool,
}

impl Pools {
    /// Begins without any pool; the first fencing token is at least `first_token`.
    pub fn new(ids: IdHashKey, limits: Limits, first_token: u64) -> Self {
        Self {
            seats: Vec::new(),
            free: Vec::new(),
            by_name: HashMap::default(),
            ledger: SharedState::new(ids, limits, first_token),
            returns: Deadlines::default(),
            lives: Deadlines::default(),
            rotation: VecDeque::new(),
            orphans: VecDeque::new(),
            leaving: 0,
            forgetting: 0,
        }
    }

    /// Makes a pool, or changes the policy of one; tells whether it was made. A new one takes
    /// `base` for what the change leaves out.
    pub fn create_or_update(
        &mut self,
        step: &mut StepContext<'_>,
        name: &PoolName,
        base: &Policy,
        patch: PolicyPatch,
    ) -> Result<bool, Refusal> {
        if let Some(&at) = self.by_name.get(name) {
            let pool = &mut self.seats[at as usize].as_mut().expect(SEATED).pool;
            let policy = pool.policy().with_patch(patch).map_err(Refusal::Invalid)?;
            pool.set_policy(policy.clone());
            step.facts.record(&Fact::PolicyChanged { pool: pool.id(), policy });
            return Ok(false);
        }
        let policy = base.with_patch(patch).map_err(Refusal::Invalid)?;
        let max = self.ledger.limits.pools;
        if self.by_name.len() >= max {
            return Err(Refusal::TooManyPools { max });
        }
        let number = self.ledger.counters.next_pool;
        self.seat(number, name.clone(), policy.clone());
        step.facts.record(&Fact::PoolCreated { pool: number, name: name.as_str(), policy });
        Ok(true)
    }

    /// Seats a new pool and gives its seat.
    pub(crate) fn seat(&mut self, number: PoolId, name: PoolName, policy: Policy) -> u32 {
        let counters = &mut self.ledger.counters;
        counters.next_pool = counters.next_pool.max(PoolId(number.0 + 1));
        let seat = PoolEntry {
            pool: Pool::new(number, name.clone(), policy),
            return_place: NO_INDEX,
            life_place: NO_INDEX,
            in_rotation: false,
        };
        let at = if let Some(at) = self.free.pop() {
            self.seats[at as usize] = Some(seat);
            at
        } else {
            self.seats.push(Some(seat));
            u32::try_from(self.seats.len() - 1).expect("invariant: pools are bounded")
        };
        self.seats[at as usize].as_mut().expect(SEATED).pool.seat = at;
        self.by_name.insert(name, at);
        at
    }

    /// Removes a pool with all its keys and gives it back, so that freeing its memory, which is
    /// O(n), can be done elsewhere. O(log pools).
    pub fn remove(&mut self, step: &mut StepContext<'_>, name: &PoolName) -> Result<Pool, Refusal> {
        if name.as_str() == PoolName::DEFAULT {
            return Err(Refusal::DefaultPool);
        }
        let at = *self.by_name.get(name).ok_or(Refusal::UnknownPool)?;
        let mut pool = self.unseat(at);
        let line = pool.take_line();
        if !line.is_empty() {
            self.orphans.push_back(line);
        }
        step.facts.record(&Fact::PoolDeleted { pool: pool.id() });
        Ok(pool)
    }

    pub(crate) fn unseat(&mut self, at: u32) -> Pool {
        self.returns.cancel(at, &mut Returning(&mut self.seats));
        self.lives.cancel(at, &mut Living(&mut self.seats));
        let seat = self.seats[at as usize].take().expect(SEATED);
        self.by_name.remove(seat.pool.name());
        self.free.push(at);
        self.ledger.keys -= seat.pool.counts().total();
        seat.pool.leave_answers(&mut self.ledger);
        seat.pool.leave_borrowers(&mut self.ledger);
        seat.pool
    }

    /// Plays one step on the pool of that name; what it made available goes to those in line.
    pub fn with_pool<T>(
        &mut self,
        name: &PoolName,
        step: &mut StepContext<'_>,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let at = *self.by_name.get(name).ok_or(Refusal::UnknownPool)?;
        let pool = &mut self.seats[at as usize].as_mut().expect(SEATED).pool;
        let played = play(pool, &mut self.ledger, step);
        if !enabled(Sabotage::NewcomerFirst) {
            pool.serve_line(&mut self.ledger, step);
        }
        self.schedule(at);
        if matches!(played, Err(Refusal::TooManyLeases { .. })) && self.is_due(step.now) {
            // One of them may be over, in a pool whose turn has not come.
            return Err(Refusal::Settling);
        }
        played
    }

    /// Whether something of any pool is due. O(1).
    fn is_due(&self, now: Now) -> bool {
        let NextDue { lease_us, serving_us } = self.next_due();
        lease_us.is_some_and(|at| at <= now.lease_us)
            || serving_us.is_some_and(|at| at <= now.serving_us)
    }

    /// Takes somebody out of line; false when nobody with that waiter_id waits. O(log n).
    pub fn cancel_wait(&mut self, waiter_id: WaiterId) -> bool {
        let Some(&(seat, at)) = self.ledger.waiters.get(&waiter_id) else { return false };
        // The seat may be another pool's by now, and the one asked for an orphan, told soon.
        let Some(seated) = &mut self.seats[seat as usize] else { return false };
        let left = seated.pool.leave(&mut self.ledger, at, waiter_id);
        self.schedule(seat);
        left
    }

    /// Takes what those who waited got since the last time: to be called after every step.
    pub fn drain_wait_outcomes(&mut self) -> std::vec::Drain<'_, WaitOutcome> {
        self.ledger.handed.drain(..)
    }

    /// Sends everybody away who waits, each told of by waiter_id. O(waiters): for a stop.
    pub fn cancel_all_waits(&mut self, mut each: impl FnMut(WaiterId)) {
        for (waiter_id, _) in self.ledger.waiters.drain() {
            each(waiter_id);
        }
        self.orphans.clear();
        for at in 0..u32::try_from(self.seats.len()).expect("invariant: pools are bounded") {
            if let Some(seat) = &mut self.seats[at as usize] {
                seat.pool.drop_line(&mut self.ledger);
                self.schedule(at);
            }
        }
    }

    /// How many wait in all pools together. O(1).
    pub fn waiter_count(&self) -> usize {
        self.ledger.waiters.len()
    }

    /// How many leases run in that name, those that are waited for among them. O(1).
    pub fn lease_count(&self, by: Borrower) -> u64 {
        self.ledger.borrowers.has(by.id)
    }

    /// Tells those in line for removed pools.
    fn tell_orphans(&mut self, step: &mut StepContext<'_>) {
        while step.budget > 0
            && let Some(line) = self.orphans.front_mut()
        {
            step.budget -= 1;
            match line.first() {
                None => drop(self.orphans.pop_front()),
                Some(first) => {
                    let waiter_id = line.leave(first).waiter_id;
                    self.ledger.waiters.remove(&waiter_id);
                    let outcome = Err(Refusal::UnknownPool);
                    self.ledger.handed.push(WaitOutcome { waiter_id, outcome });
                }
            }
        }
    }

    /// The pool of that name.
    pub fn get(&self, name: &PoolName) -> Option<&Pool> {
        self.by_name.get(name).map(|&at| &self.seats[at as usize].as_ref().expect(SEATED).pool)
    }

    /// All pools, in no order. O(pools).
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.seats.iter().flatten().map(|seat| &seat.pool)
    }

    pub(crate) fn parts(&mut self, at: u32) -> (&mut Pool, &mut SharedState) {
        (&mut self.seats[at as usize].as_mut().expect(SEATED).pool, &mut self.ledger)
    }

    pub(crate) fn at(&self, seat: u32) -> &Pool {
        &self.seats[seat as usize].as_ref().expect(SEATED).pool
    }

    /// Tells anew what holds keys away and what Idempotency-Keys were answered, from a place on, at
    /// most `max` of them; gives where to go on,
    /// or `None` when all pools have been told. O(max).
    pub fn write_snapshot(
        &self,
        from: SnapshotCursor,
        max: u32,
        facts: &mut dyn FactSink,
    ) -> Option<SnapshotCursor> {
        let seats = u32::try_from(self.seats.len()).expect("invariant: pools are bounded");
        for seat in from.seat..seats.min(from.seat + max) {
            let (hold, answer) = if seat == from.seat { (from.hold, from.answer) } else { (0, 0) };
            let Some(PoolEntry { pool, .. }) = &self.seats[seat as usize] else { continue };
            if !pool.is_told((hold, answer)) {
                return Some(match pool.write_snapshot((hold, answer), max, facts) {
                    Some((hold, answer)) => SnapshotCursor { seat, hold, answer },
                    None => SnapshotCursor { seat: seat + 1, ..SnapshotCursor::default() },
                });
            }
        }
        let seat = from.seat + max;
        (seat < seats).then(|| SnapshotCursor { seat, ..SnapshotCursor::default() })
    }

    pub(crate) fn ledger_mut(&mut self) -> &mut SharedState {
        &mut self.ledger
    }

    /// Names this run of the server, so that no cursor of another run is taken for one of it.
    pub fn set_run_id(&mut self, random: &mut dyn RandomSource) {
        let mut run = [0; 8];
        random.fill(&mut run);
        self.ledger.run = u64::from_le_bytes(run);
    }

    /// Names the mark of the facts to come, which never falls, and up to which one a database has
    /// taken over what is gone for ever: that leaves this memory, a slice a call, pools in turn.
    pub fn set_positions(&mut self, positions: JournalPositions) {
        let checkpointed = positions.checkpointed;
        let risen = checkpointed > self.ledger.positions.checkpointed;
        self.ledger.positions = positions;
        if risen && self.leaving == 0 {
            self.leaving = self.seats.len();
        }
        for _ in 0..SEATS_A_MARK {
            let Some(at) = self.leaving.checked_sub(1) else { return };
            let pool = self.seats.get_mut(at).and_then(Option::as_mut);
            if pool.is_some_and(|seat| seat.pool.leave_retired(checkpointed, LEAVE_A_MARK)) {
                return;
            }
            self.leaving = at;
        }
    }

    /// Says whether nothing can be remembered: then no key is purged and no lease ends, and what is
    /// due of a key that is asked for is over all the same.
    pub fn set_clocks_frozen(&mut self, held: bool) {
        self.ledger.held = held;
    }

    /// Whether what is asked of the pool of that name under an Idempotency-Key is answered already;
    /// `lends` tells the two routes apart. O(1).
    pub fn has_stored_answer(
        &self,
        name: &PoolName,
        call: IdempotentCall,
        once: &IdempotencyKey<'_>,
        now_us: u64,
    ) -> bool {
        self.get(name).is_some_and(|pool| pool.has_stored_answer(&self.ledger, call, once, now_us))
    }

    /// The ids to look up before values are brought into the pool of that name, if any are.
    pub fn ids_to_check(&self, name: &PoolName, values: &[Secret]) -> Option<IdsToCheck> {
        let pool = self.get(name)?;
        pool.ids_to_check(&self.ledger, values).map(|ids| IdsToCheck { pool: pool.id(), ids })
    }

    /// What tells this run of the server from others; no secret.
    pub fn run_id(&self) -> u64 {
        self.ledger.run
    }

    /// The counters that must never go back.
    pub fn counters(&self) -> Counters {
        self.ledger.counters
    }

    /// The next fencing token.
    pub fn next_token(&self) -> u64 {
        self.ledger.next_token
    }

    /// Keys in all pools together. O(1).
    pub fn key_count(&self) -> u64 {
        self.ledger.keys
    }

    /// Ends what is due, pools in rotation, at most the step's budget; true when more is due.
    pub fn expire(&mut self, step: &mut StepContext<'_>) -> bool {
        self.rotate_in(step.now);
        self.forget_answers(step.now);
        self.tell_orphans(step);
        while step.budget > 0
            && let Some(at) = self.rotation.pop_front()
        {
            let Some(seat) = &mut self.seats[at as usize] else { continue };
            let mut slice = StepContext {
                budget: SLICE.min(step.budget),
                now: step.now,
                ended_by_time: false,
                random: step.random,
                facts: step.facts,
            };
            let given = slice.budget;
            seat.pool.expire(&mut self.ledger, &mut slice);
            let (left, by_time) = (slice.budget, slice.ended_by_time);
            step.budget -= given - left;
            step.ended_by_time |= by_time;
            if seat.pool.is_due(step.now) {
                self.rotation.push_back(at);
            } else {
                seat.in_rotation = false;
                self.schedule(at);
            }
        }
        !self.rotation.is_empty() || !self.orphans.is_empty()
    }

    /// Forgets answers whose time is over, pools in turn: one that is never asked again must not keep
    /// the room of all.
    fn forget_answers(&mut self, now: Now) {
        for _ in 0..SEATS_A_MARK.min(self.seats.len()) {
            let at = self.forgetting.checked_sub(1).unwrap_or(self.seats.len() - 1);
            let Self { seats, ledger, .. } = self;
            let pool = seats.get_mut(at).and_then(Option::as_mut);
            if pool.is_some_and(|seat| seat.pool.forget_answers(ledger, now, FORGET_A_TURN)) {
                return;
            }
            self.forgetting = at;
        }
    }

    fn rotate_in(&mut self, now: Now) {
        while let Some((at_us, at)) = self.returns.first()
            && at_us <= now.lease_us
        {
            self.enrol(at);
        }
        while let Some((at_us, at)) = self.lives.first()
            && at_us <= now.serving_us
        {
            self.enrol(at);
        }
    }

    fn enrol(&mut self, at: u32) {
        self.returns.cancel(at, &mut Returning(&mut self.seats));
        self.lives.cancel(at, &mut Living(&mut self.seats));
        self.seats[at as usize].as_mut().expect(SEATED).in_rotation = true;
        self.rotation.push_back(at);
    }

    /// When something is due next: in lease time and in serving time.
    pub fn next_due(&self) -> NextDue {
        if !self.rotation.is_empty() || !self.orphans.is_empty() {
            return NextDue { lease_us: Some(0), serving_us: Some(0) };
        }
        NextDue {
            lease_us: self.returns.first().map(|(at, _)| at),
            serving_us: self.lives.first().map(|(at, _)| at),
        }
    }

    /// Notes a pool's soonest deadlines; one in rotation is looked at anyway.
    pub(crate) fn schedule(&mut self, at: u32) {
        let seat = self.seats[at as usize].as_ref().expect(SEATED);
        let size = seat.pool.counts().total() + self.ledger.waiters.len() as u64;
        if cfg!(debug_assertions) && size <= CHECKED_MAX {
            seat.pool.check_invariants(&self.ledger);
        }
        if seat.in_rotation {
            return;
        }
        let (back, purge) = (seat.pool.next_of_lease_us(), seat.pool.next_purge_us());
        note(&mut self.returns, at, back, &mut Returning(&mut self.seats));
        note(&mut self.lives, at, purge, &mut Living(&mut self.seats));
    }

    /// The ids of a pool's keys, in no order: for tests. O(n).
    pub fn key_ids(&self, name: &PoolName) -> Vec<KeyId> {
        self.get(name).map_or_else(Vec::new, |pool| pool.key_ids(&self.ledger))
    }

    /// Panics unless the pools and their shared parts agree. O(n).
    pub fn check_invariants(&self) {
        for pool in self.iter() {
            pool.check_invariants(&self.ledger);
        }
        let keys: u64 = self.iter().map(|pool| pool.counts().total()).sum();
        assert_eq!(keys, self.ledger.keys, "the server counts the keys of its pools");
        let mut borrowers = Borrowers::default();
        for pool in self.iter() {
            borrowers.add_all(pool.borrowers());
        }
        assert_eq!(borrowers, self.ledger.borrowers, "the server counts the leases of its pools");
        assert_eq!(self.by_name.len() + self.free.len(), self.seats.len(), "seats are accounted");
    }
}

const SEATED: &str = "invariant: a pool that is named has a seat";

/// Sets or cancels a pool's deadline, leaving the heap alone where nothing changed.
fn note(heap: &mut Deadlines, at: u32, due_us: Option<u64>, places: &mut impl HeapIndex) {
    let present = (places.place(at) != NO_INDEX).then(|| heap.deadline(at, places));
    match due_us {
        _ if due_us == present => {}
        Some(due_us) => heap.set(at, due_us, places),
        None => heap.cancel(at, places),
    }
}

/// Seats in the heap of returns.
struct Returning<'a>(&'a mut Vec<Option<PoolEntry>>);
/// Seats in the heap of purges.
struct Living<'a>(&'a mut Vec<Option<PoolEntry>>);

impl HeapIndex for Returning<'_> {
    fn place(&self, item: u32) -> u32 {
        self.0[item as usize].as_ref().expect(SEATED).return_place
    }
    fn set_place(&mut self, item: u32, place: u32) {
        self.0[item as usize].as_mut().expect(SEATED).return_place = place;
    }
}

impl HeapIndex for Living<'_> {
    fn place(&self, item: u32) -> u32 {
        self.0[item as usize].as_ref().expect(SEATED).life_place
    }
    fn set_place(&mut self, item: u32, place: u32) {
        self.0[item as usize].as_mut().expect(SEATED).life_place = place;
    }
}

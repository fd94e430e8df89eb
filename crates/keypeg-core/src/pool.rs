//! One pool: its keys, their leases, and the deadlines of both.
//!
//! The public methods stand in the order of a key's life. Each takes the step that it is part of
//! (time, randomness, the sink of facts) and either succeeds or refuses; a refusal changes nothing
//! but what time has ended anyway. No method is O(n) in the keys. Two clocks: `hold_ends` ends
//! leases and rests on lease time, `key_ends` purges keys on serving time. A deadline is due when
//! `now >= deadline`.
//!
//! ```text
//!            acquire                    release, expire
//! available ─────────► leased ───────────────────────────► available
//!     ▲                   ├──── where it rests ───────────► resting ──────┐ time, a call
//!     │                   └──── asked for, or draining ───► quarantined ──┤ a call
//!     └───────────────────────────────────────────────────────────────────┘
//! any state ── delete (a call) · purge (no keep-alive) ──► removed; its value is retired
//! ```

mod borrow;
mod check;
mod due;
mod idempotent;
mod keys;
mod label;
mod memory;
mod page;
mod prepare;
mod quarantine;
mod replay;
mod restored;
mod stage;
mod transitions;
mod wait;

pub use memory::KEY_BYTES_MIN;
pub use restored::{HeldKeys, RESTORED_HOLDER, RestoredHolds};

use crate::activity::PoolActivity;
use crate::available::Available;
use crate::borrowers::Borrowers;
use crate::clocks::{NEVER_US, US_PER_MS, after};
use crate::deadlines::Deadlines;
use crate::event::Event;
use crate::fact::{Fact, Grant, PackedValuesBuilder};
use crate::heap::CountedBytes;
use crate::holds::{EndingLease, Hold, Holds, Rest, ShownLease};
use crate::idempotency_store::IdempotencyStore;
use crate::ids::{KeyId, LeaseId};
use crate::incoming::{ImportOptions, IncomingKey};
use crate::index::Index;
use crate::indices::{HoldIndex, PoolIndex, SlotIndex};
use crate::key::{KeptAlive, KeptAliveMany, KeyRef, KeyState, KeyView, NewKey};
use crate::key_counts::KeyCounts;
use crate::lease::{AcquireOptions, ForceReleased, Granted, LeaseView, ReleaseOptions, Released};
use crate::numbers::{BorrowerId, PoolId};
use crate::policy::{Policy, PoolName};
use crate::prepared::{KeysToAdd, PreparedKeys};
use crate::reasons::Reasons;
use crate::refusal::{EndCause, NoKeyCause, Refusal};
use crate::retired::Retired;
use crate::sabotage::{Sabotage, enabled};
use crate::secret::Secret;
use crate::shared::SharedState;
use crate::slot_texts::SlotTexts;
use crate::slots::Slots;
use crate::staged::{AddKeys, StagedKeys};
use crate::step::StepContext;
use crate::symbols::Symbols;
use crate::wait_queue::WaitQueue;
use hashbrown::HashSet;
pub(crate) use replay::PoolCursor;

/// A pool's keys and leases.
#[derive(Clone, Debug)]
pub struct Pool {
    id: PoolId,
    /// The pool's index among the pools of the server.
    pub(crate) index: PoolIndex,
    name: PoolName,
    policy: Policy,
    slots: Slots,
    by_id: Index<SlotIndex>,
    available: Available,
    holds: Holds,
    /// When holds end, in lease time.
    hold_ends: Deadlines<HoldIndex>,
    /// When keys are purged, in serving time. Contains every key but those without keep-alive.
    key_ends: Deadlines<SlotIndex>,
    resting: u64,
    quarantined: u64,
    reasons: Reasons,
    labels: SlotTexts,
    /// The number of draining keys: leased, and quarantined when their leases end.
    draining: u64,
    /// The reasons of draining keys, as far as they have one.
    drain_reasons: SlotTexts,
    wait_queue: WaitQueue,
    idempotency: IdempotencyStore,
    /// What this pool's leases and waiters contribute to the shared counts.
    borrowers: Borrowers,
    /// The bytes of all these structures.
    bytes: CountedBytes,
    /// Values that were deleted or purged, where the value itself does not show it.
    retired: Retired,
    activity: PoolActivity,
    /// The keys of a call that adds many, before they exist.
    staged: Option<Box<StagedKeys>>,
}

impl Pool {
    pub(crate) fn new(id: PoolId, name: PoolName, policy: Policy) -> Self {
        Self {
            id,
            index: PoolIndex::default(),
            name,
            policy,
            slots: Slots::default(),
            by_id: Index::default(),
            available: Available::default(),
            holds: Holds::default(),
            hold_ends: Deadlines::default(),
            key_ends: Deadlines::default(),
            resting: 0,
            quarantined: 0,
            reasons: Reasons::default(),
            labels: SlotTexts::default(),
            draining: 0,
            drain_reasons: SlotTexts::default(),
            wait_queue: WaitQueue::default(),
            idempotency: IdempotencyStore::default(),
            borrowers: Borrowers::default(),
            bytes: CountedBytes::default(),
            retired: Retired::default(),
            activity: PoolActivity::default(),
            staged: None,
        }
    }

    /// Returns the pool's number, which is never used twice.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Returns the pool's name.
    pub fn name(&self) -> &PoolName {
        &self.name
    }

    /// Returns the pool's policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Returns the number of keys in each state. O(1). Includes what is due but not ended yet,
    /// which lasts a second at most.
    pub fn counts(&self) -> KeyCounts {
        let held = self.holds.len() as u64;
        KeyCounts {
            available: self.available.len() as u64,
            leased: held - self.resting,
            resting: self.resting,
            quarantined: self.quarantined,
            draining: self.draining,
        }
    }

    /// Returns what has happened in the pool since the start of the server. O(1).
    pub fn activity(&self) -> PoolActivity {
        self.activity
    }

    /// Returns when the next lease or rest ends, in lease time.
    pub fn next_hold_end_us(&self) -> Option<u64> {
        self.hold_ends.first().map(|(at_us, _)| at_us)
    }

    /// Returns when the next key is purged, in serving time; `None` when no key ever is.
    pub fn next_purge_us(&self) -> Option<u64> {
        self.key_ends.first().map(|(at_us, _)| at_us).filter(|&at_us| at_us < NEVER_US)
    }

    /// Creates `count` keys of random symbols, all or none. O(count log n).
    pub fn generate(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        count: u32,
    ) -> Result<Vec<NewKey>, Refusal> {
        self.add_keys(shared, step, &AddKeys::new(KeysToAdd::Generated(count)))
    }

    /// Imports values, all or none. A value that is in the pool is refused, and so is a retired one
    /// unless the options allow it: one that was in the pool before, generated or imported.
    /// `first_retired` is the index of the first one that the database knows to be retired.
    /// O(values log n).
    pub fn import(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        imported: &[Secret],
        options: ImportOptions,
        first_retired: Option<usize>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let retired = first_retired.map(|index| u32::try_from(index).expect("invariant: bounded"));
        let (call, retired) = (AddKeys::new(KeysToAdd::Imported(imported)), retired.as_slice());
        self.add_keys(shared, step, &AddKeys { options, retired, ..call })
    }

    /// Generates or imports keys in one step, with what is prepared of them, all or none; like
    /// [`Pool::generate`] and [`Pool::import`]. The Idempotency-Key of the call is the caller's
    /// business.
    pub fn add_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
    ) -> Result<Vec<NewKey>, Refusal> {
        match call.keys {
            KeysToAdd::Generated(count) => self.add_generated(shared, step, call, count),
            KeysToAdd::Imported(values) => self.add_imported(shared, step, call, values),
        }
    }

    fn add_generated(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
        count: u32,
    ) -> Result<Vec<NewKey>, Refusal> {
        let label_bytes = call.labels.bytes(count as usize);
        self.check_room(shared, step, count, self.bytes_of_generated(count) + label_bytes)?;
        let length = self.policy.key_prefix.len() + usize::from(self.policy.key_length);
        let mut values = PackedValuesBuilder::with_capacity(count as usize, length);
        let mut keys = Vec::with_capacity(count as usize);
        let first = shared.allocate_keys(count);
        let mut symbols = Symbols::default();
        let mut value = Vec::with_capacity(length);
        for (index, number) in first.range(count).enumerate() {
            let ready =
                call.prepared.and_then(|prepared| prepared.generated(self.id, &self.policy, index));
            let ready = ready.filter(|(value, id)| !self.has_or_had(*id, value));
            let id = if let Some((ready, id)) = ready {
                value.clear();
                value.extend_from_slice(ready);
                id
            } else {
                self.draw_value(shared, step.random, &mut symbols, &mut value)
            };
            values.push(&value);
            let (value, imported, keepalive) = (&value[..], false, true);
            let key = IncomingKey { number, id, value, imported, keepalive };
            let slot = self.insert_key(&shared.ids, step.now, key);
            self.put_label(slot, call.labels.get(index));
            keys.push(self.new_key(step.now, id, slot));
        }
        self.record_created(step, call, (first, &keys), values.values());
        Ok(keys)
    }

    fn add_imported(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
        imported: &[Secret],
    ) -> Result<Vec<NewKey>, Refusal> {
        let count = u32::try_from(imported.len()).expect("invariant: a request is bounded");
        let mut seen = HashSet::with_capacity_and_hasher(imported.len(), Hasher::default());
        let mut values = PackedValuesBuilder::default();
        let mut value_bytes = call.labels.bytes(imported.len());
        // Most of the cost of a long value is its hash, so each is hashed once.
        let mut ids = Vec::with_capacity(imported.len());
        for (index, value) in imported.iter().enumerate() {
            let id = self.check_imported(shared, step, call, index)?;
            if !seen.insert(id) {
                return Err(Refusal::KeyExists { index });
            }
            ids.push(id);
            values.push(value.bytes());
            value_bytes += Slots::bytes_of_value(value.bytes().len());
        }
        self.check_room(shared, step, count, value_bytes)?;
        let first = shared.allocate_keys(count);
        let mut keys = Vec::with_capacity(imported.len());
        for (index, (number, id)) in first.range(count).zip(ids).enumerate() {
            let value = imported[index].bytes();
            self.take_staged_value(shared, id, value);
            let (imported, keepalive) = (true, call.options.keepalive);
            let key = IncomingKey { number, id, value, imported, keepalive };
            let slot = self.insert_key(&shared.ids, step.now, key);
            self.put_label(slot, call.labels.get(index));
            keys.push(self.new_key(step.now, id, slot));
        }
        self.record_created(step, call, (first, &keys), values.values());
        Ok(keys)
    }

    /// Returns the ids that the database must look up before an import of these values; `None` when
    /// it contains no retired values of this pool. O(values).
    pub fn ids_to_check(
        &self,
        shared: &SharedState,
        values: &[Secret],
        prepared: Option<&PreparedKeys>,
    ) -> Option<Vec<KeyId>> {
        let id = |(index, value): (usize, &Secret)| {
            let ready = prepared.and_then(|prepared| prepared.imported(self.id, index));
            ready.map_or_else(|| shared.ids.key_id(self.id, value.bytes()), |key| key.id)
        };
        self.retired.is_in_database().then(|| values.iter().enumerate().map(id).collect())
    }

    /// Grants a uniformly random available key for the requested TTL. O(log n).
    ///
    /// Returns [`Refusal::NoKey`] only when nothing in this pool is due; where the turn's budget
    /// does not suffice to expire what is due, returns [`Refusal::Settling`].
    pub fn acquire(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        options: &AcquireOptions<'_>,
    ) -> Result<Granted, Refusal> {
        let ttl_us = self.ttl_us(options.ttl_ms)?;
        self.expire_holds(shared, step);
        Self::check_borrower(shared, options.borrower)?;
        Self::check_lease_memory(shared)?;
        if self.serve_earlier_waiters(shared, step) {
            return Err(self.no_key(shared, step));
        }
        match self.draw_key(shared, step) {
            Ok(slot) => {
                let AcquireOptions { holder, borrower, .. } = *options;
                let terms = LeaseTerms { ttl_us, holder, borrower: borrower.id };
                Ok(self.grant(shared, step, slot, terms))
            }
            Err(NotDrawn::BudgetSpent) => Err(Refusal::Settling),
            Err(NotDrawn::NoneAvailable) => Err(self.no_key(shared, step)),
        }
    }

    /// Draws a uniformly random available key, and purges the due keys that it draws before. Draws
    /// none while the pool is draining.
    fn draw_key(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
    ) -> Result<SlotIndex, NotDrawn> {
        if self.policy.draining && !enabled(Sabotage::GrantWhileDraining) {
            return Err(NotDrawn::NoneAvailable);
        }
        while let Some(slot) = self.available.draw(step.random) {
            // Usually no key is due, and then the drawn key's own deadline is not read.
            if !self.has_due_keys(step.now)
                || !step.now.is_purge_due(self.key_ends.deadline(slot, &self.slots))
            {
                return Ok(slot);
            }
            if step.budget == 0 {
                return Err(NotDrawn::BudgetSpent);
            }
            step.budget -= 1;
            self.purge(shared, step, slot);
        }
        Err(NotDrawn::NoneAvailable)
    }

    /// Leases an available key.
    fn grant(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: SlotIndex,
        terms: LeaseTerms<'_>,
    ) -> Granted {
        let LeaseTerms { ttl_us, holder, borrower } = terms;
        self.activity.grants += 1;
        let token = shared.take_token(step.facts);
        let lease = Grant {
            granted_us: step.now.lease_us,
            until_us: after(step.now.lease_us, ttl_us),
            hold_until_us: after(step.now.lease_us, self.policy.hold_us()),
            rest_us: self.policy.rest_ms * US_PER_MS,
            holder,
            borrower,
        };
        let key = self.slots.number(slot);
        self.lease_available(shared, slot, token, &lease);
        step.facts.record(&Fact::Granted { pool: self.id, key, token, lease });
        let view = self.view_of_lease(&shared.ids, step.now, (slot, token), ShownLease::of(&lease));
        let (key, until_us) = (view.key_id, lease.until_us);
        let label = view.label.as_deref();
        self.emit(step, || Event::Granted { key, token, holder, label, until_us });
        let value = Secret::from_stored(self.slots.value(slot));
        Granted { lease: view, value, redelivered: false }
    }

    fn ttl_us(&self, ttl_ms: Option<u64>) -> Result<u64, Refusal> {
        Ok(self.policy.lease_ttl(ttl_ms).map_err(Refusal::Invalid)? * US_PER_MS)
    }

    /// Returns why no key is available. Never [`Refusal::NoKey`] while something is due.
    fn no_key(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) -> Refusal {
        self.expire_keys(shared, step);
        if self.has_due_holds_or_keys(step.now) {
            return Refusal::Settling;
        }
        let counts = self.counts();
        let cause = match counts {
            KeyCounts { leased: 0, resting: 0, quarantined: 0, .. } => NoKeyCause::PoolEmpty,
            KeyCounts { resting: 0, quarantined: 0, .. } => NoKeyCause::AllLeased,
            KeyCounts { leased: 0, quarantined: 0, .. } => NoKeyCause::AllResting,
            KeyCounts { leased: 0, resting: 0, .. } => NoKeyCause::AllQuarantined,
            _ => NoKeyCause::NoneFree,
        };
        let cause = if self.policy.draining { NoKeyCause::Draining } else { cause };
        let next_hold_end_in_ms = self
            .next_hold_end_us()
            .filter(|_| cause != NoKeyCause::Draining)
            .map(|at_us| at_us.saturating_sub(step.now.lease_us).div_ceil(US_PER_MS));
        self.activity.count_refusal(cause);
        Refusal::NoKey { cause, counts, next_hold_end_in_ms }
    }

    /// Extends a running lease, up to the longest hold that its grant allowed. A lease that lasts
    /// longer already stays as it is. O(log n).
    pub fn renew(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
        ttl_ms: Option<u64>,
    ) -> Result<LeaseView, Refusal> {
        let hold = self.running_hold(shared, step, lease)?;
        let duration_us = self.ttl_us(ttl_ms)?;
        let Hold { slot, token, latest_us, .. } = *self.holds.get(hold);
        let wanted_us = after(step.now.lease_us, duration_us);
        let until_us = wanted_us.min(latest_us);
        let present_us = self.hold_ends.deadline(hold, &self.holds);
        if wanted_us <= present_us {
            return Ok(self.lease_view(&shared.ids, step.now, hold));
        }
        if until_us <= present_us {
            let expires_at_ms = step.now.lease_to_wall_ms(present_us);
            return Err(Refusal::MaxHoldReached { expires_at_ms });
        }
        self.extend_lease(hold, until_us);
        let key = self.slots.number(slot);
        step.facts.record(&Fact::Renewed { pool: self.id, key, token, until_us });
        let view = self.lease_view(&shared.ids, step.now, hold);
        self.emit(step, || Event::Renewed { key: view.key_id, token, until_us });
        Ok(view)
    }

    /// Ends a running lease; its key becomes available, rests or is quarantined. Returns the
    /// holder, which is moved out of the pool. O(log n).
    pub fn release(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
        options: &ReleaseOptions,
    ) -> Result<Released, Refusal> {
        options.check().map_err(Refusal::Invalid)?;
        let hold = self.running_hold(shared, step, lease)?;
        // The journal cannot distinguish an empty reason from none.
        let reason = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = reason.map(|reason| Self::reason_that_fits(shared, reason));
        let holder = if options.quarantine {
            self.quarantine_leased(shared, step, hold, reason)
        } else {
            let lease = self.ending_lease(hold);
            let rest_us = options.rest_ms.map_or(lease.rest_us, |ms| ms * US_PER_MS);
            self.end_by_call(shared, step, &lease, rest_us, reason)
        };
        Ok(Released { holder })
    }

    /// Ends a lease by a call and quarantines its key, with this reason. Returns the holder.
    fn quarantine_leased(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        hold: HoldIndex,
        reason: Option<&str>,
    ) -> Option<Box<str>> {
        let Hold { slot, token, granted_us, .. } = *self.holds.get(hold);
        let key = self.slots.number(slot);
        let holder = self.quarantine(shared, slot, reason, EndCause::Released);
        self.activity.count_release(step.now.lease_us.saturating_sub(granted_us));
        step.facts.record(&Fact::Quarantined { pool: self.id, key, reason });
        let (id, was) = (|| self.key_id(&shared.ids, slot), KeyState::Leased);
        self.emit(step, || Event::Quarantined { key: id(), was, token: Some(token), reason });
        holder
    }

    /// Ends a lease by a call; its key rests for `rest_us`, with this reason, or is quarantined if
    /// it is draining. Returns the holder.
    fn end_by_call(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: &EndingLease,
        rest_us: u64,
        reason: Option<&str>,
    ) -> Option<Box<str>> {
        let EndingLease { slot, key, token, is_draining, .. } = *lease;
        self.activity.count_release(step.now.lease_us.saturating_sub(lease.granted_us));
        let rests = rest_us > 0 && !is_draining;
        let rest_until_us = if rests { after(step.now.lease_us, rest_us) } else { 0 };
        let reason = reason.filter(|_| rests);
        let rest = Rest { until_us: rest_until_us, reason };
        let holder = self.end_lease(shared, lease, rest, EndCause::Released);
        let pool = self.id;
        step.facts.record(&Fact::Released { pool, key, token, rest_until_us, reason });
        let id = || self.key_id(&shared.ids, slot);
        self.emit(step, || Event::Released { key: id(), token, rest_until_us, reason });
        if is_draining {
            self.emit_quarantined(shared, step, slot, KeyState::Available);
        }
        holder
    }

    /// Makes a key available whatever its holder, and also ends rest and quarantine. Returns
    /// whether that changed anything, and the holder of the lease that ended. O(log n).
    pub fn force_release(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<ForceReleased, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let mut holder = None;
        match self.slots.state(slot).expect("invariant: a found key exists") {
            KeyState::Available => return Ok(ForceReleased::default()),
            KeyState::Leased => {
                let lease = self.ending_lease(self.slots.hold(slot));
                holder = self.end_by_call(shared, step, &lease, lease.rest_us, None);
            }
            was @ (KeyState::Resting | KeyState::Quarantined) => {
                self.make_available(shared, slot, EndCause::Released);
                let key = self.slots.number(slot);
                step.facts.record(&Fact::KeyFreed { pool: self.id, key });
                self.emit(step, || Event::KeyFreed { key: self.key_id(&shared.ids, slot), was });
            }
        }
        Ok(ForceReleased { released: true, holder })
    }

    /// Restarts one key's keep-alive time, unless it has none. O(log n).
    pub fn keep_alive(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<KeptAlive, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let keepalive = self.slots.keepalive(slot) || enabled(Sabotage::GiveDeadline);
        let until_us = if keepalive { self.key_end_us(step.now) } else { NEVER_US };
        if keepalive {
            self.key_ends.set(slot, until_us, &mut self.slots);
        }
        let id = match key {
            KeyRef::Id(id) => *id,
            KeyRef::Value(_) => self.key_id(&shared.ids, slot),
        };
        Ok(KeptAlive { id, expires_at_ms: step.now.serving_to_wall_ms(until_us) })
    }

    /// Restarts the keep-alive time of several keys. O(k log n). [`Refusal::StorageFull`] where one
    /// of them is due and that cannot be recorded.
    pub fn keep_alive_many(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        keys: &[KeyId],
    ) -> Result<KeptAliveMany, Refusal> {
        let mut seen = HashSet::with_capacity_and_hasher(keys.len(), Hasher::default());
        let mut missing = Vec::new();
        for id in keys.iter().filter(|id| seen.insert(**id)) {
            match self.keep_alive(shared, step, &KeyRef::Id(*id)) {
                Ok(_) => {}
                Err(Refusal::StorageFull) => return Err(Refusal::StorageFull),
                Err(_) => missing.push(*id),
            }
        }
        Ok(KeptAliveMany { kept: (seen.len() - missing.len()) as u64, missing })
    }

    /// Restarts the keep-alive time of every key in one step, after purging the due ones. Returns
    /// the number of keys. O(1) beside what was due; [`Refusal::Settling`] where the budget does
    /// not suffice for what is due.
    pub fn keep_alive_all(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
    ) -> Result<u64, Refusal> {
        self.expire_keys(shared, step);
        if self.has_due_keys(step.now) {
            return Err(Self::unless_frozen(shared, Refusal::Settling));
        }
        self.key_ends.raise_all(self.key_end_us(step.now));
        Ok(self.counts().total())
    }

    /// Deletes a key in any state; a lease on it ends, and its holder is returned. O(log n).
    pub fn delete(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<Released, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let number = self.slots.number(slot);
        let (key, was, released) = self.remove_key(shared, slot);
        step.facts.record(&Fact::KeyDeleted { pool: self.id, key: number });
        self.emit(step, || Event::Deleted { key, was });
        Ok(released)
    }

    /// Returns everything about a key but its value. O(1) beside what is due of it.
    pub fn get_key(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<KeyView, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        Ok(self.key_view(shared, step.now, slot))
    }

    /// Returns a key's value, whatever its holder.
    pub fn reveal(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<(KeyId, Secret), Refusal> {
        let slot = self.find_live(shared, step, key)?;
        Ok((self.key_id(&shared.ids, slot), Secret::from_stored(self.slots.value(slot))))
    }

    /// Emits the event that the closure creates, if the pool has subscribers.
    fn emit<'a>(&self, step: &mut StepContext<'_>, event: impl FnOnce() -> Event<'a>) {
        if step.facts.has_subscribers(self.id) {
            step.facts.emit(self.id, &event());
        }
    }
}

/// The terms of a lease that is to be granted.
#[derive(Clone, Copy)]
struct LeaseTerms<'a> {
    ttl_us: u64,
    holder: Option<&'a str>,
    borrower: BorrowerId,
}

/// Why no key was drawn.
enum NotDrawn {
    /// No key is available.
    NoneAvailable,
    /// More keys are due than the step's budget allows to purge.
    BudgetSpent,
}

type Hasher = foldhash::fast::RandomState;

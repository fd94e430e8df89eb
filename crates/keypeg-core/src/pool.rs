//! One pool: which keys it has, who holds which, what ends when.
//!
//! The methods stand in the order of a key's life. Each takes the step it is part of (time,
//! random, who takes the facts) and either does it all or refuses and changes nothing but what
//! time has ended anyway. No method is O(n) in the keys. Two clocks: `returns` ends leases and
//! rests on lease time, `lives` ends keys on serving time; a deadline is over when `now >= it`.
//!
//! ```text
//!            acquire                    release, expire
//! available ─────────► leased ───────────────────────────► available
//!     ▲                   ├──── where it is to rest ──────► resting ──────┐ time, a call
//!     │                   └──── where its holder says so ─► quarantined ──┤ a call
//!     └───────────────────────────────────────────────────────────────────┘
//! any state ── delete (a call) · purge (nobody kept it alive) ──► gone, for ever
//! ```

mod borrow;
mod check;
mod due;
mod health;
mod idempotent;
mod page;
mod replay;
mod wait;

use crate::RandomSource;
use crate::available::Available;
use crate::borrowers::{Borrower, Borrowers};
use crate::clocks::{NEVER_US, Now, US_PER_MS, after};
use crate::deadlines::Deadlines;
use crate::event::Event;
use crate::fact::{Fact, FactSink, Grant, PackedValuesBuilder};
use crate::holds::{Hold, Holds};
use crate::idempotency_store::IdempotencyStore;
use crate::ids::{IdHashKey, KeyId, LeaseId};
use crate::index::Index;
use crate::key::{KeptAlive, KeptAliveMany, KeyRef, KeyState, KeyView, LeaseView, NewKey, Secret};
use crate::numbers::{BorrowerId, KeyNumber, PoolId};
use crate::policy::{OutOfRange, Policy, PoolName};
use crate::refusal::{EndCause, KeyCounts, NoKeyCause, Refusal};
use crate::retired::Retired;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{EndedLease, SharedState};
use crate::slots::Slots;
use crate::symbols::Symbols;
use crate::wait_queue::WaitQueue;
use hashbrown::HashSet;
use health::Reasons;
pub use idempotent::{IdempotencyKey, IdempotentCall};
pub use wait::{GrantedLease, WaitOptions};

/// One step of a turn: when it is, where random comes from, who takes the facts.
pub struct StepContext<'a> {
    /// The instant of the whole turn.
    pub now: Now,
    /// Where random comes from.
    pub random: &'a mut dyn RandomSource,
    /// Who takes the facts.
    pub facts: &'a mut dyn FactSink,
    /// How many more leases, rests and keys this turn may end because they are due.
    pub budget: u32,
    /// Whether time ended a lease or a rest, which leaves no fact: the clock must be remembered.
    pub ended_by_time: bool,
}

/// What somebody who asks for a key wants of the lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcquireOptions<'a> {
    /// How long; the policy's length when left out.
    pub ttl_ms: Option<u64>,
    /// Who says to hold it.
    pub holder: Option<&'a str>,
    /// The borrower that the lease counts for.
    pub borrower: Borrower,
}

/// A lease that was just granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub lease: LeaseView,
    /// The key's value.
    pub value: Secret,
    /// Whether an earlier request with the same Idempotency-Key was granted this lease.
    pub redelivered: bool,
}

/// A pool's keys and leases.
#[derive(Clone, Debug)]
pub struct Pool {
    number: PoolId,
    /// Where it stands among the pools.
    pub(crate) seat: u32,
    name: PoolName,
    policy: Policy,
    slots: Slots,
    by_id: Index,
    available: Available,
    holds: Holds,
    /// When holds end, in lease time.
    returns: Deadlines,
    /// When keys end, in serving time. Every key is in it.
    lives: Deadlines,
    resting: u64,
    quarantined: u64,
    reasons: Reasons,
    /// Who waits for a key.
    line: WaitQueue,
    /// What Idempotency-Keys were answered.
    replays: IdempotencyStore,
    /// What this pool's leases and waits count in the ledger's borrowers.
    borrowers: Borrowers,
    /// Imported values that were deleted or purged: never used again.
    retired: Retired,
}

impl Pool {
    pub(crate) fn new(number: PoolId, name: PoolName, policy: Policy) -> Self {
        Self {
            number,
            seat: 0,
            name,
            policy,
            slots: Slots::default(),
            by_id: Index::default(),
            available: Available::default(),
            holds: Holds::default(),
            returns: Deadlines::default(),
            lives: Deadlines::default(),
            resting: 0,
            quarantined: 0,
            reasons: Reasons::default(),
            line: WaitQueue::default(),
            replays: IdempotencyStore::default(),
            borrowers: Borrowers::default(),
            retired: Retired::default(),
        }
    }

    /// Its number, never used twice.
    pub fn id(&self) -> PoolId {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> &PoolName {
        &self.name
    }

    /// What it allows.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// How many keys stand where. O(1). What is due may still be counted, for a second at most.
    pub fn counts(&self) -> KeyCounts {
        let away = self.holds.len() as u64;
        KeyCounts {
            available: self.available.len() as u64,
            leased: away - self.resting,
            resting: self.resting,
            quarantined: self.quarantined,
        }
    }

    /// When the next leased or resting key comes back, in lease time.
    pub fn next_hold_end_us(&self) -> Option<u64> {
        self.returns.first().map(|(at, _)| at)
    }

    /// When the next key is purged, in serving time; `None` when none ever is.
    pub fn next_purge_us(&self) -> Option<u64> {
        self.lives.first().map(|(at, _)| at).filter(|&at| at < NEVER_US)
    }

    /// Makes `count` keys of random symbols, all or none. O(count log n).
    pub fn generate(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        count: u32,
    ) -> Result<Vec<NewKey>, Refusal> {
        self.room_for(ledger, step, count)?;
        let length = self.policy.key_prefix.len() + usize::from(self.policy.key_length);
        let mut values = PackedValuesBuilder::with_capacity(count as usize, length);
        let mut keys = Vec::with_capacity(count as usize);
        let first = ledger.take_numbers(count);
        let mut symbols = Symbols::default();
        let mut value = Vec::with_capacity(length);
        for number in first.range(count) {
            let id = loop {
                symbols.make(&self.policy, step.random, &mut value);
                let id = ledger.ids.key_id(self.number, &value);
                if !self.ever_had(id, &value) {
                    break id;
                }
            };
            values.push(&value);
            let slot = self.admit(&ledger.ids, step.now, number, (id, &value), false);
            keys.push(self.new_key(step.now, id, slot));
        }
        let pool = self.number;
        let at_ms = step.now.wall_us / US_PER_MS;
        if enabled(Sabotage::HalfBatch) {
            for (first, value) in first.range(count).zip(values.values().iter()) {
                let mut alone = PackedValuesBuilder::default();
                alone.push(value);
                let values = alone.values();
                step.facts.record(&Fact::KeysCreated {
                    pool,
                    first,
                    at_ms,
                    imported: false,
                    values,
                });
            }
            return Ok(keys);
        }
        let values = values.values();
        step.facts.record(&Fact::KeysCreated { pool, first, at_ms, imported: false, values });
        self.tell(step, || Event::KeysCreated { imported: false, keys: &keys });
        Ok(keys)
    }

    /// Brings values in, all or none; one that is here, or was brought in before and is gone, is
    /// refused: `gone` is the first of which a database says so. O(values log n).
    pub fn import(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        imported: &[Secret],
        gone: Option<usize>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let count = u32::try_from(imported.len()).expect("invariant: a request is bounded");
        let mut seen = HashSet::with_capacity_and_hasher(imported.len(), Hasher::default());
        let mut values = PackedValuesBuilder::default();
        for (index, value) in imported.iter().enumerate() {
            let id = ledger.ids.key_id(self.number, value.bytes());
            // One that is due is over: it is purged, which retires it if it was brought in.
            let _ = self.touch(ledger, step, &KeyRef::Value(value.clone()));
            let was_here = gone == Some(index) || self.ever_had(id, value.bytes());
            if was_here || !seen.insert(id) {
                return Err(Refusal::KeyExists { index });
            }
            values.push(value.bytes());
        }
        self.room_for(ledger, step, count)?;
        let first = ledger.take_numbers(count);
        let keys: Vec<_> = first
            .range(count)
            .zip(imported)
            .map(|(number, value)| {
                let id = ledger.ids.key_id(self.number, value.bytes());
                let named = (id, value.bytes());
                let slot = self.admit(&ledger.ids, step.now, number, named, true);
                self.new_key(step.now, id, slot)
            })
            .collect();
        step.facts.record(&Fact::KeysCreated {
            pool: self.number,
            first,
            at_ms: step.now.wall_us / US_PER_MS,
            imported: true,
            values: values.values(),
        });
        self.tell(step, || Event::KeysCreated { imported: true, keys: &keys });
        Ok(keys)
    }

    fn room_for(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        count: u32,
    ) -> Result<(), Refusal> {
        self.settle_lives(ledger, step);
        let total = self.counts().total();
        let of_pool = self.policy.max_keys.filter(|max| total + u64::from(count) > *max);
        let of_server =
            (ledger.keys + u64::from(count) > ledger.limits.keys).then_some(ledger.limits.keys);
        match (of_pool, of_server) {
            (None, None) => Ok(()),
            _ if self.life_is_due(step.now) => Err(Refusal::Settling),
            (Some(max), _) => Err(Refusal::PoolFull { max, of_server: false }),
            (None, Some(max)) => Err(Refusal::PoolFull { max, of_server: true }),
        }
    }

    /// The ids to look up before these values are brought in: of those that a database may know to
    /// be gone; none where it knows of none. O(values).
    pub fn ids_to_check(&self, ledger: &SharedState, values: &[Secret]) -> Option<Vec<KeyId>> {
        let id = |value: &Secret| ledger.ids.key_id(self.number, value.bytes());
        self.retired.is_elsewhere().then(|| values.iter().map(id).collect())
    }

    /// Whether this value is in the pool, or was brought in once and is gone.
    fn ever_had(&self, id: KeyId, value: &[u8]) -> bool {
        self.find_value(id, value).is_some() || self.retired.contains(id)
    }

    /// Puts a key in: available, with its full keep-alive time. Gives its slot.
    fn admit(
        &mut self,
        ids: &IdHashKey,
        now: Now,
        number: KeyNumber,
        (id, value): (KeyId, &[u8]),
        imported: bool,
    ) -> u32 {
        let slot = self.slots.add(number, value, now.wall_us / US_PER_MS, imported);
        let (slots, pool) = (&self.slots, self.number);
        self.by_id.insert(id.hash(), slot, |slot| ids.key_id(pool, slots.value(slot)).hash());
        self.available.insert(slot, &mut self.slots);
        self.lives.set(slot, self.life_until(now), &mut self.slots);
        slot
    }

    fn new_key(&self, now: Now, id: KeyId, slot: u32) -> NewKey {
        NewKey {
            id,
            value: Secret::of_pool(self.slots.value(slot)),
            created_at_ms: self.slots.created_ms(slot),
            expires_at_ms: now.serving_to_wall_ms(self.lives.deadline(slot, &self.slots)),
        }
    }

    /// Lends a free key, each as likely, for as long as is wished or the policy's length. O(log n).
    ///
    /// [`Refusal::NoKey`] is only said when nothing of this pool is due; where the turn's budget
    /// does not reach that far it is [`Refusal::Settling`].
    pub fn acquire(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        wish: &AcquireOptions<'_>,
    ) -> Result<Granted, Refusal> {
        let length_us = self.length_us(wish.ttl_ms)?;
        self.settle_returns(ledger, step);
        Self::may_borrow(ledger, wish.borrower)?;
        if !enabled(Sabotage::NewcomerFirst) {
            self.serve_line(ledger, step);
        }
        if !self.line.is_empty() && !enabled(Sabotage::NewcomerFirst) {
            // Whoever stands in line comes first.
            return Err(self.no_key(ledger, step));
        }
        match self.draw(ledger, step) {
            Ok(slot) => {
                Ok(self.grant(ledger, step, slot, (length_us, wish.holder, wish.borrower.id)))
            }
            Err(Undrawn::Settling) => Err(Refusal::Settling),
            Err(Undrawn::None) => Err(self.no_key(ledger, step)),
        }
    }

    /// Draws a free key, each as likely, and purges those that are due on the way.
    fn draw(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
    ) -> Result<u32, Undrawn> {
        while let Some(slot) = self.available.draw(step.random) {
            if !is_over(self.lives.deadline(slot, &self.slots), step.now.serving_us) {
                return Ok(slot);
            }
            if step.budget == 0 {
                return Err(Undrawn::Settling);
            }
            step.budget -= 1;
            self.purge(ledger, step, slot);
        }
        Err(Undrawn::None)
    }

    /// Lends a free key.
    fn grant(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: u32,
        (length_us, holder, borrower): (u64, Option<&str>, BorrowerId),
    ) -> Granted {
        let token = ledger.take_token(step.facts);
        let lease = Grant {
            granted_us: step.now.lease_us,
            until_us: after(step.now.lease_us, length_us),
            hold_until_us: after(step.now.lease_us, self.policy.hold_us()),
            rest_us: self.policy.rest_ms * US_PER_MS,
            holder,
            borrower,
        };
        let key = self.slots.number(slot);
        self.lend(ledger, slot, token, &lease);
        step.facts.record(&Fact::Granted { pool: self.number, key, token, lease });
        let view = self.lease_view(&ledger.ids, step.now, self.slots.place(slot));
        let (key, until_us) = (view.key_id, lease.until_us);
        self.tell(step, || Event::Granted { key, token, holder, until_us });
        Granted { lease: view, value: Secret::of_pool(self.slots.value(slot)), redelivered: false }
    }

    fn length_us(&self, ttl_ms: Option<u64>) -> Result<u64, Refusal> {
        let ttl_ms = ttl_ms.unwrap_or(self.policy.lease_ttl_ms);
        if (1..=self.policy.lease_ttl_ms).contains(&ttl_ms) {
            return Ok(ttl_ms * US_PER_MS);
        }
        let allowed = "0.001..lease_ttl_seconds of the pool";
        Err(Refusal::Invalid(OutOfRange { field: "ttl_seconds", allowed }))
    }

    fn no_key(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) -> Refusal {
        self.settle_lives(ledger, step);
        if self.key_is_due(step.now) && !enabled(Sabotage::FalseNone) {
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
        let next_hold_end_in_ms = self
            .next_hold_end_us()
            .map(|at| at.saturating_sub(step.now.lease_us).div_ceil(US_PER_MS));
        Refusal::NoKey { cause, counts, next_hold_end_in_ms }
    }

    /// Makes a key leased, whatever it was.
    fn lend(&mut self, ledger: &mut SharedState, slot: u32, token: u64, lease: &Grant<'_>) {
        self.detach(ledger, slot, EndCause::Expired);
        let hold = self.holds.add(Hold::new(slot, token, lease));
        self.count(ledger, lease.borrower);
        self.slots.set_state(slot, KeyState::Leased);
        self.slots.set_place(slot, hold);
        self.returns.set(hold, lease.until_us, &mut self.holds);
    }

    /// Gives a running lease more time, up to its longest hold. O(log n).
    pub fn renew(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
        ttl_ms: Option<u64>,
    ) -> Result<LeaseView, Refusal> {
        let hold = self.running(ledger, step, lease)?;
        let length_us = self.length_us(ttl_ms)?;
        let Hold { slot, token, latest_us, .. } = *self.holds.get(hold);
        let until_us = after(step.now.lease_us, length_us).min(latest_us);
        let present_us = self.returns.deadline(hold, &self.holds);
        if until_us <= present_us {
            let expires_at_ms = step.now.lease_to_wall_ms(present_us);
            return Err(Refusal::MaxHoldReached { expires_at_ms });
        }
        if !enabled(Sabotage::OldTimerEndsLease) {
            self.returns.set(hold, until_us, &mut self.holds);
        }
        let key = self.slots.number(slot);
        step.facts.record(&Fact::Renewed { pool: self.number, key, token, until_us });
        let view = self.lease_view(&ledger.ids, step.now, hold);
        self.tell(step, || Event::Renewed { key: view.key_id, token, until_us });
        Ok(view)
    }

    /// Puts a key back whoever holds it; ends rest and quarantine too. Tells whether that changed
    /// anything. O(log n).
    pub fn force_release(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<bool, Refusal> {
        let slot = self.touch(ledger, step, key)?;
        match self.slots.state(slot).expect("invariant: found keys are in") {
            KeyState::Available => return Ok(false),
            KeyState::Leased => {
                let hold = self.slots.place(slot);
                let rest_us = self.holds.get(hold).rest_us;
                self.end_by_call(ledger, step, hold, (rest_us, None));
            }
            was @ (KeyState::Resting | KeyState::Quarantined) => {
                self.free(ledger, slot, EndCause::Released);
                let key = self.slots.number(slot);
                step.facts.record(&Fact::KeyFreed { pool: self.number, key });
                self.tell(step, || Event::KeyFreed { key: self.id_of(&ledger.ids, slot), was });
            }
        }
        Ok(true)
    }

    /// The hold of a lease that runs at this instant.
    fn running(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
    ) -> Result<u32, Refusal> {
        if !ledger.ids.verifies(self.number, lease) {
            return Err(Refusal::LeaseEnded { cause: None });
        }
        if let Some(hold) = self.holds.find(lease.token()) {
            let slot = self.holds.get(hold).slot;
            if self.settle_key(ledger, step, slot)
                && self.slots.state(slot) == Some(KeyState::Leased)
                && !(ledger.held && self.returns.deadline(hold, &self.holds) <= step.now.lease_us)
            {
                return Ok(hold);
            }
        } else if let Some(ended) = ledger.ended.find(lease.token())
            && self.state_of(ended).is_some()
        {
            // The cause tells of the key as it is now, so what is due of it is over.
            self.settle_key(ledger, step, ended.slot);
            if enabled(Sabotage::ReleaseWhoeverHolds)
                && self.state_of(ended) == Some(KeyState::Leased)
            {
                return Ok(self.slots.place(ended.slot));
            }
        }
        Err(Refusal::LeaseEnded { cause: self.end_cause(ledger, lease.token()) })
    }

    /// The state of the key that an ended lease lent; `None` when it is gone.
    fn state_of(&self, EndedLease { slot, number, .. }: EndedLease) -> Option<KeyState> {
        self.slots.state(slot).filter(|_| self.slots.number(slot) == number)
    }

    fn end_cause(&self, ledger: &SharedState, token: u64) -> Option<EndCause> {
        let ended = ledger.ended.find(token)?;
        Some(match (self.state_of(ended), ended.cause) {
            (None, _) => EndCause::KeyGone,
            (Some(KeyState::Leased), EndCause::Expired) => EndCause::Superseded,
            (Some(_), cause) => cause,
        })
    }

    /// Gives one key its full keep-alive time again. O(log n).
    pub fn keep_alive(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<KeptAlive, Refusal> {
        let slot = self.touch(ledger, step, key)?;
        let until_us = self.life_until(step.now);
        self.lives.set(slot, until_us, &mut self.slots);
        let id = match key {
            KeyRef::Id(id) => *id,
            KeyRef::Value(_) => self.id_of(&ledger.ids, slot),
        };
        Ok(KeptAlive { id, expires_at_ms: step.now.serving_to_wall_ms(until_us) })
    }

    /// Keeps many keys alive; gives how many distinct ones and which are not there. O(k log n).
    pub fn keep_alive_many(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        keys: &[KeyId],
    ) -> KeptAliveMany {
        let mut seen = HashSet::with_capacity_and_hasher(keys.len(), Hasher::default());
        let mut missing = Vec::new();
        for id in keys.iter().filter(|id| seen.insert(**id)) {
            if self.keep_alive(ledger, step, &KeyRef::Id(*id)).is_err() {
                missing.push(*id);
            }
        }
        KeptAliveMany { kept: (seen.len() - missing.len()) as u64, missing }
    }

    /// Gives every key its full keep-alive time again, in one step; none that is due is raised.
    /// O(1) beside what was due; [`Refusal::Settling`] where more is due than the budget allows.
    pub fn keep_alive_all(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
    ) -> Result<u64, Refusal> {
        self.settle_lives(ledger, step);
        if self.life_is_due(step.now) {
            return Err(Refusal::Settling);
        }
        self.lives.raise_all(self.life_until(step.now));
        Ok(self.counts().total())
    }

    /// Deletes a key in any state; a lease on it ends. O(log n).
    pub fn delete(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<(), Refusal> {
        let slot = self.touch(ledger, step, key)?;
        let number = self.slots.number(slot);
        let (key, was) = self.forget(ledger, slot);
        step.facts.record(&Fact::KeyDeleted { pool: self.number, key: number });
        self.tell(step, || Event::Deleted { key, was });
        Ok(())
    }

    /// Shows a key, all but its value. O(1) beside what is due of it.
    pub fn get_key(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<KeyView, Refusal> {
        let slot = self.touch(ledger, step, key)?;
        Ok(self.key_view(ledger, step.now, slot))
    }

    /// Shows a key's value, whoever holds it.
    pub fn reveal(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<(KeyId, Secret), Refusal> {
        let slot = self.touch(ledger, step, key)?;
        let value = self.slots.value(slot);
        Ok((ledger.ids.key_id(self.number, value), Secret::of_pool(value)))
    }

    /// Tells those who follow this pool, if there are any, what the closure then makes.
    fn tell<'a>(&self, step: &mut StepContext<'_>, event: impl FnOnce() -> Event<'a>) {
        if step.facts.has_subscribers(self.number) {
            step.facts.emit(self.number, &event());
        }
    }

    /// Makes a key available, whatever it was.
    fn free(&mut self, ledger: &mut SharedState, slot: u32, cause: EndCause) {
        self.detach(ledger, slot, cause);
        self.slots.set_state(slot, KeyState::Available);
        self.available.insert(slot, &mut self.slots);
    }

    /// Takes a key out of the state it is in; a lease on it ends for this cause.
    fn detach(&mut self, ledger: &mut SharedState, slot: u32, cause: EndCause) {
        match self.slots.state(slot).expect("invariant: detached keys are in") {
            KeyState::Available => self.available.remove(slot, &mut self.slots),
            KeyState::Quarantined => {
                self.quarantined -= 1;
                self.reasons.remove(self.slots.place(slot));
            }
            state @ (KeyState::Leased | KeyState::Resting) => {
                let hold = self.slots.place(slot);
                if state == KeyState::Leased {
                    self.note_end(ledger, hold, cause);
                } else {
                    self.resting -= 1;
                }
                self.returns.cancel(hold, &mut self.holds);
                self.holds.remove(hold);
            }
        }
    }

    fn note_end(&mut self, ledger: &mut SharedState, hold: u32, cause: EndCause) {
        let Hold { slot, token, borrower, .. } = *self.holds.get(hold);
        self.count_less(ledger, borrower);
        let number = self.slots.number(slot);
        ledger.ended.note(EndedLease { token, number, slot, cause });
        self.replays.lease_ended(ledger, token);
    }

    /// Removes a key for ever; an imported value is remembered. Gives its id and where it was.
    fn forget(&mut self, ledger: &mut SharedState, slot: u32) -> (KeyId, KeyState) {
        let id = self.id_of(&ledger.ids, slot);
        let was = self.slots.state(slot).expect("invariant: forgotten keys are in");
        self.detach(ledger, slot, EndCause::KeyGone);
        self.lives.cancel(slot, &mut self.slots);
        let (slots, pool, ids) = (&self.slots, self.number, &ledger.ids);
        self.by_id.remove(id.hash(), slot, |slot| ids.key_id(pool, slots.value(slot)).hash());
        if self.slots.imported(slot) && !enabled(Sabotage::ForgetRetired) {
            self.retired.insert(id, ledger.positions);
        }
        self.slots.remove(slot);
        ledger.keys -= 1;
        (id, was)
    }

    /// Finds a key and ends what is due of it; a key that is due is not there.
    fn touch(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<u32, Refusal> {
        let found = match key {
            KeyRef::Id(id) => self.find(&ledger.ids, *id),
            KeyRef::Value(value) => {
                let id = ledger.ids.key_id(self.number, value.bytes());
                self.find_value(id, value.bytes())
            }
        };
        found.filter(|&slot| self.settle_key(ledger, step, slot)).ok_or(Refusal::UnknownKey)
    }

    fn find(&self, ids: &IdHashKey, id: KeyId) -> Option<u32> {
        self.by_id.find(id.hash(), |slot| self.id_of(ids, slot) == id)
    }

    fn find_value(&self, id: KeyId, value: &[u8]) -> Option<u32> {
        self.by_id.find(id.hash(), |slot| self.slots.value(slot) == value)
    }

    fn id_of(&self, ids: &IdHashKey, slot: u32) -> KeyId {
        ids.key_id(self.number, self.slots.value(slot))
    }

    fn life_until(&self, now: Now) -> u64 {
        self.policy.keepalive_ttl_ms.map_or(NEVER_US, |ms| after(now.serving_us, ms * US_PER_MS))
    }

    fn lease_view(&self, ids: &IdHashKey, now: Now, hold: u32) -> LeaseView {
        let Hold { slot, token, granted_us, ref words, .. } = *self.holds.get(hold);
        let until_us = self.returns.deadline(hold, &self.holds);
        LeaseView {
            id: ids.lease_id(self.number, token),
            key_id: self.id_of(ids, slot),
            token,
            holder: words.clone(),
            granted_at_ms: now.lease_to_wall_ms(granted_us),
            expires_at_ms: now.lease_to_wall_ms(until_us),
            expires_in_ms: until_us.saturating_sub(now.lease_us) / US_PER_MS,
            key_expires_at_ms: now.serving_to_wall_ms(self.lives.deadline(slot, &self.slots)),
        }
    }
}

/// Why no key was drawn.
enum Undrawn {
    /// None is free.
    None,
    /// More is due than the step's budget allows to purge.
    Settling,
}

/// Whether the end of a key's life has come.
fn is_over(at_us: u64, serving_us: u64) -> bool {
    if enabled(Sabotage::RaiseAtDeadline) { at_us < serving_us } else { at_us <= serving_us }
}

type Hasher = foldhash::fast::RandomState;

//! Pools made again from facts, in the order they happened.
//!
//! A fact that does not fit what went before it means that facts are missing or foreign: it is
//! refused, and whoever replays says where it stood.

use crate::clocks::Now;
use crate::fact::Fact;
use crate::ids::{IdHashKey, KeyId, TOKEN_MAX};
use crate::numbers::{KeyNumber, Lsn, PoolId};
use crate::policy::{Policy, PoolName};
use crate::pools::Pools;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{Counters, Limits};
use hashbrown::HashMap;

/// Pools on their way back: first what a database kept, then the facts of the journal.
#[derive(Debug)]
pub struct Replayer {
    pools: Pools,
    /// Each pool by number.
    seats: HashMap<PoolId, Rebuilt, foldhash::fast::RandomState>,
    /// The seat and slot of each key born in the journal, by number.
    keys: HashMap<KeyNumber, (u32, u32), foldhash::fast::RandomState>,
    /// The next token, when the last thing that happened was a clean stop.
    stopped_at: Option<u64>,
    /// The last segment that can go, as the facts so far tell.
    dropped: u64,
    /// Whether the journal is whole: no segment of its beginning has been dropped.
    whole: bool,
}

/// A pool on its way back.
#[derive(Clone, Copy, Debug)]
struct Rebuilt {
    seat: u32,
    /// Its first slots hold the keys the database kept, in the order of their numbers.
    loaded: u32,
}

/// A pool as the database stored it.
pub struct StoredPool<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its policy.
    pub policy: Policy,
    /// About how many keys will be loaded into it: sizes its index, and need not be exact.
    pub key_count: u64,
}

/// A key as a database kept it.
#[derive(Clone, Copy)]
pub struct StoredKey<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// Its id, as [`IdHashKey::key_id`] makes it: most of what putting a key back costs, so whoever
    /// reads makes it.
    pub id: KeyId,
    /// When it was made, wall time in milliseconds.
    pub created_at_ms: u64,
    /// Whether it was brought in.
    pub imported: bool,
}

/// Whether a fact's changes to the set of keys are in the database already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointed {
    /// They are: births, deaths and policies are passed over, and what is about a key that is
    /// gone since is too. Leases live in the journal alone and are played.
    Yes,
    /// They are not: everything is played, and must fit.
    No,
}

/// A fact that does not fit what went before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayError(pub &'static str);

impl Replayer {
    /// Begins without any pool; the arguments are those of [`Pools::new`].
    pub fn new(ids: IdHashKey, limits: Limits, first_token: u64) -> Self {
        Self {
            pools: Pools::new(ids, limits, first_token),
            seats: HashMap::default(),
            keys: HashMap::default(),
            stopped_at: None,
            dropped: 0,
            whole: true,
        }
    }

    /// Says that the journal's first segments have been dropped.
    pub fn set_truncated(&mut self) {
        self.whole = false;
    }

    /// Puts a pool back that a database kept. `keys` is about how many it will get: a hint.
    pub fn load_pool(&mut self, number: PoolId, row: StoredPool<'_>) -> Result<(), ReplayError> {
        let StoredPool { name, policy, key_count } = row;
        let name = PoolName::parse(name).ok_or(ReplayError("a pool's name is no name"))?;
        let twice = self.pools.get(&name).is_some() || self.seats.contains_key(&number);
        fits(!twice, "a pool is made twice")?;
        let seat = self.pools.seat(number, name, policy);
        let limit = self.pools.ledger_mut().limits.keys;
        let keys = usize::try_from(key_count.min(limit)).unwrap_or(0);
        self.pools.parts(seat).0.replay_begin(keys);
        self.seats.insert(number, Rebuilt { seat, loaded: 0 });
        Ok(())
    }

    /// Puts a key back that a database kept. A pool's keys come in the order of their numbers.
    pub fn load_key(
        &mut self,
        pool: PoolId,
        key: KeyNumber,
        row: &StoredKey<'_>,
    ) -> Result<(), ReplayError> {
        let rebuilt = self.seats.get_mut(&pool).ok_or(NO_POOL)?;
        let (pool, ledger) = self.pools.parts(rebuilt.seat);
        let slot = pool.replay_loaded(ledger, key, row);
        fits(slot == rebuilt.loaded, "a pool's keys are out of order")?;
        rebuilt.loaded += 1;
        ledger.keys += 1;
        Ok(())
    }

    /// Puts back that a key is out of rotation; the key has been put back before.
    pub fn load_quarantined(
        &mut self,
        pool: PoolId,
        key: KeyNumber,
        reason: &str,
    ) -> Result<(), ReplayError> {
        let (seat, slot) = self.key(pool, key)?;
        let (pool, ledger) = self.pools.parts(seat);
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        pool.replay_quarantined(ledger, slot, reason);
        Ok(())
    }

    /// Puts back that imported values were in a pool and are never used again: the database knows
    /// which.
    pub fn set_has_retired(&mut self, pool: PoolId) -> Result<(), ReplayError> {
        let seat = self.seat(pool)?;
        self.pools.parts(seat).0.replay_retired();
        Ok(())
    }

    /// Names the mark of the facts to come, see [`Pools::mark`].
    pub fn set_position(&mut self, position: Lsn) {
        self.pools.ledger_mut().positions.current = position;
    }

    /// Raises the counters to what a segment's header says they were.
    pub fn raise_counters(&mut self, counters: Counters) {
        let ours = &mut self.pools.ledger_mut().counters;
        ours.next_key = ours.next_key.max(counters.next_key);
        ours.next_pool = ours.next_pool.max(counters.next_pool);
        ours.tokens_reserved = ours.tokens_reserved.max(counters.tokens_reserved);
    }

    /// The pools so far.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// The last segment of the journal that can go, as the facts so far tell.
    pub fn droppable_through(&self) -> u64 {
        self.dropped
    }

    /// Plays the next fact.
    pub fn apply(&mut self, fact: &Fact<'_>, carried: Checkpointed) -> Result<(), ReplayError> {
        self.stopped_at = None;
        match fact {
            Fact::PoolCreated { .. } | Fact::PolicyChanged { .. } | Fact::PoolDeleted { .. } => {
                match carried {
                    Checkpointed::Yes => Ok(()),
                    Checkpointed::No => self.apply_to_pool(fact),
                }
            }
            Fact::KeysCreated { .. } | Fact::KeyDeleted { .. } | Fact::KeyPurged { .. } => {
                match carried {
                    Checkpointed::Yes => Ok(()),
                    Checkpointed::No => self.apply_to_key_set(fact),
                }
            }
            Fact::Granted { pool, key, .. }
            | Fact::LeaseSnapshot { pool, key, .. }
            | Fact::RestSnapshot { pool, key, .. }
            | Fact::Renewed { pool, key, .. }
            | Fact::Released { pool, key, .. }
            | Fact::Quarantined { pool, key, .. }
            | Fact::KeyFreed { pool, key } => match (self.key(*pool, *key), carried) {
                (Ok((seat, slot)), _) => self.apply_to_lease(seat, slot, fact),
                (Err(_), Checkpointed::Yes) => Ok(()),
                (Err(misfit), Checkpointed::No) => Err(misfit),
            },
            Fact::AnswerStored { pool, .. } | Fact::AnswerRevoked { pool, .. } => {
                match (self.seats.get(pool).copied(), carried) {
                    (Some(rebuilt), _) => self.apply_to_answers(rebuilt, fact),
                    (None, Checkpointed::Yes) => {}
                    (None, Checkpointed::No) => return Err(NO_POOL),
                }
                Ok(())
            }
            Fact::TokensReserved { until } => self.reserve(*until, carried),
            Fact::SegmentsDropped { through } => {
                fits(*through >= self.dropped, "a segment is dropped twice")?;
                self.dropped = *through;
                Ok(())
            }
            Fact::Stopped { next_token } => {
                let reserved = self.pools.counters().tokens_reserved;
                fits(*next_token <= reserved, "a token was granted beyond its reservation")?;
                let fell = *next_token < self.pools.next_token();
                fits(!fell, "a token that was granted would be granted again")?;
                self.stopped_at = Some(*next_token);
                Ok(())
            }
        }
    }

    fn apply_to_pool(&mut self, fact: &Fact<'_>) -> Result<(), ReplayError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these three alone")]
        match fact {
            Fact::PoolCreated { pool, name, policy } => {
                let policy = policy.clone();
                self.load_pool(*pool, StoredPool { name, policy, key_count: 0 })
            }
            Fact::PolicyChanged { pool, policy } => {
                let seat = self.seat(*pool)?;
                self.pools.parts(seat).0.set_policy(policy.clone());
                Ok(())
            }
            Fact::PoolDeleted { pool } => {
                let Rebuilt { seat, .. } = self.seats.remove(pool).ok_or(NO_POOL)?;
                // Its keys' numbers never come again; what is left of them here is not asked for.
                self.pools.unseat(seat);
                Ok(())
            }
            _ => unreachable!("invariant: this is about a pool"),
        }
    }

    fn apply_to_key_set(&mut self, fact: &Fact<'_>) -> Result<(), ReplayError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these three alone")]
        match fact {
            Fact::KeysCreated { pool, first, at_ms, imported, values } => {
                let seat = self.seat(*pool)?;
                let (pool, ledger) = self.pools.parts(seat);
                let keys = &mut self.keys;
                let note = |number, slot| {
                    keys.insert(number, (seat, slot));
                };
                let fresh = pool.replay_born(ledger, (*first, *at_ms, *imported), *values, note);
                fits(fresh, "a key is born twice")?;
                let end = first.plus(u64::from(values.count()));
                fits(*first >= ledger.counters.next_key, "a key's number is used twice")?;
                ledger.counters.next_key = end;
                ledger.keys += u64::from(values.count());
                Ok(())
            }
            Fact::KeyDeleted { pool, key } | Fact::KeyPurged { pool, key } => {
                let (seat, slot) = self.key(*pool, *key)?;
                self.keys.remove(key);
                let (pool, ledger) = self.pools.parts(seat);
                pool.replay_gone(ledger, slot);
                Ok(())
            }
            _ => unreachable!("invariant: this is about the set of keys"),
        }
    }

    /// Plays what is about a lease. A renewal or a release of one that does not run is passed
    /// over where segments have been dropped: the grant was in one of them, and since the lease
    /// had ended it was not told anew.
    fn apply_to_lease(&mut self, seat: u32, slot: u32, fact: &Fact<'_>) -> Result<(), ReplayError> {
        let whole = self.whole;
        let (pool, ledger) = self.pools.parts(seat);
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these seven alone")]
        match fact {
            Fact::Granted { token, lease, .. } => {
                fits(*token < ledger.counters.tokens_reserved, "a token was not reserved")?;
                fits(*token >= ledger.next_token, "a token is granted twice")?;
                ledger.next_token = token + 1;
                pool.replay_granted(ledger, slot, *token, lease);
                Ok(())
            }
            Fact::LeaseSnapshot { token, lease, .. } => {
                fits(*token < ledger.counters.tokens_reserved, "a token was not reserved")?;
                fits(pool.has_for(*token).is_none_or(|of| of == slot), "a token is held twice")?;
                ledger.next_token = ledger.next_token.max(token + 1);
                pool.replay_granted(ledger, slot, *token, lease);
                Ok(())
            }
            Fact::RestSnapshot { token, until_us, reason, .. } => {
                fits(*token < ledger.counters.tokens_reserved, "a token was not reserved")?;
                fits(pool.has_for(*token).is_none_or(|of| of == slot), "a token is held twice")?;
                ledger.next_token = ledger.next_token.max(token + 1);
                pool.replay_resting(ledger, slot, *token, (*until_us, *reason));
                Ok(())
            }
            Fact::Renewed { token, until_us, .. } => {
                let fit = pool.replay_renewed(slot, *token, *until_us);
                fits(fit || !whole, "a lease that does not run is renewed")
            }
            Fact::Released { token, rest_until_us, reason, .. } => {
                let rest = (*rest_until_us, *reason);
                let fit = pool.replay_released(ledger, slot, *token, rest);
                fits(fit || !whole, "a lease that does not run is released")
            }
            Fact::Quarantined { reason, .. } => {
                pool.replay_quarantined(ledger, slot, *reason);
                Ok(())
            }
            Fact::KeyFreed { .. } => {
                pool.replay_restored(ledger, slot);
                Ok(())
            }
            _ => unreachable!("invariant: this is about a lease"),
        }
    }

    fn apply_to_answers(&mut self, Rebuilt { seat, loaded }: Rebuilt, fact: &Fact<'_>) {
        let (keys, (pool, ledger)) = (&self.keys, self.pools.parts(seat));
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these two alone")]
        match fact {
            Fact::AnswerStored { answer, .. } => {
                pool.replay_answered(ledger, *answer, |pool, number| {
                    let born = keys.get(&number).filter(|(at, _)| *at == seat);
                    born.map(|(_, slot)| *slot).or_else(|| pool.slot_of(number, loaded))
                });
            }
            Fact::AnswerRevoked { id, .. } => pool.replay_unanswered(ledger, *id),
            _ => unreachable!("invariant: this is about an answer"),
        }
    }

    /// Gives the pools as they are at a start: every key with its full keep-alive time, the next
    /// token beyond all that may have been granted. Leases go on where they were.
    pub fn finish(mut self, now: Now) -> Pools {
        let ledger = self.pools.ledger_mut();
        if !enabled(Sabotage::RepeatTokens) {
            ledger.next_token = self.stopped_at.unwrap_or(ledger.counters.tokens_reserved);
        }
        for &Rebuilt { seat, .. } in self.seats.values() {
            self.pools.parts(seat).0.start(now);
            self.pools.schedule(seat);
        }
        self.pools
    }

    fn reserve(&mut self, until: u64, carried: Checkpointed) -> Result<(), ReplayError> {
        let ledger = self.pools.ledger_mut();
        let reserved = ledger.counters.tokens_reserved;
        if carried == Checkpointed::Yes && until <= reserved {
            return Ok(());
        }
        let grows = until > reserved && until <= TOKEN_MAX;
        fits(grows, "a token reservation does not grow")?;
        ledger.counters.tokens_reserved = until;
        Ok(())
    }

    fn seat(&self, pool: PoolId) -> Result<u32, ReplayError> {
        self.seats.get(&pool).map(|rebuilt| rebuilt.seat).ok_or(NO_POOL)
    }

    /// The seat and slot of a key that is there.
    fn key(&self, pool: PoolId, key: KeyNumber) -> Result<(u32, u32), ReplayError> {
        let Rebuilt { seat, loaded } = *self.seats.get(&pool).ok_or(NO_POOL)?;
        let born = self.keys.get(&key).copied().filter(|(at, _)| *at == seat);
        let found = born.or_else(|| Some((seat, self.pools.at(seat).slot_of(key, loaded)?)));
        found.ok_or(ReplayError("a key that is not there is spoken of"))
    }
}

const NO_POOL: ReplayError = ReplayError("a pool that is not there is spoken of");

fn fits(fit: bool, why_not: &'static str) -> Result<(), ReplayError> {
    if fit { Ok(()) } else { Err(ReplayError(why_not)) }
}

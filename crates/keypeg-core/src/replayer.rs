//! Rebuilds the pools from facts, in the order they happened.
//!
//! A fact that contradicts the facts before it means that facts are missing or belong to another
//! journal: it is rejected, and the caller reports its position.

use crate::clocks::Now;
use crate::fact::{CreatedKeys, Fact};
use crate::holds::Rest;
use crate::ids::{IdHashKey, TOKEN_MAX};
use crate::incoming::StoredKey;
use crate::indices::{ItemIndex, PoolIndex, SlotIndex};
use crate::numbers::{KeyNumber, Lsn, PoolId};
use crate::policy::{Policy, PoolName};
use crate::pools::Pools;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{Counters, Limits, TokenClass};
use hashbrown::HashMap;

/// Pools during a replay: first the rows of the database, then the facts of the journal.
#[derive(Clone, Debug)]
pub struct Replayer {
    pools: Pools,
    by_id: HashMap<PoolId, ReplayedPool, foldhash::fast::RandomState>,
    /// The keys that records of the journal created.
    created: HashMap<KeyNumber, KeyLocation, foldhash::fast::RandomState>,
    /// The next token, when the last fact was a clean stop.
    stopped_at: Option<u64>,
    /// The last segment that can be deleted, as the facts so far say.
    droppable_through: u64,
    /// Whether the journal's first segments have been deleted.
    truncated: bool,
}

/// A pool during a replay.
#[derive(Clone, Copy, Debug)]
struct ReplayedPool {
    index: PoolIndex,
    /// The number of keys from the database; their slots are the first ones, by key number.
    stored: u32,
}

#[derive(Clone, Copy, Debug)]
struct KeyLocation {
    pool: PoolIndex,
    slot: SlotIndex,
}

/// A pool as the database contains it.
#[derive(Clone, Debug)]
pub struct StoredPool<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its policy.
    pub policy: Policy,
    /// About how many keys will follow: a hint that sizes the pool's index.
    pub key_count: u64,
}

/// Whether the database already contains a fact's changes to the key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkpointed {
    /// It does: changes to pools and to the key set are skipped, and so are facts about keys that
    /// were removed since. Leases are in the journal alone and are applied.
    Yes,
    /// It does not: every fact is applied and must be consistent.
    No,
}

/// Why a fact contradicts the facts before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayError(pub &'static str);

impl Replayer {
    /// Starts a replay without pools; the arguments are those of [`Pools::new`].
    pub fn new(ids: IdHashKey, limits: Limits, first_token: u64) -> Self {
        Self {
            pools: Pools::new(ids, limits, first_token),
            by_id: HashMap::default(),
            created: HashMap::default(),
            stopped_at: None,
            droppable_through: 0,
            truncated: false,
        }
    }

    /// Gives new pools numbers of one block alone, from its first one on.
    pub fn set_pool_block(&mut self, block: u16) {
        let shared = self.pools.shared_mut();
        shared.pool_block = Some(block);
        shared.raise_next_pool(PoolId::first_of(block));
    }

    /// Grants tokens with a remainder of this shard alone, so that no two of `shards` shards grant the
    /// same one.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn set_token_class(&mut self, shard: u16, shards: u16) {
        assert!(shard < shards, "a shard of this installation");
        let (remainder, divisor) = (shard.into(), shards.into());
        self.pools.shared_mut().token_class = TokenClass { remainder, divisor };
    }

    /// Notes that the journal's first segments have been deleted.
    pub fn set_truncated(&mut self) {
        self.truncated = true;
    }

    /// Loads a pool from the database.
    pub fn load_pool(&mut self, id: PoolId, row: StoredPool<'_>) -> Result<(), ReplayError> {
        let StoredPool { name, policy, key_count } = row;
        let name = PoolName::parse(name).ok_or(ReplayError("invalid pool name"))?;
        let exists = self.pools.get(&name).is_some() || self.by_id.contains_key(&id);
        ensure(!exists, "pool is created twice")?;
        let index = self.pools.insert(id, name, policy);
        let limit = self.pools.shared_mut().limits.keys;
        let keys = usize::try_from(key_count.min(limit)).unwrap_or(0);
        self.pools.pool_mut(index).0.begin_replay(keys);
        self.by_id.insert(id, ReplayedPool { index, stored: 0 });
        Ok(())
    }

    /// Loads a key from the database. The keys of a pool must come in the order of their numbers.
    pub fn load_key(
        &mut self,
        pool: PoolId,
        key: KeyNumber,
        row: &StoredKey<'_>,
    ) -> Result<(), ReplayError> {
        let replayed = self.by_id.get_mut(&pool).ok_or(UNKNOWN_POOL)?;
        let (pool, shared) = self.pools.pool_mut(replayed.index);
        let slot = pool.replay_stored(shared, key, row);
        ensure(slot == SlotIndex::new(replayed.stored), "the keys of a pool are out of order")?;
        replayed.stored += 1;
        shared.key_count += 1;
        Ok(())
    }

    /// Quarantines a key that was loaded before. If a snapshot record of its lease follows, the key
    /// is draining instead.
    pub fn load_quarantined(
        &mut self,
        pool: PoolId,
        key: KeyNumber,
        reason: &str,
    ) -> Result<(), ReplayError> {
        let KeyLocation { pool, slot } = self.find_key(pool, key)?;
        let (pool, shared) = self.pools.pool_mut(pool);
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        pool.replay_quarantined(shared, slot, reason);
        Ok(())
    }

    /// Gives a key that was loaded before its label.
    pub fn load_label(
        &mut self,
        pool: PoolId,
        key: KeyNumber,
        label: &str,
    ) -> Result<(), ReplayError> {
        let KeyLocation { pool, slot } = self.find_key(pool, key)?;
        let label = Some(label).filter(|label| !label.is_empty());
        self.pools.pool_mut(pool).0.replay_labelled(slot, label);
        Ok(())
    }

    /// Notes that the database contains retired values of a pool.
    pub fn set_has_retired(&mut self, pool: PoolId) -> Result<(), ReplayError> {
        let index = self.find_pool(pool)?;
        self.pools.pool_mut(index).0.set_has_retired();
        Ok(())
    }

    /// Sets the position of the batch with the next facts, see [`Pools::set_positions`].
    pub fn set_position(&mut self, position: Lsn) {
        self.pools.shared_mut().positions.current = position;
    }

    /// Raises the counters to those in a segment's header.
    pub fn raise_counters(&mut self, counters: Counters) {
        let shared = self.pools.shared_mut();
        shared.raise_next_pool(counters.next_pool);
        let ours = &mut shared.counters;
        ours.next_key = ours.next_key.max(counters.next_key);
        ours.tokens_reserved = ours.tokens_reserved.max(counters.tokens_reserved);
    }

    /// Returns the pools so far.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Counts the bytes that were added to a pool, and returns those of all pools as last counted.
    /// O(1).
    pub fn count_bytes(&mut self, pool: PoolId) -> Result<u64, ReplayError> {
        let (pool, shared) = self.pools.pool_mut(self.find_pool(pool)?);
        pool.count_bytes(shared);
        Ok(shared.bytes())
    }

    /// Counts the bytes that were added to all pools, and returns them. O(pools).
    pub fn count_all_bytes(&mut self) -> u64 {
        for &ReplayedPool { index, .. } in self.by_id.values() {
            let (pool, shared) = self.pools.pool_mut(index);
            pool.count_bytes(shared);
        }
        self.pools.bytes()
    }

    /// Returns whether the last fact was a clean stop.
    pub fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// Returns the last segment of the journal that can be deleted, as the facts so far say.
    pub fn droppable_through(&self) -> u64 {
        self.droppable_through
    }

    /// Applies the next fact.
    pub fn apply(
        &mut self,
        fact: &Fact<'_>,
        checkpointed: Checkpointed,
    ) -> Result<(), ReplayError> {
        self.stopped_at = None;
        match fact {
            Fact::PoolCreated { .. } | Fact::PolicyChanged { .. } | Fact::PoolDeleted { .. } => {
                match checkpointed {
                    Checkpointed::Yes => Ok(()),
                    Checkpointed::No => self.apply_to_pool(fact),
                }
            }
            Fact::KeysCreated { .. }
            | Fact::KeyLabelled { .. }
            | Fact::KeyDeleted { .. }
            | Fact::KeyPurged { .. } => match checkpointed {
                Checkpointed::Yes => Ok(()),
                Checkpointed::No => self.apply_to_key_set(fact),
            },
            Fact::Granted { pool, key, .. }
            | Fact::LeaseSnapshot { pool, key, .. }
            | Fact::RestSnapshot { pool, key, .. }
            | Fact::Renewed { pool, key, .. }
            | Fact::Released { pool, key, .. }
            | Fact::Quarantined { pool, key, .. }
            | Fact::QuarantinedWhenFree { pool, key, .. }
            | Fact::DrainCancelled { pool, key }
            | Fact::KeyFreed { pool, key } => match (self.find_key(*pool, *key), checkpointed) {
                (Ok(location), _) => self.apply_to_lease(location, fact),
                (Err(_), Checkpointed::Yes) => Ok(()),
                (Err(error), Checkpointed::No) => Err(error),
            },
            Fact::AnswerStored { pool, .. } | Fact::AnswerRevoked { pool, .. } => {
                match (self.by_id.get(pool).copied(), checkpointed) {
                    (Some(replayed), _) => self.apply_to_answers(replayed, fact),
                    (None, Checkpointed::Yes) => {}
                    (None, Checkpointed::No) => return Err(UNKNOWN_POOL),
                }
                Ok(())
            }
            Fact::TokensReserved { until } => self.reserve(*until, checkpointed),
            Fact::SegmentsDropped { through } => {
                ensure(*through >= self.droppable_through, "segment is dropped twice")?;
                self.droppable_through = *through;
                Ok(())
            }
            Fact::Stopped { next_token } => {
                let counters = &mut self.pools.shared_mut().counters;
                if counters.tokens_reserved <= 1 {
                    // A backup has no segment headers, and only the first of them says where the
                    // tokens of a directory begin that has granted none.
                    counters.tokens_reserved = *next_token;
                }
                ensure(
                    *next_token <= counters.tokens_reserved,
                    "token is granted beyond its reservation",
                )?;
                let decreases = *next_token < self.pools.next_token();
                ensure(!decreases, "granted token would be granted again")?;
                self.stopped_at = Some(*next_token);
                Ok(())
            }
        }
    }

    fn apply_to_pool(&mut self, fact: &Fact<'_>) -> Result<(), ReplayError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these three only")]
        match fact {
            Fact::PoolCreated { pool, name, policy } => {
                let policy = policy.clone();
                self.load_pool(*pool, StoredPool { name, policy, key_count: 0 })
            }
            Fact::PolicyChanged { pool, policy } => {
                let index = self.find_pool(*pool)?;
                self.pools.pool_mut(index).0.set_policy(policy.clone());
                Ok(())
            }
            Fact::PoolDeleted { pool } => {
                let ReplayedPool { index, .. } = self.by_id.remove(pool).ok_or(UNKNOWN_POOL)?;
                // Key numbers are never reused, so what `created` still contains is never read.
                self.pools.remove_at(index);
                Ok(())
            }
            _ => unreachable!("invariant: the fact is about a pool"),
        }
    }

    fn apply_to_key_set(&mut self, fact: &Fact<'_>) -> Result<(), ReplayError> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these four only")]
        match fact {
            Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels, values } => {
                let index = self.find_pool(*pool)?;
                let (pool, shared) = self.pools.pool_mut(index);
                let created = &mut self.created;
                let note = |number, slot| {
                    created.insert(number, KeyLocation { pool: index, slot });
                };
                let (first, at_ms, values) = (*first, *at_ms, *values);
                let (imported, keepalive, labels) = (*imported, *keepalive, *labels);
                let keys = CreatedKeys { first, at_ms, imported, keepalive, labels, values };
                let is_new = pool.replay_created(shared, keys, note);
                ensure(is_new, "key is created twice")?;
                let end = first.plus(u64::from(values.count()));
                ensure(first >= shared.counters.next_key, "key number is used twice")?;
                shared.counters.next_key = end;
                shared.key_count += u64::from(values.count());
                Ok(())
            }
            Fact::KeyLabelled { pool, key, label } => {
                let KeyLocation { pool, slot } = self.find_key(*pool, *key)?;
                self.pools.pool_mut(pool).0.replay_labelled(slot, *label);
                Ok(())
            }
            Fact::KeyDeleted { pool, key } | Fact::KeyPurged { pool, key } => {
                let KeyLocation { pool, slot } = self.find_key(*pool, *key)?;
                self.created.remove(key);
                let (pool, shared) = self.pools.pool_mut(pool);
                pool.replay_removed(shared, slot);
                Ok(())
            }
            _ => unreachable!("invariant: the fact is about the key set"),
        }
    }

    /// Applies a fact about a lease. A renewal or a release of a lease that does not run is skipped
    /// when the journal is truncated: its grant was in a deleted segment, and because the lease had
    /// ended no snapshot record was written for it.
    fn apply_to_lease(
        &mut self,
        location: KeyLocation,
        fact: &Fact<'_>,
    ) -> Result<(), ReplayError> {
        let truncated = self.truncated;
        let KeyLocation { pool, slot } = location;
        let (pool, shared) = self.pools.pool_mut(pool);
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these nine only")]
        match fact {
            Fact::Granted { token, lease, .. } => {
                ensure(*token < shared.counters.tokens_reserved, NOT_RESERVED)?;
                ensure(*token >= shared.next_token, "token is granted twice")?;
                shared.next_token = token + 1;
                pool.replay_granted(shared, slot, *token, lease);
                Ok(())
            }
            Fact::LeaseSnapshot { token, lease, .. } => {
                ensure(*token < shared.counters.tokens_reserved, NOT_RESERVED)?;
                let holder = pool.slot_with_token(*token);
                ensure(holder.is_none_or(|other| other == slot), TWO_KEYS)?;
                shared.next_token = shared.next_token.max(token + 1);
                pool.replay_lease_snapshot(shared, slot, *token, lease);
                Ok(())
            }
            Fact::RestSnapshot { token, until_us, reason, .. } => {
                ensure(*token < shared.counters.tokens_reserved, NOT_RESERVED)?;
                let holder = pool.slot_with_token(*token);
                ensure(holder.is_none_or(|other| other == slot), TWO_KEYS)?;
                shared.next_token = shared.next_token.max(token + 1);
                let rest = Rest { until_us: *until_us, reason: *reason };
                pool.replay_resting(shared, slot, *token, rest);
                Ok(())
            }
            Fact::Renewed { token, until_us, .. } => {
                let runs = pool.replay_renewed(slot, *token, *until_us);
                ensure(runs || truncated, "renewed lease does not run")
            }
            Fact::Released { token, rest_until_us, reason, .. } => {
                let rest = Rest { until_us: *rest_until_us, reason: *reason };
                let runs = pool.replay_released(shared, slot, *token, rest);
                ensure(runs || truncated, "released lease does not run")
            }
            Fact::Quarantined { reason, .. } => {
                pool.replay_quarantined(shared, slot, *reason);
                Ok(())
            }
            Fact::QuarantinedWhenFree { reason, .. } => {
                pool.replay_quarantined_when_free(shared, slot, *reason);
                Ok(())
            }
            Fact::DrainCancelled { .. } => {
                pool.replay_drain_cancelled(shared, slot);
                Ok(())
            }
            Fact::KeyFreed { .. } => {
                pool.replay_freed(shared, slot);
                Ok(())
            }
            _ => unreachable!("invariant: the fact is about a lease"),
        }
    }

    fn apply_to_answers(&mut self, replayed: ReplayedPool, fact: &Fact<'_>) {
        let ReplayedPool { index, stored } = replayed;
        let (created, (pool, shared)) = (&self.created, self.pools.pool_mut(index));
        #[expect(clippy::wildcard_enum_match_arm, reason = "called for these two only")]
        match fact {
            Fact::AnswerStored { answer, .. } => {
                pool.replay_answer_stored(shared, *answer, |pool, number| {
                    let location = created.get(&number).filter(|key| key.pool == index);
                    location.map(|key| key.slot).or_else(|| pool.find_stored(number, stored))
                });
            }
            Fact::AnswerRevoked { id, .. } => pool.replay_answer_revoked(shared, *id),
            _ => unreachable!("invariant: the fact is about a stored answer"),
        }
    }

    /// Returns the pools as the facts so far left them: no end by time is applied, and no token is
    /// chosen. For a restore, which decides about them.
    pub fn into_pools(self) -> Pools {
        self.pools
    }

    /// Returns the pools as they are after a start: every key with its full keep-alive time, the
    /// next token beyond all that may have been granted. Leases continue.
    pub fn finish(mut self, now: Now) -> Pools {
        let shared = self.pools.shared_mut();
        if !enabled(Sabotage::RepeatTokens) {
            shared.next_token = self.stopped_at.unwrap_or(shared.counters.tokens_reserved);
        }
        for &ReplayedPool { index, .. } in self.by_id.values() {
            self.pools.pool_mut(index).0.finish_replay(now);
            self.pools.schedule(index);
        }
        self.pools
    }

    fn reserve(&mut self, until: u64, checkpointed: Checkpointed) -> Result<(), ReplayError> {
        let shared = self.pools.shared_mut();
        let reserved = shared.counters.tokens_reserved;
        if checkpointed == Checkpointed::Yes && until <= reserved {
            return Ok(());
        }
        let grows = until > reserved && until <= TOKEN_MAX;
        ensure(grows, "token reservation does not grow")?;
        shared.counters.tokens_reserved = until;
        Ok(())
    }

    fn find_pool(&self, id: PoolId) -> Result<PoolIndex, ReplayError> {
        self.by_id.get(&id).map(|replayed| replayed.index).ok_or(UNKNOWN_POOL)
    }

    fn find_key(&self, pool: PoolId, key: KeyNumber) -> Result<KeyLocation, ReplayError> {
        let ReplayedPool { index, stored } = *self.by_id.get(&pool).ok_or(UNKNOWN_POOL)?;
        let created = self.created.get(&key).copied().filter(|key| key.pool == index);
        let found = created.or_else(|| {
            let slot = self.pools.pool_at(index).find_stored(key, stored)?;
            Some(KeyLocation { pool: index, slot })
        });
        found.ok_or(ReplayError("record refers to an unknown key"))
    }
}

const UNKNOWN_POOL: ReplayError = ReplayError("record refers to an unknown pool");
const NOT_RESERVED: &str = "token is not reserved";
const TWO_KEYS: &str = "two keys have the same token";

fn ensure(holds: bool, error: &'static str) -> Result<(), ReplayError> {
    if holds { Ok(()) } else { Err(ReplayError(error)) }
}

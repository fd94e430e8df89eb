//! The key set's long memory: which pools and keys there are, in a well-kept database.
//!
//! redb over our [`Disk`]. The position of the journal that has been carried into it stands in the
//! same transaction as the changes, so after any crash both agree. Leases are not in it. Who reads
//! the journal and when is `carrier.rs`' business.

mod load;
mod rows;

use crate::core::{
    Counters, Fact, IdHashKey, KeyId, KeyNumber, Policy, PoolId, ReplayError, Replayer, StoredPool,
};
use crate::disk::{Disk, DiskFile};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition,
};
use rows::{
    imported_value, read_aside, read_pool, retired_sum, state_sum, write_aside, write_key,
    write_pool,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The file's name.
pub(crate) const KEYSET: &str = "keyset";
/// What redb may keep of its pages in memory.
const CACHE: usize = 64 << 20;
/// Keys of a removed pool that one change takes out.
const TRIM: usize = 20_000;

/// Sum (four bytes), flags, when it was made (six bytes, milliseconds), value; by pool and number.
const KEYS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("keys");
/// A `PoolMade` record, by number.
const POOLS: TableDefinition<u32, &[u8]> = TableDefinition::new("pools");
/// Imported values that are gone: a sum, by pool and id.
const RETIRED: TableDefinition<(u32, u128), u32> = TableDefinition::new("retired");
/// Why keys are out of rotation, behind a sum of four bytes; by pool and number.
const ASIDE: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("aside");
/// How many keys a pool has, by number: a hint for who loads them.
const COUNTS: TableDefinition<u32, u64> = TableDefinition::new("counts");
/// Removed pools whose rows are still to be taken out.
const GONE: TableDefinition<u32, ()> = TableDefinition::new("gone");
/// The position that is carried, and the counters there.
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");
/// Whose key set it is, among the state.
const OWNER: &str = "owner";

const STATE_NAMES: [&str; 4] = ["position", "next_key", "next_pool", "tokens_reserved"];

/// Pools by number: name and policy.
pub(crate) type PoolRows = BTreeMap<u32, (String, Policy)>;

/// The open database.
pub(crate) struct KeySetDb {
    /// There until it is dropped.
    database: Option<Database>,
    ids: IdHashKey,
}

/// What a change of the key set is made of: the net of many facts.
#[derive(Debug, Default)]
pub(crate) struct KeySetDelta {
    /// The journal's position up to which this carries.
    pub(crate) position: u64,
    pub(crate) counters: Counters,
    pools: PoolRows,
    gone: BTreeSet<u32>,
    births: BTreeMap<(u32, u64), Vec<u8>>,
    deaths: BTreeSet<(u32, u64)>,
    retired: BTreeSet<(u32, u128)>,
    /// Keys that went out of rotation, and why; `None` for those put back.
    aside: BTreeMap<(u32, u64), Option<String>>,
    facts: usize,
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysetError {
    /// The disk said no.
    #[error("{KEYSET}: {0}")]
    Io(#[from] io::Error),
    /// Its content is not what was written.
    #[error("{KEYSET} is damaged: {0}. Restore the data directory from a backup")]
    Damaged(String),
}

impl KeySetDb {
    /// Makes an empty one, or opens the one there is.
    pub(crate) fn open(disk: &dyn Disk, ids: IdHashKey) -> Result<Self, KeysetError> {
        let there = disk.list()?.iter().any(|name| name == KEYSET);
        let file = if there { disk.open(KEYSET)? } else { disk.create(KEYSET, 0)? };
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let database = unpanicked(|| builder.create_with_backend(Backend(file)).map_err(failed))?;
        disk.sync_dir()?;
        let this = Self { database: Some(database), ids };
        if !there {
            this.carry(&KeySetDelta::default())?;
        }
        Ok(this)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("invariant: there until it is dropped")
    }

    /// Puts everything back into `rebuild`; gives the position carried. O(keys).
    pub(crate) fn load(&self, rebuild: &mut Replayer) -> Result<u64, KeysetError> {
        unpanicked(|| self.read_into(rebuild))
    }

    fn read_into(&self, rebuild: &mut Replayer) -> Result<u64, KeysetError> {
        let reading = self.database().begin_read().map_err(failed)?;
        let (position, counters) = state(&reading)?;
        self.check_owner(&reading)?;
        rebuild.raise_counters(counters);
        let pools = reading.open_table(POOLS).map_err(failed)?;
        let keys = reading.open_table(KEYS).map_err(failed)?;
        let retired = reading.open_table(RETIRED).map_err(failed)?;
        let counts = reading.open_table(COUNTS).map_err(failed)?;
        let aside = opened_aside(&reading)?;
        let mut numbers = Vec::new();
        for row in pools.iter().map_err(failed)? {
            let (pool, record) = row.map_err(failed)?;
            let pool = pool.value();
            let (name, policy) = read_pool(pool, record.value())?;
            let count = counts.get(pool).map_err(failed)?.map_or(0, |count| count.value());
            let row = StoredPool { name: &name, policy, key_count: count };
            rebuild.load_pool(PoolId(pool), row).map_err(misfit)?;
            numbers.push(pool);
        }
        let loaded = load::keys(&keys, &numbers, &self.ids, rebuild)?;
        for pool in numbers {
            if let Some(aside) = &aside {
                for row in aside.range((pool, 0)..=(pool, u64::MAX)).map_err(failed)? {
                    let (at, row) = row.map_err(failed)?;
                    let reason = read_aside(at.value(), row.value())?;
                    rebuild
                        .load_quarantined(PoolId(pool), KeyNumber(at.value().1), reason)
                        .map_err(misfit)?;
                }
            }
            let mut gone = retired.range((pool, 0)..=(pool, u128::MAX)).map_err(failed)?;
            if gone.next().is_some() {
                rebuild.set_has_retired(PoolId(pool)).map_err(misfit)?;
            }
        }
        let gone = reading.open_table(GONE).map_err(failed)?;
        if gone.is_empty().map_err(failed)? && loaded != keys.len().map_err(failed)? {
            return Err(damaged("keys are missing"));
        }
        Ok(position)
    }

    /// The first of these ids that is of a value that was in the pool and is gone for ever.
    /// O(ids log n).
    pub(crate) fn first_retired(
        &self,
        pool: PoolId,
        ids: &[KeyId],
    ) -> Result<Option<usize>, KeysetError> {
        let reading = self.database().begin_read().map_err(failed)?;
        let retired = reading.open_table(RETIRED).map_err(failed)?;
        for (place, id) in ids.iter().enumerate() {
            let at = (pool.0, id.0);
            let Some(row) = retired.get(at).map_err(failed)? else { continue };
            if row.value() != retired_sum(at) {
                return Err(damaged("a retired value's row does not match its sum"));
            }
            return Ok(Some(place));
        }
        Ok(None)
    }

    /// Refuses the key set of another directory: its keys are not ours, and its position says
    /// nothing of our journal. One that was made before this was written down does not say.
    fn check_owner(&self, reading: &redb::ReadTransaction) -> Result<(), KeysetError> {
        let state = reading.open_table(STATE).map_err(failed)?;
        let owner = state.get(OWNER).map_err(failed)?.map(|owner| owner.value());
        if owner.is_some_and(|owner| owner != self.owner()) {
            return Err(damaged("it belongs to another directory"));
        }
        Ok(())
    }

    /// A number that only this directory's key of ids makes.
    fn owner(&self) -> u64 {
        let KeyId(digest) = self.ids.key_id(PoolId(0), OWNER.as_bytes());
        u64::try_from(digest >> 64).expect("invariant: half of the bits")
    }

    /// The pools there are by number, the position carried and the counters there.
    pub(crate) fn pools(&self) -> Result<(PoolRows, u64, Counters), KeysetError> {
        let reading = self.database().begin_read().map_err(failed)?;
        let mut pools = BTreeMap::new();
        let table = reading.open_table(POOLS).map_err(failed)?;
        for row in table.iter().map_err(failed)? {
            let (pool, record) = row.map_err(failed)?;
            let pool = pool.value();
            pools.insert(pool, read_pool(pool, record.value())?);
        }
        let (position, counters) = state(&reading)?;
        Ok((pools, position, counters))
    }

    /// Makes one change durable, position and counters with it; true when rows of removed pools
    /// are left to be taken out.
    pub(crate) fn carry(&self, change: &KeySetDelta) -> Result<bool, KeysetError> {
        let mut writing = self.database().begin_write().map_err(failed)?;
        writing.set_durability(Durability::Immediate).map_err(failed)?;
        // Without it, opening after a crash would read the whole file to repair it.
        writing.set_quick_repair(true);
        let left = self.write(&writing, change).map_err(KeysetError::from)?;
        writing.commit().map_err(failed)?;
        Ok(left)
    }

    fn write(
        &self,
        writing: &redb::WriteTransaction,
        change: &KeySetDelta,
    ) -> Result<bool, redb::Error> {
        let mut pools = writing.open_table(POOLS)?;
        let mut keys = writing.open_table(KEYS)?;
        let mut retired = writing.open_table(RETIRED)?;
        let mut gone = writing.open_table(GONE)?;
        let mut counts = writing.open_table(COUNTS)?;
        let mut aside = writing.open_table(ASIDE)?;
        let mut changed: BTreeMap<u32, i64> = BTreeMap::new();
        for (pool, (name, policy)) in &change.pools {
            pools.insert(pool, write_pool(*pool, name, policy).as_slice())?;
        }
        for at in &change.deaths {
            let Some(row) = keys.remove(at)? else { continue };
            *changed.entry(at.0).or_default() -= 1;
            aside.remove(at)?;
            if let Some(value) = imported_value(row.value()) {
                let at = (at.0, self.ids.key_id(PoolId(at.0), value).0);
                retired.insert(at, retired_sum(at))?;
            }
        }
        for (at, row) in &change.births {
            keys.insert(at, row.as_slice())?;
            *changed.entry(at.0).or_default() += 1;
        }
        for (at, reason) in &change.aside {
            match reason {
                Some(reason) => aside.insert(at, write_aside(*at, reason).as_slice())?,
                None => aside.remove(at)?,
            };
        }
        for at in &change.retired {
            retired.insert(at, retired_sum(*at))?;
        }
        for (pool, by) in changed {
            let count = counts.get(pool)?.map_or(0, |count| count.value());
            counts.insert(pool, count.saturating_add_signed(by))?;
        }
        for pool in &change.gone {
            pools.remove(pool)?;
            counts.remove(pool)?;
            gone.insert(pool, ())?;
        }
        let left = trim(&mut gone, &mut keys, &mut aside, &mut retired)?;
        let mut state = writing.open_table(STATE)?;
        let Counters { next_key, next_pool, tokens_reserved } = change.counters;
        let numbers = [change.position, next_key.0, u64::from(next_pool.0), tokens_reserved];
        for (name, number) in STATE_NAMES.into_iter().zip(numbers) {
            state.insert(name, number)?;
        }
        state.insert("sum", state_sum(numbers))?;
        state.insert(OWNER, self.owner())?;
        Ok(left)
    }
}

/// The database does not expect its pages to be damaged and panics where they are: at a start,
/// before anything is served, that is damage to be told like any other.
fn unpanicked<T>(read: impl FnOnce() -> Result<T, KeysetError>) -> Result<T, KeysetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damaged("a page is damaged")))
}

/// The position carried and the counters there.
fn state(reading: &redb::ReadTransaction) -> Result<(u64, Counters), KeysetError> {
    let state = reading.open_table(STATE).map_err(failed)?;
    let number = |name| -> Result<u64, KeysetError> {
        Ok(state.get(name).map_err(failed)?.map_or(0, |number| number.value()))
    };
    let mut numbers = [0; 4];
    for (at, name) in STATE_NAMES.into_iter().enumerate() {
        numbers[at] = number(name)?;
    }
    if number("sum")? != state_sum(numbers) {
        return Err(damaged("the state does not match its sum"));
    }
    let [position, next_key, next_pool, tokens_reserved] = numbers;
    let next_key = KeyNumber(next_key);
    let next_pool =
        u32::try_from(next_pool).map(PoolId).map_err(|_| damaged("a counter is out of range"))?;
    Ok((position, Counters { next_key, next_pool, tokens_reserved }))
}

impl Drop for KeySetDb {
    /// All that was carried is durable; what the database still writes at its close serves its own
    /// next start alone, and must not take the process with it.
    fn drop(&mut self) {
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// Takes out a slice of a removed pool's rows; true when more are left.
fn trim(
    gone: &mut redb::Table<'_, u32, ()>,
    keys: &mut redb::Table<'_, (u32, u64), &'static [u8]>,
    aside: &mut redb::Table<'_, (u32, u64), &'static [u8]>,
    retired: &mut redb::Table<'_, (u32, u128), u32>,
) -> Result<bool, redb::Error> {
    let Some(pool) = gone.first()?.map(|(pool, _)| pool.value()) else { return Ok(false) };
    let mut numbers = Vec::with_capacity(TRIM);
    for row in keys.range((pool, 0)..=(pool, u64::MAX))?.take(TRIM) {
        numbers.push(row?.0.value());
    }
    for at in &numbers {
        keys.remove(at)?;
        // Whatever is out of rotation is a key.
        aside.remove(at)?;
    }
    let mut ids = Vec::new();
    for row in retired.range((pool, 0)..=(pool, u128::MAX))?.take(TRIM - numbers.len()) {
        ids.push(row?.0.value());
    }
    for at in &ids {
        retired.remove(at)?;
    }
    if numbers.len() + ids.len() < TRIM {
        gone.remove(pool)?;
    }
    Ok(gone.first()?.is_some())
}

impl KeySetDelta {
    /// Begins a change that goes on from a position.
    pub(crate) fn after(position: u64, counters: Counters) -> Self {
        Self { position, counters, ..Self::default() }
    }

    /// Facts it has taken.
    pub(crate) fn facts(&self) -> usize {
        self.facts
    }

    /// Takes a fact; those that are not about the key set pass by. `pools` are the pools there are
    /// after the facts so far.
    pub(crate) fn take(&mut self, fact: &Fact<'_>, ids: &IdHashKey, pools: &mut PoolRows) {
        self.facts += 1;
        match fact {
            Fact::PoolCreated { pool, name, policy } => {
                self.counters.next_pool = self.counters.next_pool.max(PoolId(pool.0 + 1));
                self.put_pool(pool.0, ((*name).to_owned(), policy.clone()), pools);
            }
            Fact::PolicyChanged { pool, policy } => {
                if let Some((name, _)) = pools.get(&pool.0).cloned() {
                    self.put_pool(pool.0, (name, policy.clone()), pools);
                }
            }
            Fact::PoolDeleted { pool } => {
                let PoolId(pool) = pool;
                pools.remove(pool);
                self.pools.remove(pool);
                self.births.retain(|(of, _), _| of != pool);
                self.aside.retain(|(of, _), _| of != pool);
                self.gone.insert(*pool);
            }
            Fact::KeysCreated { pool, first, at_ms, imported, values } => {
                for (number, value) in first.range(values.count()).zip(values.iter()) {
                    let at = (pool.0, number.0);
                    self.births.insert(at, write_key(at, *at_ms, *imported, value));
                    self.counters.next_key = self.counters.next_key.max(KeyNumber(number.0 + 1));
                    self.facts += 1;
                }
            }
            Fact::KeyDeleted { pool, key } | Fact::KeyPurged { pool, key } => {
                self.die((pool.0, key.0), ids);
            }
            Fact::Quarantined { pool, key, reason } => {
                self.aside.insert((pool.0, key.0), Some(reason.unwrap_or_default().to_owned()));
            }
            Fact::KeyFreed { pool, key } => {
                self.aside.insert((pool.0, key.0), None);
            }
            Fact::TokensReserved { until } => {
                self.counters.tokens_reserved = self.counters.tokens_reserved.max(*until);
            }
            Fact::Granted { .. }
            | Fact::LeaseSnapshot { .. }
            | Fact::RestSnapshot { .. }
            | Fact::Renewed { .. }
            | Fact::Released { .. }
            | Fact::AnswerStored { .. }
            | Fact::AnswerRevoked { .. }
            | Fact::SegmentsDropped { .. }
            | Fact::Stopped { .. } => {}
        }
    }

    fn put_pool(&mut self, pool: u32, row: (String, Policy), pools: &mut PoolRows) {
        pools.insert(pool, row.clone());
        self.pools.insert(pool, row);
    }

    fn die(&mut self, at: (u32, u64), ids: &IdHashKey) {
        self.aside.remove(&at);
        match self.births.remove(&at) {
            None => {
                self.deaths.insert(at);
            }
            Some(row) => {
                if let Some(value) = imported_value(&row) {
                    self.retired.insert((at.0, ids.key_id(PoolId(at.0), value).0));
                }
            }
        }
    }
}

type AsideRows = redb::ReadOnlyTable<(u32, u64), &'static [u8]>;

/// The keys out of rotation; none in a database that was made before there were any.
fn opened_aside(reading: &redb::ReadTransaction) -> Result<Option<AsideRows>, KeysetError> {
    match reading.open_table(ASIDE) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn damaged(why: &str) -> KeysetError {
    KeysetError::Damaged(why.to_owned())
}

fn misfit(ReplayError(why): ReplayError) -> KeysetError {
    damaged(why)
}

fn failed(error: impl Into<redb::Error>) -> KeysetError {
    let error = error.into();
    if let redb::Error::Io(error) = error {
        // What the database says of bytes that are none of its own, or end too early.
        let content = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
        if content.contains(&error.kind()) {
            return damaged(&error.to_string());
        }
        return KeysetError::Io(error);
    }
    KeysetError::Damaged(error.to_string())
}

impl From<redb::Error> for KeysetError {
    fn from(error: redb::Error) -> Self {
        failed(error)
    }
}

/// Our disk as redb wants it.
struct Backend(Box<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

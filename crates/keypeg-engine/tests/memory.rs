//! Starts with data that needs more memory than the server has: refused while nothing is changed, or
//! accepted without room for more.
//!
//! The bound of keys once held for new keys only. A start loaded all data whatever it took, and the
//! kernel killed the server at each start.

mod support;

use keypeg_core::{ImportOptions, KEY_BYTES_MIN, KeyRef, PolicyPatch, PoolName, Refusal, Secret};
use keypeg_engine::EngineConfig;
use keypeg_engine::state::{EngineState, JournalSizes};
use keypeg_store::{AcquireTerms, Call, Principal, Reply, RequestError};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, default_pool, engine_config};

/// Keys in the directory.
const KEYS: u64 = 6_000;

/// Creates a directory with keys whose values have this length, in the database or in the journal.
fn directory(value_len: usize, checkpointed: bool) -> (SimDisk, ManualClock) {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock, u64::MAX, u64::MAX).expect("a new directory");
    for first in (0..KEYS).step_by(1_000) {
        let value = |number| Secret::new(&format!("{number:0value_len$}")).expect("a length");
        let values = (first..first + 1_000).map(value).collect();
        let call = Call::import(default_pool(), values, ImportOptions::default()).into_call();
        let reply = driver.call(call);
        assert!(matches!(&reply, Reply::Keys(keys) if keys.len() == 1_000), "{reply:?}");
        if checkpointed {
            driver.checkpoint().expect("a checkpoint");
        }
    }
    (disk, clock)
}

/// Opens the directory with a journal that has room for all keys.
fn open(disk: &SimDisk, clock: &ManualClock, memory: u64, max: u64) -> Result<Driver, String> {
    let config = EngineConfig { memory, memory_max: max, ..engine_config() };
    let sizes = JournalSizes { segment: 1 << 20, journal: 16 << 20 };
    let (opened_clock, random) = (Box::new(clock.clone()), Box::new(SeededRandom(2)));
    let disk = Arc::new(disk.clone());
    let opened = EngineState::open(Some(disk), sizes, &config, opened_clock, random);
    let (mut engine, recovery) = opened.map_err(|error| error.to_string())?;
    let (clock, checkpointer) = (clock.clone(), engine.take_checkpointer());
    Ok(Driver { engine, recovery, clock, checkpointer, by: Principal::Anyone })
}

/// Returns the bytes that the keys of a directory take.
fn bytes_needed(disk: &SimDisk, clock: &ManualClock) -> u64 {
    let driver = open(&disk.copy(), clock, u64::MAX, u64::MAX).expect("memory for all");
    driver.engine.pools().bytes()
}

/// Neither a number of keys, nor long values, nor keys in the journal alone get past the bound.
#[test]
fn data_that_needs_more_than_all_memory_is_refused_and_unchanged() {
    const MIB: u64 = 1 << 20;
    for (value_len, checkpointed, max) in
        [(20, true, KEYS * 32), (300, true, MIB), (300, false, MIB), (300, true, KEYS * 300)]
    {
        let case = format!("values of {value_len} bytes, checkpointed {checkpointed}, {max} bytes");
        let (disk, clock) = directory(value_len, checkpointed);
        let (needed, used) = (bytes_needed(&disk, &clock), disk.used());
        let Err(error) = open(&disk, &clock, max / 2, max) else { panic!("{case}: it starts") };
        let stated = format!(", and the server may take {} MiB: raise --memory above ", max / MIB);
        assert!(
            error.contains(&stated) && error.ends_with("no data was changed"),
            "{case}: {error}"
        );
        let estimate = error.split(' ').find_map(|word| word.parse::<u64>().ok());
        let estimate = estimate.unwrap_or_else(|| panic!("{case}: {error}"));
        assert!(estimate <= needed.div_ceil(MIB) + 1 && estimate * MIB >= max, "{case}: {error}");
        assert_eq!(disk.used(), used, "{case}");
        let driver = open(&disk, &clock, needed, needed).expect("exactly enough");
        assert_eq!(driver.engine.pools().key_count(), KEYS, "{case}");
    }
}

/// Rows that no start loads are in the table of keys until the checkpointer has deleted them.
#[test]
fn the_rows_of_a_deleted_pool_need_no_memory() {
    let (disk, clock) = directory(300, true);
    let mut driver = open(&disk, &clock, u64::MAX, u64::MAX).expect("memory for all");
    let pool = PoolName::parse("other").expect("a valid name");
    driver.call(Call::put_pool(pool.clone(), PolicyPatch::default()).into_call());
    for _ in 0..10 {
        driver.call(Call::generate(pool.clone(), 10_000).into_call());
        driver.checkpoint().expect("a checkpoint");
    }
    // A checkpoint after the deletion deletes a part of the rows, 20 000 in each transaction.
    let rows_left = driver.engine.pools().key_count() - 40_000;
    assert!(matches!(driver.call(Call::delete_pool(pool).into_call()), Reply::Done));
    let checkpointer = driver.checkpointer.as_mut().expect("a disk");
    checkpointer.step().expect("a checkpoint");
    drop(driver);
    let needed = bytes_needed(&disk, &clock);
    assert!(needed < rows_left * KEY_BYTES_MIN, "{needed} bytes, {rows_left} rows");
    open(&disk, &clock, needed, needed).expect("enough for the keys that exist");
}

/// Such a server keeps what it has, and becomes a normal one when enough keys are deleted.
#[test]
fn data_that_needs_more_than_the_part_for_keys_is_loaded_and_gets_no_more() {
    for checkpointed in [false, true] {
        let (disk, clock) = directory(300, checkpointed);
        let needed = bytes_needed(&disk, &clock);
        let mut driver = open(&disk, &clock, needed / 2, needed).expect("memory for the data");
        let all = driver.call(Call::keep_alive_all(default_pool()).into_call());
        assert!(matches!(all, Reply::KeptAliveMany { kept: KEYS, .. }));
        let generated = driver.call(Call::generate(default_pool(), 1).into_call());
        let full = |reply: &Reply| {
            matches!(
                reply,
                Reply::Refused(RequestError::Refused(
                    Refusal::KeyMemoryFull { .. } | Refusal::MemoryFull { .. },
                ))
            )
        };
        assert!(full(&generated), "{generated:?}");
        let acquire = Call::acquire(default_pool(), AcquireTerms::default()).into_call();
        let leased = driver.call(acquire);
        assert!(full(&leased), "{leased:?}");
        for key in driver.engine.pools().key_ids(&default_pool()).into_iter().take(5_000) {
            let call = Call::delete_key(default_pool(), KeyRef::Id(key)).into_call();
            let deleted = driver.call(call);
            assert!(!matches!(deleted, Reply::Refused(_)), "{deleted:?}");
        }
        driver.checkpoint().expect("a checkpoint");
        assert!(driver.acquire("job").is_some(), "a lease has room again");
    }
}

//! Directories that no crash leaves: mixed from parts of different ages or of two installations, with
//! a part removed or written over. A start refuses each of them, or finds everything.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{NewLabels, PoolName};
use keypeg_engine::EngineConfig;
use keypeg_engine::disk::Disk;
use keypeg_store::{Call, Reply};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, engine_config};

const KEYSET: &str = "keyset";
/// The size of a frame's header, and the bytes of the length in it; see docs/format.md.
const BATCH_HEAD: usize = 64;
const LENGTH: std::ops::Range<usize> = 8..12;

fn try_open(disk: &SimDisk, clock: &ManualClock, seed: u64) -> Result<Driver, String> {
    Driver::open(Arc::new(disk.clone()), clock, seed)
}

fn replace(disk: &SimDisk, name: &str, content: Vec<u8>) {
    disk.damage(name, |bytes| *bytes = content);
}

/// Returns the segments of the journal, oldest first.
fn segments(disk: &SimDisk) -> Vec<String> {
    let mut names = Disk::list(disk).unwrap();
    names.retain(|name| name.starts_with("journal"));
    names.sort();
    names
}

/// Each batch creates a key, so a start that skips a batch has too few.
#[test]
fn a_key_set_that_is_older_than_the_journal_is_refused_or_misses_nothing() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    let mut older = Vec::new();
    for _ in 0..60 {
        driver.generate(1);
        driver.checkpoint().unwrap();
        older.push(disk.read(KEYSET).unwrap());
    }
    drop(driver);
    assert!(segments(&disk).len() < 40 && segments(&disk)[0] != "journal-000000000001");
    let (mut refused, mut complete) = (0, 0);
    for keyset in older {
        let disk = disk.copy();
        replace(&disk, KEYSET, keyset);
        match try_open(&disk, &clock, 1) {
            Err(error) => {
                assert_eq!(complete, 0, "a newer key set is refused: {error}");
                assert!(error.contains("is missing"), "{error}");
                refused += 1;
            }
            Ok(driver) => {
                assert_eq!(driver.recovery.keys, 60);
                complete += 1;
            }
        }
    }
    assert!(refused > 5 && complete > 5, "{refused} refused, {complete} complete");
}

/// The key set has all keys, but leases are in the journal only.
#[test]
fn a_journal_without_its_oldest_segment_is_refused() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    driver.generate(3);
    driver.acquire("the lease of the oldest segment").unwrap();
    for _ in 0..12 {
        driver.generate(1);
    }
    driver.checkpoint().unwrap();
    drop(driver);
    let all = segments(&disk);
    assert!(all.len() > 2 && all[0].ends_with("001"), "{all:?}");
    disk.delete(&all[0]);
    let error = try_open(&disk, &clock, 1).err().expect("a lease is missing");
    assert!(error.contains(&format!("{} is missing", all[0])), "{error}");
}

/// Two directories with the same history: only their identities differ.
#[test]
fn the_key_set_of_another_directory_is_refused() {
    let history = |seed| {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = try_open(&disk, &clock, seed).unwrap();
        driver.generate(3);
        driver.checkpoint().unwrap();
        (disk, clock)
    };
    let ((disk, clock), (other, _)) = (history(1), history(2));
    replace(&disk, KEYSET, other.read(KEYSET).unwrap());
    let error = try_open(&disk, &clock, 1).err().expect("other keys");
    assert!(error.contains("it belongs to another data directory"), "{error}");
}

/// Behind the last batch lie headers of frames of this very segment, whose bodies would overlap. They
/// are neither a batch that was cut nor one that counts.
#[test]
fn frames_that_overlap_are_refused_and_not_discarded_as_a_torn_tail() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    driver.generate(3);
    drop(driver);
    let last = segments(&disk).pop().unwrap();
    disk.damage(&last, |bytes| {
        let at = bytes.windows(4).rposition(|four| four == b"KPGB").unwrap();
        let mut head = bytes[at..at + BATCH_HEAD].to_vec();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(8);
        bytes.truncate(end);
        // Each reaches to the end of the file.
        for left in (1..64).rev() {
            head[LENGTH]
                .copy_from_slice(&u32::to_le_bytes((left * BATCH_HEAD).try_into().unwrap()));
            bytes.extend(&head);
        }
        bytes.resize(bytes.len() + BATCH_HEAD, 0);
    });
    let error = try_open(&disk, &clock, 1).err().expect("no crash leaves this");
    assert!(error.contains("frames overlap"), "{error}");
}

/// A pool with more rows than one transaction deletes was deleted, and the server was killed after
/// the first part. Without a further change nothing would delete the rest.
#[test]
fn a_start_deletes_the_rows_that_a_killed_server_has_left_of_a_deleted_pool() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let config =
        EngineConfig { max_keys: 100_000, memory: 1 << 30, memory_max: 1 << 30, ..engine_config() };
    let open = || Driver::open_with(Some(Arc::new(disk.clone())), &clock, 1, &config).unwrap();
    let mut driver = open();
    let pool = PoolName::parse("large").unwrap();
    let patch = keypeg_core::PolicyPatch::default();
    driver.call(Call::PutPool { pool: pool.clone(), patch: Box::new(patch) });
    for _ in 0..5 {
        driver.checkpoint().unwrap();
        let labels = NewLabels::None;
        let reply = driver.call(Call::Generate { pool: pool.clone(), count: 10_000, labels });
        assert!(matches!(reply, Reply::Keys(_)), "{reply:?}");
    }
    driver.checkpoint().unwrap();
    driver.call(Call::DeletePool { pool });
    clock.advance_ms(1_000);
    driver.call(support::list_pools());
    assert!(driver.checkpointer.as_mut().unwrap().step().unwrap(), "rows are left");
    drop(driver);
    let mut driver = open();
    let checkpointer = driver.checkpointer.as_mut().unwrap();
    let mut steps = 0;
    while checkpointer.step().unwrap() {
        steps += 1;
    }
    assert!(steps >= 1, "the rest was not deleted");
    drop(driver);
    // What remains is deleted: the next start finds nothing to do.
    let mut driver = open();
    assert!(!driver.checkpointer.as_mut().unwrap().step().unwrap());
}

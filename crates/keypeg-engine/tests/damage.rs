//! Directories that no crash leaves: mixed from parts of different ages or of two installations, with
//! a part removed or written over. A start refuses each of them, or finds everything.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{NEVER_US, NewLabels, PoolName, TOKEN_MAX};
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

/// Where the header of a segment and the frame of a batch have these fields; see docs/format.md.
const HEAD_CLOCK: usize = 88;
const HEAD_NEXT_KEY: usize = 96;
const HEAD_NEXT_POOL: usize = 104;
const HEAD_TOKENS: usize = 112;
const BATCH_CLOCK: usize = 56;
/// Each CRC covers the bytes after it.
const HEAD_CRC: std::ops::Range<usize> = 12..16;
const BATCH_CRC: std::ops::Range<usize> = 4..8;
/// The length of a segment's header.
const SEGMENT_HEAD: usize = 4096;

/// Changes a number in the header of the last segment in use, with a valid CRC.
fn set_in_head(disk: &SimDisk, offset: usize, number: u64) {
    disk.damage(&last_used(disk), |bytes| {
        bytes[offset..offset + 8].copy_from_slice(&number.to_le_bytes());
        let crc = crc32fast::hash(&bytes[HEAD_CRC.end..SEGMENT_HEAD]);
        bytes[HEAD_CRC].copy_from_slice(&crc.to_le_bytes());
    });
}

/// Changes the clock of each batch of the last segment in use, with a valid CRC.
fn set_batch_clocks(disk: &SimDisk, lease_us: u64) {
    disk.damage(&last_used(disk), |bytes| {
        let mut at = SEGMENT_HEAD;
        assert_eq!(&bytes[at..at + 4], b"KPGB", "the segment has a batch");
        while bytes[at..].starts_with(b"KPGB") {
            let frame = &mut bytes[at..];
            let body = u32::from_le_bytes(frame[LENGTH].try_into().unwrap()) as usize;
            frame[BATCH_CLOCK..BATCH_CLOCK + 8].copy_from_slice(&lease_us.to_le_bytes());
            let crc = crc32fast::hash(&frame[BATCH_CRC.end..BATCH_HEAD + body]);
            frame[BATCH_CRC].copy_from_slice(&crc.to_le_bytes());
            at += (BATCH_HEAD + body).next_multiple_of(8);
        }
    });
}

/// Returns the newest segment that has a header: the ones after it are preallocated.
fn last_used(disk: &SimDisk) -> String {
    let used = |name: &String| disk.read(name).unwrap().starts_with(b"KEYPEGSG");
    segments(disk).into_iter().rfind(used).unwrap()
}

/// A valid CRC does not make a number possible: a clock beyond every deadline, or a counter without
/// room for what the server adds to it, would overflow later, while the server runs.
#[test]
fn numbers_that_no_server_reaches_are_refused_and_the_largest_ones_are_not() {
    const CLOCK: &str = "the clock value is out of range";
    const COUNTER: &str = "a counter is out of range";
    let (clock_end, tokens_max) = (NEVER_US / 2, TOKEN_MAX - (1 << 50));
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    driver.generate(3);
    driver.acquire("job-7").unwrap();
    drop(driver);
    let in_head = |offset, number| {
        let disk = disk.copy();
        set_in_head(&disk, offset, number);
        try_open(&disk, &clock, 1).map(drop)
    };
    let refused = |opened: Result<(), String>, says: &str| {
        let error = opened.expect_err(says);
        assert!(error.contains(says), "{error}");
    };
    // Later facts can contradict the number, but it is in its range.
    let in_range = |opened: Result<(), String>| {
        let error = opened.err().unwrap_or_default();
        assert!(!error.contains("out of range"), "{error}");
    };
    refused(in_head(HEAD_CLOCK, clock_end), CLOCK);
    for (offset, max) in [
        (HEAD_NEXT_KEY, u64::MAX / 2),
        (HEAD_NEXT_POOL, u64::from(u32::MAX / 2)),
        (HEAD_TOKENS, tokens_max),
    ] {
        refused(in_head(offset, max + 1), COUNTER);
        in_range(in_head(offset, max));
    }
    let with_batch_clock = |lease_us| {
        let disk = disk.copy();
        set_batch_clocks(&disk, lease_us);
        try_open(&disk, &clock, 1).map(drop)
    };
    refused(with_batch_clock(clock_end), CLOCK);
    in_range(with_batch_clock(clock_end - 1));
}

/// The last clock of a journal belongs to the boot of its last segment, even where that segment
/// begins with an earlier lease time. With the boot before, downtime would not count.
#[test]
fn downtime_counts_from_the_boot_of_the_last_segment() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    clock.advance_ms(1_000);
    // The last batches are not proven durable, so the next segment takes them over.
    for _ in 0..4 {
        driver.generate(1);
        driver.acquire("job-7").unwrap();
    }
    drop(driver);
    clock.reboot();
    drop(try_open(&disk, &clock, 1).unwrap());
    let head = disk.read(&last_used(&disk)).unwrap();
    let lease_us = u64::from_le_bytes(head[HEAD_CLOCK..HEAD_CLOCK + 8].try_into().unwrap());
    set_in_head(&disk, HEAD_CLOCK, lease_us - 1);
    set_batch_clocks(&disk, lease_us - 1);
    clock.advance_ms(60_000);
    let mut driver = try_open(&disk, &clock, 1).unwrap();
    driver.acquire("the next one").expect("the leases of a minute have ended");
}

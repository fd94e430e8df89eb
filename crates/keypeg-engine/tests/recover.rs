//! What a start makes of a directory: what goes on, what is cut, what is refused and how that is
//! told.

mod support;

use keypeg_engine::core::{KeyRef, KeyState, Policy, Refusal, ReleaseOptions};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::CallId;
use keypeg_engine::{Call, EngineConfig, Principal, Reply, Request, RequestError};
use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::{Driver, GivenClock, SeededRandom, default_pool, setup};

fn open(disk: &SimDisk, clock: &GivenClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 1).expect("opens")
}

fn refused(disk: &SimDisk) -> String {
    match Driver::open(Arc::new(disk.clone()), &GivenClock::new(), 1) {
        Ok(_) => panic!("opened"),
        Err(told) => told,
    }
}

/// A directory with three keys, one of them lent, and a journal of several segments.
fn used() -> (SimDisk, GivenClock) {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(3);
    for _ in 0..60 {
        clock.tick_ms(10);
        let (lease, ..) = driver.acquire("somebody").expect("free");
        driver.call(Call::Release {
            pool: default_pool(),
            lease,
            verdict: ReleaseOptions::default(),
        });
    }
    driver.acquire("job-7").expect("free");
    (disk, clock)
}

fn leased(driver: &mut Driver) -> u64 {
    let Reply::Pool { pool, .. } = driver.call(Call::GetPool { pool: default_pool() }) else {
        panic!("a pool")
    };
    assert_eq!(pool.counts.total(), 3);
    pool.counts.leased
}

#[test]
fn a_lease_counts_downtime_but_not_over_a_reboot() {
    let cases = [
        (false, 59_999, 1, "same boot, a millisecond before its end"),
        (false, 60_000, 0, "same boot, at its end"),
        (true, 59_999, 1, "another boot: what was left is left, however long it was down"),
        (true, 10_000_000, 1, "another boot, a long time"),
    ];
    for (reboot, down_ms, still, case) in cases {
        let (disk, clock) = used();
        if reboot {
            clock.reboot();
        }
        clock.tick_ms(down_ms);
        let mut driver = open(&disk, &clock);
        assert_eq!(leased(&mut driver), still, "{case}");
        clock.tick_ms(59_999 * u64::from(reboot));
        assert_eq!(leased(&mut driver), still, "{case}: and never early");
        clock.tick_ms(1);
        assert_eq!(leased(&mut driver), 0, "{case}: and then over");
    }
}

/// The header of the segment that a start begins once paired the boot time of before the replay
/// with the lease time of after it: each restart made every lease end early by the time it took.
#[test]
fn restarts_that_take_long_shorten_no_lease() {
    let (disk, clock) = used();
    clock.each_reading_takes_ms(100);
    for _ in 0..10 {
        drop(open(&disk, &clock));
    }
    clock.each_reading_takes_ms(0);
    let mut driver = open(&disk, &clock);
    let granted_ms = 1_000 + 600;
    let now_ms = clock.boot_ms();
    clock.tick_ms(granted_ms + 59_999 - now_ms);
    assert_eq!(leased(&mut driver), 1, "a millisecond before its end");
    clock.tick_ms(1);
    assert_eq!(leased(&mut driver), 0);
}

#[test]
fn a_lease_that_was_over_before_a_reboot_stays_over() {
    let (disk, clock) = used();
    let mut driver = open(&disk, &clock);
    clock.tick_ms(60_000);
    assert_eq!(leased(&mut driver), 0, "an answer that rests on time that has passed");
    clock.reboot();
    assert_eq!(leased(&mut open(&disk, &clock)), 0, "is not undone by a crash and a reboot");
}

#[test]
fn downtime_kills_no_key_and_each_start_gives_the_full_time() {
    let (disk, clock) = used();
    for _ in 0..5 {
        clock.tick_ms(86_400_000);
        let mut driver = open(&disk, &clock);
        for _ in 0..299 {
            clock.tick_ms(1_000);
            driver.call(Call::ListPools);
        }
        leased(&mut driver);
    }
    let mut driver = open(&disk, &clock);
    for _ in 0..300 {
        clock.tick_ms(1_000);
        driver.call(Call::ListPools);
    }
    let Reply::Pool { pool, .. } = driver.call(Call::GetPool { pool: default_pool() }) else {
        panic!("a pool")
    };
    assert_eq!(pool.counts.total(), 0, "300 s of serving time without a keep-alive");
    drop(driver);
    let Reply::Pool { pool, .. } = open(&disk, &clock).call(Call::GetPool { pool: default_pool() })
    else {
        panic!("a pool")
    };
    assert_eq!(pool.counts.total(), 0, "a purged key never comes back");
}

#[test]
fn a_stop_of_six_minutes_purges_nothing() {
    let (_, clock) = used();
    let mut driver = open(&SimDisk::new(), &clock);
    let id = driver.generate(1)[0];
    clock.tick_ms(360_000);
    let reply = driver.call(Call::KeepAlive { pool: default_pool(), key: KeyRef::Id(id) });
    assert!(matches!(reply, Reply::KeptAlive { .. }), "{reply:?}");
}

#[test]
fn tokens_go_on_after_a_clean_stop_and_skip_a_block_after_any_other() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let token = |driver: &mut Driver| driver.acquire("x").expect("free").2;
    let mut driver = open(&disk, &clock);
    driver.generate(9);
    let first = token(&mut driver);
    assert!(first >= support::WALL_US, "a new directory starts at the wall clock's microseconds");
    driver.works.close().expect("writes");
    let mut driver = open(&disk, &clock);
    let second = token(&mut driver);
    assert_eq!(second, first + 1);
    drop(driver);
    let third = token(&mut open(&disk, &clock));
    assert!(third > second + 1 && third <= second + (1 << 20), "{first} {second} {third}");
}

#[test]
fn a_lease_is_held_by_its_id_over_a_restart_and_its_token_never_comes_again() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1);
    let (lease, key, token) = driver.acquire("job-7").expect("free");
    let mut driver = open(&disk, &clock);
    let key = KeyRef::Id(key);
    let Reply::Key(shown) = driver.call(Call::GetKey { pool: default_pool(), key }) else {
        panic!("a key")
    };
    let held = shown.lease.expect("leased");
    assert_eq!((held.id, held.token, held.holder.as_deref()), (lease, token, Some("job-7")));
    assert_eq!(shown.state, KeyState::Leased);
    assert!(driver.acquire("other").is_none());
    assert!(matches!(
        driver.call(Call::Release {
            pool: default_pool(),
            lease,
            verdict: ReleaseOptions::default()
        }),
        Reply::Done
    ));
    assert!(driver.acquire("other").expect("free").2 > token);
}

#[test]
fn the_journal_rolls_and_every_segment_counts() {
    let (disk, clock) = used();
    let mut names: Vec<_> = Disk::list(&disk).expect("lists");
    names.sort();
    assert!(names.len() > 5, "{names:?}");
    // The last one needs the segment made ready behind it to be missed; that has its own test.
    let last = names.iter().rposition(|name| name.starts_with("journal")).expect("a segment");
    names.remove(last);
    for name in &names {
        let (disk, _) = used();
        disk.delete(name);
        let told = refused(&disk);
        assert!(told.contains("missing"), "without {name}: {told}");
        assert!(told.contains("nothing was changed"), "{told}");
    }
    assert_eq!(leased(&mut open(&disk, &clock)), 1);
}

#[test]
fn a_missing_last_segment_is_missed_because_the_next_one_is_ready() {
    let (disk, clock) = used();
    let mut driver = open(&disk, &clock);
    driver.works.start_preallocation(true).expect("starts");
    for _ in 0..100 {
        let (lease, ..) = driver.acquire("somebody").expect("free");
        driver.call(Call::Release {
            pool: default_pool(),
            lease,
            verdict: ReleaseOptions::default(),
        });
    }
    drop(driver);
    let mut names = Disk::list(&disk).expect("lists");
    names.retain(|name| name.starts_with("journal") && !name.ends_with("new"));
    names.sort();
    let [.., begun, _ready] = &names[..] else { panic!("{names:?}") };
    disk.delete(begun);
    assert!(refused(&disk).contains(&format!("{begun} is missing")));
}

#[test]
fn every_flipped_byte_is_refused_or_a_cut_tail() {
    let (disk, clock) = used();
    let names = Disk::list(&disk).expect("lists");
    let (mut refusals, mut cuts, mut harmless) = (0, 0, 0);
    for name in names.into_iter().filter(|name| name != "keyset") {
        let len = Disk::read(&disk, &name).expect("reads").len();
        for at in (0..len).step_by(if len > 4096 { 7 } else { 1 }) {
            let disk = disk.copy();
            disk.damage(&name, |bytes| bytes[at] ^= 0x40);
            match Driver::open(Arc::new(disk), &clock, 1) {
                Err(told) => {
                    assert!(told.contains(&name) && told.contains("damaged"), "{told}");
                    refusals += 1;
                }
                Ok(driver) if driver.recovered.batches_cut > 0 => cuts += 1,
                Ok(mut driver) => {
                    assert_eq!(leased(&mut driver), 1, "{name} byte {at} changed the story");
                    harmless += 1;
                }
            }
        }
    }
    println!("refused {refusals}, tail {cuts}, harmless {harmless} (unused bytes)");
    assert!(refusals > 100 && cuts > 0);
}

#[test]
fn a_cut_tail_loses_the_last_batch_alone_and_is_counted() {
    let (disk, clock) = used();
    let mut names = Disk::list(&disk).expect("lists");
    names.retain(|name| name.starts_with("journal"));
    names.sort();
    let last = names.last().expect("a segment").clone();
    disk.damage(&last, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("not empty");
        bytes[end] ^= 1;
    });
    let mut driver = open(&disk, &clock);
    assert_eq!(driver.recovered.batches_cut, 1);
    assert_eq!(leased(&mut driver), 0, "the last acquire was in it");
    driver.acquire("again").expect("free");
    drop(driver);
    let driver = open(&disk, &clock);
    assert_eq!(driver.recovered.batches_cut, 0, "what was cut is gone for good");
    assert_eq!(driver.recovered.leases, 1);
}

#[test]
fn damage_below_a_later_batch_is_corruption_and_named() {
    let (disk, _) = used();
    disk.damage("journal-000000000002", |bytes| bytes[4096 + 50] ^= 1);
    let told = refused(&disk);
    assert!(told.contains("journal-000000000002 is damaged at byte 4096"), "{told}");
}

#[test]
fn after_a_second_of_rest_even_the_last_batch_is_proven() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(3);
    clock.tick_ms(1_000);
    driver.call(Call::ListPools);
    drop(driver);
    disk.damage("journal-000000000001", |bytes| {
        let born = bytes.windows(4).rposition(|four| four == b"KPGB").expect("a batch");
        let born = bytes[..born].windows(4).rposition(|four| four == b"KPGB").expect("a batch");
        bytes[born + 70] ^= 1;
    });
    assert!(refused(&disk).contains("damaged"));
}

#[test]
fn a_directory_of_a_newer_format_is_refused_untouched() {
    let (disk, _) = used();
    disk.damage("journal-000000000003", |bytes| {
        bytes[8] = 2;
    });
    let told = refused(&disk);
    assert!(told.contains("format 2") && told.contains("newer"), "{told}");
}

#[test]
fn an_unfinished_making_begins_again_and_foreign_files_are_left_alone() {
    let disk = SimDisk::new();
    for name in ["meta.new", "journal-000000000001", "journal-000000000002.new"] {
        Disk::create(&disk, name, 10).expect("creates");
    }
    Disk::create(&disk, "lost+found", 0).expect("creates");
    let driver = open(&disk, &GivenClock::new());
    assert!(driver.recovered.created);
    let names = Disk::list(&disk).expect("lists");
    assert!(names.contains(&"lost+found".into()), "{names:?}");
}

#[test]
fn starts_are_counted_and_a_stored_policy_stands() {
    let (disk, clock) = used();
    let other = Policy { lease_ttl_ms: 5_000, ..Policy::default() };
    let setup = EngineConfig { default_policy: other, ..setup() };
    for before in 1..4 {
        let driver =
            Driver::open_with(Some(Arc::new(disk.clone())), &clock, 1, &setup).expect("opens");
        assert_eq!(driver.recovered.starts_before, before);
        assert_eq!(driver.recovered.default_policy_kept, Some(Policy::default()));
        assert!(!driver.recovered.created);
    }
}

#[test]
fn a_failed_commit_answers_nothing() {
    let (disk, clock) = used();
    let mut driver = open(&disk, &clock);
    driver.carry().expect("carries");
    disk.crash_at(Some(CrashAt { operation: 1, after: false }));
    let mut asked = (0..5)
        .map(|slot| {
            let call = Call::Generate { pool: default_pool(), count: 1 };
            (CallId { lane: 0, slot }, Request { by: Principal::Anyone, call })
        })
        .collect();
    let mut replies = Vec::new();
    assert!(driver.works.turn(&mut asked, &mut replies).is_err());
    assert!(replies.is_empty(), "{replies:?}");
}

/// An engine in memory with 40 000 keys that are all due, to the microsecond.
fn with_a_backlog() -> Driver {
    let clock = GivenClock::new();
    let mut driver = Driver::open_with(None, &clock, 1, &setup()).expect("opens");
    for _ in 0..4 {
        driver.generate(10_000);
    }
    for _ in 0..299 {
        clock.tick_ms(1_000);
        driver.call(Call::KeepAliveMany { pool: default_pool(), keys: Vec::new() });
    }
    clock.tick_ms(1_000);
    driver
}

fn acquire() -> Call {
    Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 }
}

#[test]
fn no_key_is_only_said_when_nothing_is_due() {
    let mut driver = with_a_backlog();
    // More is due than a turn may settle: the request goes over until it is answered rightly.
    let reply = driver.call(acquire());
    let Reply::Refused(RequestError::Refused(Refusal::NoKey { counts, .. })) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(counts.total(), 0);
}

#[test]
fn a_request_that_cannot_be_settled_in_50_ms_is_told_to_come_again() {
    let mut driver = with_a_backlog();
    let request = Request { by: Principal::Anyone, call: acquire() };
    let mut asked = [(CallId { lane: 0, slot: 0 }, request)].into();
    let mut replies = Vec::new();
    for until_next_ms in [20, 29, 1] {
        driver.works.turn(&mut asked, &mut replies).expect("in memory");
        assert!(replies.is_empty(), "before 50 ms: {replies:?}");
        driver.clock.tick_ms(until_next_ms);
    }
    driver.works.turn(&mut asked, &mut replies).expect("in memory");
    let [(_, Reply::Refused(RequestError::Refused(Refusal::Settling)))] = &replies[..] else {
        panic!("{replies:?}")
    };
}

/// A start takes the next segment that is ready by another name until it is whole. Once the power
/// went just then, the header of the segment before it was lost, so the next start took that one,
/// removed the other, and was killed: the segments ready behind the gap looked like the end of a
/// journal that had lost a part, and no start went on. Found by the simulation.
#[test]
fn no_start_that_is_cut_short_leaves_a_gap_in_what_is_ready() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.works.start_preallocation(false).expect("makes ready");
    driver.generate(3);
    drop(driver);
    let taken = "journal-000000000003";
    disk.rename(taken, &format!("{taken}.new")).expect("it was ready");
    disk.sync_dir().expect("syncs");
    let mut operation = 0;
    loop {
        let mut cut_short = disk.copy();
        cut_short.crash_at(Some(CrashAt { operation, after: true }));
        let opened = Driver::open(Arc::new(cut_short.clone()), &clock, 1);
        if !cut_short.has_crashed() {
            break;
        }
        drop(opened);
        cut_short = cut_short.after_crash(&mut SeededRandom(operation));
        assert_eq!(open(&cut_short, &clock).recovered.keys, 3, "cut short at {operation}");
        operation += 1;
    }
    assert!(operation > 8, "{operation} operations");
}

/// The database panics where a page is not what it wrote: as a start opens it in a debug build, on the
/// thread that reads rows in a release build. Either is told as damage, and neither thread waits on.
#[test]
fn a_damaged_page_of_keys_is_told_as_damage() {
    const PAGE: usize = 4_096;
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(6_000);
    driver.carry().expect("carries");
    drop(driver);
    let pages = disk.read("keyset").expect("reads").len() / PAGE;
    let mut refused = 0;
    for page in 1..pages {
        let damaged = disk.copy();
        damaged.damage("keyset", |bytes| bytes[page * PAGE..][..64].fill(0xff));
        match Driver::open(Arc::new(damaged), &clock, 1) {
            Err(told) => {
                assert!(told.contains("damaged"), "page {page}: {told}");
                refused += 1;
            }
            Ok(driver) => {
                assert_eq!(driver.recovered.keys, 6_000, "page {page}");
                // Its last commit may read the page, and would panic for it.
                std::mem::forget(driver);
            }
        }
    }
    assert!(refused > 50, "keys take as many pages: {refused} of {pages}");
}

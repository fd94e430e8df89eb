//! A full disk hurts nobody: what makes keys is refused first, then grants; giving back goes on;
//! nothing is lost, and all resumes by itself when there is room again.

mod support;

use keypeg_engine::core::{
    BodyDigest, KeyRef, LeaseId, PolicyPatch, PoolName, Refusal, ReleaseOptions,
};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::CallId;
use keypeg_engine::state::{EngineState, JournalSizes};
use keypeg_engine::{Call, Principal, Reply, Request, RequestError};
use std::collections::VecDeque;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, GivenClock, SeededRandom, default_pool, setup};

/// A segment with more room than what is kept unused at the end of the last one.
const SEGMENT: u64 = (2 << 20) + 16_384;
/// So large that no segment is dropped unless the disk is full.
const JOURNAL: u64 = 1 << 40;

fn open(disk: &SimDisk, clock: &GivenClock) -> Driver {
    let sizes = JournalSizes { segment: SEGMENT, journal: JOURNAL };
    let disk = Arc::new(disk.clone());
    let (works, recovered) = EngineState::open(
        Some(disk),
        sizes,
        &setup(),
        Box::new(clock.clone()),
        Box::new(SeededRandom(1)),
    )
    .expect("opens");
    let (clock, by) = (clock.clone(), Principal::Anyone);
    let mut driver = Driver { works, recovered, clock, carrier: None, by };
    driver.carrier = driver.works.take_checkpointer();
    driver.works.start_preallocation(false).expect("there is room");
    driver
}

fn is_full(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(RequestError::StorageFull))
}

fn generate(driver: &mut Driver, count: u32) -> Reply {
    driver.call(Call::Generate { pool: default_pool(), count })
}

fn acquire(driver: &mut Driver) -> Reply {
    driver.call(Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 })
}

/// Leaves room for nothing more, and lets the engine notice.
fn fill(disk: &SimDisk, driver: &mut Driver) {
    disk.set_capacity(Some(disk.used()));
    for _ in 0..200 {
        if is_full(&generate(driver, 2_000)) {
            return;
        }
    }
    panic!("the disk does not fill");
}

#[test]
fn keys_then_grants_are_refused_giving_back_goes_on_and_all_resumes() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    let ids = driver.generate(1_000);
    let mut leases: Vec<LeaseId> = Vec::new();
    for _ in 0..500 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else { panic!("free") };
        leases.push(lease.id);
    }
    fill(&disk, &mut driver);
    assert!(!is_full(&acquire(&mut driver)), "grants go on in the first segment that is kept");
    let mut granted = 0;
    loop {
        let reply = acquire(&mut driver);
        if is_full(&reply) {
            break;
        }
        let Reply::Granted { lease, .. } = reply else { panic!("{reply:?}") };
        driver.call(Call::Release {
            pool: default_pool(),
            lease: lease.id,
            verdict: ReleaseOptions::default(),
        });
        granted += 1;
        assert!(granted < 100_000, "grants are refused in the end");
    }
    assert!(is_full(&generate(&mut driver, 1)));
    for lease in leases {
        let reply = driver.call(Call::Release {
            pool: default_pool(),
            lease,
            verdict: ReleaseOptions::default(),
        });
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }
    let reply = driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(ids[0]) });
    assert!(matches!(reply, Reply::Done), "{reply:?}");
    let keys = driver.works.pools().key_count();
    drop(driver);
    let mut driver = open(&disk, &clock);
    assert_eq!(driver.recovered.keys, keys, "a start on a full disk keeps all");
    disk.set_capacity(None);
    clock.tick_ms(1_000);
    assert!(matches!(generate(&mut driver, 10), Reply::Keys(_)), "all resumes by itself");
    assert!(matches!(acquire(&mut driver), Reply::Granted { .. }));
}

#[test]
fn what_is_carried_makes_room_on_a_full_disk() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1_000);
    driver.carry().unwrap();
    driver.carrier.as_ref().unwrap().ensure_ballast().unwrap();
    for _ in 0..30_000 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else { panic!("free") };
        driver.call(Call::Release {
            pool: default_pool(),
            lease: lease.id,
            verdict: ReleaseOptions::default(),
        });
    }
    // No room for one more segment, and hardly any key since the last carrying.
    disk.set_capacity(Some(disk.used() + 65_536));
    assert!(driver.carry().unwrap_err().contains("full"));
    driver.carry().expect("what was kept aside makes room");
    for _ in 0..60_000 {
        clock.tick_ms(1);
        let reply = acquire(&mut driver);
        if let Reply::Granted { lease, .. } = &reply {
            driver.call(Call::Release {
                pool: default_pool(),
                lease: lease.id,
                verdict: ReleaseOptions::default(),
            });
        } else {
            assert!(is_full(&reply), "{reply:?}");
        }
    }
    assert!(matches!(acquire(&mut driver), Reply::Granted { .. }), "segments were dropped");
}

/// A key that came back while the disk was full would have been given to the first in line, and
/// that grant would have ended the process.
#[test]
fn nobody_waits_while_no_grant_could_be_remembered() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1_000);
    let side = PoolName::parse("side").unwrap();
    driver.call(Call::PutPool { pool: side.clone(), patch: PolicyPatch::default() });
    let call = Call::Acquire { pool: side, ttl_ms: None, holder: None, wait_ms: 300_000 };
    let request = Request { by: Principal::Anyone, call };
    let mut asked = VecDeque::from([(CallId { lane: 9, slot: 0 }, request)]);
    driver.works.turn(&mut asked, &mut Vec::new()).unwrap();
    assert_eq!(driver.works.pools().waiter_count(), 1);
    fill(&disk, &mut driver);
    for _ in 0..100_000 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else { break };
        let (lease, verdict) = (lease.id, ReleaseOptions::default());
        driver.call(Call::Release { pool: default_pool(), lease, verdict });
    }
    assert!(is_full(&acquire(&mut driver)));
    assert_eq!(driver.works.pools().waiter_count(), 0, "sent away");
}

/// On a disk without room for anything, each lease that ended used to be remembered by an empty
/// batch all the same, until there was none left and the process ended.
#[test]
fn time_stands_still_where_its_passing_could_not_be_remembered() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    let ids = driver.generate(40_000);
    for n in 0..200 {
        let call = Call::Acquire {
            pool: default_pool(),
            ttl_ms: Some(50_000 + n * 10),
            holder: None,
            wait_ms: 0,
        };
        assert!(matches!(driver.call(call), Reply::Granted { .. }));
    }
    fill(&disk, &mut driver);
    while matches!(acquire(&mut driver), Reply::Granted { .. }) {}
    let mut deletions =
        ids.into_iter().map(|id| Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(id) });
    while !is_full(&driver.call(deletions.next().expect("the disk fills before"))) {}
    let leased =
        |driver: &Driver| driver.works.pools().get(&default_pool()).unwrap().counts().leased;
    let (held, journal) = (leased(&driver), journal(&disk));
    assert!(held > 100, "{held}");
    for _ in 0..400 {
        clock.tick_ms(1_000);
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reading goes on") };
    }
    assert_eq!(leased(&driver), held, "no lease ends that would not be remembered to have ended");
    assert!(journal == self::journal(&disk), "nothing is written");
    disk.set_capacity(None);
    // In the very turn in which there is room again time goes on: a lease begun on the clock that
    // stood still would end before its time.
    clock.tick_ms(1_000);
    let (id, begun) = loop {
        if let Reply::Granted { lease, .. } = acquire(&mut driver) {
            break (lease.id, clock.boot_ms());
        }
        clock.tick_ms(1_000);
    };
    clock.tick_ms(begun + 59_999 - clock.boot_ms());
    let renew = Call::Renew { pool: default_pool(), lease: id, ttl_ms: None };
    let reply = driver.call(renew.clone());
    let runs =
        matches!(reply, Reply::Refused(RequestError::Refused(Refusal::MaxHoldReached { .. })));
    assert!(runs, "{reply:?}");
    clock.tick_ms(1);
    let reply = driver.call(renew);
    assert!(matches!(reply, Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. }))));
    assert_eq!(leased(&driver), 0, "their time is over as soon as that can be remembered");
}

/// Keys that were due already when the room for remembering purges ended used to be purged all the same,
/// until there was none left and the process ended.
#[test]
fn a_backlog_of_purges_stands_still_too_where_none_could_be_remembered() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    for _ in 0..90 {
        driver.generate(10_000);
    }
    fill(&disk, &mut driver);
    for _ in 0..400 {
        clock.tick_ms(1_000);
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reading goes on") };
    }
    for _ in 0..400 {
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reading goes on") };
    }
    let left = driver.works.pools().key_count();
    assert!(left > 0, "there is no room for all");
    // Nor by being asked for, though what is due is over for whoever asks.
    let mut cursor = None;
    loop {
        let call = Call::ListKeys { pool: default_pool(), state: None, limit: 1_000, cursor };
        let Reply::Page(page) = driver.call(call) else { panic!("listing goes on") };
        assert!(page.keys.is_empty(), "what is due is over");
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(driver.works.pools().key_count(), left);
}

/// What was answered is told again whatever there is room for: whoever was told "not applied" of it
/// would have lost keys that are theirs.
#[test]
fn an_answer_is_told_again_on_a_full_disk() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    let once = |key: &str, call| Call::Idempotent {
        key: key.into(),
        body: BodyDigest(1),
        call: Box::new(call),
    };
    let wish = || Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let make = || Call::Generate { pool: default_pool(), count: 40_000 };
    let Reply::Keys(keys) = driver.call(once("make", make())) else { panic!("made") };
    let Reply::Granted { lease, .. } = driver.call(once("lend", wish())) else { panic!("lent") };
    let shown = |driver: &mut Driver| {
        let call = Call::GetKey { pool: default_pool(), key: KeyRef::Id(lease.key_id) };
        let Reply::Key(view) = driver.call(call) else { panic!("it is there") };
        view.lease.expect("it is lent").expires_at_ms
    };
    fill(&disk, &mut driver);
    while matches!(acquire(&mut driver), Reply::Granted { .. }) {}
    let mut deletions = keys
        .iter()
        .filter(|key| key.id != lease.key_id)
        .map(|key| Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(key.id) });
    let Reply::Keys(again) = driver.call(once("make", make())) else { panic!("told again") };
    assert_eq!(again, keys);
    while !is_full(&driver.call(deletions.next().expect("the disk fills before"))) {}
    let before = shown(&mut driver);
    for _ in 0..3 {
        clock.tick_ms(100_000);
        let reply = driver.call(once("lend", wish()));
        let Reply::Granted { lease: again, redelivered: true, .. } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((again.id, again.expires_at_ms), (lease.id, lease.expires_at_ms));
        assert_eq!(shown(&mut driver), before, "what is shown of a lease stands still with it");
    }
    assert!(is_full(&driver.call(once("other", wish()))));
    let reply = driver.call(once("make", make()));
    let gone = matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeysGone)));
    assert!(gone, "{reply:?}");
}

/// All that the journal's files hold.
fn journal(disk: &SimDisk) -> Vec<Vec<u8>> {
    let names = disk.list().expect("there").into_iter().filter(|name| name.starts_with("journal"));
    names.map(|name| disk.read(&name).expect("there")).collect()
}

//! Damaged key sets: a start refuses one, or nothing that a client sees has changed, neither now nor
//! after further checkpoints and another start.
//!
//! The damage is what disks and copies do: bytes, zeroed, copied and swapped pages, pages and files
//! of an earlier time, truncation. `KEYPEG_FUZZ_RUNS` and `KEYPEG_SEED` as in `fuzz.rs`.

use super::support::sim_disk::SimDisk;
use super::support::{Driver, ManualClock, SeededRandom, list_pools};
use keypeg_core::{
    ImportOptions, KeyRef, KeyState, KeyView, NewLabels, PolicyPatch, PoolActivity, PoolName,
    Refusal, ReleaseOptions, Secret,
};
use keypeg_engine::disk::Disk;
use keypeg_store::{Call, Reply, RequestError};
use keypeg_testkit::env_number;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const PAGE: usize = 4096;
/// Imported values of a pool: more than fit into a few pages.
const VALUES: usize = 360;

/// Directories with a key set of several tables, and earlier versions of the file.
struct Corpus {
    /// As a crash leaves it, as a clean stop leaves it, and with changes that are not checkpointed.
    disks: Vec<SimDisk>,
    earlier: Vec<Vec<u8>>,
    clock: ManualClock,
}

fn pools() -> [PoolName; 2] {
    ["first", "second"].map(|name| PoolName::parse(name).expect("a name"))
}

fn value(number: usize) -> Secret {
    Secret::new(&format!("value-{number:06}")).expect("a value")
}

fn key(number: usize) -> KeyRef {
    KeyRef::Value(value(number))
}

/// Quarantines these keys, one of each pool, with a reason.
fn quarantine(driver: &mut Driver, numbers: std::ops::Range<usize>) {
    for pool in pools() {
        let mut leases = Vec::new();
        for _ in numbers.clone() {
            let call = Call::Acquire { pool: pool.clone(), ttl_ms: None, holder: None, wait_ms: 0 };
            let Reply::Granted { lease, .. } = driver.call(call) else { panic!("a key is free") };
            leases.push(lease.id);
        }
        let release = |(number, lease)| {
            let reason = Some(format!("reason {number}").into());
            let options = ReleaseOptions { rest_ms: None, quarantine: true, reason };
            Call::Release { pool: pool.clone(), lease, options }
        };
        driver.turn(numbers.clone().zip(leases).map(release).collect()).expect("no disk fails");
    }
}

fn delete(driver: &mut Driver, numbers: std::ops::Range<usize>) {
    for pool in pools() {
        let delete = |number| Call::DeleteKey { pool: pool.clone(), key: key(number) };
        driver.turn(numbers.clone().map(delete).collect()).expect("no disk fails");
    }
}

fn import(driver: &mut Driver, numbers: std::ops::Range<usize>) {
    for pool in pools() {
        let values = numbers.clone().map(value).collect();
        let reply = driver.call(Call::Import {
            pool,
            values,
            options: ImportOptions::default(),
            labels: NewLabels::None,
        });
        assert!(matches!(reply, Reply::Keys(_)), "{reply:?}");
    }
}

fn corpus() -> Corpus {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    let mut earlier = Vec::new();
    let mut checkpoint = |driver: &mut Driver| {
        driver.checkpoint().expect("the checkpoint succeeds");
        earlier.push(disk.read("keyset").expect("reads"));
    };
    for pool in pools() {
        let patch = PolicyPatch { keepalive_ttl_ms: Some(None), ..PolicyPatch::default() };
        driver.call(Call::PutPool { pool, patch: Box::new(patch) });
    }
    import(&mut driver, 0..VALUES / 2);
    quarantine(&mut driver, 0..20);
    checkpoint(&mut driver);
    import(&mut driver, VALUES / 2..VALUES);
    checkpoint(&mut driver);
    delete(&mut driver, 0..VALUES / 4);
    quarantine(&mut driver, 20..40);
    checkpoint(&mut driver);
    delete(&mut driver, VALUES / 4..VALUES / 2);
    checkpoint(&mut driver);
    let crashed = disk.copy();
    drop(driver);
    let stopped = disk.copy();
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 2).expect("opens");
    driver.checkpoint().expect("the checkpoint succeeds");
    quarantine(&mut driver, 40..45);
    delete(&mut driver, VALUES / 2..VALUES / 2 + 10);
    Corpus { disks: vec![crashed, stopped, disk.copy()], earlier, clock }
}

/// Describes everything that a client sees: pools, keys, quarantines, and which values are retired.
fn description(driver: &mut Driver) -> String {
    let Reply::Pools(mut page) = driver.call(list_pools()) else { panic!("expected the pools") };
    for pool in &mut page.pools {
        // What has happened since the start is counted in memory alone.
        pool.activity = PoolActivity::default();
    }
    let mut text = format!("{page:?}\n");
    for pool in pools() {
        let mut ids = driver.engine.pools().key_ids(&pool);
        ids.sort();
        let get = |id| Call::GetKey { pool: pool.clone(), key: KeyRef::Id(id) };
        for reply in driver.turn(ids.into_iter().map(get).collect()).expect("no disk fails") {
            let Reply::Key(key) = reply else { panic!("expected a key") };
            let KeyView { id, state, label, draining, reason, .. } = &*key;
            writeln!(text, "{id} {state:?} {label:?} {draining} {reason:?}").expect("text grows");
        }
        // An import of two equal values is always refused: it says which of its values is retired,
        // and changes nothing.
        let import = |number| {
            let values = vec![value(number), value(number)];
            Call::Import {
                pool: pool.clone(),
                values,
                options: ImportOptions::default(),
                labels: NewLabels::None,
            }
        };
        let imports: Vec<_> = (0..VALUES).map(import).collect();
        // A bounded number of imports may wait for the database.
        let replies = imports.chunks(200).map(|some| driver.turn(some.to_vec()));
        for reply in replies.flat_map(|replies| replies.expect("no disk fails")) {
            let Reply::Refused(refusal) = reply else { panic!("expected a refusal: {reply:?}") };
            if let RequestError::KeysExist(known) = &refusal {
                write!(text, "{}", known.indices[0]).expect("text grows");
            } else if let RequestError::Refused(Refusal::KeyExists { index }) = refusal {
                write!(text, "{index}").expect("text grows");
            } else {
                panic!("expected a value that exists: {refusal:?}");
            }
        }
        text.push('\n');
    }
    text
}

/// Changes every table, writes checkpoints, starts again, and returns whether nothing was lost.
fn keeps_more(mut driver: Driver, disk: &SimDisk, clock: &ManualClock) -> Result<bool, String> {
    import(&mut driver, VALUES..VALUES + 120);
    driver.checkpoint()?;
    delete(&mut driver, VALUES..VALUES + 60);
    quarantine(&mut driver, 50..55);
    driver.checkpoint()?;
    let before = description(&mut driver);
    drop(driver);
    Ok(description(&mut Driver::open(Arc::new(disk.copy()), clock, 4)?) == before)
}

const KINDS: [&str; 10] = [
    "one bit",
    "one byte",
    "one byte of the header",
    "some bytes",
    "zeroed page",
    "copied page",
    "swapped pages",
    "page of an earlier version",
    "file of an earlier version",
    "truncated",
];

/// Returns the index of a page that is not all zeros.
fn used_page(bytes: &[u8], below: &mut impl FnMut(usize) -> usize) -> usize {
    let used: Vec<_> = (0..bytes.len() / PAGE)
        .filter(|page| bytes[page * PAGE..][..PAGE].iter().any(|byte| *byte != 0))
        .collect();
    used[below(used.len())]
}

/// Damages the file in one way.
fn damage(
    kind: &str,
    bytes: &mut Vec<u8>,
    earlier: &[Vec<u8>],
    below: &mut impl FnMut(usize) -> usize,
) {
    let page = used_page(bytes, below) * PAGE;
    let other = used_page(bytes, below) * PAGE;
    let at = page + below(PAGE);
    match kind {
        "one bit" => bytes[at] ^= 1 << below(8),
        "one byte" => bytes[at] = below(256).to_le_bytes()[0],
        // The two slots of commits, and the fields before them, take the first 320 bytes.
        "one byte of the header" => bytes[below(320)] = below(256).to_le_bytes()[0],
        "some bytes" => {
            for _ in 0..=below(16) {
                bytes[page + below(PAGE)] = below(256).to_le_bytes()[0];
            }
        }
        "zeroed page" => bytes[page..page + PAGE].fill(0),
        "copied page" => bytes.copy_within(page..page + PAGE, other),
        "swapped pages" => {
            let first = bytes[page..page + PAGE].to_vec();
            bytes.copy_within(other..other + PAGE, page);
            bytes[other..other + PAGE].copy_from_slice(&first);
        }
        "page of an earlier version" => {
            let earlier = &earlier[below(earlier.len())];
            if let Some(old) = earlier.get(page..page + PAGE) {
                bytes[page..page + PAGE].copy_from_slice(old);
            }
        }
        "file of an earlier version" => bytes.clone_from(&earlier[below(earlier.len())]),
        "truncated" => bytes.truncate(at),
        _ => unreachable!("each kind is listed"),
    }
}

/// What became of the mutants of one kind.
#[derive(Default)]
struct Outcomes {
    refused: u64,
    refused_later: u64,
    unchanged: u64,
    silent: Vec<u64>,
    panicked: Vec<u64>,
}

#[test]
fn a_damaged_key_set_is_refused_or_nothing_visible_changes() {
    let runs = env_number("KEYPEG_FUZZ_RUNS").unwrap_or(200);
    let seed = env_number("KEYPEG_SEED").unwrap_or(1);
    let Corpus { disks, earlier, clock } = corpus();
    let open = |disk: &SimDisk| Driver::open(Arc::new(disk.clone()), &clock, 3);
    let described = |disk: &SimDisk| description(&mut open(&disk.copy()).expect("opens"));
    let expected: Vec<_> = disks.iter().map(described).collect();
    let quarantined = expected[0].matches(&format!("{:?}", KeyState::Quarantined)).count();
    assert!(quarantined > 15, "{}", expected[0]);
    let mut outcomes: BTreeMap<&str, Outcomes> = BTreeMap::new();
    for run in 0..runs {
        let mut random = SeededRandom(seed.wrapping_mul(1 << 32).wrapping_add(run));
        let mut below = |bound: usize| random.index_below(bound);
        let kind = KINDS[usize::try_from(run).expect("small") % KINDS.len()];
        let base = below(disks.len());
        let disk = disks[base].copy();
        disk.damage("keyset", |bytes| damage(kind, bytes, &earlier, &mut below));
        let outcome = outcomes.entry(kind).or_default();
        let start = AssertUnwindSafe(|| match open(&disk) {
            Err(error) => {
                assert!(error.contains("keyset") || error.contains("journal"), "{error}");
                outcome.refused += 1;
            }
            Ok(mut driver) => {
                let is_unchanged = description(&mut driver) == expected[base];
                match keeps_more(driver, &disk, &clock) {
                    Ok(true) if is_unchanged => outcome.unchanged += 1,
                    Err(_) if is_unchanged => outcome.refused_later += 1,
                    _ => outcome.silent.push(run),
                }
            }
        });
        if catch_unwind(start).is_err() {
            outcomes.entry(kind).or_default().panicked.push(run);
        }
    }
    println!("| damage | refused | no visible change | refused later | panic | silent change |");
    println!("|---|---|---|---|---|---|");
    for (kind, outcome) in &outcomes {
        let Outcomes { refused, refused_later, unchanged, silent, panicked } = outcome;
        println!(
            "| {kind} | {refused} | {unchanged} | {refused_later} | {panicked:?} | {silent:?} |"
        );
    }
    let failed = |outcome: &Outcomes| {
        outcome.refused_later > 0 || !outcome.silent.is_empty() || !outcome.panicked.is_empty()
    };
    assert!(!outcomes.values().any(failed), "see the table above; KEYPEG_SEED={seed}");
}

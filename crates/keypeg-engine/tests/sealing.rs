//! Sealed directories: no value in any file, no start with another key, no change by a refused
//! start, and the sealing of an existing directory and the rotation of a key under a crash at each
//! operation of the disk.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{BodyDigest, ImportOptions, KeyRef, NewLabels, Secret};
use keypeg_engine::disk::{Directory, Disk};
use keypeg_engine::{
    EngineConfig, RestoreOptions, SealKey, SealKeys, SealOptions, SealUse, restore_onto,
};
use keypeg_store::{Call, Reply};
use keypeg_testkit::TempDir;
use std::collections::BTreeMap;
use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::workload::{Workload, advance_clock, run_turn, visible_state};
use support::{Driver, ManualClock, SeededRandom, SentCall, default_pool, engine_config};

const OLD: &[u8] = &[1];
const NEW: &[u8] = &[2];
/// The digest of the body of a request with an Idempotency-Key.
const BODY: BodyDigest = BodyDigest(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);

fn keys(bytes: &[u8]) -> SealKeys {
    SealKeys::new(bytes.iter().map(|byte| SealKey::new([*byte; 32])).collect()).unwrap()
}

/// Returns the options of a start with these keys; none without any.
fn config(key_bytes: &[u8], seals_existing: bool) -> EngineConfig {
    let seal =
        (!key_bytes.is_empty()).then(|| SealOptions { keys: keys(key_bytes), seals_existing });
    EngineConfig { seal, ..engine_config() }
}

fn open(disk: &SimDisk, clock: &ManualClock, config: &EngineConfig) -> Result<Driver, String> {
    Driver::open_with(Some(Arc::new(disk.clone())), clock, 5, config)
}

/// Returns the files of a disk, as a process reads them.
fn files(disk: &dyn Disk) -> BTreeMap<String, Vec<u8>> {
    let names = disk.list().unwrap();
    names.into_iter().map(|name| (name.clone(), disk.read(&name).unwrap())).collect()
}

/// Returns the files that contain one of the values.
fn hits(disk: &dyn Disk, values: &[Vec<u8>]) -> Vec<String> {
    // Most places are excluded by their first two bytes.
    let mut begins = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    for value in values {
        begins[pair(value)] = true;
    }
    let has = |bytes: &[u8]| {
        let mut places =
            (0..bytes.len().saturating_sub(1)).filter(|at| begins[pair(&bytes[*at..])]);
        places.any(|at| values.iter().any(|value| bytes[at..].starts_with(value)))
    };
    files(disk).into_iter().filter(|(_, bytes)| has(bytes)).map(|(name, _)| name).collect()
}

/// Generates and imports keys, also with an Idempotency-Key, deletes one of each, and returns all
/// values, and the digest of the body.
fn write_values(driver: &mut Driver) -> Vec<Vec<u8>> {
    let mut values = vec![BODY.0.to_le_bytes().to_vec()];
    let call = Call::Generate { pool: default_pool(), count: 20, labels: NewLabels::None };
    let Reply::Keys(generated) = driver.call(call) else { panic!("expected keys") };
    let long = format!("sk-long-{}", "x".repeat(3_000));
    let imported: Vec<_> = ["sk-live-0123456789", &long, "hunter2-hunter2"]
        .into_iter()
        .map(|value| Secret::new(value).unwrap())
        .collect();
    values.extend(generated.iter().map(|key| key.value.bytes().to_vec()));
    values.extend(imported.iter().map(|value| value.bytes().to_vec()));
    let import = Call::Import {
        pool: default_pool(),
        values: imported,
        options: ImportOptions::default(),
        labels: NewLabels::None,
    };
    let Reply::Keys(imported) = driver.call(SentCall::with_key("again", BODY, import)) else {
        panic!("expected keys")
    };
    assert_eq!(imported.len(), 3);
    let gone = Secret::new("sk-gone-0123456789").unwrap();
    values.push(gone.bytes().to_vec());
    let values_of_import = vec![gone.clone()];
    let options = ImportOptions::default();
    driver.call(Call::Import {
        pool: default_pool(),
        values: values_of_import,
        options,
        labels: NewLabels::None,
    });
    for key in [KeyRef::Id(generated[0].id), KeyRef::Value(gone)] {
        driver.call(Call::DeleteKey { pool: default_pool(), key });
    }
    values
}

/// Values in the journal, in the rows of the database and in its free pages were plain text.
#[test]
fn no_value_reaches_a_file_of_a_sealed_directory() {
    for (key_bytes, is_sealed) in [(OLD, true), (&[], false)] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock, &config(key_bytes, false)).unwrap();
        let values = write_values(&mut driver);
        driver.checkpoint().unwrap();
        let mut more = write_values_again(&mut driver);
        drop(driver);
        let mut driver = open(&disk, &clock, &config(key_bytes, false)).unwrap();
        more.extend(values.clone());
        driver.checkpoint().unwrap();
        let found = hits(&disk, &more);
        assert_eq!(found.is_empty(), is_sealed, "{found:?}");
        if !is_sealed {
            assert!(found.contains(&"keyset".to_owned()) && found.len() > 1, "{found:?}");
        }
        // The answer of the import is still known, for the same body alone.
        let import = |body| {
            SentCall::with_key(
                "again",
                body,
                Call::Generate { pool: default_pool(), count: 1, labels: NewLabels::None },
            )
        };
        assert!(matches!(driver.call(import(BODY)), Reply::Keys(_)));
        assert!(matches!(driver.call(import(BodyDigest(1))), Reply::Refused(_)));
    }
}

/// Writes keys after a checkpoint, which the next start replays.
fn write_values_again(driver: &mut Driver) -> Vec<Vec<u8>> {
    let call = Call::Generate { pool: default_pool(), count: 3, labels: NewLabels::None };
    let Reply::Keys(keys) = driver.call(call) else { panic!("expected keys") };
    keys.iter().map(|key| key.value.bytes().to_vec()).collect()
}

#[test]
fn a_start_with_the_wrong_keys_is_refused_and_changes_no_byte() {
    for (created_with, opened_with, says) in [
        (OLD, NEW, "is sealed with the key"),
        (OLD, &[], "give the file of that key with --seal-key"),
        (&[][..], OLD, "add --seal-existing"),
    ] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock, &config(created_with, false)).unwrap();
        write_values(&mut driver);
        driver.checkpoint().unwrap();
        drop(driver);
        let before = files(&disk);
        let error = open(&disk, &clock, &config(opened_with, false)).err().expect("refused");
        assert!(error.contains(says) && error.contains("nothing was changed"), "{error}");
        assert!(files(&disk) == before, "{error}: a file was changed");
        assert!(open(&disk, &clock, &config(created_with, false)).is_ok());
    }
}

#[test]
fn a_damaged_seal_is_corruption_and_changes_no_byte() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    drop(open(&disk, &clock, &config(OLD, false)).unwrap());
    let whole = files(&disk)["meta"].clone();
    let text = String::from_utf8(whole.clone()).unwrap();
    let (head, rest) = text.split_once("seal ").unwrap();
    let (seal, tail) = rest.split_once('\n').unwrap();
    let (tail, _) = tail.split_once("sum ").unwrap();
    let flipped =
        format!("{}{}", &seal[..seal.len() - 1], if seal.ends_with('0') { '1' } else { '0' });
    for bad in [&seal[..seal.len() - 2], &flipped, "00", &seal[..seal.len() - 1], "zz"] {
        let text = format!("{head}seal {bad}\n{tail}");
        let text = format!("{text}sum {:08x}\n", crc32fast::hash(text.as_bytes()));
        disk.damage("meta", |bytes| *bytes = text.clone().into_bytes());
        let before = files(&disk);
        let error = open(&disk, &clock, &config(OLD, false)).err().expect("damaged");
        assert!(error.contains("meta") && error.contains("damaged"), "{bad}: {error}");
        assert!(files(&disk) == before);
    }
    disk.damage("meta", |bytes| bytes.clone_from(&whole));
    assert!(open(&disk, &clock, &config(OLD, false)).is_ok());
}

/// Runs a workload without a seal that leaves leases, rests, quarantined keys and stored answers.
fn unsealed_directory(disk: &SimDisk, clock: &ManualClock) -> (Vec<String>, Vec<Vec<u8>>) {
    let mut driver = open(disk, clock, &config(&[], false)).unwrap();
    let mut workload = Workload::default();
    for turn in 0..9 {
        advance_clock(clock, turn);
        run_turn(&mut driver, &mut workload, turn).unwrap();
        if turn == 4 {
            driver.checkpoint().unwrap();
        }
    }
    let mut values = write_values(&mut driver);
    values.extend([b"value 3".to_vec(), b"kept 3".to_vec(), b"long long ".to_vec()]);
    drop(driver);
    // The state as a start finds it: an empty holder is none then.
    let state = visible_state(&mut open(&disk.copy(), clock, &config(&[], false)).unwrap());
    (state, values)
}

/// Sealing writes the journal, the database and `meta`. A crash anywhere leaves a directory that the
/// next start opens and seals to the end, without the option.
#[test]
fn a_crash_at_any_operation_of_the_sealing_of_a_directory_loses_nothing() {
    let clock = ManualClock::new();
    let unsealed = SimDisk::new();
    let (state, values) = unsealed_directory(&unsealed, &clock);
    assert!(!hits(&unsealed, &values).is_empty());
    let (mut operation, mut unsealed_after, mut begun_after) = (0, 0, 0);
    loop {
        let disk = unsealed.copy();
        disk.crash_at(Some(CrashAt { operation, after: operation % 2 == 1 }));
        if open(&disk, &clock, &config(OLD, true)).is_ok() && !disk.has_crashed() {
            assert_eq!(hits(&disk, &values), [""; 0]);
            println!("{operation} crashes, {begun_after} of them in a directory with a seal");
            assert!(unsealed_after > 5 && begun_after > 20, "{unsealed_after} {begun_after}");
            return;
        }
        let disk = disk.after_crash(&mut SeededRandom(operation));
        let text = String::from_utf8(disk.read("meta").unwrap()).unwrap();
        let is_begun = text.contains("seal ");
        let mut driver = open(&disk, &clock, &config(OLD, !is_begun)).unwrap_or_else(|error| {
            panic!("operation {operation}: {error}");
        });
        assert_eq!(visible_state(&mut driver), state, "operation {operation}");
        assert_eq!(hits(&disk, &values), [""; 0], "operation {operation}");
        if is_begun {
            begun_after += 1;
        } else {
            unsealed_after += 1;
        }
        operation += 1;
    }
}

/// A rotation encrypts the secrets with the new key. A crash anywhere leaves a directory that one
/// of the two keys opens, and the file with both keys always does.
#[test]
fn a_crash_at_any_operation_of_a_rotation_leaves_a_directory_that_one_of_the_keys_opens() {
    let clock = ManualClock::new();
    let sealed = SimDisk::new();
    let mut driver = open(&sealed, &clock, &config(OLD, false)).unwrap();
    write_values(&mut driver);
    let state = visible_state(&mut driver);
    drop(driver);
    let (mut operation, mut opened_by) = (0, [0, 0]);
    loop {
        let disk = sealed.copy();
        let driver = open(&disk, &clock, &config(OLD, false)).unwrap();
        disk.crash_at(Some(CrashAt { operation, after: false }));
        let seal = driver.engine.seal().unwrap();
        let rotated = seal.use_keys(&keys(&[2, 1]), &mut SeededRandom(1));
        let complete = !disk.has_crashed();
        drop(driver);
        let disk = disk.after_crash(&mut SeededRandom(operation));
        let by = [OLD, NEW].map(|key| open(&disk.copy(), &clock, &config(key, false)).is_ok());
        assert!(by[0] != by[1], "operation {operation}: {by:?}");
        opened_by[usize::from(by[1])] += 1;
        let mut driver = open(&disk, &clock, &config(&[2, 1], false)).unwrap();
        assert_eq!(visible_state(&mut driver), state);
        drop(driver);
        assert!(open(&disk, &clock, &config(NEW, false)).is_ok(), "a start rotates too");
        if complete {
            assert!(by[1], "a rotation that has ended is durable");
            let (from, to) = (keys(OLD).first().id(), keys(NEW).first().id());
            assert_eq!(rotated.unwrap(), SealUse::Rotated { from, to });
            assert!(opened_by[0] > 2, "{opened_by:?}");
            return;
        }
        assert!(rotated.is_err());
        operation += 1;
    }
}

#[test]
fn a_running_engine_refuses_keys_without_the_one_that_seals_its_directory() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let driver = open(&disk, &clock, &config(OLD, false)).unwrap();
    let seal = driver.engine.seal().unwrap();
    let before = files(&disk);
    let error = seal.use_keys(&keys(NEW), &mut SeededRandom(1)).unwrap_err().to_string();
    assert!(error.contains("add the key"), "{error}");
    let unchanged = SealUse::Unchanged(keys(OLD).first().id());
    assert_eq!(seal.use_keys(&keys(&[1, 2]), &mut SeededRandom(1)).unwrap(), unchanged);
    assert!(files(&disk) == before);
}

#[test]
fn the_key_of_a_stopped_directory_is_rotated_by_a_command() {
    let (parent, clock) = (TempDir::new(), ManualClock::new());
    let dir = parent.path().join("data");
    let rotate = |old, new| {
        keypeg_engine::rotate_seal_key(&dir, &keys(old), &keys(new), &mut SeededRandom(1))
            .map_err(|error| error.to_string())
    };
    let open = |key: &[u8]| {
        let disk = Directory::open(&dir).map_err(|error| error.to_string())?;
        Driver::open_with(Some(Arc::new(disk)), &clock, 5, &config(key, false))
    };
    assert!(rotate(OLD, NEW).unwrap_err().contains("holds no data"));
    let driver = open(OLD).unwrap();
    assert!(rotate(OLD, NEW).unwrap_err().contains("in use"));
    drop(driver);
    assert!(rotate(NEW, OLD).unwrap_err().contains("is sealed with the key"));
    let (from, to) = (keys(OLD).first().id(), keys(NEW).first().id());
    assert_eq!(rotate(OLD, NEW), Ok(SealUse::Rotated { from, to }));
    assert_eq!(rotate(NEW, NEW), Ok(SealUse::Unchanged(to)));
    assert!(open(OLD).is_err());
    assert!(open(NEW).is_ok());
}

/// A backup copies sealed bytes. A restore gives the directory another number and needs the key: the
/// first key of its file seals the new directory.
#[test]
fn a_backup_of_a_sealed_directory_has_no_value_and_is_restored_with_its_key_alone() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock, &config(OLD, false)).unwrap();
    let values = write_values(&mut driver);
    driver.checkpoint().unwrap();
    let more = write_values_again(&mut driver);
    let reveal_all = |driver: &mut Driver| {
        let ids = driver.engine.pools().key_ids(&default_pool());
        let mut revealed: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let call = Call::Reveal { pool: default_pool(), key: KeyRef::Id(id) };
                let Reply::Revealed { value, .. } = driver.call(call) else { panic!("no value") };
                (id, value)
            })
            .collect();
        revealed.sort_by_key(|(id, _)| *id);
        revealed
    };
    let expected = reveal_all(&mut driver);
    let mut backup = driver.engine.begin_backup().unwrap().unwrap();
    while !backup.prepare().unwrap() {
        driver.turn(Vec::new()).unwrap();
        driver.checkpointer.as_ref().unwrap().serve_backup();
    }
    let mut bytes = Vec::new();
    backup
        .write(|piece| {
            bytes.extend(piece);
            Ok(())
        })
        .unwrap();
    for value in values.iter().chain(&more) {
        assert!(!bytes.windows(value.len()).any(|part| part == value));
    }
    let restore = |key_bytes: &[u8], onto: &SimDisk| {
        let seal = (!key_bytes.is_empty()).then(|| keys(key_bytes));
        let options = RestoreOptions { wall_ms: clock.wall_ms(), seal, ..Default::default() };
        let onto: Arc<dyn Disk> = Arc::new(onto.clone());
        restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5))
    };
    for key_bytes in [&[][..], NEW] {
        let onto = SimDisk::new();
        let error = restore(key_bytes, &onto).unwrap_err().to_string();
        assert!(error.contains(&keys(OLD).first().id().to_string()), "{error}");
        assert!(onto.list().unwrap().is_empty());
    }
    let onto = SimDisk::new();
    restore(&[2, 1], &onto).unwrap();
    assert!(open(&onto, &clock, &config(OLD, false)).is_err());
    let mut restored = open(&onto, &clock, &config(NEW, false)).unwrap();
    assert_eq!(reveal_all(&mut restored), expected);
    assert_eq!(hits(&onto, &values), [""; 0]);
}

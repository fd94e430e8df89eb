//! Tests of the record encoding: round trips, damage, limits and the bytes of existing journals.

use super::*;
use crate::keyset::{KeySetDelta, PoolRows};
use crate::seal::Installation;
use keypeg_core::{BodyDigest, BorrowerId, Counters, Grant, IdHashKey, Lsn, PackedLabels, Policy};

const NOW: u64 = 1_000_000;
/// The labels of two keys: of the first none.
const EACH_LABEL: [u8; 5] = [0, 0, 1, 0, b'x'];

fn facts() -> Vec<Fact<'static>> {
    let policy = Policy {
        max_hold_ms: Some(600_000),
        keepalive_ttl_ms: None,
        rest_ms: 7,
        key_prefix: "ci_".into(),
        max_keys: Some(9),
        ..Policy::default()
    };
    let lease = Grant {
        granted_us: NOW,
        until_us: NOW + 5,
        hold_until_us: NOW + 9,
        rest_us: 3,
        holder: Some("jöb-7"),
        borrower: BorrowerId((1 << 56) - 1),
    };
    let bare = Grant {
        holder: None,
        borrower: BorrowerId::NONE,
        rest_us: 0,
        hold_until_us: NOW + 5,
        ..lease
    };
    let values = PackedValues::parse(&[1, 0, b'a', 2, 0, b'b', b'c']).expect("whole");
    let result = IdempotentResult::Lease {
        key: KeyNumber(7),
        token: 1 << 52,
        until_us: NOW + 5,
        granted_at_ms: 1 << 40,
        expires_at_ms: 3,
        key_expires_at_ms: Some(0),
    };
    let answer = IdempotencyRecord {
        id: IdempotencyId(u128::MAX),
        body: BodyDigest(0),
        borrower: BorrowerId(1 << 55),
        until_us: NOW,
        result,
    };
    let keys = IdempotentResult::Keys { first: KeyNumber(7), count: 10_000, expires_at_ms: None };
    vec![
        Fact::PoolCreated { pool: PoolId(1), name: "default", policy: Policy::default() },
        Fact::PoolCreated { pool: PoolId(POOL_NUMBER_MAX), name: "ci", policy: policy.clone() },
        Fact::PolicyChanged { pool: PoolId(2), policy },
        Fact::PoolDeleted { pool: PoolId(2) },
        Fact::KeysCreated {
            pool: PoolId(1),
            first: KeyNumber(300),
            at_ms: 1 << 40,
            imported: true,
            keepalive: false,
            labels: RecordedLabels::Each(
                PackedLabels::parse(&EACH_LABEL, values.count()).expect("whole"),
            ),
            values,
        },
        Fact::KeyLabelled { pool: PoolId(1), key: KeyNumber(7), label: Some("team ä") },
        Fact::KeyLabelled { pool: PoolId(1), key: KeyNumber(7), label: None },
        Fact::KeysCreated {
            pool: PoolId(1),
            first: KeyNumber(1),
            at_ms: 0,
            imported: false,
            keepalive: true,
            labels: RecordedLabels::None,
            values,
        },
        Fact::KeyDeleted { pool: PoolId(1), key: KeyNumber(u64::MAX / 2) },
        Fact::KeyPurged { pool: PoolId(1), key: KeyNumber(128) },
        Fact::Granted { pool: PoolId(1), key: KeyNumber(7), token: 1 << 52, lease },
        Fact::Granted { pool: PoolId(1), key: KeyNumber(7), token: 1, lease: bare },
        Fact::Renewed { pool: PoolId(1), key: KeyNumber(7), token: 1, until_us: 77 },
        Fact::Released {
            pool: PoolId(1),
            key: KeyNumber(7),
            token: 1,
            rest_until_us: 0,
            reason: None,
        },
        Fact::Released {
            pool: PoolId(1),
            key: KeyNumber(7),
            token: 1,
            rest_until_us: 5,
            reason: Some("429 ✗"),
        },
        Fact::Quarantined { pool: PoolId(1), key: KeyNumber(7), reason: None },
        Fact::Quarantined { pool: PoolId(1), key: KeyNumber(7), reason: Some("401") },
        Fact::QuarantinedWhenFree { pool: PoolId(1), key: KeyNumber(7), reason: None },
        Fact::QuarantinedWhenFree { pool: PoolId(1), key: KeyNumber(7), reason: Some("old ä") },
        Fact::DrainCancelled { pool: PoolId(1), key: KeyNumber(7) },
        Fact::KeyFreed { pool: PoolId(1), key: KeyNumber(7) },
        Fact::TokensReserved { until: 5 },
        Fact::Stopped { next_token: 4 },
        Fact::LeaseSnapshot {
            pool: PoolId(1),
            key: KeyNumber(7),
            token: 1,
            lease: Grant { granted_us: 3, ..lease },
        },
        Fact::RestSnapshot {
            pool: PoolId(1),
            key: KeyNumber(7),
            token: 1,
            until_us: 5,
            reason: None,
        },
        Fact::RestSnapshot {
            pool: PoolId(1),
            key: KeyNumber(7),
            token: 1,
            until_us: 5,
            reason: Some("429"),
        },
        Fact::SegmentsDropped { through: 9 },
        Fact::AnswerStored { pool: PoolId(1), answer },
        Fact::AnswerStored {
            pool: PoolId(1),
            answer: IdempotencyRecord { result: keys, ..answer },
        },
        // As earlier versions wrote it.
        Fact::AnswerStored {
            pool: PoolId(1),
            answer: IdempotencyRecord { borrower: BorrowerId::NONE, ..answer },
        },
        Fact::AnswerRevoked { pool: PoolId(1), id: IdempotencyId(1) },
    ]
}

/// The checkpointer does not parse the others.
#[test]
fn a_record_spares_the_key_set_exactly_if_its_fact_changes_nothing_there() {
    let (id, ids, seal) = (1, IdHashKey::new([1; 32]), ValueSeal::default());
    let installation = Installation { id, ids, seal };
    let counters = Counters { next_key: KeyNumber(1), next_pool: PoolId(1), tokens_reserved: 1 };
    for fact in facts() {
        let collect = |change: &dyn Fn(&mut KeySetDelta, &mut PoolRows)| {
            let mut delta = KeySetDelta::after(Lsn(0), counters);
            let mut pools = PoolRows::default();
            // Its policy changes, and it is deleted.
            let other =
                Fact::PoolCreated { pool: PoolId(2), name: "other", policy: Policy::default() };
            delta.apply(&other, &installation, &mut pools).expect("not sealed");
            change(&mut delta, &mut pools);
            format!("{delta:?}")
        };
        let applied = collect(&|delta, pools| {
            delta.apply(&fact, &installation, pools).expect("not sealed");
        });
        let skipped = collect(&|delta, _| delta.skip());
        let mut bytes = Vec::new();
        write(&mut bytes, &fact, NOW, &installation.seal);
        assert_eq!(spares_key_set(&bytes), applied == skipped, "{fact:?}");
    }
}

#[test]
fn every_fact_reads_back_unchanged() {
    let mut bytes = Vec::new();
    for fact in facts() {
        write(&mut bytes, &fact, NOW, &ValueSeal::default());
    }
    let mut rest = &bytes[..];
    for fact in facts() {
        let found;
        (found, rest) = read(rest, NOW).expect("whole");
        assert_eq!(found, fact);
    }
    assert!(rest.is_empty());
}

/// Existing journals must stay readable: the tags of a record never change.
#[test]
fn a_grant_for_a_borrower_has_these_bytes() {
    let (granted_us, until_us, hold_until_us) = (NOW, NOW + 5, NOW + 5);
    let lease = Grant {
        granted_us,
        until_us,
        hold_until_us,
        rest_us: 0,
        holder: Some("a"),
        borrower: BorrowerId(300),
    };
    let fact = Fact::Granted { pool: PoolId(1), key: KeyNumber(7), token: 9, lease };
    let bytes = [7, 14, 0, 0, 0, 1, 1, 2, 7, 3, 9, 5, 5, 8, 1, b'a', 25, 0xac, 2];
    assert_eq!(read(&bytes, NOW), Ok((fact.clone(), &[][..])));
    let mut written = Vec::new();
    write(&mut written, &fact, NOW, &ValueSeal::default());
    assert_eq!(written, bytes);
}

#[test]
fn a_truncated_record_is_an_error_and_a_damaged_record_never_panics() {
    for fact in facts() {
        let mut whole = Vec::new();
        write(&mut whole, &fact, NOW, &ValueSeal::default());
        for len in 0..whole.len() {
            assert!(read(&whole[..len], NOW).is_err(), "{fact:?} truncated to {len} bytes");
        }
        for offset in 0..whole.len() {
            for bit in 0..8 {
                let mut damaged = whole.clone();
                damaged[offset] ^= 1 << bit;
                let _ = read(&damaged, NOW);
            }
        }
    }
}

/// A number that no server writes is refused at parsing even under a valid CRC: a later
/// calculation with it would panic.
#[test]
fn a_number_above_its_limit_is_refused() {
    let numbers: [(u8, u8, u64); 11] = [
        (POOL_DELETED, tag::POOL, u64::from(POOL_NUMBER_MAX)),
        (KEY_DELETED, tag::KEY, KEY_NUMBER_MAX),
        (RELEASED, tag::TOKEN, REPLAYED_TOKEN_MAX),
        (STOPPED, tag::TOKEN, REPLAYED_TOKEN_MAX),
        (KEYS_CREATED, tag::AT, INSTANT_MAX),
        (RENEWED, tag::UNTIL, INSTANT_MAX),
        (RELEASED, tag::REST, INSTANT_MAX),
        (KEYS_ANSWER_STORED, tag::COUNT, u64::from(GENERATE_MAX)),
        (KEYS_ANSWER_STORED, tag::KEY_EXPIRES, INSTANT_MAX),
        (LEASE_ANSWER_STORED, tag::EXPIRES, INSTANT_MAX),
        (LEASE_ANSWER_STORED, tag::KEPT_UNTIL, INSTANT_MAX),
    ];
    for (kind, tag, limit) in numbers {
        for (number, is_valid) in [(limit, true), (limit + 1, false)] {
            let mut record = vec![kind, 0, 0, 0, 0];
            let mut fields = Writer { out: &mut record };
            fields.number(tag, number);
            fields.bytes(tag::IDEMPOTENCY_ID, &[1; 16]);
            fields.bytes(tag::BODY_DIGEST, &[1; 16]);
            let len = u32::try_from(record.len() - RECORD_HEAD).expect("short");
            record[1..RECORD_HEAD].copy_from_slice(&len.to_le_bytes());
            assert_eq!(read(&record, 0).is_ok(), is_valid, "kind {kind}, tag {tag}: {number}");
        }
    }
}

#[test]
fn an_unknown_kind_or_tag_is_refused() {
    assert!(read(&[99, 0, 0, 0, 0], NOW).is_err());
    assert!(read(&[POOL_DELETED, 2, 0, 0, 0, 60, 1], NOW).is_err());
    assert!(read(&[POOL_DELETED, 2, 0, 0, 0, 0, 1], NOW).is_err());
}

/// Earlier versions accepted shorter values: their directories must open.
#[test]
fn a_shorter_key_length_of_an_earlier_version_is_read_as_the_least_one() {
    let changed = |key_length| Fact::PolicyChanged {
        pool: PoolId(2),
        policy: Policy { key_length, ..Policy::default() },
    };
    assert_eq!(read(&encode(&changed(16)), 0), Ok((changed(20), &[][..])));
    assert_eq!(read(&encode(&changed(15)), 0), Err(RecordError("a pool policy is out of range")));
}

fn seal() -> ValueSeal {
    ValueSeal::for_tests(7)
}

#[test]
fn every_fact_reads_back_from_its_sealed_record_which_contains_no_value() {
    let mut bytes = Vec::new();
    for fact in facts() {
        write(&mut bytes, &fact, NOW, &seal());
    }
    let mut reader = RecordReader::new(seal());
    let mut rest = &bytes[..];
    for fact in facts() {
        let found;
        (found, rest) = reader.read(rest, NOW).expect("whole");
        assert_eq!(found, fact);
    }
    let packed = [1, 0, b'a', 2, 0, b'b', b'c'];
    assert!(!bytes.windows(packed.len()).any(|part| part == packed));
    assert_eq!(reader.seal_again(&bytes, NOW), Ok(bytes));
}

/// The CRC of a frame does not detect a record that was moved and given a new one.
#[test]
fn values_of_a_record_that_was_changed_or_moved_are_refused() {
    let created = |pool, first| Fact::KeysCreated {
        pool: PoolId(pool),
        first: KeyNumber(first),
        at_ms: 1,
        imported: true,
        keepalive: true,
        labels: RecordedLabels::None,
        values: PackedValues::parse(&[2, 0, b'b', b'c']).expect("whole"),
    };
    let written = |fact: &Fact<'_>, seal: &ValueSeal| {
        let mut bytes = Vec::new();
        write(&mut bytes, fact, NOW, seal);
        bytes
    };
    let whole = written(&created(1, 5), &seal());
    let read = |bytes: &[u8], seal| RecordReader::new(seal).read(bytes, NOW).map(drop);
    assert_eq!(read(&whole, seal()), Ok(()));
    // The pool is the byte after its tag, the first key the byte after the next tag.
    for (at, what) in
        [(6, "pool"), (8, "key"), (whole.len() - 20, "value"), (whole.len() - 1, "tag")]
    {
        let mut moved = whole.clone();
        moved[at] ^= 2;
        let RecordError(why) = read(&moved, seal()).expect_err(what);
        assert!(why.contains("another key, pool or data directory"), "{what}: {why}");
    }
    let RecordError(why) = read(&whole, ValueSeal::for_tests(8)).expect_err("another directory");
    assert!(why.contains("another key, pool or data directory"), "{why}");
    let RecordError(why) = read(&whole, ValueSeal::default()).expect_err("no seal");
    assert!(why.contains("is sealed, but the data directory is not"), "{why}");
    let plain = written(&created(1, 5), &ValueSeal::default());
    let RecordError(why) = read(&plain, seal()).expect_err("not sealed");
    assert!(why.contains("is not sealed, but the data directory is"), "{why}");
}

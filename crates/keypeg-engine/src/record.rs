//! Facts as bytes: how a journal writes them and reads them back.
//!
//! A record is its kind, its length and tagged fields. Fields that are zero or absent are left
//! out; a tag or a kind that is not known is refused, so an older server never guesses at a newer
//! one's journal. Core types do not know of this form.

mod fields;

use crate::core::{
    Event, Fact, FactSink, IdempotencyId, IdempotencyRecord, IdempotentResult, KeyNumber, Now,
    PackedValues, PoolId,
};
use crate::feed::Feed;
use crate::recover::{KEYS_EVER, TOKENS_EVER};
use crate::request::GENERATE_MAX;
use fields::{Fields, Writer, tag};

/// The facts of one turn, as bytes; and what those who follow a pool are told of it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    pub(crate) feed: Feed,
    /// The clock of the turn: what is equal to it is not written again.
    lease_us: u64,
}

impl Batch {
    /// Begins a batch that is committed with this clock.
    pub(crate) fn begin(&mut self, now: Now) {
        self.bytes.clear();
        self.lease_us = now.lease_us;
        self.feed.begin(now);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl FactSink for Batch {
    fn record(&mut self, fact: &Fact<'_>) {
        write(&mut self.bytes, fact, self.lease_us);
        self.feed.record(fact);
    }

    fn has_subscribers(&self, pool: PoolId) -> bool {
        self.feed.has_subscribers(pool)
    }

    fn emit(&mut self, pool: PoolId, event: &Event<'_>) {
        self.feed.emit(pool, event);
    }
}

/// Why bytes are no fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordError(pub(crate) &'static str);

const POOL_MADE: u8 = 1;
const POLICY_SET: u8 = 2;
const POOL_GONE: u8 = 3;
const BORN: u8 = 4;
const DELETED: u8 = 5;
const PURGED: u8 = 6;
const GRANTED: u8 = 7;
const RENEWED: u8 = 8;
const RELEASED: u8 = 9;
const RESTORED: u8 = 10;
const TOKENS_RESERVED: u8 = 11;
const STOPPED: u8 = 12;
const HELD: u8 = 13;
const RESTING: u8 = 14;
const DROPPED: u8 = 15;
const ANSWERED_LEASE: u8 = 16;
const ANSWERED_KEYS: u8 = 17;
const UNANSWERED: u8 = 18;
const QUARANTINED: u8 = 20;

fn write(out: &mut Vec<u8>, fact: &Fact<'_>, lease_us: u64) {
    let begin = out.len();
    out.extend_from_slice(&[kind(fact), 0, 0, 0, 0]);
    let mut fields = Writer { out };
    match fact {
        Fact::PoolCreated { pool, name, policy } => {
            fields.number(tag::POOL, u64::from(pool.0));
            fields.bytes(tag::NAME, name.as_bytes());
            fields.policy(policy);
        }
        Fact::PolicyChanged { pool, policy } => {
            fields.number(tag::POOL, u64::from(pool.0));
            fields.policy(policy);
        }
        Fact::PoolDeleted { pool } => fields.number(tag::POOL, u64::from(pool.0)),
        Fact::KeysCreated { pool, first, at_ms, imported, values } => {
            fields.key(*pool, *first);
            fields.number(tag::AT, *at_ms);
            fields.number(tag::IMPORTED, u64::from(*imported));
            fields.bytes(tag::VALUES, values.packed());
        }
        Fact::KeyDeleted { pool, key }
        | Fact::KeyPurged { pool, key }
        | Fact::KeyFreed { pool, key } => {
            fields.key(*pool, *key);
        }
        Fact::Granted { pool, key, token, lease } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            debug_assert_eq!(lease.granted_us, lease_us, "a grant is of its turn");
            fields.number(tag::UNTIL, lease.until_us - lease_us);
            fields.number(tag::HOLD_UNTIL, lease.hold_until_us - lease.until_us);
            fields.number(tag::REST, lease.rest_us);
            fields.bytes(tag::HOLDER, lease.holder.unwrap_or_default().as_bytes());
            fields.number(tag::BORROWER, lease.borrower.0);
        }
        Fact::Renewed { pool, key, token, until_us } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::UNTIL, *until_us);
        }
        Fact::RestSnapshot { pool, key, token, until_us, reason } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::UNTIL, *until_us);
            fields.bytes(tag::REASON, reason.unwrap_or_default().as_bytes());
        }
        Fact::Released { pool, key, token, rest_until_us, reason } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::REST, *rest_until_us);
            fields.bytes(tag::REASON, reason.unwrap_or_default().as_bytes());
        }
        Fact::Quarantined { pool, key, reason } => {
            fields.key(*pool, *key);
            fields.bytes(tag::REASON, reason.unwrap_or_default().as_bytes());
        }
        Fact::TokensReserved { until } => fields.number(tag::TOKEN, *until),
        Fact::Stopped { next_token } => fields.number(tag::TOKEN, *next_token),
        Fact::LeaseSnapshot { pool, key, token, lease } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::AT, lease.granted_us);
            fields.number(tag::UNTIL, lease.until_us);
            fields.number(tag::HOLD_UNTIL, lease.hold_until_us);
            fields.number(tag::REST, lease.rest_us);
            fields.bytes(tag::HOLDER, lease.holder.unwrap_or_default().as_bytes());
            fields.number(tag::BORROWER, lease.borrower.0);
        }
        Fact::SegmentsDropped { through } => fields.number(tag::SEGMENT, *through),
        Fact::AnswerStored { pool, answer } => {
            fields.number(tag::POOL, u64::from(pool.0));
            fields.answer(answer);
        }
        Fact::AnswerRevoked { pool, id } => {
            fields.number(tag::POOL, u64::from(pool.0));
            fields.bytes(tag::ANSWER, &id.0.to_le_bytes());
        }
    }
    let len = u32::try_from(out.len() - begin - HEAD).expect("invariant: a batch is bounded");
    out[begin + 1..begin + HEAD].copy_from_slice(&len.to_le_bytes());
}

/// One fact as a record of its own, for a row of a database.
pub(crate) fn write_one(fact: &Fact<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, fact, 0);
    out
}

/// Bytes before a record's fields: kind and length.
const HEAD: usize = 5;

fn kind(fact: &Fact<'_>) -> u8 {
    match fact {
        Fact::PoolCreated { .. } => POOL_MADE,
        Fact::PolicyChanged { .. } => POLICY_SET,
        Fact::PoolDeleted { .. } => POOL_GONE,
        Fact::KeysCreated { .. } => BORN,
        Fact::KeyDeleted { .. } => DELETED,
        Fact::KeyPurged { .. } => PURGED,
        Fact::Granted { .. } => GRANTED,
        Fact::Renewed { .. } => RENEWED,
        Fact::Released { .. } => RELEASED,
        Fact::KeyFreed { .. } => RESTORED,
        Fact::TokensReserved { .. } => TOKENS_RESERVED,
        Fact::Stopped { .. } => STOPPED,
        Fact::Quarantined { .. } => QUARANTINED,
        Fact::LeaseSnapshot { .. } => HELD,
        Fact::RestSnapshot { .. } => RESTING,
        Fact::SegmentsDropped { .. } => DROPPED,
        Fact::AnswerStored {
            answer: IdempotencyRecord { result: IdempotentResult::Lease { .. }, .. },
            ..
        } => ANSWERED_LEASE,
        Fact::AnswerStored {
            answer: IdempotencyRecord { result: IdempotentResult::Keys { .. }, .. },
            ..
        } => ANSWERED_KEYS,
        Fact::AnswerRevoked { .. } => UNANSWERED,
    }
}

/// Reads one record from the front of `bytes`, committed with the clock `lease_us`; gives the
/// rest too.
pub(crate) fn read(bytes: &[u8], lease_us: u64) -> Result<(Fact<'_>, &[u8]), RecordError> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(RecordError("a record is cut"))?;
    let [kind, len @ ..] = *head;
    let len = u32::from_le_bytes(len) as usize;
    let (fields, rest) = rest.split_at_checked(len).ok_or(RecordError("a record is cut"))?;
    Ok((fact(kind, &Fields::read(fields)?, lease_us)?, rest))
}

/// No instant or length is beyond, in whatever unit.
const INSTANT_MAX: u64 = 1 << 53;

fn fact<'a>(kind: u8, fields: &Fields<'a>, lease_us: u64) -> Result<Fact<'a>, RecordError> {
    use tag::{AT, IMPORTED, NAME, POOL, REST, TOKEN, UNTIL, VALUES};
    let pool = PoolId(fields.small(POOL)?);
    let key = KeyNumber(fields.number(tag::KEY));
    let token = fields.number(TOKEN);
    if key.0 > KEYS_EVER || token > TOKENS_EVER {
        return Err(RecordError("a number is out of range"));
    }
    let told = [tag::KEPT_UNTIL, tag::EXPIRES, tag::KEY_EXPIRES];
    let mut instants = [AT, UNTIL, tag::HOLD_UNTIL, REST].into_iter().chain(told);
    let ends = !matches!(kind, HELD | RESTING | RENEWED) || fields.number(UNTIL) > 0;
    if !ends || instants.any(|tag| fields.number(tag) > INSTANT_MAX) {
        return Err(RecordError("an instant is out of range"));
    }
    let plus = |a: u64, b: u64| a.checked_add(b).ok_or(RecordError("an instant is out of range"));
    Ok(match kind {
        POOL_MADE => Fact::PoolCreated { pool, name: fields.text(NAME)?, policy: fields.policy()? },
        POLICY_SET => Fact::PolicyChanged { pool, policy: fields.policy()? },
        POOL_GONE => Fact::PoolDeleted { pool },
        BORN => {
            let values = PackedValues::parse(fields.bytes(VALUES));
            let values = values.ok_or(RecordError("values are no values"))?;
            let imported = fields.number(IMPORTED) != 0;
            Fact::KeysCreated { pool, first: key, at_ms: fields.number(AT), imported, values }
        }
        DELETED => Fact::KeyDeleted { pool, key },
        PURGED => Fact::KeyPurged { pool, key },
        GRANTED => {
            let until_us = plus(lease_us, fields.number(UNTIL))?;
            let hold_until_us = plus(until_us, fields.number(tag::HOLD_UNTIL))?;
            let lease = fields.lease(lease_us, until_us, hold_until_us)?;
            Fact::Granted { pool, key, token, lease }
        }
        HELD => {
            let (until_us, latest_us) = (fields.number(UNTIL), fields.number(tag::HOLD_UNTIL));
            let lease = fields.lease(fields.number(AT), until_us, latest_us)?;
            Fact::LeaseSnapshot { pool, key, token, lease }
        }
        RESTING => {
            let (until_us, reason) = (fields.number(UNTIL), fields.words(tag::REASON)?);
            Fact::RestSnapshot { pool, key, token, until_us, reason }
        }
        DROPPED => Fact::SegmentsDropped { through: fields.number(tag::SEGMENT) },
        RENEWED => Fact::Renewed { pool, key, token, until_us: fields.number(UNTIL) },
        RELEASED => {
            let rest_until_us = fields.number(REST);
            Fact::Released { pool, key, token, rest_until_us, reason: fields.words(tag::REASON)? }
        }
        QUARANTINED => Fact::Quarantined { pool, key, reason: fields.words(tag::REASON)? },
        RESTORED => Fact::KeyFreed { pool, key },
        TOKENS_RESERVED => Fact::TokensReserved { until: token },
        STOPPED => Fact::Stopped { next_token: token },
        ANSWERED_LEASE => {
            let result = IdempotentResult::Lease {
                key,
                token,
                until_us: fields.number(UNTIL),
                granted_at_ms: fields.number(AT),
                expires_at_ms: fields.number(tag::EXPIRES),
                key_expires_at_ms: fields.number(tag::KEY_EXPIRES).checked_sub(1),
            };
            Fact::AnswerStored { pool, answer: fields.answer(result)? }
        }
        ANSWERED_KEYS => {
            let count = fields.small(tag::COUNT)?;
            if count > GENERATE_MAX {
                return Err(RecordError("a number is out of range"));
            }
            let expires_at_ms = fields.number(tag::KEY_EXPIRES).checked_sub(1);
            let result = IdempotentResult::Keys { first: key, count, expires_at_ms };
            Fact::AnswerStored { pool, answer: fields.answer(result)? }
        }
        UNANSWERED => Fact::AnswerRevoked { pool, id: IdempotencyId(fields.wide(tag::ANSWER)?) },
        _ => return Err(RecordError("a record is of a kind this version does not know")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{BodyDigest, BorrowerId, Grant, Policy};

    const NOW: u64 = 1_000_000;

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
            until_us: NOW,
            result,
        };
        let keys =
            IdempotentResult::Keys { first: KeyNumber(7), count: 10_000, expires_at_ms: None };
        vec![
            Fact::PoolCreated { pool: PoolId(1), name: "default", policy: Policy::default() },
            Fact::PoolCreated { pool: PoolId(u32::MAX), name: "ci", policy: policy.clone() },
            Fact::PolicyChanged { pool: PoolId(2), policy },
            Fact::PoolDeleted { pool: PoolId(2) },
            Fact::KeysCreated {
                pool: PoolId(1),
                first: KeyNumber(300),
                at_ms: 1 << 40,
                imported: true,
                values,
            },
            Fact::KeysCreated {
                pool: PoolId(1),
                first: KeyNumber(1),
                at_ms: 0,
                imported: false,
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
            Fact::AnswerRevoked { pool: PoolId(1), id: IdempotencyId(1) },
        ]
    }

    #[test]
    fn every_fact_reads_back_as_it_was() {
        let mut batch = Batch::default();
        batch.begin(Now { lease_us: NOW, ..Now::default() });
        for fact in facts() {
            batch.record(&fact);
        }
        let mut rest = batch.bytes();
        for fact in facts() {
            let found;
            (found, rest) = read(rest, NOW).expect("whole");
            assert_eq!(found, fact);
        }
        assert!(rest.is_empty());
    }

    /// What is in journals already must be read as it was meant: tags are for ever.
    #[test]
    fn a_grant_in_somebodys_name_has_these_bytes() {
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
        let mut batch = Batch::default();
        batch.begin(Now { lease_us: NOW, ..Now::default() });
        batch.record(&fact);
        assert_eq!(batch.bytes(), bytes);
    }

    #[test]
    fn a_record_cut_or_damaged_anywhere_is_refused_or_another_fact_but_never_a_panic() {
        for fact in facts() {
            let mut batch = Batch::default();
            batch.begin(Now { lease_us: NOW, ..Now::default() });
            batch.record(&fact);
            let whole = batch.bytes();
            for cut in 0..whole.len() {
                assert!(read(&whole[..cut], NOW).is_err(), "{fact:?} cut at {cut}");
            }
            for at in 0..whole.len() {
                for bit in 0..8 {
                    let mut damaged = whole.to_vec();
                    damaged[at] ^= 1 << bit;
                    let _ = read(&damaged, NOW);
                }
            }
        }
    }

    /// What no server writes is refused where it is read, whatever its sums say: it would panic where
    /// it is used.
    #[test]
    fn a_number_beyond_all_there_are_is_refused() {
        let numbers: [(u8, u8, u64); 10] = [
            (DELETED, tag::KEY, KEYS_EVER),
            (RELEASED, tag::TOKEN, TOKENS_EVER),
            (STOPPED, tag::TOKEN, TOKENS_EVER),
            (BORN, tag::AT, INSTANT_MAX),
            (RENEWED, tag::UNTIL, INSTANT_MAX),
            (RELEASED, tag::REST, INSTANT_MAX),
            (ANSWERED_KEYS, tag::COUNT, u64::from(GENERATE_MAX)),
            (ANSWERED_KEYS, tag::KEY_EXPIRES, INSTANT_MAX),
            (ANSWERED_LEASE, tag::EXPIRES, INSTANT_MAX),
            (ANSWERED_LEASE, tag::KEPT_UNTIL, INSTANT_MAX),
        ];
        for (kind, tag, most) in numbers {
            for (number, is_read) in [(most, true), (most + 1, false)] {
                let mut record = vec![kind, 0, 0, 0, 0];
                let mut fields = Writer { out: &mut record };
                fields.number(tag, number);
                fields.bytes(tag::ANSWER, &[1; 16]);
                fields.bytes(tag::BODY, &[1; 16]);
                let len = u32::try_from(record.len() - HEAD).expect("short");
                record[1..HEAD].copy_from_slice(&len.to_le_bytes());
                assert_eq!(read(&record, 0).is_ok(), is_read, "kind {kind}, tag {tag}: {number}");
            }
        }
    }

    #[test]
    fn a_kind_or_a_tag_of_a_newer_version_is_refused() {
        assert!(read(&[99, 0, 0, 0, 0], NOW).is_err());
        assert!(read(&[POOL_GONE, 2, 0, 0, 0, 60, 1], NOW).is_err());
        assert!(read(&[POOL_GONE, 2, 0, 0, 0, 0, 1], NOW).is_err());
    }
}

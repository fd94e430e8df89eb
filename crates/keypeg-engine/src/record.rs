//! Records: the encoding of facts in the journal.
//!
//! A record is a kind, a length and tagged fields. A field that is zero or absent is not written.
//! An unknown kind or tag is an error, so an older server never misreads the journal of a newer
//! one. The core types do not know this encoding. Values are sealed when they are written, and opened
//! when they are read; how is the business of `seal/values.rs`.

mod error;
mod fields;
#[cfg(test)]
mod tests;

use crate::seal::{OpenError, ValueSeal};
pub(crate) use error::RecordError;
use error::{INSTANT_OUT_OF_RANGE, NUMBER_OUT_OF_RANGE, TRUNCATED};
use fields::{Fields, LeaseTimes, Writer, tag};
use keypeg_core::{
    Fact, IdempotencyId, IdempotencyRecord, IdempotentResult, KeyNumber, PackedValues, PoolId,
    RecordedLabels, TOKEN_MAX,
};
use keypeg_store::GENERATE_MAX;
use zeroize::Zeroizing;

/// The greatest key number accepted from disk: no server ever creates so many keys.
pub(crate) const KEY_NUMBER_MAX: u64 = u64::MAX / 2;

/// The greatest pool number accepted from disk: no server ever creates so many pools. The number
/// after it fits.
pub(crate) const POOL_NUMBER_MAX: u32 = u32::MAX / 2;

/// The greatest fencing token accepted from disk: a server cannot grant as many tokens as lie
/// between it and [`TOKEN_MAX`].
pub(crate) const REPLAYED_TOKEN_MAX: u64 = TOKEN_MAX - (1 << 50);

// The kinds of records. A number keeps its meaning in all versions; 19 is not used.

const POOL_CREATED: u8 = 1;
const POLICY_CHANGED: u8 = 2;
const POOL_DELETED: u8 = 3;
const KEYS_CREATED: u8 = 4;
const KEY_DELETED: u8 = 5;
const KEY_PURGED: u8 = 6;
const GRANTED: u8 = 7;
const RENEWED: u8 = 8;
const RELEASED: u8 = 9;
const KEY_FREED: u8 = 10;
const TOKENS_RESERVED: u8 = 11;
const STOPPED: u8 = 12;
const LEASE_SNAPSHOT: u8 = 13;
const REST_SNAPSHOT: u8 = 14;
const SEGMENTS_DROPPED: u8 = 15;
const LEASE_ANSWER_STORED: u8 = 16;
const KEYS_ANSWER_STORED: u8 = 17;
const ANSWER_REVOKED: u8 = 18;
const QUARANTINED: u8 = 20;
const KEY_LABELLED: u8 = 21;
const QUARANTINED_WHEN_FREE: u8 = 22;
const DRAIN_CANCELLED: u8 = 23;

/// Appends a fact as a record of a batch that is committed with the clock `lease_us`.
pub(crate) fn write(out: &mut Vec<u8>, fact: &Fact<'_>, lease_us: u64, seal: &ValueSeal) {
    let start = out.len();
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
        Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels, values } => {
            fields.key(*pool, *first);
            fields.number(tag::AT, *at_ms);
            fields.number(tag::IMPORTED, u64::from(*imported));
            fields.number(tag::NO_KEEPALIVE, u64::from(!*keepalive));
            match labels {
                RecordedLabels::None => {}
                RecordedLabels::All(label) => fields.bytes(tag::LABEL, label.as_bytes()),
                RecordedLabels::Each(labels) => fields.bytes(tag::LABELS, labels.packed()),
            }
            fields.values((*pool, *first), values.packed(), seal);
        }
        Fact::KeyLabelled { pool, key, label } => {
            fields.key(*pool, *key);
            fields.bytes(tag::LABEL, label.unwrap_or_default().as_bytes());
        }
        Fact::KeyDeleted { pool, key }
        | Fact::KeyPurged { pool, key }
        | Fact::DrainCancelled { pool, key }
        | Fact::KeyFreed { pool, key } => {
            fields.key(*pool, *key);
        }
        Fact::Granted { pool, key, token, lease } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            debug_assert_eq!(lease.granted_us, lease_us, "a grant has the time of its turn");
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
        Fact::Quarantined { pool, key, reason }
        | Fact::QuarantinedWhenFree { pool, key, reason } => {
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
            fields.answer(answer, seal);
        }
        Fact::AnswerRevoked { pool, id } => {
            fields.number(tag::POOL, u64::from(pool.0));
            fields.bytes(tag::IDEMPOTENCY_ID, &id.0.to_le_bytes());
        }
    }
    let len =
        u32::try_from(out.len() - start - RECORD_HEAD).expect("invariant: a batch is bounded");
    out[start + 1..start + RECORD_HEAD].copy_from_slice(&len.to_le_bytes());
}

/// Encodes one fact without values as a record, for a row of the database.
pub(crate) fn encode(fact: &Fact<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, fact, 0, &ValueSeal::default());
    out
}

/// Bytes of a record before its fields: kind (1) and length (4).
const RECORD_HEAD: usize = 5;

fn kind(fact: &Fact<'_>) -> u8 {
    match fact {
        Fact::PoolCreated { .. } => POOL_CREATED,
        Fact::PolicyChanged { .. } => POLICY_CHANGED,
        Fact::PoolDeleted { .. } => POOL_DELETED,
        Fact::KeysCreated { .. } => KEYS_CREATED,
        Fact::KeyLabelled { .. } => KEY_LABELLED,
        Fact::KeyDeleted { .. } => KEY_DELETED,
        Fact::KeyPurged { .. } => KEY_PURGED,
        Fact::Granted { .. } => GRANTED,
        Fact::Renewed { .. } => RENEWED,
        Fact::Released { .. } => RELEASED,
        Fact::KeyFreed { .. } => KEY_FREED,
        Fact::TokensReserved { .. } => TOKENS_RESERVED,
        Fact::Stopped { .. } => STOPPED,
        Fact::Quarantined { .. } => QUARANTINED,
        Fact::QuarantinedWhenFree { .. } => QUARANTINED_WHEN_FREE,
        Fact::DrainCancelled { .. } => DRAIN_CANCELLED,
        Fact::LeaseSnapshot { .. } => LEASE_SNAPSHOT,
        Fact::RestSnapshot { .. } => REST_SNAPSHOT,
        Fact::SegmentsDropped { .. } => SEGMENTS_DROPPED,
        Fact::AnswerStored {
            answer: IdempotencyRecord { result: IdempotentResult::Lease { .. }, .. },
            ..
        } => LEASE_ANSWER_STORED,
        Fact::AnswerStored {
            answer: IdempotencyRecord { result: IdempotentResult::Keys { .. }, .. },
            ..
        } => KEYS_ANSWER_STORED,
        Fact::AnswerRevoked { .. } => ANSWER_REVOKED,
    }
}

/// Parses records, and opens their values.
pub(crate) struct RecordReader {
    seal: ValueSeal,
    /// The opened values of the last record with values.
    values: Zeroizing<Vec<u8>>,
    /// The opened digest of the last record with a digest.
    digest: [u8; 16],
}

impl RecordReader {
    /// Creates a reader of the records of a directory with this seal.
    pub(crate) fn new(seal: ValueSeal) -> Self {
        Self { seal, values: Zeroizing::default(), digest: [0; 16] }
    }

    /// Parses the first record of `bytes`, which was committed with the clock `lease_us`; returns
    /// the fact and the remaining bytes.
    pub(crate) fn read<'f, 'b: 'f>(
        &'f mut self,
        bytes: &'b [u8],
        lease_us: u64,
    ) -> Result<(Fact<'f>, &'b [u8]), RecordError> {
        let (kind, mut fields, rest) = fields(bytes)?;
        self.open(&mut fields)?;
        Ok((fact(kind, &fields, lease_us)?, rest))
    }

    /// Replaces sealed fields by plain ones.
    fn open<'f>(&'f mut self, fields: &mut Fields<'f>) -> Result<(), RecordError> {
        if !fields.bytes(tag::VALUES).is_empty() {
            self.seal.check_plain()?;
        }
        let sealed = fields.bytes(tag::SEALED_VALUES);
        if !sealed.is_empty() {
            let pool = PoolId(fields.narrow(tag::POOL)?);
            let first = KeyNumber(fields.number(tag::KEY));
            self.seal.open_record((pool, first), sealed, &mut self.values)?;
            fields.set_bytes(tag::VALUES, &self.values);
        }
        if !fields.bytes(tag::SEALED_BODY).is_empty() {
            let digest = self.seal.open_digest(fields.wide(tag::SEALED_BODY)?)?;
            self.digest = digest.to_le_bytes();
            fields.set_bytes(tag::BODY_DIGEST, &self.digest);
        } else if !fields.bytes(tag::BODY_DIGEST).is_empty() {
            self.seal.check_plain()?;
        }
        Ok(())
    }

    /// Returns whether values are sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.seal.is_on()
    }

    /// Encodes the records of a batch again, sealed: their values may be plain.
    pub(crate) fn seal_again(
        &mut self,
        records: &[u8],
        lease_us: u64,
    ) -> Result<Vec<u8>, RecordError> {
        let seal = self.seal.clone();
        let (mut rest, mut out) = (records, Vec::with_capacity(records.len()));
        while !rest.is_empty() {
            let fact;
            (fact, rest) = self.read(rest, lease_us)?;
            write(&mut out, &fact, lease_us, &seal);
        }
        Ok(out)
    }
}

/// Parses the first record of `bytes`, one without values, which was committed with the clock
/// `lease_us`; returns the fact and the remaining bytes.
pub(crate) fn read(bytes: &[u8], lease_us: u64) -> Result<(Fact<'_>, &[u8]), RecordError> {
    let (kind, fields, rest) = fields(bytes)?;
    Ok((fact(kind, &fields, lease_us)?, rest))
}

/// Returns the pool of the first record; `None` for a record that belongs to no pool.
pub(crate) fn pool_of(bytes: &[u8]) -> Result<Option<PoolId>, RecordError> {
    let (_, fields, _) = fields(bytes)?;
    // No pool has the number 0.
    let pool: u32 = fields.narrow(tag::POOL)?;
    Ok((pool != 0).then_some(PoolId(pool)))
}

/// Returns the pool that the first record creates, with its name; `None` for another record.
pub(crate) fn created_pool(bytes: &[u8]) -> Result<Option<(PoolId, &str)>, RecordError> {
    let (kind, fields, _) = fields(bytes)?;
    if kind != POOL_CREATED {
        return Ok(None);
    }
    let name = std::str::from_utf8(fields.bytes(tag::NAME));
    let name = name.map_err(|_| RecordError("the name of a pool is not text"))?;
    Ok(Some((PoolId(fields.narrow(tag::POOL)?), name)))
}

/// Returns the bytes after the first record, whose fields are not parsed.
pub(crate) fn after_first(bytes: &[u8]) -> Result<&[u8], RecordError> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD>().ok_or(TRUNCATED)?;
    let [_, len @ ..] = *head;
    rest.get(u32::from_le_bytes(len) as usize..).ok_or(TRUNCATED)
}

/// Returns whether the first record changes nothing in the key set: its kind shows that.
pub(crate) fn spares_key_set(bytes: &[u8]) -> bool {
    let kind = bytes.first().copied().unwrap_or_default();
    matches!(
        kind,
        GRANTED
            | RENEWED
            | RELEASED
            | LEASE_SNAPSHOT
            | REST_SNAPSHOT
            | LEASE_ANSWER_STORED
            | KEYS_ANSWER_STORED
            | ANSWER_REVOKED
            | SEGMENTS_DROPPED
            | STOPPED
    )
}

/// Splits the first record off: its kind and its fields, and the remaining bytes.
fn fields(bytes: &[u8]) -> Result<(u8, Fields<'_>, &[u8]), RecordError> {
    let (head, rest) = bytes.split_first_chunk::<RECORD_HEAD>().ok_or(TRUNCATED)?;
    let [kind, len @ ..] = *head;
    let len = u32::from_le_bytes(len) as usize;
    let (fields, rest) = rest.split_at_checked(len).ok_or(TRUNCATED)?;
    Ok((kind, Fields::read(fields)?, rest))
}

impl From<OpenError> for RecordError {
    fn from(error: OpenError) -> Self {
        Self(error.why())
    }
}

/// The greatest instant or duration that a record may contain, in any unit.
const INSTANT_MAX: u64 = 1 << 53;

fn fact<'a>(kind: u8, fields: &Fields<'a>, lease_us: u64) -> Result<Fact<'a>, RecordError> {
    use tag::{AT, IMPORTED, NAME, POOL, REST, TOKEN, UNTIL, VALUES};
    let pool = PoolId(fields.narrow(POOL)?);
    let key = KeyNumber(fields.number(tag::KEY));
    let token = fields.number(TOKEN);
    if pool.0 > POOL_NUMBER_MAX || key.0 > KEY_NUMBER_MAX || token > REPLAYED_TOKEN_MAX {
        return Err(NUMBER_OUT_OF_RANGE);
    }
    let of_answer = [tag::KEPT_UNTIL, tag::EXPIRES, tag::KEY_EXPIRES];
    let mut instants = [AT, UNTIL, tag::HOLD_UNTIL, REST].into_iter().chain(of_answer);
    let has_end =
        !matches!(kind, LEASE_SNAPSHOT | REST_SNAPSHOT | RENEWED) || fields.number(UNTIL) > 0;
    if !has_end || instants.any(|tag| fields.number(tag) > INSTANT_MAX) {
        return Err(INSTANT_OUT_OF_RANGE);
    }
    let add = |a: u64, b: u64| a.checked_add(b).ok_or(INSTANT_OUT_OF_RANGE);
    Ok(match kind {
        POOL_CREATED => {
            Fact::PoolCreated { pool, name: fields.text(NAME)?, policy: fields.policy()? }
        }
        POLICY_CHANGED => Fact::PolicyChanged { pool, policy: fields.policy()? },
        POOL_DELETED => Fact::PoolDeleted { pool },
        KEYS_CREATED => {
            let values = PackedValues::parse(fields.bytes(VALUES));
            let values = values.ok_or(RecordError("the values of new keys are invalid"))?;
            let (first, at_ms) = (key, fields.number(AT));
            let imported = fields.number(IMPORTED) != 0;
            let keepalive = fields.number(tag::NO_KEEPALIVE) == 0;
            let labels = fields.labels(values.count())?;
            Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels, values }
        }
        KEY_LABELLED => Fact::KeyLabelled { pool, key, label: fields.optional_text(tag::LABEL)? },
        KEY_DELETED => Fact::KeyDeleted { pool, key },
        KEY_PURGED => Fact::KeyPurged { pool, key },
        GRANTED => {
            let until_us = add(lease_us, fields.number(UNTIL))?;
            let hold_until_us = add(until_us, fields.number(tag::HOLD_UNTIL))?;
            let lease =
                fields.lease(LeaseTimes { granted_us: lease_us, until_us, hold_until_us })?;
            Fact::Granted { pool, key, token, lease }
        }
        LEASE_SNAPSHOT => {
            let lease = fields.lease(LeaseTimes {
                granted_us: fields.number(AT),
                until_us: fields.number(UNTIL),
                hold_until_us: fields.number(tag::HOLD_UNTIL),
            })?;
            Fact::LeaseSnapshot { pool, key, token, lease }
        }
        REST_SNAPSHOT => {
            let (until_us, reason) = (fields.number(UNTIL), fields.optional_text(tag::REASON)?);
            Fact::RestSnapshot { pool, key, token, until_us, reason }
        }
        SEGMENTS_DROPPED => Fact::SegmentsDropped { through: fields.number(tag::SEGMENT) },
        RENEWED => Fact::Renewed { pool, key, token, until_us: fields.number(UNTIL) },
        RELEASED => {
            let rest_until_us = fields.number(REST);
            Fact::Released {
                pool,
                key,
                token,
                rest_until_us,
                reason: fields.optional_text(tag::REASON)?,
            }
        }
        QUARANTINED => Fact::Quarantined { pool, key, reason: fields.optional_text(tag::REASON)? },
        QUARANTINED_WHEN_FREE => {
            let reason = fields.optional_text(tag::REASON)?;
            Fact::QuarantinedWhenFree { pool, key, reason }
        }
        DRAIN_CANCELLED => Fact::DrainCancelled { pool, key },
        KEY_FREED => Fact::KeyFreed { pool, key },
        TOKENS_RESERVED => Fact::TokensReserved { until: token },
        STOPPED => Fact::Stopped { next_token: token },
        LEASE_ANSWER_STORED => {
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
        KEYS_ANSWER_STORED => {
            let count = fields.narrow(tag::COUNT)?;
            if count > GENERATE_MAX {
                return Err(NUMBER_OUT_OF_RANGE);
            }
            let expires_at_ms = fields.number(tag::KEY_EXPIRES).checked_sub(1);
            let result = IdempotentResult::Keys { first: key, count, expires_at_ms };
            Fact::AnswerStored { pool, answer: fields.answer(result)? }
        }
        ANSWER_REVOKED => {
            Fact::AnswerRevoked { pool, id: IdempotencyId(fields.wide(tag::IDEMPOTENCY_ID)?) }
        }
        _ => {
            return Err(RecordError(
                "unknown record kind: a newer version of keypeg may have written it",
            ));
        }
    })
}

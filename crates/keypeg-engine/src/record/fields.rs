//! The tagged fields of a record: numbers as varints, bytes with a length prefix.
//!
//! A field that is zero or empty is not written; an unknown tag is an error. This file knows the
//! fields of a policy, a lease and a stored answer, but not the kinds of records.

use super::error::{INSTANT_OUT_OF_RANGE, NUMBER_OUT_OF_RANGE, RecordError};
use crate::seal::{SEAL_LEN, ValueSeal};
use keypeg_core::{
    BodyDigest, BorrowerId, Grant, IdempotencyId, IdempotencyRecord, IdempotentResult, KeyNumber,
    NEVER_US, PackedLabels, Policy, PoolId, RecordedLabels,
};

/// The tags. A tag has one meaning in all kinds of records and is never reused for another.
pub(super) mod tag {
    pub(crate) const POOL: u8 = 1;
    pub(crate) const KEY: u8 = 2;
    pub(crate) const TOKEN: u8 = 3;
    pub(crate) const AT: u8 = 4;
    pub(crate) const UNTIL: u8 = 5;
    pub(crate) const HOLD_UNTIL: u8 = 6;
    pub(crate) const REST: u8 = 7;
    pub(crate) const HOLDER: u8 = 8;
    pub(crate) const IMPORTED: u8 = 9;
    pub(crate) const VALUES: u8 = 10;
    pub(crate) const NAME: u8 = 11;
    pub(crate) const LEASE_TTL: u8 = 12;
    pub(crate) const MAX_HOLD: u8 = 13;
    pub(crate) const KEEPALIVE_TTL: u8 = 14;
    pub(crate) const KEY_LENGTH: u8 = 15;
    pub(crate) const KEY_PREFIX: u8 = 16;
    pub(crate) const MAX_KEYS: u8 = 17;
    pub(crate) const SEGMENT: u8 = 18;
    pub(crate) const IDEMPOTENCY_ID: u8 = 19;
    pub(crate) const BODY_DIGEST: u8 = 20;
    pub(crate) const KEPT_UNTIL: u8 = 21;
    pub(crate) const COUNT: u8 = 22;
    pub(crate) const EXPIRES: u8 = 23;
    pub(crate) const KEY_EXPIRES: u8 = 24;
    pub(crate) const BORROWER: u8 = 25;
    pub(crate) const NO_KEEPALIVE: u8 = 26;
    /// In place of `VALUES`, in a sealed directory.
    pub(crate) const SEALED_VALUES: u8 = 27;
    /// In place of `BODY_DIGEST`, in a sealed directory.
    pub(crate) const SEALED_BODY: u8 = 28;
    pub(crate) const REASON: u8 = 30;
    /// The label of one key, or of all new keys.
    pub(crate) const LABEL: u8 = 31;
    /// The labels of new keys, where they differ.
    pub(crate) const LABELS: u8 = 32;
    pub(crate) const DRAINING: u8 = 33;
    /// The tags of fields that are bytes with a length prefix; all other fields are numbers.
    pub(crate) const BYTES: [u8; 11] = [
        HOLDER,
        VALUES,
        NAME,
        KEY_PREFIX,
        IDEMPOTENCY_ID,
        BODY_DIGEST,
        SEALED_VALUES,
        SEALED_BODY,
        REASON,
        LABEL,
        LABELS,
    ];
}

/// Writes the fields of one record.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub(super) fn number(&mut self, tag: u8, number: u64) {
        if number > 0 {
            self.out.push(tag);
            self.varint(number);
        }
    }

    pub(super) fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.out.push(tag);
            self.varint(bytes.len() as u64);
            self.out.extend_from_slice(bytes);
        }
    }

    /// Writes the packed values of new keys, sealed if the directory is. O(bytes).
    pub(super) fn values(&mut self, first: (PoolId, KeyNumber), packed: &[u8], seal: &ValueSeal) {
        if !seal.is_on() {
            return self.bytes(tag::VALUES, packed);
        }
        self.out.push(tag::SEALED_VALUES);
        self.varint((packed.len() + SEAL_LEN) as u64);
        // Room for all, so that no copy of plain values is left behind.
        self.out.reserve(packed.len() + SEAL_LEN);
        let start = self.out.len();
        self.out.extend_from_slice(packed);
        seal.seal_record(first, self.out, start);
    }

    pub(super) fn key(&mut self, pool: PoolId, key: KeyNumber) {
        self.number(tag::POOL, u64::from(pool.0));
        self.number(tag::KEY, key.0);
    }

    /// Writes a policy. Durations are milliseconds; an optional one is written plus one, and `None`
    /// is not written.
    pub(super) fn policy(&mut self, policy: &Policy) {
        self.number(tag::LEASE_TTL, policy.lease_ttl_ms);
        self.number(tag::MAX_HOLD, policy.max_hold_ms.map_or(0, |ms| ms + 1));
        self.number(tag::KEEPALIVE_TTL, policy.keepalive_ttl_ms.map_or(0, |ms| ms + 1));
        self.number(tag::REST, policy.rest_ms);
        self.number(tag::KEY_LENGTH, u64::from(policy.key_length));
        self.bytes(tag::KEY_PREFIX, policy.key_prefix.as_bytes());
        self.number(tag::MAX_KEYS, policy.max_keys.map_or(0, |keys| keys + 1));
        self.number(tag::DRAINING, u64::from(policy.draining));
    }

    /// Writes a stored answer. An optional instant is written plus one, and `None` is not written.
    pub(super) fn answer(&mut self, answer: &IdempotencyRecord, seal: &ValueSeal) {
        let plus_one = |at_ms: &Option<u64>| at_ms.map_or(0, |ms| ms + 1);
        self.bytes(tag::IDEMPOTENCY_ID, &answer.id.0.to_le_bytes());
        let body = if seal.is_on() { tag::SEALED_BODY } else { tag::BODY_DIGEST };
        self.bytes(body, &seal.seal_digest(answer.body.0).to_le_bytes());
        self.number(tag::BORROWER, answer.borrower.0);
        self.number(tag::KEPT_UNTIL, answer.until_us);
        match &answer.result {
            IdempotentResult::Lease {
                key,
                token,
                until_us,
                granted_at_ms,
                expires_at_ms,
                key_expires_at_ms,
            } => {
                self.number(tag::KEY, key.0);
                self.number(tag::TOKEN, *token);
                self.number(tag::UNTIL, *until_us);
                self.number(tag::AT, *granted_at_ms);
                self.number(tag::EXPIRES, *expires_at_ms);
                self.number(tag::KEY_EXPIRES, plus_one(key_expires_at_ms));
            }
            IdempotentResult::Keys { first, count, expires_at_ms } => {
                self.number(tag::KEY, first.0);
                self.number(tag::COUNT, u64::from(*count));
                self.number(tag::KEY_EXPIRES, plus_one(expires_at_ms));
            }
        }
    }

    fn varint(&mut self, number: u64) {
        let mut rest = number;
        while rest >= 0x80 {
            self.out.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.out.push((rest & 0x7f) as u8);
    }
}

/// The fields of one record by tag; an absent field is zero or empty.
pub(super) struct Fields<'a> {
    numbers: [u64; TAGS],
    bytes: [&'a [u8]; TAGS],
}

/// The times of a lease, in microseconds of lease time.
#[derive(Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the names say the unit")]
pub(super) struct LeaseTimes {
    pub(super) granted_us: u64,
    pub(super) until_us: u64,
    pub(super) hold_until_us: u64,
}

/// Slots of the tables that tags index.
const TAGS: usize = 34;

const _: () = assert!(tag::DRAINING as usize + 1 == TAGS, "DRAINING is the greatest tag");

/// Returns true if this version knows the tag.
fn is_known(tag: u8) -> bool {
    (tag::POOL..=tag::SEALED_BODY).contains(&tag) || (tag::REASON..=tag::DRAINING).contains(&tag)
}

impl<'a> Fields<'a> {
    pub(super) fn read(mut rest: &'a [u8]) -> Result<Self, RecordError> {
        const TRUNCATED: RecordError = RecordError("a field of a record is truncated");
        let mut fields = Self { numbers: [0; TAGS], bytes: [&[]; TAGS] };
        while let Some((&tag, after)) = rest.split_first() {
            let index = usize::from(tag);
            if !is_known(tag) {
                return Err(RecordError(
                    "unknown field tag: a newer version of keypeg may have written it",
                ));
            }
            let (number, after) = varint(after).ok_or(TRUNCATED)?;
            rest = after;
            if tag::BYTES.contains(&tag) {
                let len = usize::try_from(number).map_err(|_| TRUNCATED)?;
                (fields.bytes[index], rest) = after.split_at_checked(len).ok_or(TRUNCATED)?;
            } else {
                fields.numbers[index] = number;
            }
        }
        Ok(fields)
    }

    pub(super) fn number(&self, tag: u8) -> u64 {
        self.numbers[usize::from(tag)]
    }

    /// Returns a number as a narrower integer type.
    pub(super) fn narrow<T: TryFrom<u64>>(&self, tag: u8) -> Result<T, RecordError> {
        T::try_from(self.number(tag)).map_err(|_| NUMBER_OUT_OF_RANGE)
    }

    /// Sets the field of a tag.
    pub(super) fn set_bytes(&mut self, tag: u8, bytes: &'a [u8]) {
        self.bytes[usize::from(tag)] = bytes;
    }

    pub(super) fn bytes(&self, tag: u8) -> &'a [u8] {
        self.bytes[usize::from(tag)]
    }

    /// Returns the 16 bytes of an id or a digest.
    pub(super) fn wide(&self, tag: u8) -> Result<u128, RecordError> {
        let bytes = self.bytes(tag).try_into();
        bytes
            .map(u128::from_le_bytes)
            .map_err(|_| RecordError("the id or the digest of a stored answer is invalid"))
    }

    pub(super) fn answer(
        &self,
        result: IdempotentResult,
    ) -> Result<IdempotencyRecord, RecordError> {
        Ok(IdempotencyRecord {
            id: IdempotencyId(self.wide(tag::IDEMPOTENCY_ID)?),
            body: BodyDigest(self.wide(tag::BODY_DIGEST)?),
            borrower: BorrowerId(self.number(tag::BORROWER)),
            until_us: self.number(tag::KEPT_UNTIL),
            result,
        })
    }

    pub(super) fn text(&self, tag: u8) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.bytes(tag))
            .map_err(|_| RecordError("a text in a record is not UTF-8"))
    }

    /// Returns optional text; an empty text is `None`.
    pub(super) fn optional_text(&self, tag: u8) -> Result<Option<&'a str>, RecordError> {
        Ok(Some(self.text(tag)?).filter(|text| !text.is_empty()))
    }

    /// Returns the labels of `count` new keys.
    pub(super) fn labels(&self, count: u32) -> Result<RecordedLabels<'a>, RecordError> {
        if let Some(label) = self.optional_text(tag::LABEL)? {
            return Ok(RecordedLabels::All(label));
        }
        match self.bytes(tag::LABELS) {
            [] => Ok(RecordedLabels::None),
            packed => PackedLabels::parse(packed, count)
                .map(RecordedLabels::Each)
                .ok_or(RecordError("the labels of new keys are invalid")),
        }
    }

    /// Returns a lease with these times; an error if they are not in order.
    pub(super) fn lease(&self, times: LeaseTimes) -> Result<Grant<'a>, RecordError> {
        let LeaseTimes { granted_us, until_us, hold_until_us } = times;
        let in_order =
            granted_us <= until_us && until_us <= hold_until_us && hold_until_us <= NEVER_US;
        if !in_order {
            return Err(INSTANT_OUT_OF_RANGE);
        }
        Ok(Grant {
            granted_us,
            until_us,
            hold_until_us,
            rest_us: self.number(tag::REST),
            holder: self.optional_text(tag::HOLDER)?,
            borrower: BorrowerId(self.number(tag::BORROWER)),
        })
    }

    pub(super) fn policy(&self) -> Result<Policy, RecordError> {
        let policy = Policy {
            lease_ttl_ms: self.number(tag::LEASE_TTL),
            max_hold_ms: self.number(tag::MAX_HOLD).checked_sub(1),
            keepalive_ttl_ms: self.number(tag::KEEPALIVE_TTL).checked_sub(1),
            rest_ms: self.number(tag::REST),
            key_length: self.narrow(tag::KEY_LENGTH)?,
            key_prefix: self.text(tag::KEY_PREFIX)?.into(),
            max_keys: self.number(tag::MAX_KEYS).checked_sub(1),
            draining: self.number(tag::DRAINING) > 0,
        };
        policy.restored().map_err(|_| RecordError(BAD_POLICY))
    }
}

const BAD_POLICY: &str = "a pool policy is out of range";

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        let shift = 7 * u32::try_from(index).ok()?;
        if part << shift >> shift != part {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

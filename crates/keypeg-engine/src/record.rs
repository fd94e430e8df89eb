//! Facts as bytes: how a journal writes them and reads them back.
//!
//! A record is its kind, its length and tagged fields. Fields that are zero or absent are left
//! out; a tag or a kind that is not known is refused, so an older server never guesses at a newer
//! one's journal. Core types do not know of this form.

use crate::core::{Fact, Grant, NEVER_US, Policy, Sink, Values};

/// The facts of one turn, as bytes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// The clock of the turn: what is equal to it is not written again.
    lease_us: u64,
}

impl Batch {
    /// Begins a batch that is committed with this clock.
    pub(crate) fn begin(&mut self, lease_us: u64) {
        self.bytes.clear();
        self.lease_us = lease_us;
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Sink for Batch {
    fn fact(&mut self, fact: &Fact<'_>) {
        write(&mut self.bytes, fact, self.lease_us);
    }
}

/// Why bytes are no fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadRecord(pub(crate) &'static str);

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
const QUARANTINED: u8 = 20;

/// The fields' tags, one number for one meaning in every kind. A number is never given a new one.
mod tag {
    pub(super) const POOL: u8 = 1;
    pub(super) const KEY: u8 = 2;
    pub(super) const TOKEN: u8 = 3;
    pub(super) const AT: u8 = 4;
    pub(super) const UNTIL: u8 = 5;
    pub(super) const HOLD_UNTIL: u8 = 6;
    pub(super) const REST: u8 = 7;
    pub(super) const HOLDER: u8 = 8;
    pub(super) const IMPORTED: u8 = 9;
    pub(super) const VALUES: u8 = 10;
    pub(super) const NAME: u8 = 11;
    pub(super) const LEASE_TTL: u8 = 12;
    pub(super) const MAX_HOLD: u8 = 13;
    pub(super) const KEEPALIVE_TTL: u8 = 14;
    pub(super) const KEY_LENGTH: u8 = 15;
    pub(super) const KEY_PREFIX: u8 = 16;
    pub(super) const MAX_KEYS: u8 = 17;
    pub(super) const SEGMENT: u8 = 18;
    pub(super) const REASON: u8 = 30;
    /// From here on a field is bytes behind a length; below it is a number.
    pub(super) const BYTES: [u8; 5] = [HOLDER, VALUES, NAME, KEY_PREFIX, REASON];
}

fn write(out: &mut Vec<u8>, fact: &Fact<'_>, lease_us: u64) {
    let begin = out.len();
    out.extend_from_slice(&[kind(fact), 0, 0, 0, 0]);
    let mut fields = Writer { out };
    match fact {
        Fact::PoolMade { pool, name, policy } => {
            fields.number(tag::POOL, u64::from(*pool));
            fields.bytes(tag::NAME, name.as_bytes());
            fields.policy(policy);
        }
        Fact::PolicySet { pool, policy } => {
            fields.number(tag::POOL, u64::from(*pool));
            fields.policy(policy);
        }
        Fact::PoolGone { pool } => fields.number(tag::POOL, u64::from(*pool)),
        Fact::Born { pool, first, at_ms, imported, values } => {
            fields.key(*pool, *first);
            fields.number(tag::AT, *at_ms);
            fields.number(tag::IMPORTED, u64::from(*imported));
            fields.bytes(tag::VALUES, values.packed());
        }
        Fact::Deleted { pool, key } | Fact::Purged { pool, key } | Fact::Restored { pool, key } => {
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
        }
        Fact::Renewed { pool, key, token, until_us } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::UNTIL, *until_us);
        }
        Fact::Resting { pool, key, token, until_us, reason } => {
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
        Fact::Held { pool, key, token, lease } => {
            fields.key(*pool, *key);
            fields.number(tag::TOKEN, *token);
            fields.number(tag::AT, lease.granted_us);
            fields.number(tag::UNTIL, lease.until_us);
            fields.number(tag::HOLD_UNTIL, lease.hold_until_us);
            fields.number(tag::REST, lease.rest_us);
            fields.bytes(tag::HOLDER, lease.holder.unwrap_or_default().as_bytes());
        }
        Fact::Dropped { through } => fields.number(tag::SEGMENT, *through),
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
        Fact::PoolMade { .. } => POOL_MADE,
        Fact::PolicySet { .. } => POLICY_SET,
        Fact::PoolGone { .. } => POOL_GONE,
        Fact::Born { .. } => BORN,
        Fact::Deleted { .. } => DELETED,
        Fact::Purged { .. } => PURGED,
        Fact::Granted { .. } => GRANTED,
        Fact::Renewed { .. } => RENEWED,
        Fact::Released { .. } => RELEASED,
        Fact::Restored { .. } => RESTORED,
        Fact::TokensReserved { .. } => TOKENS_RESERVED,
        Fact::Stopped { .. } => STOPPED,
        Fact::Quarantined { .. } => QUARANTINED,
        Fact::Held { .. } => HELD,
        Fact::Resting { .. } => RESTING,
        Fact::Dropped { .. } => DROPPED,
    }
}

/// Reads one record from the front of `bytes`, committed with the clock `lease_us`; gives the
/// rest too.
pub(crate) fn read(bytes: &[u8], lease_us: u64) -> Result<(Fact<'_>, &[u8]), BadRecord> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(BadRecord("a record is cut"))?;
    let [kind, len @ ..] = *head;
    let len = u32::from_le_bytes(len) as usize;
    let (fields, rest) = rest.split_at_checked(len).ok_or(BadRecord("a record is cut"))?;
    Ok((fact(kind, &Fields::read(fields)?, lease_us)?, rest))
}

fn fact<'a>(kind: u8, fields: &Fields<'a>, lease_us: u64) -> Result<Fact<'a>, BadRecord> {
    use tag::{AT, IMPORTED, NAME, POOL, REST, TOKEN, UNTIL, VALUES};
    let pool = fields.small(POOL)?;
    let key = fields.number(tag::KEY);
    let token = fields.number(TOKEN);
    let plus = |a: u64, b: u64| a.checked_add(b).ok_or(BadRecord("an instant is out of range"));
    Ok(match kind {
        POOL_MADE => Fact::PoolMade { pool, name: fields.text(NAME)?, policy: fields.policy()? },
        POLICY_SET => Fact::PolicySet { pool, policy: fields.policy()? },
        POOL_GONE => Fact::PoolGone { pool },
        BORN => {
            let values = Values::parse(fields.bytes(VALUES));
            let values = values.ok_or(BadRecord("values are no values"))?;
            let imported = fields.number(IMPORTED) != 0;
            Fact::Born { pool, first: key, at_ms: fields.number(AT), imported, values }
        }
        DELETED => Fact::Deleted { pool, key },
        PURGED => Fact::Purged { pool, key },
        GRANTED => {
            let until_us = plus(lease_us, fields.number(UNTIL))?;
            let hold_until_us = plus(until_us, fields.number(tag::HOLD_UNTIL))?;
            let lease = fields.lease(lease_us, until_us, hold_until_us)?;
            Fact::Granted { pool, key, token, lease }
        }
        HELD => {
            let (until_us, latest_us) = (fields.number(UNTIL), fields.number(tag::HOLD_UNTIL));
            let lease = fields.lease(fields.number(AT), until_us, latest_us)?;
            Fact::Held { pool, key, token, lease }
        }
        RESTING => {
            let (until_us, reason) = (fields.number(UNTIL), fields.words(tag::REASON)?);
            Fact::Resting { pool, key, token, until_us, reason }
        }
        DROPPED => Fact::Dropped { through: fields.number(tag::SEGMENT) },
        RENEWED => Fact::Renewed { pool, key, token, until_us: fields.number(UNTIL) },
        RELEASED => {
            let rest_until_us = fields.number(REST);
            Fact::Released { pool, key, token, rest_until_us, reason: fields.words(tag::REASON)? }
        }
        QUARANTINED => Fact::Quarantined { pool, key, reason: fields.words(tag::REASON)? },
        RESTORED => Fact::Restored { pool, key },
        TOKENS_RESERVED => Fact::TokensReserved { until: token },
        STOPPED => Fact::Stopped { next_token: token },
        _ => return Err(BadRecord("a record is of a kind this version does not know")),
    })
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    fn number(&mut self, tag: u8, number: u64) {
        if number > 0 {
            self.out.push(tag);
            self.varint(number);
        }
    }

    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.out.push(tag);
            self.varint(bytes.len() as u64);
            self.out.extend_from_slice(bytes);
        }
    }

    fn key(&mut self, pool: u32, key: u64) {
        self.number(tag::POOL, u64::from(pool));
        self.number(tag::KEY, key);
    }

    /// Lengths in milliseconds; one that may be `None` is written plus one, and `None` as nothing.
    fn policy(&mut self, policy: &Policy) {
        self.number(tag::LEASE_TTL, policy.lease_ttl_ms);
        self.number(tag::MAX_HOLD, policy.max_hold_ms.map_or(0, |ms| ms + 1));
        self.number(tag::KEEPALIVE_TTL, policy.keepalive_ttl_ms.map_or(0, |ms| ms + 1));
        self.number(tag::REST, policy.rest_ms);
        self.number(tag::KEY_LENGTH, u64::from(policy.key_length));
        self.bytes(tag::KEY_PREFIX, policy.key_prefix.as_bytes());
        self.number(tag::MAX_KEYS, policy.max_keys.map_or(0, |keys| keys + 1));
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

/// The fields of one record by tag; what is absent is zero or empty.
struct Fields<'a> {
    numbers: [u64; TAGS],
    bytes: [&'a [u8]; TAGS],
}

const TAGS: usize = 31;

/// Whether a tag has a meaning.
fn is_known(tag: u8) -> bool {
    (tag::POOL..=tag::SEGMENT).contains(&tag) || tag == tag::REASON
}

impl<'a> Fields<'a> {
    fn read(mut rest: &'a [u8]) -> Result<Self, BadRecord> {
        const CUT: BadRecord = BadRecord("a field is cut");
        let mut fields = Self { numbers: [0; TAGS], bytes: [&[]; TAGS] };
        while let Some((&tag, after)) = rest.split_first() {
            let at = usize::from(tag);
            if !is_known(tag) {
                return Err(BadRecord("a field is one this version does not know"));
            }
            let (number, after) = varint(after).ok_or(CUT)?;
            rest = after;
            if tag::BYTES.contains(&tag) {
                let len = usize::try_from(number).map_err(|_| CUT)?;
                (fields.bytes[at], rest) = after.split_at_checked(len).ok_or(CUT)?;
            } else {
                fields.numbers[at] = number;
            }
        }
        Ok(fields)
    }

    fn number(&self, tag: u8) -> u64 {
        self.numbers[usize::from(tag)]
    }

    fn small<T: TryFrom<u64>>(&self, tag: u8) -> Result<T, BadRecord> {
        T::try_from(self.number(tag)).map_err(|_| BadRecord("a number is out of range"))
    }

    fn bytes(&self, tag: u8) -> &'a [u8] {
        self.bytes[usize::from(tag)]
    }

    fn text(&self, tag: u8) -> Result<&'a str, BadRecord> {
        std::str::from_utf8(self.bytes(tag)).map_err(|_| BadRecord("text is not UTF-8"))
    }

    /// Text that may be left out; empty is left out.
    fn words(&self, tag: u8) -> Result<Option<&'a str>, BadRecord> {
        Ok(Some(self.text(tag)?).filter(|text| !text.is_empty()))
    }

    fn lease(&self, at_us: u64, until_us: u64, latest_us: u64) -> Result<Grant<'a>, BadRecord> {
        let in_order = at_us <= until_us && until_us <= latest_us && latest_us <= NEVER_US;
        if !in_order {
            return Err(BadRecord("an instant is out of range"));
        }
        Ok(Grant {
            granted_us: at_us,
            until_us,
            hold_until_us: latest_us,
            rest_us: self.number(tag::REST),
            holder: self.words(tag::HOLDER)?,
        })
    }

    fn policy(&self) -> Result<Policy, BadRecord> {
        let policy = Policy {
            lease_ttl_ms: self.number(tag::LEASE_TTL),
            max_hold_ms: self.number(tag::MAX_HOLD).checked_sub(1),
            keepalive_ttl_ms: self.number(tag::KEEPALIVE_TTL).checked_sub(1),
            rest_ms: self.number(tag::REST),
            key_length: self.small(tag::KEY_LENGTH)?,
            key_prefix: self.text(tag::KEY_PREFIX)?.into(),
            max_keys: self.number(tag::MAX_KEYS).checked_sub(1),
        };
        policy.patched(crate::core::PolicyPatch::default()).map_err(|_| BadRecord(BAD_POLICY))
    }
}

const BAD_POLICY: &str = "a policy is out of its ranges";

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        let shift = 7 * u32::try_from(at).ok()?;
        if part << shift >> shift != part {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
        };
        let bare = Grant { holder: None, rest_us: 0, hold_until_us: NOW + 5, ..lease };
        let values = Values::parse(&[1, 0, b'a', 2, 0, b'b', b'c']).expect("whole");
        vec![
            Fact::PoolMade { pool: 1, name: "default", policy: Policy::default() },
            Fact::PoolMade { pool: u32::MAX, name: "ci", policy: policy.clone() },
            Fact::PolicySet { pool: 2, policy },
            Fact::PoolGone { pool: 2 },
            Fact::Born { pool: 1, first: 300, at_ms: 1 << 40, imported: true, values },
            Fact::Born { pool: 1, first: 1, at_ms: 0, imported: false, values },
            Fact::Deleted { pool: 1, key: u64::MAX },
            Fact::Purged { pool: 1, key: 128 },
            Fact::Granted { pool: 1, key: 7, token: 1 << 52, lease },
            Fact::Granted { pool: 1, key: 7, token: 1, lease: bare },
            Fact::Renewed { pool: 1, key: 7, token: 1, until_us: 77 },
            Fact::Released { pool: 1, key: 7, token: 1, rest_until_us: 0, reason: None },
            Fact::Released { pool: 1, key: 7, token: 1, rest_until_us: 5, reason: Some("429 ✗") },
            Fact::Quarantined { pool: 1, key: 7, reason: None },
            Fact::Quarantined { pool: 1, key: 7, reason: Some("401") },
            Fact::Restored { pool: 1, key: 7 },
            Fact::TokensReserved { until: 5 },
            Fact::Stopped { next_token: 4 },
            Fact::Held { pool: 1, key: 7, token: 1, lease: Grant { granted_us: 3, ..lease } },
            Fact::Resting { pool: 1, key: 7, token: 1, until_us: 5, reason: None },
            Fact::Resting { pool: 1, key: 7, token: 1, until_us: 5, reason: Some("429") },
            Fact::Dropped { through: 9 },
        ]
    }

    #[test]
    fn every_fact_reads_back_as_it_was() {
        let mut batch = Batch::default();
        batch.begin(NOW);
        for fact in facts() {
            batch.fact(&fact);
        }
        let mut rest = batch.bytes();
        for fact in facts() {
            let found;
            (found, rest) = read(rest, NOW).expect("whole");
            assert_eq!(found, fact);
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_record_cut_or_damaged_anywhere_is_refused_or_another_fact_but_never_a_panic() {
        for fact in facts() {
            let mut batch = Batch::default();
            batch.begin(NOW);
            batch.fact(&fact);
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

    #[test]
    fn a_kind_or_a_tag_of_a_newer_version_is_refused() {
        assert!(read(&[99, 0, 0, 0, 0], NOW).is_err());
        assert!(read(&[POOL_GONE, 2, 0, 0, 0, 60, 1], NOW).is_err());
        assert!(read(&[POOL_GONE, 2, 0, 0, 0, 0, 1], NOW).is_err());
    }
}

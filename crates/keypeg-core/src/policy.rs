//! A pool's policy: durations, the form of its keys, the limit of keys, whether it grants keys.
//!
//! A policy is validated here; an existing one is within its ranges, which are those of
//! keypeg-fields. A change affects later grants and keep-alives, not running leases.

use crate::clocks::US_PER_MS;
use keypeg_fields::{
    Field, KEEPALIVE_TTL, KEY_LENGTH, KEY_PREFIX, LEASE_TTL, MAX_HOLD, MAX_KEYS, REST, TTL,
};
use std::borrow::Borrow;

/// The least length of generated values in earlier versions, whose values had no tag.
const UNTAGGED_KEY_LENGTH_MIN: u64 = 16;

/// The policy of one pool. Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest TTL of a lease, and the TTL where a request names none.
    pub lease_ttl_ms: u64,
    /// The longest time from a grant to the end of the lease, renewals included; `None` means the
    /// lease TTL.
    pub max_hold_ms: Option<u64>,
    /// How long a key exists without a keep-alive; `None` means without limit.
    pub keepalive_ttl_ms: Option<u64>,
    /// How long a key rests after each lease.
    pub rest_ms: u64,
    /// The number of symbols in a generated value after the prefix; the last four are its tag.
    pub key_length: u16,
    /// The prefix of generated values.
    pub key_prefix: Box<str>,
    /// The limit of keys in the pool; `None` leaves only the server's limit.
    pub max_keys: Option<u64>,
    /// Whether the pool is draining: it grants no key, and its leases run on.
    pub draining: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease_ttl_ms: 60_000,
            max_hold_ms: None,
            keepalive_ttl_ms: Some(300_000),
            rest_ms: 0,
            key_length: 20,
            key_prefix: "".into(),
            max_keys: None,
            draining: false,
        }
    }
}

/// A change of a policy: a field that is `None` keeps its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyPatch {
    /// See [`Policy::lease_ttl_ms`].
    pub lease_ttl_ms: Option<u64>,
    /// See [`Policy::max_hold_ms`].
    pub max_hold_ms: Option<Option<u64>>,
    /// See [`Policy::keepalive_ttl_ms`].
    pub keepalive_ttl_ms: Option<Option<u64>>,
    /// See [`Policy::rest_ms`].
    pub rest_ms: Option<u64>,
    /// See [`Policy::key_length`].
    pub key_length: Option<u16>,
    /// See [`Policy::key_prefix`].
    pub key_prefix: Option<Box<str>>,
    /// See [`Policy::max_keys`].
    pub max_keys: Option<Option<u64>>,
    /// See [`Policy::draining`].
    pub draining: Option<bool>,
}

/// A value out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The field, which knows its name and its range.
    pub field: Field,
}

impl Policy {
    /// Returns the policy with a change applied, or the first field that is out of its range.
    pub fn with_patch(&self, patch: PolicyPatch) -> Result<Self, OutOfRange> {
        let policy = Self {
            lease_ttl_ms: patch.lease_ttl_ms.unwrap_or(self.lease_ttl_ms),
            max_hold_ms: patch.max_hold_ms.unwrap_or(self.max_hold_ms),
            keepalive_ttl_ms: patch.keepalive_ttl_ms.unwrap_or(self.keepalive_ttl_ms),
            rest_ms: patch.rest_ms.unwrap_or(self.rest_ms),
            key_length: patch.key_length.unwrap_or(self.key_length),
            key_prefix: patch.key_prefix.unwrap_or_else(|| self.key_prefix.clone()),
            max_keys: patch.max_keys.unwrap_or(self.max_keys),
            draining: patch.draining.unwrap_or(self.draining),
        };
        policy.check()?;
        Ok(policy)
    }

    /// Returns a policy that was read from a journal or a database, or the first field that is out
    /// of its range. A length that an earlier version accepted becomes the least one of today.
    pub fn restored(mut self) -> Result<Self, OutOfRange> {
        if (UNTAGGED_KEY_LENGTH_MIN..KEY_LENGTH.least).contains(&u64::from(self.key_length)) {
            self.key_length = u16::try_from(KEY_LENGTH.least).expect("invariant: a short length");
        }
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let max_hold_ok = |ms: u64| MAX_HOLD.allows(ms) && ms >= self.lease_ttl_ms;
        let checks = [
            (LEASE_TTL.allows(self.lease_ttl_ms), Field::Seconds(&LEASE_TTL)),
            (self.max_hold_ms.is_none_or(max_hold_ok), Field::Seconds(&MAX_HOLD)),
            (
                self.keepalive_ttl_ms.is_none_or(|ms| KEEPALIVE_TTL.allows(ms)),
                Field::Seconds(&KEEPALIVE_TTL),
            ),
            (REST.allows(self.rest_ms), Field::Seconds(&REST)),
            (KEY_LENGTH.allows(u64::from(self.key_length)), Field::Integer(&KEY_LENGTH)),
            (KEY_PREFIX.allows(&self.key_prefix), Field::Text(&KEY_PREFIX)),
            (self.max_keys.is_none_or(|n| MAX_KEYS.allows(n)), Field::Integer(&MAX_KEYS)),
        ];
        match checks.into_iter().find(|(ok, _)| !ok) {
            Some((_, field)) => Err(OutOfRange { field }),
            None => Ok(()),
        }
    }

    /// Returns the TTL of a lease in milliseconds: the requested one if it is within its range,
    /// this policy's if none is requested.
    pub fn lease_ttl(&self, requested_ms: Option<u64>) -> Result<u64, OutOfRange> {
        let ttl_ms = requested_ms.unwrap_or(self.lease_ttl_ms);
        if TTL.allows(ttl_ms) && ttl_ms <= self.lease_ttl_ms {
            return Ok(ttl_ms);
        }
        Err(OutOfRange { field: Field::Seconds(&TTL) })
    }

    /// Returns the longest time from a grant to the end of the lease, in microseconds.
    pub(crate) fn hold_us(&self) -> u64 {
        self.max_hold_ms.unwrap_or(self.lease_ttl_ms) * US_PER_MS
    }
}

/// A pool's name: `[a-z0-9][a-z0-9_.-]{0,63}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(Box<str>);

impl PoolName {
    /// The name of the pool that always exists.
    pub const DEFAULT: &'static str = "default";

    /// Parses a name; `None` when it is invalid.
    pub fn parse(text: &str) -> Option<Self> {
        let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let is_valid = bytes.len() <= 64
            && bytes.first().is_some_and(alphanumeric)
            && bytes.iter().all(|b| alphanumeric(b) || b"_.-".contains(b));
        is_valid.then(|| Self(text.into()))
    }

    /// Returns the name of the pool that always exists.
    pub fn default_pool() -> Self {
        Self(Self::DEFAULT.into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Orders and hashes as the text does, so that a text finds a name.
impl Borrow<str> for PoolName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_and_start_with_a_letter_or_digit() {
        for good in ["a", "0", "ci", "a.b-c_d", &"x".repeat(64)] {
            assert!(PoolName::parse(good).is_some(), "{good:?}");
        }
        for bad in ["", "A", "-a", ".a", "_a", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(PoolName::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_rejected_policy_names_the_field_that_is_out_of_range() {
        let base = Policy::default();
        let hold = |ms| PolicyPatch { max_hold_ms: Some(Some(ms)), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(hold(60_000)).map(|p| p.hold_us()), Ok(60_000_000));
        assert_eq!(base.with_patch(hold(59_999)).unwrap_err().field.name(), "max_hold_seconds");
        let longer = hold(keypeg_fields::DURATION_MAX_MS + 1);
        assert_eq!(base.with_patch(longer).unwrap_err().field.name(), "max_hold_seconds");
        let ttl = PolicyPatch { lease_ttl_ms: Some(0), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(ttl).unwrap_err().field.name(), "lease_ttl_seconds");
        let prefix = PolicyPatch { key_prefix: Some("a b".into()), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(prefix).unwrap_err().field.name(), "key_prefix");
    }

    #[test]
    fn a_stored_length_of_an_earlier_version_becomes_the_least_one() {
        let restored = |key_length| {
            let policy = Policy { key_length, ..Policy::default() }.restored();
            policy.map(|policy| policy.key_length).map_err(|range| range.field.name())
        };
        for (stored, expected) in [(16, 20), (19, 20), (20, 20), (21, 21), (128, 128)] {
            assert_eq!(restored(stored), Ok(expected));
        }
        for stored in [0, 15, 129] {
            assert_eq!(restored(stored), Err("key_length"));
        }
    }
}

//! What a pool allows: lengths of time, the form of its keys, how many there may be.
//!
//! A policy is checked here and nowhere else; one that exists is within its ranges. Changing it
//! changes grants and keep-alives to come, not those that run.

use crate::clocks::US_PER_MS;

/// The longest a lease, a hold or a rest can last, and the longest keep-alive time: 7 days.
pub const DURATION_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// How long a key may rest, as it is told.
pub(crate) const REST: &str = "0, or 0.001..604800";
/// The shortest and the longest value this server makes, in symbols after the prefix.
pub const KEY_LENGTH: std::ops::RangeInclusive<u16> = 16..=128;
/// The longest prefix of made values, in symbols.
pub const KEY_PREFIX_MAX: usize = 32;
/// The most keys a pool can be told to keep; the server's own bound may be lower.
pub const POOL_KEYS_MAX: u64 = 1_000_000_000;

/// What one pool allows. Lengths are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest a grant lasts, and its length where a request does not say.
    pub lease_ttl_ms: u64,
    /// The longest a renewed lease lasts from its grant; `None` follows the lease ttl.
    pub max_hold_ms: Option<u64>,
    /// How long a key lives without a keep-alive; `None` for ever.
    pub keepalive_ttl_ms: Option<u64>,
    /// How long a key rests after each lease.
    pub rest_ms: u64,
    /// Random symbols in a made value.
    pub key_length: u16,
    /// What a made value begins with.
    pub key_prefix: Box<str>,
    /// The most keys this pool keeps; `None` leaves only the server's own bound.
    pub max_keys: Option<u64>,
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
        }
    }
}

/// A change of a policy: what is `None` stays as it is.
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
}

/// A value out of its range: the field by its public name and what it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// The field, as the contract names it.
    pub field: &'static str,
    /// What it may be.
    pub allowed: &'static str,
}

impl Policy {
    /// Applies a change; refuses a policy with any value out of its range.
    pub fn with_patch(&self, patch: PolicyPatch) -> Result<Self, OutOfRange> {
        let policy = Self {
            lease_ttl_ms: patch.lease_ttl_ms.unwrap_or(self.lease_ttl_ms),
            max_hold_ms: patch.max_hold_ms.unwrap_or(self.max_hold_ms),
            keepalive_ttl_ms: patch.keepalive_ttl_ms.unwrap_or(self.keepalive_ttl_ms),
            rest_ms: patch.rest_ms.unwrap_or(self.rest_ms),
            key_length: patch.key_length.unwrap_or(self.key_length),
            key_prefix: patch.key_prefix.unwrap_or_else(|| self.key_prefix.clone()),
            max_keys: patch.max_keys.unwrap_or(self.max_keys),
        };
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let length = 1..=DURATION_MAX_MS;
        let prefix_ok = self.key_prefix.len() <= KEY_PREFIX_MAX
            && self.key_prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let checks = [
            (length.contains(&self.lease_ttl_ms), "lease_ttl_seconds", "0.001..604800"),
            (
                self.max_hold_ms.is_none_or(|ms| ms <= DURATION_MAX_MS && ms >= self.lease_ttl_ms),
                "max_hold_seconds",
                "null, or lease_ttl_seconds..604800",
            ),
            (
                self.keepalive_ttl_ms.is_none_or(|ms| length.contains(&ms)),
                "keepalive_ttl_seconds",
                "null, or 0.001..604800",
            ),
            (self.rest_ms <= DURATION_MAX_MS, "rest_seconds", REST),
            (KEY_LENGTH.contains(&self.key_length), "key_length", "16..128"),
            (prefix_ok, "key_prefix", "at most 32 of A-Z a-z 0-9 _ -"),
            (
                self.max_keys.is_none_or(|n| (1..=POOL_KEYS_MAX).contains(&n)),
                "max_keys",
                "null, or 1..1000000000",
            ),
        ];
        match checks.into_iter().find(|(ok, ..)| !ok) {
            Some((_, field, allowed)) => Err(OutOfRange { field, allowed }),
            None => Ok(()),
        }
    }

    /// The longest a lease granted now can be held, renewals and all, in microseconds.
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

    /// Reads a name; `None` when it is not one.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let ok = bytes.len() <= 64
            && bytes.first().is_some_and(plain)
            && bytes.iter().all(|b| plain(b) || b"_.-".contains(b));
        ok.then(|| Self(text.into()))
    }

    /// The name of the pool that always exists.
    pub fn default_pool() -> Self {
        Self(Self::DEFAULT.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_lower_case_and_start_plainly() {
        for good in ["a", "0", "ci", "a.b-c_d", &"x".repeat(64)] {
            assert!(PoolName::parse(good).is_some(), "{good:?}");
        }
        for bad in ["", "A", "-a", ".a", "_a", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(PoolName::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_policy_names_the_field_that_is_out_of_range() {
        let base = Policy::default();
        let hold = |ms| PolicyPatch { max_hold_ms: Some(Some(ms)), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(hold(60_000)).map(|p| p.hold_us()), Ok(60_000_000));
        assert_eq!(base.with_patch(hold(59_999)).unwrap_err().field, "max_hold_seconds");
        assert_eq!(
            base.with_patch(hold(DURATION_MAX_MS + 1)).unwrap_err().field,
            "max_hold_seconds"
        );
        let ttl = PolicyPatch { lease_ttl_ms: Some(0), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(ttl).unwrap_err().field, "lease_ttl_seconds");
        let prefix = PolicyPatch { key_prefix: Some("a b".into()), ..PolicyPatch::default() };
        assert_eq!(base.with_patch(prefix).unwrap_err().field, "key_prefix");
    }
}

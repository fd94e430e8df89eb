//! Pools and policies on the wire.

use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Deserializer, Serialize};

/// A pool: its policy and the number of keys in each state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Pool {
    /// The name of the pool.
    pub pool: String,
    /// The maximum length of a lease.
    pub lease_ttl_seconds: Seconds,
    /// The maximum length of a renewed lease, from its grant; null: `lease_ttl_seconds`.
    pub max_hold_seconds: Option<Seconds>,
    /// How long a key lives without a keep-alive; null: it is never purged by time.
    pub keepalive_ttl_seconds: Option<Seconds>,
    /// The recommended interval of keep-alives: two fifths of `keepalive_ttl_seconds`.
    pub keepalive_every_seconds: Option<Seconds>,
    /// How long a key rests after each lease.
    pub rest_seconds: Seconds,
    /// The number of symbols in a generated value after its prefix.
    pub key_length: u16,
    /// The prefix of a generated value.
    pub key_prefix: String,
    /// The maximum number of keys in the pool; null: only the limit of the server applies.
    pub max_keys: Option<u64>,
    /// Whether the pool is draining: it grants no key, and its leases run on.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schemars(required))]
    pub draining: bool,
    /// Available keys.
    pub available: u64,
    /// Leased keys.
    pub leased: u64,
    /// Resting keys: released, and not lent before their rest ends.
    pub resting: u64,
    /// Quarantined keys: not lent until they are put back or force-released.
    pub quarantined: u64,
    /// The leased keys that are quarantined when their leases end: a part of `leased`.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schemars(required))]
    pub draining_keys: u64,
    /// All keys of the pool.
    pub total: u64,
    /// Requests in the wait queue.
    pub waiting: u64,
    /// When the next lease or rest ends by time.
    pub next_return_at: Option<UnixMs>,
    /// When the next key is purged unless it is kept alive.
    pub next_purge_at: Option<UnixMs>,
}

/// A page of pools, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Pools {
    /// The pools.
    pub pools: Vec<Pool>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

// The documentation of these fields is published; their ranges stand in keypeg-fields. `Some(None)`
// is written as null.
/// A change of a policy: a field that is left out keeps its value. The fields of a pool that only
/// the server sets are ignored, so a pool can be sent back as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PolicyRequest {
    /// The maximum length of a lease. Default of a new pool: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl_seconds: Option<Seconds>,
    /// The maximum length of a renewed lease, from its grant; not less than `lease_ttl_seconds`.
    /// Null, the default, is equal to `lease_ttl_seconds`, so that renewing cannot extend a lease
    /// beyond it.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub max_hold_seconds: Option<Option<Seconds>>,
    /// How long a key lives without a keep-alive; null: it is never purged by time. Default of a
    /// new pool: 300.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub keepalive_ttl_seconds: Option<Option<Seconds>>,
    /// How long a key rests after every lease, however it ended. Default of a new pool: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest_seconds: Option<Seconds>,
    /// The number of symbols `[0-9A-Za-z]` in a generated value after its prefix. Default of a new
    /// pool: 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_length: Option<u16>,
    /// The prefix of a generated value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// The maximum number of keys in the pool. Null, the default: only the limit of the server
    /// applies.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub max_keys: Option<Option<u64>>,
    /// Whether the pool is draining: it grants no key, waiting requests are refused, and leases run
    /// on. Default of a new pool: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

/// What must be so for a change of a pool.
#[cfg(feature = "client")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// The pool does not exist: it is created.
    Missing,
    /// The pool exists: it is changed.
    Present,
}

/// Reads a field that is present, so that null differs from absent.
#[expect(clippy::option_option, reason = "absent, null and a value are three cases here")]
fn nullable<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_null_and_a_value_are_three_cases() {
        let check = |text: &str, hold: Option<Option<Seconds>>| {
            let policy: PolicyRequest = serde_json::from_str(text).unwrap();
            assert_eq!(policy.max_hold_seconds, hold, "{text}");
            assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        };
        check("{}", None);
        check(r#"{"max_hold_seconds":null}"#, Some(None));
        check(r#"{"max_hold_seconds":90}"#, Some(Some(Seconds::from_ms(90_000))));
    }
}

//! Pools and policies on the wire.

use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Deserializer, Serialize};

/// A pool: its policy and how many keys stand where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Pool {
    /// Its name.
    pub pool: String,
    /// The longest a grant lasts.
    pub lease_ttl_seconds: Seconds,
    /// The longest a renewed lease lasts from its grant; null follows the lease ttl.
    pub max_hold_seconds: Option<Seconds>,
    /// How long a key lives without a keep-alive; null for ever.
    pub keepalive_ttl_seconds: Option<Seconds>,
    /// How often to keep a key alive: two fifths of `keepalive_ttl_seconds`.
    pub keepalive_every_seconds: Option<Seconds>,
    /// How long a key rests after each lease.
    pub rest_seconds: Seconds,
    /// Random symbols in a generated value.
    pub key_length: u16,
    /// What a generated value begins with.
    pub key_prefix: String,
    /// The most keys in this pool; null leaves only the server's own bound.
    pub max_keys: Option<u64>,
    /// Keys free to be lent.
    pub available: u64,
    /// Keys lent.
    pub leased: u64,
    /// Keys that are back, but not served yet.
    pub resting: u64,
    /// Keys out of rotation.
    pub quarantined: u64,
    /// All keys.
    pub total: u64,
    /// Requests that wait for a key.
    pub waiting: u64,
    /// When the next leased or resting key comes back by itself.
    pub next_return_at: Option<UnixMs>,
    /// When the next key is purged if nobody keeps it alive.
    pub next_purge_at: Option<UnixMs>,
}

/// All pools, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Pools {
    /// The pools.
    pub pools: Vec<Pool>,
}

/// A policy to set: what is left out stays as it is; `Some(None)` is written as null.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct PolicyRequest {
    /// See [`Pool::lease_ttl_seconds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ttl_seconds: Option<Seconds>,
    /// See [`Pool::max_hold_seconds`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub max_hold_seconds: Option<Option<Seconds>>,
    /// See [`Pool::keepalive_ttl_seconds`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub keepalive_ttl_seconds: Option<Option<Seconds>>,
    /// See [`Pool::rest_seconds`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest_seconds: Option<Seconds>,
    /// See [`Pool::key_length`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_length: Option<u16>,
    /// See [`Pool::key_prefix`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// See [`Pool::max_keys`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "nullable")]
    pub max_keys: Option<Option<u64>>,
}

/// Reads a field that is there: null is then a value of its own.
#[expect(clippy::option_option, reason = "left out, null and a value are three things here")]
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
    fn left_out_null_and_a_value_are_three_things() {
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

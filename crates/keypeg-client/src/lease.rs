//! Leases on the wire. Only [`Grant`] contains the value of the key.

use crate::key::Secret;
use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Serialize};

/// A new lease, with the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Grant {
    /// The id of the lease. It is a secret: it gives the right to renew and release it.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The value of the key.
    pub key: Secret,
    /// The fencing token: it grows with every grant of the key.
    pub fencing_token: u64,
    /// The holder, as the acquire request named it.
    pub holder: Option<String>,
    /// The label of the key; null: none.
    pub label: Option<String>,
    /// When the lease was granted.
    pub granted_at: UnixMs,
    /// How long the request waited in the wait queue.
    pub waited_seconds: Seconds,
    /// When the lease ends.
    pub expires_at: UnixMs,
    /// How long the lease lasts, counted from the answer.
    pub expires_in_seconds: Seconds,
    /// When the key is purged unless it is kept alive; null: never.
    pub key_expires_at: Option<UnixMs>,
}

/// A running lease, without the value of its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Lease {
    /// The id of the lease.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// The id of the key.
    pub key_id: String,
    /// The fencing token.
    pub fencing_token: u64,
    /// The holder, as the acquire request named it.
    pub holder: Option<String>,
    /// The label of the key; null: none.
    pub label: Option<String>,
    /// When the lease was granted.
    pub granted_at: UnixMs,
    /// When the lease ends.
    pub expires_at: UnixMs,
    /// How long the lease lasts, counted from the answer.
    pub expires_in_seconds: Seconds,
    /// When the key is purged unless it is kept alive; null: never.
    pub key_expires_at: Option<UnixMs>,
}

/// A request to acquire a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct AcquireRequest {
    /// How long the lease lasts. Maximum and default: `lease_ttl_seconds` of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<Seconds>,
    /// How long to wait if no key is available. Default: no wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<Seconds>,
    /// A name for the holder: printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// A request to release a key, with what the holder reports about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct ReleaseRequest {
    /// How long the key rests. Default: `rest_seconds` of the pool when the lease was granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_seconds: Option<Seconds>,
    /// Whether to quarantine the key: it is not lent until it is force-released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<bool>,
    /// The reason: printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A request to renew a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct RenewRequest {
    /// How long the lease lasts from now. Maximum and default: `lease_ttl_seconds` of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<Seconds>,
}

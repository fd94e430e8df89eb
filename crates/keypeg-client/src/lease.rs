//! Leases on the wire. A key's value is in [`Grant`] alone.

use crate::key::Secret;
use crate::time::{Seconds, UnixMs};
use serde::{Deserialize, Serialize};

/// A lease just granted, with its key's value. `Text` is whatever holds text: a server writes what it
/// has, a client reads strings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "openapi",
    schemars(rename = "Grant", description = "A lease just granted, with its key's value.")
)]
pub struct Grant<Text = String> {
    /// The lease's handle: who shows it holds the lease.
    pub id: Text,
    /// The pool.
    pub pool: Text,
    /// The key lent.
    pub key_id: Text,
    /// The key's value.
    pub key: Secret<Text>,
    /// The fencing token: grows with every grant of the key.
    pub fencing_token: u64,
    /// Who said to hold it.
    pub holder: Option<Text>,
    /// When it was granted.
    pub granted_at: UnixMs,
    /// How long the request waited.
    pub waited_seconds: Seconds,
    /// When it ends.
    pub expires_at: UnixMs,
    /// How long it lasts from the answer on.
    pub expires_in_seconds: Seconds,
    /// When its key is purged if nobody keeps it alive; null never.
    pub key_expires_at: Option<UnixMs>,
}

/// A running lease, without its key's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Lease {
    /// The lease's handle.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// The key lent.
    pub key_id: String,
    /// The fencing token.
    pub fencing_token: u64,
    /// Who said to hold it.
    pub holder: Option<String>,
    /// When it was granted.
    pub granted_at: UnixMs,
    /// When it ends.
    pub expires_at: UnixMs,
    /// How long it lasts from the answer on.
    pub expires_in_seconds: Seconds,
    /// When its key is purged if nobody keeps it alive; null never.
    pub key_expires_at: Option<UnixMs>,
}

/// Asks for a key to be lent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct AcquireRequest {
    /// How long; the policy's length when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<Seconds>,
    /// How long to wait for a key where none is free, at most 300 s; not at all when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<Seconds>,
    /// Who says to hold it: at most 128 printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

/// Gives a key back, with what its holder says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct ReleaseRequest {
    /// How long the key rests; as the policy said at its grant when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest_seconds: Option<Seconds>,
    /// Whether the key is to be out of rotation until somebody puts it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<bool>,
    /// Why: at most 256 printable characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Asks for a lease to last longer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct RenewRequest {
    /// How long from now; the policy's length when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<Seconds>,
}

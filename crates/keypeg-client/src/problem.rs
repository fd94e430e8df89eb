//! Errors on the wire: problem details (RFC 9457) and the table of error codes.
//!
//! This file owns the status and the title of each code; keypeg-openapi owns the page that explains
//! it. A code never changes its meaning. Which refusal becomes which code is the server's concern.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// The stable word for a kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not valid HTTP/1.1, or its body is not valid JSON. The status is 505 for a
    /// client that speaks HTTP/2.
    Malformed,
    /// The cursor is invalid or expired: the listing must be restarted.
    BadCursor,
    /// An access token is required, and the request carries none or an invalid one.
    Unauthorized,
    /// The access token lacks the scope or the pool, or a page of another site sent the request.
    Forbidden,
    /// The forwarded request has no key: the header `X-Api-Key` is missing.
    KeyRequired,
    /// The key of the forwarded request is not active.
    KeyNotActive,
    /// There is no such route.
    NotFound,
    /// The route does not support the method; the `Allow` header lists those it supports.
    MethodNotAllowed,
    /// The body did not arrive in time.
    Timeout,
    /// The body is too large, or the request head, in which case the status is 431.
    TooLarge,
    /// The body is not `application/json`, or has a `Content-Encoding`.
    UnsupportedMediaType,
    /// The `Host` header does not name this server.
    Misdirected,
    /// A field is unknown, of the wrong type or out of its range.
    Invalid,
    /// A rate limit of the access token or the address is reached, or the token's limit of leases.
    RateLimited,
    /// There is no such pool.
    UnknownPool,
    /// There is no such key: it was never created, or was deleted or purged.
    UnknownKey,
    /// No key is available.
    NoKeyAvailable,
    /// The lease has ended, or never existed.
    LeaseEnded,
    /// The renewal cannot extend the lease: the maximum hold is reached.
    MaxHoldReached,
    /// The Idempotency-Key was used before with another body.
    IdempotencyMismatch,
    /// Keys of the stored answer of this Idempotency-Key were deleted or purged.
    KeysGone,
    /// A repeat with the same Idempotency-Key has taken this request's place in the wait queue.
    TakenOver,
    /// The precondition of the request is false, or the route supports none.
    PreconditionFailed,
    /// The default pool cannot be deleted.
    DefaultPool,
    /// A value to import is already in the pool, occurs twice, or was used there before.
    KeyExists,
    /// The server has reached its limit of pools.
    TooManyPools,
    /// The pool, or the server, has reached its limit of keys.
    PoolFull,
    /// The server's disk is full.
    StorageFull,
    /// A queue or another limit of the server is reached.
    Overloaded,
    /// The server is shutting down.
    ShuttingDown,
    /// The server that got the forwarded request does not serve the pool.
    NotOwner,
    /// No server serves the pool at the moment.
    NoOwner,
    /// The server of the pool was lost while it handled the request.
    OwnerLost,
    /// The server has all pools alone: it has no other servers and no shards.
    NoCluster,
    /// The shard was not moved to the other server.
    NotMoved,
    /// More keys or leases are due than the server can expire within one request.
    Settling,
    /// Another backup is running.
    BackupRunning,
    /// The server has no data that could be backed up.
    BackupUnsupported,
    /// A defect in the server.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 39] = [
        Self::Malformed,
        Self::BadCursor,
        Self::Unauthorized,
        Self::Forbidden,
        Self::KeyRequired,
        Self::KeyNotActive,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Misdirected,
        Self::Invalid,
        Self::RateLimited,
        Self::UnknownPool,
        Self::UnknownKey,
        Self::NoKeyAvailable,
        Self::LeaseEnded,
        Self::MaxHoldReached,
        Self::IdempotencyMismatch,
        Self::KeysGone,
        Self::TakenOver,
        Self::PreconditionFailed,
        Self::DefaultPool,
        Self::KeyExists,
        Self::TooManyPools,
        Self::PoolFull,
        Self::StorageFull,
        Self::Overloaded,
        Self::ShuttingDown,
        Self::NotOwner,
        Self::NoOwner,
        Self::OwnerLost,
        Self::NoCluster,
        Self::NotMoved,
        Self::Settling,
        Self::BackupRunning,
        Self::BackupUnsupported,
        Self::Internal,
    ];

    /// Returns the row of the table: wire word, HTTP status, title.
    fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::Malformed => ("malformed", 400, "Malformed request"),
            Self::BadCursor => ("bad_cursor", 400, "Invalid cursor"),
            Self::Unauthorized => ("unauthorized", 401, "Access token required"),
            Self::Forbidden => ("forbidden", 403, "Forbidden"),
            Self::KeyRequired => ("key_required", 401, "Key required"),
            Self::KeyNotActive => ("key_not_active", 403, "Key not active"),
            Self::NotFound => ("not_found", 404, "No such route"),
            Self::UnknownPool => ("unknown_pool", 404, "No such pool"),
            Self::UnknownKey => ("unknown_key", 404, "No such key"),
            Self::NoKeyAvailable => ("no_key_available", 404, "No key available"),
            Self::NoCluster => ("no_cluster", 404, "No other servers"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method not allowed"),
            Self::Timeout => ("timeout", 408, "Request timed out"),
            Self::MaxHoldReached => ("max_hold_reached", 409, "Maximum hold reached"),
            Self::DefaultPool => ("default_pool", 409, "The default pool cannot be deleted"),
            Self::KeyExists => ("key_exists", 409, "Key already exists"),
            Self::BackupRunning => ("backup_running", 409, "Another backup is running"),
            Self::NotMoved => ("not_moved", 409, "Shard not moved"),
            Self::TakenOver => ("taken_over", 409, "Replaced by a repeated request"),
            Self::KeysGone => ("keys_gone", 410, "Keys no longer exist"),
            Self::LeaseEnded => ("lease_ended", 410, "Lease ended"),
            Self::PreconditionFailed => ("precondition_failed", 412, "Precondition failed"),
            Self::TooLarge => ("too_large", 413, "Request too large"),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", 415, "Unsupported content type")
            }
            Self::Misdirected => ("misdirected", 421, "Host not allowed"),
            Self::NotOwner => ("not_owner", 421, "Pool served elsewhere"),
            Self::RateLimited => ("rate_limited", 429, "Too many requests"),
            Self::Invalid => ("invalid", 422, "Invalid field"),
            Self::IdempotencyMismatch => {
                ("idempotency_mismatch", 422, "Idempotency key reused with another body")
            }
            Self::Internal => ("internal", 500, "Internal error"),
            Self::BackupUnsupported => ("backup_unsupported", 501, "No backups"),
            Self::Overloaded => ("overloaded", 503, "Overloaded"),
            Self::ShuttingDown => ("shutting_down", 503, "Shutting down"),
            Self::NoOwner => ("no_owner", 503, "No server for the pool"),
            Self::OwnerLost => ("owner_lost", 503, "Server of the pool lost"),
            Self::Settling => ("settling", 503, "Expiry backlog"),
            Self::TooManyPools => ("too_many_pools", 507, "Too many pools"),
            Self::PoolFull => ("pool_full", 507, "Pool full"),
            Self::StorageFull => ("storage_full", 507, "Storage full"),
        }
    }

    /// Returns the word on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// Returns the usual HTTP status. [`Code::StorageFull`] is 503 when a key is acquired,
    /// [`Code::TooLarge`] is 431 for a request head, and [`Code::Malformed`] is 505 for HTTP/2.
    pub fn status(self) -> u16 {
        self.row().1
    }

    /// Returns the short title.
    pub fn title(self) -> &'static str {
        self.row().2
    }

    /// Returns the code with this wire word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.as_str() == word)
    }
}

/// Whether a failed change was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The server changed nothing.
    NotApplied,
    /// The server may have applied the change.
    Unknown,
}

/// Problem details (RFC 9457): the body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Problem {
    /// `/problems/<code>`: a page of the server that explains the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The title of the code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The error code.
    pub code: Code,
    /// What went wrong with this request, in English for people.
    pub detail: String,
    /// The id of the request, as in the `x-request-id` header.
    pub request_id: String,
    /// Whether the change was applied; only for requests that change something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Members that only some codes have.
    #[serde(flatten)]
    pub extensions: ProblemExtensions,
}

/// Extension members of a problem (RFC 9457, 3.2): each code has its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ProblemExtensions {
    /// Why no key is available, or how the lease ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The scope that the access token lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The field that is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The allowed values of that field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// The index of the rejected item in its array, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The indices of the rejected items that were found, from 0; at most 1 000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indices: Option<Vec<u64>>,
    /// Whether items after the last of `indices` were not examined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
    /// When the lease that cannot be extended ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// The limit that is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Available keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Leased keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased: Option<u64>,
    /// Resting keys: released, and not lent before their rest ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resting: Option<u64>,
    /// Quarantined keys: not lent until they are put back or force-released.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<u64>,
    /// All keys of the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_unique_word_that_parses_back() {
        for (index, code) in Code::ALL.into_iter().enumerate() {
            let word = format!("{:?}", code.as_str());
            assert_eq!(serde_json::to_string(&code).unwrap(), word);
            assert_eq!(serde_json::from_str::<Code>(&word).unwrap(), code);
            assert_eq!(Code::from_word(code.as_str()), Some(code));
            assert!(Code::ALL[..index].iter().all(|other| other.as_str() != code.as_str()));
            assert!((400..=507).contains(&code.status()), "{code:?}");
        }
    }

    #[test]
    fn a_problem_is_flat_and_omits_absent_members() {
        let problem = Problem {
            kind: "/problems/invalid".into(),
            title: Code::Invalid.title().into(),
            status: Code::Invalid.status(),
            code: Code::Invalid,
            detail: "d".into(),
            request_id: "r".into(),
            outcome: Some(Outcome::NotApplied),
            extensions: ProblemExtensions {
                field: Some("count".into()),
                ..ProblemExtensions::default()
            },
        };
        let text = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"type":"/problems/invalid","title":"Invalid field","status":422,"#,
                r#""code":"invalid","detail":"d","request_id":"r","outcome":"not_applied","#,
                r#""field":"count"}"#
            )
        );
        assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
    }
}

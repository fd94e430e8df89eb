//! Errors on the wire: problem details (RFC 9457) and the one table of codes.
//!
//! A code never changes its meaning; its status and title are told here and nowhere else.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// What went wrong, as a stable word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not HTTP or JSON as it should be.
    Malformed,
    /// A cursor of no listing that goes on.
    BadCursor,
    /// An access token is wanted, and none that is valid was shown.
    Unauthorized,
    /// Not allowed: by the access token's scopes or pools, or a page of another site asks.
    Forbidden,
    /// No such route.
    NotFound,
    /// The route has no such method; `Allow` names those it has.
    MethodNotAllowed,
    /// The request was not complete in time.
    Timeout,
    /// The body is too large; or the head, which has status 431.
    TooLarge,
    /// The body is not JSON by its content type.
    UnsupportedMediaType,
    /// The `Host` is none that this server goes by.
    Misdirected,
    /// A field is unknown, of the wrong type or out of its range.
    Invalid,
    /// The access token, or the address, asks more often than it may, or has all the leases it may.
    RateLimited,
    /// No such pool.
    UnknownPool,
    /// No such key: never was, deleted, or purged.
    UnknownKey,
    /// No key is free.
    NoKeyAvailable,
    /// The lease has ended, or never was.
    LeaseEnded,
    /// The lease cannot be made to end later.
    MaxHoldReached,
    /// The Idempotency-Key was used with another body.
    IdempotencyMismatch,
    /// Keys that the Idempotency-Key's answer told of are gone.
    KeysGone,
    /// The same Idempotency-Key was asked again, and that request has this one's place in line.
    TakenOver,
    /// The default pool cannot be removed.
    DefaultPool,
    /// A value to bring in is there already, or was.
    KeyExists,
    /// The server keeps as many pools as it may.
    TooManyPools,
    /// The pool, or the server, keeps as many keys as it may.
    PoolFull,
    /// The server's disk is full.
    StorageFull,
    /// More was asked than there is room for.
    Overloaded,
    /// The server is stopping.
    ShuttingDown,
    /// More is due than the server could settle before it had to answer.
    Settling,
    /// A defect of the server.
    Internal,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 29] = [
        Self::Malformed,
        Self::BadCursor,
        Self::Unauthorized,
        Self::Forbidden,
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
        Self::DefaultPool,
        Self::KeyExists,
        Self::TooManyPools,
        Self::PoolFull,
        Self::StorageFull,
        Self::Overloaded,
        Self::ShuttingDown,
        Self::Settling,
        Self::Internal,
    ];

    /// The table: word, HTTP status, title.
    fn row(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::Malformed => ("malformed", 400, "Malformed request"),
            Self::BadCursor => ("bad_cursor", 400, "Bad cursor"),
            Self::Unauthorized => ("unauthorized", 401, "Access token wanted"),
            Self::Forbidden => ("forbidden", 403, "Forbidden"),
            Self::NotFound => ("not_found", 404, "No such route"),
            Self::UnknownPool => ("unknown_pool", 404, "No such pool"),
            Self::UnknownKey => ("unknown_key", 404, "No such key"),
            Self::NoKeyAvailable => ("no_key_available", 404, "No key available"),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "Method not allowed"),
            Self::Timeout => ("timeout", 408, "Request not complete in time"),
            Self::MaxHoldReached => ("max_hold_reached", 409, "Held as long as allowed"),
            Self::DefaultPool => ("default_pool", 409, "The default pool stays"),
            Self::KeyExists => ("key_exists", 409, "Key exists"),
            Self::TakenOver => ("taken_over", 409, "Taken over by a repeat"),
            Self::KeysGone => ("keys_gone", 410, "Keys gone"),
            Self::LeaseEnded => ("lease_ended", 410, "Lease ended"),
            Self::TooLarge => ("too_large", 413, "Too large"),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", 415, "Unsupported content type")
            }
            Self::Misdirected => ("misdirected", 421, "Not this server's host"),
            Self::RateLimited => ("rate_limited", 429, "Too many requests"),
            Self::Invalid => ("invalid", 422, "Invalid field"),
            Self::IdempotencyMismatch => {
                ("idempotency_mismatch", 422, "Idempotency key used with another body")
            }
            Self::Internal => ("internal", 500, "Internal error"),
            Self::Overloaded => ("overloaded", 503, "Overloaded"),
            Self::ShuttingDown => ("shutting_down", 503, "Shutting down"),
            Self::Settling => ("settling", 503, "Settling"),
            Self::TooManyPools => ("too_many_pools", 507, "Too many pools"),
            Self::PoolFull => ("pool_full", 507, "Pool full"),
            Self::StorageFull => ("storage_full", 507, "Storage full"),
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    /// The HTTP status; [`Code::StorageFull`] is 503 where a key was asked for.
    pub fn status(self) -> u16 {
        self.row().1
    }

    /// A short title.
    pub fn title(self) -> &'static str {
        self.row().2
    }
}

/// Whether a change that failed was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing was changed.
    NotApplied,
    /// It may have been.
    Unknown,
}

/// Problem details: what every error's body is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Problem {
    /// `/problems/<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong.
    pub code: Code,
    /// What went wrong here, for people.
    pub detail: String,
    /// The request's id, as in the `x-request-id` header.
    pub request_id: String,
    /// Of a change: whether it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Members of this code alone.
    #[serde(flatten)]
    pub more: More,
}

/// Members that only some codes have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct More {
    /// Why no key is free, or how a lease ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The scope that the access token lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The field that is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What that field may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// Which of the values exists already, by its place from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// When the lease that cannot be longer ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMs>,
    /// The bound that would be passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Keys free to be lent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<u64>,
    /// Keys lent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leased: Option<u64>,
    /// Keys that are back, but not served yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resting: Option<u64>,
    /// Keys out of rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<u64>,
    /// All keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_own_word_and_reads_back() {
        for (at, code) in Code::ALL.into_iter().enumerate() {
            let word = format!("{:?}", code.as_str());
            assert_eq!(serde_json::to_string(&code).unwrap(), word);
            assert_eq!(serde_json::from_str::<Code>(&word).unwrap(), code);
            assert!(Code::ALL[..at].iter().all(|other| other.as_str() != code.as_str()));
            assert!((400..=507).contains(&code.status()), "{code:?}");
        }
    }

    #[test]
    fn a_problem_is_flat_and_leaves_out_what_it_does_not_have() {
        let problem = Problem {
            kind: "/problems/invalid".into(),
            title: Code::Invalid.title().into(),
            status: Code::Invalid.status(),
            code: Code::Invalid,
            detail: "d".into(),
            request_id: "r".into(),
            outcome: Some(Outcome::NotApplied),
            more: More { field: Some("count".into()), ..More::default() },
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

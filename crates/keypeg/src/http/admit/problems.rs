//! The problems of admission: no token, one that is not valid, a missing scope, a limit.
//!
//! A detail names the next step, and never reveals what exists.

use crate::http::error::Problem;
use keypeg_client::Code;
use std::time::Duration;

impl Problem {
    /// Reports a missing or invalid token; `error` is the RFC 6750, 3.1 code if one was presented.
    pub(super) fn unauthorized(error: Option<&'static str>) -> Self {
        let (detail, challenge) = match error {
            None => (
                "This request needs an access token: send `Authorization: Bearer TOKEN`.",
                "Bearer".into(),
            ),
            Some(error) => (
                "The access token is unknown, expired or revoked: `keypeg token new` creates one.",
                format!("Bearer error=\"{error}\""),
            ),
        };
        Self::new(Code::Unauthorized, detail).challenging(challenge)
    }

    /// Reports a client certificate that gives no access, where the request has no token.
    pub(super) fn unknown_certificate() -> Self {
        let detail = "The names of the client certificate are in no entry of the token file, or it \
                      has expired: add an entry with `certificate = \"NAME\"`, or send \
                      `Authorization: Bearer TOKEN`.";
        Self::new(Code::Unauthorized, detail).challenging("Bearer".into())
    }

    pub(super) fn missing_scope(scope: &'static str) -> Self {
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
        let detail = format!("The access token lacks the scope {scope}, which this request needs.");
        Self::new(Code::Forbidden, detail).of_scope(scope).challenging(challenge)
    }

    /// Reports a pool outside the token's list. The response is the same whether or not the pool
    /// exists.
    pub(super) fn other_pool() -> Self {
        Self::new(Code::Forbidden, "The access token is not valid for this pool.")
            .challenging("Bearer error=\"insufficient_scope\"".into())
    }

    pub(in crate::http) fn rate_limited(detail: &'static str, wait: Duration) -> Self {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        Self::new(Code::RateLimited, detail).retry_after_ms(wait_ms)
    }

    pub(super) fn audit_unavailable() -> Self {
        let detail = "The audit log cannot be written, so the server refuses changes: retry later.";
        Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
    }
}

//! Problems: how a refusal becomes a response.
//!
//! This file owns which refusal has which code, detail text, members and headers. Statuses, titles
//! and the page of each code are a table of keypeg-client. A problem reveals no internals and no
//! secret.

mod known;
mod shards;

use super::message::{Response, after_wait};
use super::origin::RequestId;
use hyper::StatusCode;
use hyper::header::WWW_AUTHENTICATE;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use keypeg_client::{Code, Outcome, Problem as Wire, ProblemExtensions, UnixMs, routes};
use keypeg_core::{EndCause, KeyCounts, NoKeyCause, OutOfRange, Refusal};
use keypeg_fields::{Field, ListField};
use keypeg_store::{BackupRefused, RequestError};
use std::borrow::Cow;
use std::time::Duration;

/// The header that confirms a `Prefer` (RFC 7240).
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

const UNKNOWN_POOL: &str = "There is no pool of this name. Create it with PUT /v1/pools/{pool}.";
const DEFAULT_POOL: &str = "The pool default cannot be deleted. Delete its keys instead.";
const UNKNOWN_KEY: &str =
    "There is no such key in this pool: it never existed, or was deleted or purged.";
const IDEMPOTENCY_MISMATCH: &str =
    "This Idempotency-Key was used before with another body. Use a new one.";
const KEYS_GONE: &str = "Keys that this Idempotency-Key created were deleted or purged. Use a new \
                         Idempotency-Key to create keys.";
const TAKEN_OVER: &str = "A later request with the same Idempotency-Key waits in place of this \
                          one. Use its answer.";
const BAD_CURSOR: &str = "The cursor is invalid or expired. Restart the listing without a cursor.";
const MAX_HOLD_REACHED: &str = "The lease already ends at its maximum hold (see expires_at). \
                                Acquire a new lease instead.";
const SETTLING: &str = "Many keys or leases expire at once. Try again later.";

/// A problem before it is serialised. Boxed, so that a successful result stays small.
#[derive(Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    code: Code,
    status: u16,
    detail: Cow<'static, str>,
    outcome: Option<Outcome>,
    extensions: ProblemExtensions,
    retry_after_s: Option<u64>,
    allow: Option<String>,
    preference_applied: Option<HeaderValue>,
    challenge: Option<String>,
    close: bool,
    /// How long the request waited for a key before it was refused.
    waited: Duration,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            code,
            status: code.status(),
            detail: detail.into(),
            outcome: None,
            extensions: ProblemExtensions::default(),
            retry_after_s: None,
            allow: None,
            preference_applied: None,
            challenge: None,
            close: false,
            waited: Duration::ZERO,
        }))
    }

    pub(super) fn not_found() -> Self {
        Self::new(Code::NotFound, "There is no such route. See /docs for the routes.")
    }

    /// The route is not one of those that the listener for operations serves.
    pub(super) fn not_for_ops() -> Self {
        let detail = "This address serves /livez, /readyz, /metrics and /version only: use the \
                      address of --listen for all other routes.";
        Self::new(Code::NotFound, detail)
    }

    /// The route exists but does not support the method; `allow` lists the methods that it
    /// supports.
    pub(super) fn method_not_allowed(allow: String) -> Self {
        let mut problem =
            Self::new(Code::MethodNotAllowed, format!("This route supports only {allow}."));
        problem.0.allow = Some(allow);
        problem
    }

    /// Returns the problem of a request without a handler: 405 if the route table has its path,
    /// else 404.
    pub(super) fn unrouted(path: &str) -> Self {
        routes::allow(path).map_or_else(Self::not_found, Self::method_not_allowed)
    }

    /// Adds the preference of the request that was applied.
    pub(super) fn applying(mut self, applied: Option<HeaderValue>) -> Self {
        self.0.preference_applied = applied;
        self
    }

    /// Closes the connection after the response, because the next request cannot be located on it.
    pub(super) fn closing(mut self) -> Self {
        self.0.close = true;
        self
    }

    pub(super) fn invalid(field: &str, allowed: impl Into<String>, detail: String) -> Self {
        let mut problem = Self::new(Code::Invalid, detail);
        problem.0.extensions.field = Some(field.into());
        problem.0.extensions.allowed = Some(allowed.into());
        problem
    }

    /// A value of the right type that is not allowed.
    pub(super) fn out_of_range(field: &str, allowed: &str) -> Self {
        Self::invalid(field, allowed, format!("{field} must be {allowed}."))
    }

    /// A value of the right type that the field does not allow.
    pub(super) fn not_allowed(field: Field) -> Self {
        Self::out_of_range(field.name(), &field.to_string())
    }

    /// A value of the wrong type. The detail names the type found but never the value, which may be
    /// a secret.
    pub(super) fn wrong_type(field: &str, allowed: &str, found: &str) -> Self {
        Self::invalid(field, allowed, format!("{field} must be {allowed}, not {found}."))
    }

    /// An item of a list that is not allowed, or that has the wrong type `found`.
    pub(super) fn wrong_item(field: &ListField, index: usize, found: Option<&str>) -> Self {
        let (name, item) = (field.name, field.item);
        let found = found.map(|found| format!(", not {found}")).unwrap_or_default();
        let detail = format!("{name}[{index}] must be {item}{found}.");
        let mut problem = Self::invalid(name, field.to_string(), detail);
        problem.0.extensions.index = u64::try_from(index).ok();
        problem
    }

    /// The limit of event streams is reached.
    pub(super) fn too_many_streams(max: u64) -> Self {
        let detail = format!(
            "The limit of {max} event streams is reached. Close a stream, or try again \
             later."
        );
        Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
    }

    /// A panic: it is unknown whether the change was applied.
    pub(super) fn panicked() -> Self {
        let mut problem = Self::new(
            Code::Internal,
            "The server failed while it handled this request. This is a defect; see the log of the \
             server.",
        );
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }

    /// Converts a refusal of the engine.
    pub(super) fn refused(refusal: &RequestError) -> Self {
        let retry_later =
            |code, detail: &'static str| Self::new(code, detail).retry_after_ms(1_000);
        match refusal {
            RequestError::Refused(denied) => Self::denied(denied),
            RequestError::KeysExist(known) => Self::keys_exist(&known.indices, known.more),
            RequestError::Overloaded => {
                retry_later(Code::Overloaded, "The request queue is full. Try again later.")
            }
            RequestError::ShuttingDown => retry_later(
                Code::ShuttingDown,
                "The server is shutting down. Try again after its restart.",
            ),
            RequestError::StorageFull => Self::new(
                Code::StorageFull,
                "The disk of the server is full. Free disk space, or try again later.",
            ),
            RequestError::NotOwner => Self::not_owner(),
            RequestError::OutcomeUnknown => Self::owner_lost(),
        }
    }

    /// The store of this server has no backups.
    pub(super) fn backup_unsupported() -> Self {
        let detail = "This server keeps its data in memory only, so there is nothing to back up. \
                      Start it with --data.";
        Self::new(Code::BackupUnsupported, detail)
    }

    /// Converts the refusal of a backup.
    pub(super) fn backup_refused(refused: &BackupRefused) -> Self {
        match refused {
            BackupRefused::Running => {
                let detail = "Another backup is running, and a server runs one at a time. Try \
                              again when it has ended.";
                Self::new(Code::BackupRunning, detail).retry_after_ms(10_000)
            }
            BackupRefused::StorageFull => Self::refused(&RequestError::StorageFull),
            BackupRefused::ShuttingDown => Self::refused(&RequestError::ShuttingDown),
            BackupRefused::Failed(why) => {
                tracing::error!(error = %why, "a backup failed");
                Self::new(Code::Internal, "The backup failed; see the log of the server.")
            }
        }
    }

    fn denied(denied: &Refusal) -> Self {
        match *denied {
            Refusal::UnknownPool => Self::new(Code::UnknownPool, UNKNOWN_POOL),
            Refusal::DefaultPool => Self::new(Code::DefaultPool, DEFAULT_POOL),
            Refusal::TooManyPools { max } => {
                let detail = format!("The limit of {max} pools is reached. Delete a pool first.");
                let mut problem = Self::new(Code::TooManyPools, detail);
                problem.0.extensions.max = u64::try_from(max).ok();
                problem
            }
            Refusal::Invalid(OutOfRange { field }) => Self::not_allowed(field),
            Refusal::WaitQueueFull { max } => {
                let detail = format!(
                    "The limit of {max} requests that wait for a key is reached. Try again later."
                );
                Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
            }
            Refusal::TooManyLeases { max } => Self::too_many_leases(max),
            Refusal::PoolFull { max, of_server } => Self::pool_full(max, of_server),
            Refusal::KeyMemoryFull { max } => {
                let detail = format!(
                    "The {max} bytes of memory for keys of this server are full. Delete keys first, \
                     or start the server with a larger --memory."
                );
                Self::new(Code::PoolFull, detail)
            }
            Refusal::MemoryFull { max } => {
                let detail = format!(
                    "The {max} bytes of memory for pools and leases of this server are full. Try \
                     again later, or start the server with a larger --memory."
                );
                Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
            }
            Refusal::KeyExists { index } => {
                Self::keys_exist(&[u32::try_from(index).unwrap_or(u32::MAX)], false)
            }
            Refusal::NoKey { cause, counts, next_hold_end_in_ms } => {
                Self::no_key(cause, counts, next_hold_end_in_ms)
            }
            Refusal::UnknownKey => Self::new(Code::UnknownKey, UNKNOWN_KEY),
            Refusal::IdempotencyMismatch => {
                Self::new(Code::IdempotencyMismatch, IDEMPOTENCY_MISMATCH)
            }
            Refusal::KeysGone => Self::new(Code::KeysGone, KEYS_GONE),
            Refusal::TakenOver => Self::new(Code::TakenOver, TAKEN_OVER),
            Refusal::TooManyAnswers { max, is_share } => {
                let whose = if is_share { "This caller's share of the" } else { "The" };
                let detail = format!(
                    "{whose} limit of {max} stored answers of Idempotency-Keys is reached. Try \
                     again later, or without an Idempotency-Key."
                );
                Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
            }
            Refusal::BadCursor => Self::new(Code::BadCursor, BAD_CURSOR),
            Refusal::LeaseEnded { cause } => Self::lease_ended(cause),
            Refusal::MaxHoldReached { expires_at_ms } => {
                let mut problem = Self::new(Code::MaxHoldReached, MAX_HOLD_REACHED);
                problem.0.extensions.expires_at = Some(UnixMs(expires_at_ms));
                problem
            }
            Refusal::StorageFull => Self::refused(&RequestError::StorageFull),
            Refusal::Settling => Self::new(Code::Settling, SETTLING).retry_after_ms(1_000),
        }
    }

    fn pool_full(max: u64, of_server: bool) -> Self {
        let detail = if of_server {
            format!("The limit of {max} keys on this server is reached. Delete keys first.")
        } else {
            format!(
                "The limit of {max} keys in this pool is reached. Delete keys, or raise max_keys."
            )
        };
        let mut problem = Self::new(Code::PoolFull, detail);
        problem.0.extensions.max = Some(max);
        problem
    }

    /// The problem does not say when one of the leases ends: it can be in another pool, and its
    /// holder can release it at any time.
    fn too_many_leases(max: u32) -> Self {
        let detail = format!(
            "The access token holds or waits for {max} leases, which is its max_leases. Release a \
             lease, or wait until one ends."
        );
        let mut problem = Self::new(Code::RateLimited, detail).retry_after_ms(1_000);
        problem.0.extensions.max = Some(u64::from(max));
        problem
    }

    fn no_key(cause: NoKeyCause, counts: KeyCounts, available_in_ms: Option<u64>) -> Self {
        let detail = match cause {
            NoKeyCause::PoolEmpty => {
                "The pool has no keys. Add some with POST /v1/pools/{pool}/keys."
            }
            NoKeyCause::AllLeased => "All keys are leased. Try again later, or send wait_seconds.",
            NoKeyCause::AllResting => {
                "All keys are resting. Try again later, or send wait_seconds."
            }
            NoKeyCause::AllQuarantined => "All keys are quarantined. Put one of them back.",
            NoKeyCause::NoneFree => "No key is available. Try again later, or send wait_seconds.",
            NoKeyCause::Draining => {
                "The pool is draining and grants no key. To end that, send {\"draining\": false} \
                 with PUT /v1/pools/{pool}."
            }
        };
        let mut problem = Self::new(Code::NoKeyAvailable, detail);
        problem.0.extensions = ProblemExtensions {
            cause: Some(cause.as_str().into()),
            available: Some(counts.available),
            leased: Some(counts.leased),
            resting: Some(counts.resting),
            quarantined: Some(counts.quarantined),
            total: Some(counts.total()),
            ..ProblemExtensions::default()
        };
        match available_in_ms {
            Some(ms) => problem.retry_after_ms(ms),
            None => problem,
        }
    }

    /// A lease that has ended, or never existed.
    pub(super) fn lease_ended(cause: Option<EndCause>) -> Self {
        let cause = cause.map(|cause| match cause {
            EndCause::Released => ("released", "The lease was released. Acquire a new one."),
            EndCause::Expired => ("expired", "The lease has expired. Acquire a new one."),
            EndCause::Superseded => (
                "superseded",
                "The lease has ended, and another holder has the key. Acquire a new one.",
            ),
            EndCause::KeyGone => {
                ("key_gone", "The key of the lease was deleted or purged. Acquire a new lease.")
            }
        });
        let detail = cause.map_or(
            "There is no such lease, or it has ended. Acquire a new one.",
            |(_, detail)| detail,
        );
        let mut problem = Self::new(Code::LeaseEnded, detail);
        problem.0.extensions.cause = cause.map(|(cause, _)| cause.into());
        problem
    }

    /// Marks the problem of a later part of a change: the parts before it are applied.
    pub(super) fn after_a_part(mut self) -> Self {
        self.0.outcome = Some(Outcome::Unknown);
        self
    }

    /// Marks the problem of an acquire: nothing was applied, although the method can be GET, and a
    /// full disk is 503 because a grant can succeed later.
    pub(super) fn of_grant(mut self) -> Self {
        self.0.outcome.get_or_insert(Outcome::NotApplied);
        if self.0.code == Code::StorageFull {
            self.0.status = 503;
            return self.retry_after_ms(1_000);
        }
        self
    }

    /// Sets the `WWW-Authenticate` header (RFC 6750, 3).
    pub(super) fn challenging(mut self, challenge: String) -> Self {
        self.0.challenge = Some(challenge);
        self
    }

    /// Names the scope that the token lacks.
    pub(super) fn of_scope(mut self, scope: &str) -> Self {
        self.0.extensions.scope = Some(scope.into());
        self
    }

    /// Notes how long the request waited for a key before it was refused.
    pub(super) fn after_wait(mut self, waited: Duration) -> Self {
        self.0.waited = waited;
        self
    }

    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).expect("invariant: the table contains valid statuses")
    }

    /// Returns another response in place of a problem with this code.
    pub(super) fn instead_of(
        self,
        code: Code,
        response: impl FnOnce() -> Response,
    ) -> Result<Response, Self> {
        if self.0.code == code { Ok(response()) } else { Err(self) }
    }

    pub(super) fn retry_after_ms(mut self, ms: u64) -> Self {
        self.0.retry_after_s = Some(ms.div_ceil(1_000));
        self
    }

    /// Sets the status with which hyper rejected an unreadable head: nothing was applied.
    pub(super) fn unread(mut self, status: StatusCode) -> Self {
        self.0.status = status.as_u16();
        self
    }

    /// Serialises the body only.
    pub(super) fn into_body(self, request_id: RequestId, change: bool) -> Vec<u8> {
        let Parts { code, status, detail, outcome, extensions, .. } = *self.0;
        // An acquire by GET sets the outcome, because the method does not show the change.
        let is_acquire = outcome == Some(Outcome::NotApplied);
        let problem = Wire {
            kind: routes::problem(code),
            title: code.title().into(),
            status,
            code,
            detail: detail.into(),
            request_id: request_id.to_string(),
            outcome: (change || is_acquire).then_some(outcome.unwrap_or(Outcome::NotApplied)),
            extensions,
        };
        serde_json::to_vec(&problem).expect("invariant: wire types always serialise")
    }

    /// Builds the response; `change` says whether the request would have changed something.
    pub(super) fn into_response(mut self, request_id: RequestId, change: bool) -> Response {
        let status = self.status();
        let Parts { retry_after_s, close, waited, .. } = *self.0;
        let allow = self.0.allow.take();
        let preference_applied = self.0.preference_applied.take();
        let challenge = self.0.challenge.take();
        let mut response = Response::new(self.into_body(request_id, change).into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = allow {
            headers.insert(
                ALLOW,
                HeaderValue::try_from(allow)
                    .expect("invariant: an Allow header consists of method names"),
            );
        }
        if let Some(challenge) = challenge {
            let challenge = HeaderValue::try_from(challenge);
            headers.insert(
                WWW_AUTHENTICATE,
                challenge.expect("invariant: a challenge consists of words and quotes"),
            );
        }
        if let Some(preference) = preference_applied {
            headers.insert(PREFERENCE_APPLIED, preference);
        }
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        after_wait(response, waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "Not applied" after a part of a change would let a client drop what was applied.
    #[test]
    fn the_outcome_of_a_later_part_of_a_change_is_unknown() {
        let outcome = |problem: Problem| {
            let id = RequestId { run_id: 1, core: 0, sequence: 1 };
            let body: serde_json::Value = serde_json::from_slice(&problem.into_body(id, true))
                .expect("a body of this server");
            body["outcome"].clone()
        };
        let full = || Problem::refused(&RequestError::StorageFull);
        assert_eq!(outcome(full()), "not_applied");
        assert_eq!(outcome(full().after_a_part()), "unknown");
        assert_eq!(outcome(Problem::panicked()), "unknown");
    }
}

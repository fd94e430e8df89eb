//! Problems: how a refusal becomes an answer.
//!
//! The codes' statuses and titles are keypeg-client's one table; here is which refusal has which
//! code, what it says to people, and what goes beside it. A problem says nothing of the inside.

use super::{Answered, RequestId, Response};
use hyper::StatusCode;
use hyper::header::WWW_AUTHENTICATE;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use keypeg_client::{Code, More, Outcome, Problem as Wire, UnixMs};
use keypeg_engine::RequestError;
use keypeg_engine::core::{EndCause, KeyCounts, NoKeyCause, OutOfRange, Refusal};
use keypeg_engine::feed::SUBSCRIBERS_MAX;
use std::borrow::Cow;

/// RFC 7240.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Why a request gets no other answer. Boxed: the answers that are not problems stay small.
#[derive(Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    code: Code,
    status: u16,
    detail: Cow<'static, str>,
    outcome: Option<Outcome>,
    more: More,
    retry_after_s: Option<u64>,
    allow: Option<String>,
    applied: Option<HeaderValue>,
    challenge: Option<String>,
    close: bool,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            code,
            status: code.status(),
            detail: detail.into(),
            outcome: None,
            more: More::default(),
            retry_after_s: None,
            allow: None,
            applied: None,
            challenge: None,
            close: false,
        }))
    }

    pub(super) fn not_found() -> Self {
        Self::new(Code::NotFound, "There is no such route.")
    }

    /// The route is there, the method is not; `allow` is what it has.
    pub(super) fn method_not_allowed(allow: String) -> Self {
        let mut problem =
            Self::new(Code::MethodNotAllowed, format!("This route's methods: {allow}."));
        problem.0.allow = Some(allow);
        problem
    }

    /// Tells which preference of the request was met.
    pub(super) fn applying(mut self, applied: Option<HeaderValue>) -> Self {
        self.0.applied = applied;
        self
    }

    /// Ends the connection after the answer: what follows on it cannot be told apart.
    pub(super) fn closing(mut self) -> Self {
        self.0.close = true;
        self
    }

    pub(super) fn invalid(field: &str, allowed: impl Into<String>, detail: String) -> Self {
        let mut problem = Self::new(Code::Invalid, detail);
        problem.0.more.field = Some(field.into());
        problem.0.more.allowed = Some(allowed.into());
        problem
    }

    /// A value of the right type that may not be.
    pub(super) fn out_of_range(field: &str, allowed: &str) -> Self {
        Self::invalid(field, allowed, format!("{field} must be {allowed}."))
    }

    /// As many follow pools as may.
    pub(super) fn too_many_followers() -> Self {
        let detail = format!("{SUBSCRIBERS_MAX} follow events, which is as many as may.");
        Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
    }

    /// A panic: whether the change was made is not known.
    pub(super) fn panicked() -> Self {
        let mut problem = Self::new(Code::Internal, "The server failed at this request.");
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }

    /// What an engine's refusal is to a client.
    pub(super) fn refused(refusal: &RequestError) -> Self {
        let again = |code, detail: &'static str| Self::new(code, detail).retry_after_ms(1_000);
        match refusal {
            RequestError::Refused(denied) => Self::denied(denied),
            RequestError::Overloaded => {
                again(Code::Overloaded, "More is asked than there is room for.")
            }
            RequestError::ShuttingDown => again(Code::ShuttingDown, "The server is stopping."),
            RequestError::StorageFull => Self::new(Code::StorageFull, "The server's disk is full."),
        }
    }

    fn denied(denied: &Refusal) -> Self {
        match *denied {
            Refusal::UnknownPool => Self::new(Code::UnknownPool, "There is no pool of this name."),
            Refusal::DefaultPool => Self::new(Code::DefaultPool, "The default pool always exists."),
            Refusal::TooManyPools { max } => {
                let mut problem =
                    Self::new(Code::TooManyPools, format!("The server keeps {max} pools at most."));
                problem.0.more.max = u64::try_from(max).ok();
                problem
            }
            Refusal::Invalid(OutOfRange { field, allowed }) => Self::out_of_range(field, allowed),
            Refusal::WaitQueueFull { max } => {
                let detail = format!("{max} requests wait for keys, which is as many as may.");
                Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
            }
            Refusal::TooManyLeases { max } => Self::too_many_leases(max),
            Refusal::PoolFull { max, of_server } => {
                let whose = if of_server { "server" } else { "pool" };
                let mut problem =
                    Self::new(Code::PoolFull, format!("The {whose} keeps {max} keys at most."));
                problem.0.more.max = Some(max);
                problem
            }
            Refusal::KeyExists { index } => Self::key_exists(index),
            Refusal::NoKey { cause, counts, next_hold_end_in_ms } => {
                Self::no_key(cause, counts, next_hold_end_in_ms)
            }
            Refusal::UnknownKey => {
                Self::new(Code::UnknownKey, "There is no such key: deleted, purged, or never made.")
            }
            Refusal::IdempotencyMismatch => {
                let detail = "This Idempotency-Key was used with another body: use another key.";
                Self::new(Code::IdempotencyMismatch, detail)
            }
            Refusal::KeysGone => {
                let detail = "Keys that this Idempotency-Key's answer told of are gone.";
                Self::new(Code::KeysGone, detail)
            }
            Refusal::TakenOver => {
                let detail = "The same Idempotency-Key was asked again, and that request waits on \
                              in this one's place.";
                Self::new(Code::TakenOver, detail)
            }
            Refusal::TooManyAnswers { max } => {
                let detail = format!("{max} answers of Idempotency-Keys are kept, which is all.");
                Self::new(Code::Overloaded, detail).retry_after_ms(1_000)
            }
            Refusal::BadCursor => {
                let detail = "The cursor is of no listing of this pool that goes on: begin anew.";
                Self::new(Code::BadCursor, detail)
            }
            Refusal::LeaseEnded { cause } => Self::lease_ended(cause),
            Refusal::MaxHoldReached { expires_at_ms } => {
                let detail = "The lease ends when the longest hold is over, and no later.";
                let mut problem = Self::new(Code::MaxHoldReached, detail);
                problem.0.more.expires_at = Some(UnixMs(expires_at_ms));
                problem
            }
            Refusal::Settling => {
                Self::new(Code::Settling, "Many keys are due at once.").retry_after_ms(1_000)
            }
        }
    }

    /// Tells which value by its place: the value itself is a secret.
    fn key_exists(at: usize) -> Self {
        let detail =
            format!("values[{at}] is in the pool, or was, or comes twice: not used again.");
        let mut problem = Self::new(Code::KeyExists, detail);
        problem.0.more.index = u64::try_from(at).ok();
        problem
    }

    /// When one of them ends is not told: it may be in another pool, and whoever has it can release
    /// it at once.
    fn too_many_leases(max: u32) -> Self {
        let detail = format!(
            "The access token has {max} leases, its max_leases, those it waits for among them: \
             release one, or wait until one ends."
        );
        let mut problem = Self::new(Code::RateLimited, detail).retry_after_ms(1_000);
        problem.0.more.max = Some(u64::from(max));
        problem
    }

    fn no_key(cause: NoKeyCause, counts: KeyCounts, back_in_ms: Option<u64>) -> Self {
        let (cause, detail) = match cause {
            NoKeyCause::PoolEmpty => ("pool_empty", "The pool has no keys."),
            NoKeyCause::AllLeased => ("all_leased", "All keys are leased."),
            NoKeyCause::AllResting => ("all_resting", "All keys are resting."),
            NoKeyCause::AllQuarantined => ("all_quarantined", "All keys are out of rotation."),
            NoKeyCause::NoneFree => ("none_free", "No key is free."),
        };
        let mut problem = Self::new(Code::NoKeyAvailable, detail);
        problem.0.more = More {
            cause: Some(cause.into()),
            available: Some(counts.available),
            leased: Some(counts.leased),
            resting: Some(counts.resting),
            quarantined: Some(counts.quarantined),
            total: Some(counts.total()),
            ..More::default()
        };
        match back_in_ms {
            Some(ms) => problem.retry_after_ms(ms),
            None => problem,
        }
    }

    /// A lease that ended, or never was.
    pub(super) fn lease_ended(cause: Option<EndCause>) -> Self {
        let cause = cause.map(|cause| match cause {
            EndCause::Released => ("released", "The lease was released."),
            EndCause::Expired => ("expired", "The lease's time is over."),
            EndCause::Superseded => ("superseded", "The lease is over; somebody has the key now."),
            EndCause::KeyGone => ("key_gone", "The lease's key is gone."),
        });
        let detail = cause.map_or("There is no such lease, or no longer.", |(_, detail)| detail);
        let mut problem = Self::new(Code::LeaseEnded, detail);
        problem.0.more.cause = cause.map(|(cause, _)| cause.into());
        problem
    }

    /// Says that nothing was changed, where the method alone does not tell that it was a change.
    pub(super) fn of_grant(mut self) -> Self {
        self.0.outcome.get_or_insert(Outcome::NotApplied);
        if self.0.code == Code::StorageFull {
            self.0.status = 503;
            return self.retry_after_ms(1_000);
        }
        self
    }

    /// Tells how to be let in, see RFC 6750, 3.
    pub(super) fn challenging(mut self, challenge: String) -> Self {
        self.0.challenge = Some(challenge);
        self
    }

    /// Names the scope that is lacking.
    pub(super) fn of_scope(mut self, scope: &str) -> Self {
        self.0.more.scope = Some(scope.into());
        self
    }

    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).expect("invariant: the table holds statuses")
    }

    /// Gives another answer in place of a problem with this code.
    pub(super) fn instead_of(self, code: Code, own: impl FnOnce() -> Response) -> Answered {
        if self.0.code == code { Ok(own()) } else { Err(self) }
    }

    pub(super) fn retry_after_ms(mut self, ms: u64) -> Self {
        self.0.retry_after_s = Some(ms.div_ceil(1_000));
        self
    }

    /// A head that could not be read, which was refused with this status: nothing was changed.
    pub(super) fn unread(mut self, status: StatusCode) -> Self {
        self.0.status = status.as_u16();
        self
    }

    /// Makes the answer's body alone.
    pub(super) fn into_body(self, request_id: RequestId, change: bool) -> Vec<u8> {
        let Parts { code, status, detail, outcome, more, .. } = *self.0;
        let grants = outcome == Some(Outcome::NotApplied);
        let problem = Wire {
            kind: format!("/problems/{}", code.as_str()),
            title: code.title().into(),
            status,
            code,
            detail: detail.into(),
            request_id: request_id.to_string(),
            outcome: (change || grants).then_some(outcome.unwrap_or(Outcome::NotApplied)),
            more,
        };
        serde_json::to_vec(&problem).expect("invariant: wire types always serialise")
    }

    /// Makes the answer; `change` tells that the request would have changed something.
    pub(super) fn into_response(mut self, request_id: RequestId, change: bool) -> Response {
        let status = self.status();
        let Parts { retry_after_s, close, .. } = *self.0;
        let (allow, applied) = (self.0.allow.take(), self.0.applied.take());
        let challenge = self.0.challenge.take();
        let mut response = Response::new(self.into_body(request_id, change).into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = allow {
            headers
                .insert(ALLOW, HeaderValue::try_from(allow).expect("invariant: names of methods"));
        }
        if let Some(challenge) = challenge {
            let challenge = HeaderValue::try_from(challenge);
            headers.insert(WWW_AUTHENTICATE, challenge.expect("invariant: words and quotes"));
        }
        if let Some(applied) = applied {
            headers.insert(PREFERENCE_APPLIED, applied);
        }
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

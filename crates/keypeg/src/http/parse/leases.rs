//! The arguments of the lease routes: acquire, release, renew.
//!
//! Both paths use these readers, so both refuse the same requests.

use super::body::{Fields, KnownFields, REST};
use super::idempotency;
use super::prefer;
use crate::http::error::Problem;
use crate::http::message::Request;
use hyper::header::HeaderValue;
use keypeg_core::ReleaseOptions;
use keypeg_store::{AcquireTerms, Idempotency, WAIT_MAX_MS};

pub(crate) const ACQUIRE_FIELDS: KnownFields = &["ttl_seconds", "wait_seconds", "holder"];
pub(crate) const RELEASE_FIELDS: KnownFields = &["rest_seconds", "quarantine", "reason"];
pub(crate) const RENEW_FIELDS: KnownFields = &["ttl_seconds"];
const TTL: &str = "0.001..lease_ttl_seconds of the pool";
const WAIT: &str = "0..300";
const HOLDER: &str = "at most 128 printable characters";
const HOLDER_MAX: usize = 128;
const REASON: &str = "at most 256 printable characters";
const REASON_MAX: usize = 256;

/// The arguments of an acquire.
pub(crate) struct AcquireArgs {
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
    wait: Wait,
}

/// Reads the arguments of an acquire from its headers and body.
pub(crate) async fn read_acquire(
    request: Request,
) -> Result<(Option<Idempotency>, AcquireArgs), Problem> {
    let key = idempotency::header(request.headers())?;
    let preferred = prefer::wait_s(request.headers());
    let fields = Fields::read(request, ACQUIRE_FIELDS).await?;
    let key = idempotency::with_body(key, &fields);
    let acquire = AcquireArgs::of(fields)?;
    let wait = match (acquire.wait, preferred) {
        (Wait::Unset, Some(seconds)) => Wait::Preferred { seconds },
        (wait, _) => wait,
    };
    Ok((key, AcquireArgs { wait, ..acquire }))
}

impl AcquireArgs {
    /// Reads the arguments from the body's fields.
    pub(crate) fn of(mut fields: Fields) -> Result<Self, Problem> {
        let ttl_ms = fields.seconds("ttl_seconds", TTL)?;
        let wait_ms = fields.seconds("wait_seconds", WAIT)?;
        if wait_ms.is_some_and(|ms| ms > WAIT_MAX_MS) {
            return Err(Problem::out_of_range("wait_seconds", WAIT));
        }
        let holder = fields.text("holder", HOLDER)?;
        if holder.as_deref().is_some_and(|holder| !is_printable(holder, HOLDER_MAX)) {
            return Err(Problem::out_of_range("holder", HOLDER));
        }
        // An empty holder counts as absent: the journal has one encoding for both.
        let holder = holder.filter(|holder| !holder.is_empty()).map(String::into_boxed_str);
        let wait = wait_ms.map_or(Wait::Unset, |ms| Wait::Field { ms });
        Ok(Self { ttl_ms, holder, wait })
    }

    /// Returns the value of the header that reports the effect of `Prefer: wait`.
    pub(crate) fn preference_applied(&self) -> Option<HeaderValue> {
        self.wait.preference_applied()
    }

    /// Returns the terms that the store receives.
    pub(crate) fn into_terms(self) -> AcquireTerms {
        let Self { ttl_ms, holder, wait } = self;
        AcquireTerms { ttl_ms, holder, wait_ms: wait.ms() }
    }
}

/// How long an acquire waits for a key, and where that is given.
#[derive(Clone, Copy)]
enum Wait {
    /// Not given: the acquire does not wait.
    Unset,
    /// The body's `wait_seconds`.
    Field { ms: u64 },
    /// The header `Prefer: wait`, whose effect the response reports.
    Preferred { seconds: u64 },
}

impl Wait {
    /// Returns the wait in milliseconds; a preference beyond the longest wait is shortened to it.
    fn ms(self) -> u64 {
        match self {
            Self::Unset => 0,
            Self::Field { ms } => ms,
            Self::Preferred { seconds } => seconds.saturating_mul(1_000).min(WAIT_MAX_MS),
        }
    }

    /// Returns the value of `Preference-Applied` (RFC 7240, 3).
    fn preference_applied(self) -> Option<HeaderValue> {
        let Self::Preferred { .. } = self else { return None };
        let applied = format!("wait={}", self.ms() / 1_000);
        Some(HeaderValue::try_from(applied).expect("invariant: letters and digits"))
    }
}

fn is_printable(text: &str, max: usize) -> bool {
    text.chars().count() <= max && !text.chars().any(char::is_control)
}

/// Reads the options of a release.
pub(crate) fn release_options(mut fields: Fields) -> Result<ReleaseOptions, Problem> {
    let rest_ms = fields.seconds("rest_seconds", REST)?;
    let quarantine = fields.boolean("quarantine")?.unwrap_or(false);
    let reason = fields.text("reason", REASON)?;
    if reason.as_deref().is_some_and(|reason| !is_printable(reason, REASON_MAX)) {
        return Err(Problem::out_of_range("reason", REASON));
    }
    Ok(ReleaseOptions { rest_ms, quarantine, reason: reason.map(String::into_boxed_str) })
}

/// Reads the TTL that a renewal requests, in milliseconds.
pub(crate) fn renew_ttl(mut fields: Fields) -> Result<Option<u64>, Problem> {
    fields.seconds("ttl_seconds", TTL)
}

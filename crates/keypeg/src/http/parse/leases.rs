//! The arguments of the lease routes: acquire, release, renew.
//!
//! Both paths use these readers, so both refuse the same requests.

use super::body;
use super::idempotency;
use super::members::{BodyFields, Member};
use super::prefer;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use hyper::header::HeaderValue;
use keypeg_core::ReleaseOptions;
use keypeg_fields::{HOLDER, QUARANTINE, REASON, REST, TTL, WAIT};
use keypeg_store::{AcquireTerms, Idempotency, WAIT_MAX_MS};

/// The body of an acquire.
#[derive(Debug, Default)]
pub(crate) struct AcquireBody {
    ttl_ms: Option<u64>,
    wait_ms: Option<u64>,
    holder: Option<Box<str>>,
}

impl BodyFields for AcquireBody {
    const MEMBERS: &'static [Member<Self>] = &[
        Member::Ms(&TTL, |body| &mut body.ttl_ms),
        Member::Ms(&WAIT, |body| &mut body.wait_ms),
        Member::Text(&HOLDER, |body| &mut body.holder),
    ];
}

/// The body of a release.
#[derive(Debug, Default)]
pub(crate) struct ReleaseBody {
    rest_ms: Option<u64>,
    quarantine: Option<bool>,
    reason: Option<Box<str>>,
}

impl BodyFields for ReleaseBody {
    const MEMBERS: &'static [Member<Self>] = &[
        Member::Ms(&REST, |body| &mut body.rest_ms),
        Member::Flag(&QUARANTINE, |body| &mut body.quarantine),
        Member::Text(&REASON, |body| &mut body.reason),
    ];
}

impl ReleaseBody {
    /// Returns the options of the release.
    pub(crate) fn into_options(self) -> ReleaseOptions {
        let Self { rest_ms, quarantine, reason } = self;
        ReleaseOptions { rest_ms, quarantine: quarantine.unwrap_or(false), reason }
    }
}

/// The body of a renewal.
#[derive(Debug, Default)]
pub(crate) struct RenewBody {
    /// The requested TTL in milliseconds.
    pub(crate) ttl_ms: Option<u64>,
}

impl BodyFields for RenewBody {
    const MEMBERS: &'static [Member<Self>] = &[Member::Ms(&TTL, |body| &mut body.ttl_ms)];
}

/// The arguments of an acquire.
pub(crate) struct AcquireArgs {
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
    wait: Wait,
}

/// Reads the arguments of an acquire from its headers and body.
pub(crate) async fn read_acquire(
    context: &RequestContext<'_>,
    request: Request,
) -> Result<(Option<Idempotency>, AcquireArgs), Problem> {
    let key = idempotency::header(request.headers())?;
    let preferred = prefer::wait_s(request.headers());
    let mut body: AcquireBody = body::read(context, request).await?;
    let key = idempotency::with_body(key, &mut body);
    let acquire = AcquireArgs::of(body);
    let wait = match (acquire.wait, preferred) {
        (Wait::Unset, Some(seconds)) => Wait::Preferred { seconds },
        (wait, _) => wait,
    };
    Ok((key, AcquireArgs { wait, ..acquire }))
}

impl AcquireArgs {
    /// Takes the arguments from the body.
    pub(crate) fn of(AcquireBody { ttl_ms, wait_ms, holder }: AcquireBody) -> Self {
        // An empty holder counts as absent: the journal has one encoding for both.
        let holder = holder.filter(|holder| !holder.is_empty());
        let wait = wait_ms.map_or(Wait::Unset, |ms| Wait::Field { ms });
        Self { ttl_ms, holder, wait }
    }

    /// Shortens the wait by what the request has waited before, at a server that then lost the pool.
    pub(crate) fn after_waiting(self, waited_ms: u64) -> Self {
        let wait = match self.wait {
            Wait::Unset => Wait::Unset,
            wait @ (Wait::Field { .. } | Wait::Preferred { .. }) => {
                Wait::Field { ms: wait.ms().saturating_sub(waited_ms) }
            }
        };
        Self { wait, ..self }
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

//! The lease routes: acquire, release, renew.
//!
//! The readers of request bodies are shared with the fast path, so both refuse the same requests.

use super::body::{Fields, KnownFields, REST};
use super::error::{PREFERENCE_APPLIED, Problem};
use super::idempotency::{self, KeyAndDigest};
use super::prefer;
use super::{
    HandlerResult, REPLY_VARIANT, Request, RequestContext, json_response, no_content, pool_name,
};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{KeyId, LeaseId, LeaseView, PoolName, ReleaseOptions, Secret};
use keypeg_store::{Call, Reply, WAIT_MAX_MS};
use serde::{Serialize, Serializer};

pub(super) const ACQUIRE_FIELDS: KnownFields = &["ttl_seconds", "wait_seconds", "holder"];
pub(super) const RELEASE_FIELDS: KnownFields = &["rest_seconds", "quarantine", "reason"];
pub(super) const RENEW_FIELDS: KnownFields = &["ttl_seconds"];
const TTL: &str = "0.001..lease_ttl_seconds of the pool";
const WAIT: &str = "0..300";
const HOLDER: &str = "at most 128 printable characters";
const HOLDER_MAX: usize = 128;
const REASON: &str = "at most 256 printable characters";
const REASON_MAX: usize = 256;

/// Acquires a random available key under a lease.
pub(super) async fn acquire(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let (key, acquire) = context.or_unknown_pool(&pool, read_acquire(request).await).await?;
    let wait = acquire.wait;
    let reply = context.execute(idempotency::with_key(key, acquire.into_call(pool))).await;
    let reply = reply.map_err(|problem| problem.of_grant().applying(wait.preference_applied()))?;
    let mut response = json_response(StatusCode::CREATED, &LeaseGrant::of(reply).to_wire());
    if let Some(applied) = wait.preference_applied() {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// A granted lease and its key's value.
pub(super) struct LeaseGrant {
    pool: PoolName,
    lease: Box<LeaseView>,
    value: Secret,
    waited_ms: u64,
}

/// The arguments of an acquire.
pub(super) struct AcquireArgs {
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
    wait: Wait,
}

async fn read_acquire(request: Request) -> Result<(Option<KeyAndDigest>, AcquireArgs), Problem> {
    let key = idempotency::header(request.headers())?;
    let preferred = prefer::wait_s(request.headers());
    let fields = Fields::read(request, ACQUIRE_FIELDS).await?;
    let key = KeyAndDigest::of(key, &fields);
    let acquire = AcquireArgs::of(fields)?;
    let wait = match (acquire.wait, preferred) {
        (Wait::Unset, Some(seconds)) => Wait::Preferred { seconds },
        (wait, _) => wait,
    };
    Ok((key, AcquireArgs { wait, ..acquire }))
}

impl AcquireArgs {
    /// Reads the arguments from the body's fields.
    pub(super) fn of(mut fields: Fields) -> Result<Self, Problem> {
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

    /// Returns the engine's call.
    pub(super) fn into_call(self, pool: PoolName) -> Call {
        let Self { ttl_ms, holder, wait } = self;
        Call::Acquire { pool, ttl_ms, holder, wait_ms: wait.ms() }
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

/// Releases a lease, optionally with a rest or a quarantine for its key.
pub(super) async fn release(
    context: &RequestContext<'_>,
    pool: &str,
    lease: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let parsed = Fields::read(request, RELEASE_FIELDS).await.and_then(|fields| {
        let verdict = release_options(fields)?;
        Ok((lease_id(lease)?, verdict))
    });
    let (lease, verdict) = context.or_unknown_pool(&pool, parsed).await?;
    let Reply::Done = context.execute(Call::Release { pool, lease, verdict }).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    context.audit_lease(lease.token());
    Ok(no_content())
}

/// Reads the options of a release.
pub(super) fn release_options(mut fields: Fields) -> Result<ReleaseOptions, Problem> {
    let rest_ms = fields.seconds("rest_seconds", REST)?;
    let quarantine = fields.boolean("quarantine")?.unwrap_or(false);
    let reason = fields.text("reason", REASON)?;
    if reason.as_deref().is_some_and(|reason| !is_printable(reason, REASON_MAX)) {
        return Err(Problem::out_of_range("reason", REASON));
    }
    Ok(ReleaseOptions { rest_ms, quarantine, reason: reason.map(String::into_boxed_str) })
}

/// Renews a lease.
pub(super) async fn renew(
    context: &RequestContext<'_>,
    pool: &str,
    lease: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let parsed = Fields::read(request, RENEW_FIELDS).await.and_then(|fields| {
        let ttl_ms = renew_ttl(fields)?;
        Ok((ttl_ms, lease_id(lease)?))
    });
    let (ttl_ms, lease) = context.or_unknown_pool(&pool, parsed).await?;
    let reply = context.execute(Call::Renew { pool: pool.clone(), lease, ttl_ms }).await?;
    Ok(json_response(StatusCode::OK, &renewed_lease(&pool, reply)))
}

/// Reads the TTL that a renewal requests, in milliseconds.
pub(super) fn renew_ttl(mut fields: Fields) -> Result<Option<u64>, Problem> {
    fields.seconds("ttl_seconds", TTL)
}

/// Parses a lease id from a path. An invalid id is reported as an ended lease.
pub(super) fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    LeaseId::parse(text).ok_or_else(|| Problem::lease_ended(None))
}

impl LeaseGrant {
    /// Takes the grant from an acquire's reply.
    pub(super) fn of(reply: Reply) -> Self {
        let Reply::Granted { pool, lease, value, waited_ms, .. } = reply else {
            unreachable!("{REPLY_VARIANT}")
        };
        Self { pool, lease, value, waited_ms }
    }

    /// Returns the call that revokes the grant if the client did not receive it.
    pub(super) fn revoke_call(&self) -> Call {
        Call::RevokeUndelivered { pool: self.pool.clone(), lease: self.lease.id }
    }

    /// Returns the grant as its wire type, without copying text.
    pub(super) fn to_wire(&self) -> wire::Grant<WireText<'_>> {
        let Self { pool, lease, value, waited_ms } = self;
        wire::Grant {
            id: WireText::Lease(lease.id),
            pool: WireText::Text(pool.as_str()),
            key_id: WireText::Key(lease.key_id),
            key: wire::Secret(WireText::Text(value.reveal())),
            fencing_token: lease.token,
            holder: lease.holder.as_deref().map(WireText::Text),
            granted_at: UnixMs(lease.granted_at_ms),
            waited_seconds: Seconds::from_ms(*waited_ms),
            expires_at: UnixMs(lease.expires_at_ms),
            expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
            key_expires_at: lease.key_expires_at_ms.map(UnixMs),
        }
    }
}

/// A value that is serialised as text, without allocating a string first.
pub(super) enum WireText<'a> {
    Lease(LeaseId),
    Key(KeyId),
    Text(&'a str),
}

impl Serialize for WireText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lease(id) => serializer.collect_str(id),
            Self::Key(id) => serializer.collect_str(id),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// Returns a renewed lease as its wire type.
pub(super) fn renewed_lease(pool: &PoolName, reply: Reply) -> wire::Lease {
    let Reply::Renewed(lease) = reply else { unreachable!("{REPLY_VARIANT}") };
    wire::Lease {
        id: lease.id.to_string(),
        pool: pool.as_str().into(),
        key_id: lease.key_id.to_string(),
        fencing_token: lease.token,
        holder: lease.holder.map(Into::into),
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
        expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
        key_expires_at: lease.key_expires_at_ms.map(UnixMs),
    }
}

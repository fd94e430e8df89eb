//! The lease routes: acquire, release, renew.

use crate::http::admit::{REPLY_VARIANT, RequestContext};
use crate::http::error::PREFERENCE_APPLIED;
use crate::http::message::Request;
use crate::http::parse::body::Fields;
use crate::http::parse::idempotency;
use crate::http::parse::leases::{RELEASE_FIELDS, RENEW_FIELDS, read_acquire};
use crate::http::parse::leases::{release_options, renew_ttl};
use crate::http::parse::path::{lease_id, pool_name};
use crate::http::respond::{HandlerResult, json_response, no_content};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_engine::core::{KeyId, LeaseId, LeaseView, PoolName, Secret};
use keypeg_engine::{Call, Reply};
use serde::{Serialize, Serializer};

/// Acquires a random available key under a lease.
pub(crate) async fn acquire(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let (key, acquire) = context.or_unknown_pool(&pool, read_acquire(request).await).await?;
    let applied = acquire.preference_applied();
    let reply = context.execute(idempotency::with_key(key, acquire.into_call(pool))).await;
    let reply = reply.map_err(|problem| problem.of_grant().applying(applied.clone()))?;
    let mut response = json_response(StatusCode::CREATED, &LeaseGrant::of(reply).to_wire());
    if let Some(applied) = applied {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// A granted lease and its key's value.
pub(crate) struct LeaseGrant {
    pool: PoolName,
    lease: Box<LeaseView>,
    value: Secret,
    waited_ms: u64,
}

/// Releases a lease, optionally with a rest or a quarantine for its key.
pub(crate) async fn release(
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

/// Renews a lease.
pub(crate) async fn renew(
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

impl LeaseGrant {
    /// Takes the grant from an acquire's reply.
    pub(crate) fn of(reply: Reply) -> Self {
        let Reply::Granted { pool, lease, value, waited_ms, .. } = reply else {
            unreachable!("{REPLY_VARIANT}")
        };
        Self { pool, lease, value, waited_ms }
    }

    /// Returns the call that revokes the grant if the client did not receive it.
    pub(crate) fn revoke_call(&self) -> Call {
        Call::RevokeUndelivered { pool: self.pool.clone(), lease: self.lease.id }
    }

    /// Returns the grant as its wire type, without copying text.
    pub(crate) fn to_wire(&self) -> wire::Grant<WireText<'_>> {
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
pub(crate) enum WireText<'a> {
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
pub(crate) fn renewed_lease(pool: &PoolName, reply: Reply) -> wire::Lease {
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

//! The lease routes: acquire, release, renew. Parses their requests for [`Operation`].

use super::operation::Operation;
use crate::http::admit::RequestContext;
use crate::http::error::PREFERENCE_APPLIED;
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::leases::{ReleaseBody, RenewBody, read_acquire};
use crate::http::parse::path::{lease_id, pool_name};
use crate::http::respond::HandlerResult;

/// Acquires a random available key under a lease.
pub(crate) async fn acquire(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let (key, acquire) = context.or_unknown_pool(&pool, read_acquire(request).await).await?;
    let applied = acquire.preference_applied();
    match Operation::acquire(pool, acquire, key).run(context).await {
        Ok(payload) => {
            let mut response = payload.to_response();
            if let Some(applied) = applied {
                response.headers_mut().insert(PREFERENCE_APPLIED, applied);
            }
            Ok(response)
        }
        Err(problem) => Err(problem.applying(applied)),
    }
}

/// Releases a lease, optionally with a rest or a quarantine for its key.
pub(crate) async fn release(
    context: &RequestContext<'_>,
    pool: &str,
    lease: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let parsed = body::read(request)
        .await
        .and_then(|body: ReleaseBody| Ok((lease_id(lease)?, body.into_options())));
    let (lease, options) = context.or_unknown_pool(&pool, parsed).await?;
    Ok(Operation::release(pool, lease, options).run(context).await?.to_response())
}

/// Renews a lease.
pub(crate) async fn renew(
    context: &RequestContext<'_>,
    pool: &str,
    lease: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let parsed =
        body::read(request).await.and_then(|body: RenewBody| Ok((body.ttl_ms, lease_id(lease)?)));
    let (ttl_ms, lease) = context.or_unknown_pool(&pool, parsed).await?;
    Ok(Operation::renew(pool, lease, ttl_ms).run(context).await?.to_response())
}

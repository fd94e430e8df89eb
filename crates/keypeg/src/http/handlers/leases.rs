//! The lease routes: acquire, release, renew. Parses their requests for [`Operation`].

use super::abandon::Abandoning;
use super::operation::Operation;
use super::payload::Payload;
use crate::http::admit::RequestContext;
use crate::http::connection::request_peer::RequestPeer;
use crate::http::error::{PREFERENCE_APPLIED, Problem};
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::leases::{ReleaseBody, RenewBody, read_acquire};
use crate::http::parse::path::{lease_id, pool_name};
use crate::http::respond::HandlerResult;
use keypeg_core::{LeaseId, PoolName};
use std::pin::Pin;
use std::task::Poll;

/// Acquires a random available key under a lease.
pub(crate) async fn acquire(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let peer = request.body().peer().clone();
    let (key, acquire) =
        context.or_unknown_pool(&pool, read_acquire(context, request).await).await?;
    let applied = acquire.preference_applied();
    let acquire = acquire.after_waiting(context.waited_ms());
    match run_or_abandon(context, Operation::acquire(pool, acquire, key), &peer).await {
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

/// Runs an operation. Does not complete if the client closes its sending side while the operation is
/// in a wait queue: the connection then ends.
async fn run_or_abandon(
    context: &RequestContext<'_>,
    operation: Operation,
    peer: &RequestPeer,
) -> Result<Payload, Problem> {
    if !operation.may_wait() {
        return operation.run(context).await;
    }
    let lane = operation.lane(&context.lanes);
    let (mut running, mut abandoning) = (operation.run(context), Abandoning::default());
    let result = std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut running).poll(cx) {
            return Poll::Ready(Some(result));
        }
        abandoning.poll(lane, |cx| peer.poll_closed(cx), cx).map(|_| None)
    });
    match result.await {
        Some(result) => result,
        None => peer.abandon().await,
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
    let options = body::read(context, request).await.map(ReleaseBody::into_options);
    let (lease, options) = lease_and(context, &pool, lease, options).await?;
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
    let ttl_ms = body::read(context, request).await.map(|body: RenewBody| body.ttl_ms);
    let (lease, ttl_ms) = lease_and(context, &pool, lease, ttl_ms).await?;
    Ok(Operation::renew(pool, lease, ttl_ms).run(context).await?.to_response())
}

/// Reads the lease in the path beside the arguments of the body. A problem of the body comes first.
async fn lease_and<T>(
    context: &RequestContext<'_>,
    pool: &PoolName,
    lease: &str,
    args: Result<T, Problem>,
) -> Result<(LeaseId, T), Problem> {
    let parsed = args.and_then(|args| Ok((lease_id(lease)?, args)));
    context.or_unknown_pool(pool, parsed).await
}

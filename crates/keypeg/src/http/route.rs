//! The router: selects the handler of a request by its path and its method.
//!
//! A `match` over the method and the path's segments. A router crate would answer HEAD by running
//! the GET handler, which here would grant a key. For every other request, keypeg-client's route
//! table decides between 404 and 405 with its `Allow` header.

use super::admit::RequestContext;
use super::dashboard;
use super::docs;
use super::error::Problem;
use super::handlers::{
    backup, cluster, django, events, history, keys, leases, ops, pools, simple, verify,
};
use super::message::Request;
use super::parse::path::pool_name;
use super::parse::precondition;
use super::parse::query::Query;
use super::respond::HandlerResult;
use hyper::Method;
use keypeg_client::routes;

/// Selects the handler by path. Characters that need no escape are decoded already, and names and
/// ids have no others: a segment with a `%` is not a valid name or id.
pub(super) async fn route(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    const SEGMENTS_MAX: usize = 6;
    let uri = request.uri().clone();
    let path = uri.path().strip_prefix('/').ok_or_else(Problem::not_found)?;
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    for segment in path.split('/') {
        *segments.get_mut(count).ok_or_else(Problem::not_found)? = segment;
        count += 1;
    }
    match &segments[..count] {
        ["v1", "pools", rest @ ..] if !rest.contains(&"") => {
            canonical(context, rest, request).await
        }
        ["v1", "access"] => ops::access(context, &request),
        ["v1", "history"] => history::all(context, &request),
        ["v1", "cluster"] => cluster::show(context, &request),
        ["v1", "cluster", "shards", shard, "move"] if !shard.is_empty() => {
            cluster::move_shard(context, shard, request).await
        }
        ["v1", "backup"] => backup::create(context, &request).await,
        ["api", "v1", "random_api_key"] | ["api", "v1", "random_api_key", ""] => {
            django::keys(context, request).await
        }
        ["api", "v1", "start_scheduler"] | ["api", "v1", "start_scheduler", ""] => {
            django::start_scheduler(&request)
        }
        ["keys"] => simple::keys(context, request).await,
        ["keys", key] if !key.is_empty() => simple::key(context, key, &request).await,
        ["keepalive", key] if !key.is_empty() => simple::keep_alive(context, key, &request).await,
        [""] if dashboard::is_for_browser(&request) => dashboard::page(&request),
        [""] => ops::index(&request),
        ["ui", asset] => dashboard::asset(&request, asset),
        ["metrics"] => ops::metrics(context, &request).await,
        ["livez"] => ops::live(&request),
        ["readyz"] => ops::ready(context, &request),
        ["version"] => ops::version(&request),
        ["openapi.json"] => docs::openapi(&request),
        ["docs"] => docs::page(&request),
        ["docs", "style.css"] => docs::style(&request),
        ["problems"] => docs::problems(&request),
        ["problems", code] => docs::problem(&request, code),
        _ => Err(Problem::unrouted(uri.path())),
    }
}

/// Selects the handler of the canonical API: everything below `/v1/pools`.
async fn canonical(
    context: &RequestContext<'_>,
    segments: &[&str],
    request: Request,
) -> HandlerResult {
    let method = request.method().clone();
    if routes::find(method.as_str(), request.uri().path()).is_some() {
        check_target(context, segments, &request).await?;
    }
    match (method, segments) {
        (Method::GET | Method::HEAD, []) => pools::list(context, request.uri().query()).await,
        (Method::GET | Method::HEAD, [pool]) => pools::show(context, pool).await,
        (Method::GET | Method::HEAD, [pool, "events"]) => {
            events::subscribe(context, pool, request).await
        }
        (Method::GET | Method::HEAD, [pool, "history"]) => {
            history::of_pool(context, pool, request.uri().query()).await
        }
        (Method::PUT, [pool]) => pools::create_or_update(context, pool, request).await,
        (Method::DELETE, [pool]) => pools::delete(context, pool, request).await,
        (Method::GET | Method::HEAD, [pool, "keys"]) => {
            keys::list(context, pool, request.uri().query()).await
        }
        (Method::POST, [pool, "keys"]) => keys::add(context, pool, request).await,
        (Method::GET | Method::HEAD, [pool, "keys", key]) => keys::show(context, pool, key).await,
        (Method::PATCH, [pool, "keys", key]) => keys::change(context, pool, key, request).await,
        (Method::DELETE, [pool, "keys", key]) => keys::delete(context, pool, key, request).await,
        (Method::POST, [pool, "keys", key, "release"]) => {
            keys::force_release(context, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "quarantine"]) => {
            keys::quarantine(context, pool, key, request).await
        }
        (Method::DELETE, [pool, "keys", key, "quarantine"]) => {
            keys::end_quarantine(context, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "keepalive"]) => {
            keys::keep_alive(context, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "reveal"]) => {
            keys::reveal(context, pool, key, request).await
        }
        (Method::POST, [pool, "keepalive"]) => keys::keep_alive_many(context, pool, request).await,
        (Method::POST, [pool, "verify"]) => verify::verify(context, pool, request).await,
        (Method::GET | Method::HEAD, [pool, "verify"]) => {
            verify::authorize(context, pool, &request).await
        }
        (Method::POST, [pool, "leases"]) => leases::acquire(context, pool, request).await,
        (Method::POST, [pool, "leases", lease, "release"]) => {
            leases::release(context, pool, lease, request).await
        }
        (Method::POST, [pool, "leases", lease, "renew"]) => {
            leases::renew(context, pool, lease, request).await
        }
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

/// Refuses what a route of the canonical API would otherwise ignore, although a client relies on it:
/// parameters in the query, and preconditions of a change. Lists read their parameters, and pools
/// their preconditions, by themselves.
async fn check_target(
    context: &RequestContext<'_>,
    segments: &[&str],
    request: &Request,
) -> Result<(), Problem> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let has_parameters = matches!(segments, [_, "verify"])
        || (is_read && matches!(segments, [] | [_, "keys" | "history"]));
    if let Some(query) = request.uri().query().filter(|_| !has_parameters) {
        let checked = Query::read(Some(query), &[]).map(drop);
        match segments.first() {
            Some(pool) if *request.method() != Method::PUT => {
                context.or_unknown_pool(&pool_name(pool)?, checked).await?;
            }
            _ => checked?,
        }
    }
    if !is_read && segments.len() > 1 {
        precondition::refuse_any(request.headers())?;
    }
    Ok(())
}

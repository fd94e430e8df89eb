//! The pool routes: list, show, create or change, delete.
//!
//! The reader checks each field of a policy, and the engine the limits between them.

use crate::http::admit::RequestContext;
use crate::http::all_pools::{ListedShards, merge};
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::members::NoFields;
use crate::http::parse::path::pool_name;
use crate::http::parse::pools::PolicyBody;
use crate::http::parse::precondition::{self, PoolCondition};
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response, no_content, with_location};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Code, Seconds, UnixMs, routes};
use keypeg_core::{PoolListOptions, PoolName, Refusal};
use keypeg_fields::POOL_NAMES;
use keypeg_store::{Answer as _, Call, PAGE_MAX, PoolChange, PoolPage, PoolView, RequestError};

/// What one pool of a page takes while the page is built: its view, its wire type and its JSON.
const LISTED_POOL_BYTES: u64 = 1 << 10;

/// Lists the pools that the token may see.
pub(crate) async fn list(context: &RequestContext<'_>, query: Option<&str>) -> HandlerResult {
    let query = Query::read(query, &["limit", "cursor"])?;
    // A client that sends no limit may be older than the pages.
    let limit = query.limit(PAGE_MAX)?;
    let bad_cursor = || Problem::refused(&RequestError::Refused(Refusal::BadCursor));
    let from = query.get("cursor").map(|text| PoolName::parse(text).ok_or_else(bad_cursor));
    let room = context.answer_room(limit as u64 * LISTED_POOL_BYTES)?;
    let filter = context.listed_pools();
    let options = PoolListOptions { from: from.transpose()?, limit, filter };
    if let Some(cluster) = context.lanes.cluster() {
        let (pools, shards) = list_served_here(context, cluster.shards(), options).await?;
        let mut response = room.fill(json_response(StatusCode::OK, &pools));
        response.extensions_mut().insert(shards);
        return Ok(response);
    }
    let page = context.execute(Call::list_pools(options)).await?;
    let next_cursor = page.next.map(|name| name.as_str().into());
    let pools = page.pools.into_iter().map(wire_pool).collect();
    Ok(room.fill(json_response(StatusCode::OK, &wire::Pools { pools, next_cursor })))
}

/// Lists the pools of the shards that this server serves, and which shards these are.
async fn list_served_here(
    context: &RequestContext<'_>,
    shards: usize,
    options: PoolListOptions,
) -> Result<(wire::Pools, ListedShards), Problem> {
    let limit = options.limit;
    let call = Call::list_pools(options).into_call();
    context.begin_long_work(call.units()).await;
    let pending: Vec<_> =
        (0..shards).map(|shard| context.submit_to_shard(shard, call.clone())).collect();
    let (mut pages, mut listed) = (Vec::new(), Vec::new());
    for (shard, reply) in pending.into_iter().enumerate() {
        match PoolPage::of(reply.await) {
            Ok(PoolPage { pools, next }) => {
                let pools = pools.into_iter().map(wire_pool).collect();
                let next_cursor = next.map(|name| name.as_str().into());
                pages.push(wire::Pools { pools, next_cursor });
                listed.push(shard);
            }
            // The caller asks the server of this shard.
            Err(RequestError::NotOwner | RequestError::OutcomeUnknown) => {}
            Err(refusal) => return Err(Problem::refused(&refusal)),
        }
    }
    Ok((merge(pages, limit), ListedShards(listed)))
}

/// Shows a pool.
pub(crate) async fn show(context: &RequestContext<'_>, pool: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let pool = context.execute(Call::get_pool(pool)).await?;
    Ok(json_response(StatusCode::OK, &wire_pool(*pool)))
}

/// Creates a pool or changes its policy.
pub(crate) async fn create_or_update(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = PoolName::parse(pool).ok_or_else(|| Problem::out_of_range("pool", POOL_NAMES))?;
    let condition = PoolCondition::of(request.headers());
    let patch = body::read::<PolicyBody>(context, request).await?.into_patch();
    let call = match condition {
        PoolCondition::None => Call::put_pool(pool, patch),
        PoolCondition::Exists => Call::put_pool_if(pool, patch, true),
        PoolCondition::Missing => Call::put_pool_if(pool, patch, false),
        PoolCondition::Never => return Err(precondition::failed(condition)),
    };
    let changed = context.execute(call).await;
    let PoolChange { pool, created } =
        changed.map_err(|problem| match (condition, problem.code()) {
            (PoolCondition::Exists, Code::UnknownPool) => precondition::failed(condition),
            _ => problem,
        })?;
    if condition == PoolCondition::Missing && !created {
        return Err(precondition::failed(condition));
    }
    let location = routes::pool(pool.name.as_str());
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let response = json_response(status, &wire_pool(*pool));
    Ok(if created { with_location(response, &location) } else { response })
}

/// Deletes a pool.
pub(crate) async fn delete(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let condition = PoolCondition::of(request.headers());
    let NoFields = context.or_unknown_pool(&pool, body::read(context, request).await).await?;
    if matches!(condition, PoolCondition::Missing | PoolCondition::Never) {
        return context.or_unknown_pool(&pool, Err(precondition::failed(condition))).await;
    }
    context.execute(Call::delete_pool(pool)).await?;
    Ok(no_content())
}

fn wire_pool(view: PoolView) -> wire::Pool {
    let PoolView { name, policy, counts, waiting, next_hold_end_at_ms, next_purge_at_ms, .. } =
        view;
    wire::Pool {
        pool: name.as_str().into(),
        lease_ttl_seconds: Seconds::from_ms(policy.lease_ttl_ms),
        max_hold_seconds: policy.max_hold_ms.map(Seconds::from_ms),
        keepalive_ttl_seconds: policy.keepalive_ttl_ms.map(Seconds::from_ms),
        keepalive_every_seconds: policy.keepalive_ttl_ms.map(|ms| Seconds::from_ms(ms * 2 / 5)),
        rest_seconds: Seconds::from_ms(policy.rest_ms),
        key_length: policy.key_length,
        key_prefix: policy.key_prefix.into(),
        max_keys: policy.max_keys,
        draining: policy.draining,
        available: counts.available,
        leased: counts.leased,
        resting: counts.resting,
        quarantined: counts.quarantined,
        draining_keys: counts.draining,
        total: counts.total(),
        waiting,
        next_return_at: next_hold_end_at_ms.map(UnixMs),
        next_purge_at: next_purge_at_ms.map(UnixMs),
    }
}

//! The pool routes: list, show, create or change, delete.
//!
//! Checks the types of a policy's fields; the engine checks their ranges.

use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body::{Fields, KnownFields, REST};
use crate::http::parse::path::pool_name;
use crate::http::parse::precondition::{self, PoolCondition};
use crate::http::respond::{HandlerResult, json_response, no_content, with_location};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Code, Seconds, UnixMs, routes};
use keypeg_core::{PolicyPatch, PoolName};
use keypeg_store::{Call, PoolChange, PoolView};

const POLICY_FIELDS: KnownFields = &[
    "lease_ttl_seconds",
    "max_hold_seconds",
    "keepalive_ttl_seconds",
    "rest_seconds",
    "key_length",
    "key_prefix",
    "max_keys",
];

/// Lists the pools that the token may see.
pub(crate) async fn list(context: &RequestContext<'_>) -> HandlerResult {
    let pools = context.execute(Call::list_pools()).await?;
    let pools =
        pools.into_iter().filter(|pool| context.may_list(&pool.name)).map(wire_pool).collect();
    Ok(json_response(StatusCode::OK, &wire::Pools { pools }))
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
    let pool = PoolName::parse(pool)
        .ok_or_else(|| Problem::out_of_range("pool", "[a-z0-9][a-z0-9_.-]{0,63}"))?;
    let condition = PoolCondition::of(request.headers());
    let patch = policy_patch(Fields::read(request, POLICY_FIELDS).await?)?;
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
    let read = Fields::read(request, &[]).await;
    context.or_unknown_pool(&pool, read).await?;
    if matches!(condition, PoolCondition::Missing | PoolCondition::Never) {
        return context.or_unknown_pool(&pool, Err(precondition::failed(condition))).await;
    }
    context.execute(Call::delete_pool(pool)).await?;
    Ok(no_content())
}

/// Reads the policy fields that a request sets.
fn policy_patch(mut fields: Fields) -> Result<PolicyPatch, Problem> {
    let key_length = fields.integer("key_length", "16..128")?;
    Ok(PolicyPatch {
        lease_ttl_ms: fields.seconds("lease_ttl_seconds", "0.001..604800")?,
        max_hold_ms: fields
            .seconds_or_null("max_hold_seconds", "null, or lease_ttl_seconds..604800")?,
        keepalive_ttl_ms: fields
            .seconds_or_null("keepalive_ttl_seconds", "null, or 0.001..604800")?,
        rest_ms: fields.seconds("rest_seconds", REST)?,
        key_length: key_length.map(|length| u16::try_from(length).unwrap_or(u16::MAX)),
        key_prefix: fields
            .text("key_prefix", "at most 32 of A-Z a-z 0-9 _ -")?
            .map(String::into_boxed_str),
        max_keys: fields.integer_or_null("max_keys", "null, or 1..1000000000")?,
    })
}

fn wire_pool(view: PoolView) -> wire::Pool {
    let PoolView { name, policy, counts, waiting, next_hold_end_at_ms, next_purge_at_ms } = view;
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
        available: counts.available,
        leased: counts.leased,
        resting: counts.resting,
        quarantined: counts.quarantined,
        total: counts.total(),
        waiting,
        next_return_at: next_hold_end_at_ms.map(UnixMs),
        next_purge_at: next_purge_at_ms.map(UnixMs),
    }
}

//! The pool routes: list, show, create or change, delete.
//!
//! Checks the types of a policy's fields; the engine checks their ranges.

use crate::http::admit::{REPLY_VARIANT, RequestContext};
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body::{Fields, KnownFields, REST};
use crate::http::parse::path::pool_name;
use crate::http::respond::{HandlerResult, json_response, no_content};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{PolicyPatch, PoolName};
use keypeg_store::{Call, PoolView, Reply};

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
    let Reply::Pools(pools) = context.execute(Call::ListPools).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    let pools =
        pools.into_iter().filter(|pool| context.may_list(&pool.name)).map(wire_pool).collect();
    Ok(json_response(StatusCode::OK, &wire::Pools { pools }))
}

/// Shows a pool.
pub(crate) async fn show(context: &RequestContext<'_>, pool: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let Reply::Pool { pool, .. } = context.execute(Call::GetPool { pool }).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
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
    let patch = policy_patch(Fields::read(request, POLICY_FIELDS).await?)?;
    let Reply::Pool { pool, created } = context.execute(Call::PutPool { pool, patch }).await?
    else {
        unreachable!("{REPLY_VARIANT}")
    };
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_response(status, &wire_pool(*pool)))
}

/// Deletes a pool.
pub(crate) async fn delete(context: &RequestContext<'_>, pool: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let Reply::Done = context.execute(Call::DeletePool { pool }).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    Ok(no_content())
}

/// Reads the policy fields that a request sets.
fn policy_patch(mut fields: Fields) -> Result<PolicyPatch, Problem> {
    let key_length = fields.integer("key_length", "20..128")?;
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

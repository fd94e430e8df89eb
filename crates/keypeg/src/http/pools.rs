//! Pools over HTTP: list, show, make or change, remove.

use super::body::{Fields, Known, REST};
use super::error::Problem;
use super::{Answered, Asking, Request, SHAPES, json, no_content, pool_name};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_engine::core::{PolicyPatch, PoolName};
use keypeg_engine::{Call, PoolView, Reply};

const POLICY: Known = &[
    "lease_ttl_seconds",
    "max_hold_seconds",
    "keepalive_ttl_seconds",
    "rest_seconds",
    "key_length",
    "key_prefix",
    "max_keys",
];

pub(super) async fn list(app: &Asking<'_>) -> Answered {
    let Reply::Pools(pools) = app.ask(Call::ListPools).await? else { unreachable!("{SHAPES}") };
    let pools = pools.into_iter().filter(|pool| app.sees(&pool.name)).map(shown).collect();
    Ok(json(StatusCode::OK, &wire::Pools { pools }))
}

pub(super) async fn show(app: &Asking<'_>, pool: &str) -> Answered {
    let pool = pool_name(pool)?;
    let Reply::Pool { pool, .. } = app.ask(Call::GetPool { pool }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(json(StatusCode::OK, &shown(*pool)))
}

pub(super) async fn put(app: &Asking<'_>, pool: &str, request: Request) -> Answered {
    let pool = PoolName::parse(pool)
        .ok_or_else(|| Problem::out_of_range("pool", "[a-z0-9][a-z0-9_.-]{0,63}"))?;
    let patch = policy(Fields::read(request, POLICY).await?)?;
    let Reply::Pool { pool, created } = app.ask(Call::PutPool { pool, patch }).await? else {
        unreachable!("{SHAPES}")
    };
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, &shown(*pool)))
}

pub(super) async fn remove(app: &Asking<'_>, pool: &str) -> Answered {
    let pool = pool_name(pool)?;
    let Reply::Done = app.ask(Call::DeletePool { pool }).await? else { unreachable!("{SHAPES}") };
    Ok(no_content())
}

/// Types are checked here, ranges where policies are made.
fn policy(mut fields: Fields) -> Result<PolicyPatch, Problem> {
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

fn shown(view: PoolView) -> wire::Pool {
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

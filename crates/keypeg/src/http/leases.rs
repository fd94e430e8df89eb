//! Leases over HTTP: acquire, release, renew.

use super::body::{Fields, Known};
use super::error::Problem;
use super::{Answered, App, Request, SHAPES, json, no_content, pool_name, refuse_idempotency_key};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_engine::core::{LeaseId, LeaseView, PoolName, Secret};
use keypeg_engine::{Call, Reply};

const ACQUIRE: Known = Known { now: &["ttl_seconds", "holder"], later: &["wait_seconds"] };
const RELEASE: Known = Known { now: &[], later: &["rest_seconds", "quarantine", "reason"] };
const RENEW: Known = Known { now: &["ttl_seconds"], later: &[] };
const TTL: &str = "0.001..lease_ttl_seconds of the pool";
const HOLDER: &str = "at most 128 printable characters";
const HOLDER_MAX: usize = 128;

pub(super) async fn acquire(app: &App, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let (ttl_ms, holder) = app.judged(&pool, wanted(request).await).await?;
    let reply = app.ask(Call::Acquire { pool, ttl_ms, holder }).await;
    let Reply::Granted { pool, lease, value } = reply.map_err(Problem::of_grant)? else {
        unreachable!("{SHAPES}")
    };
    Ok(json(StatusCode::CREATED, &grant(&pool, *lease, &value)))
}

async fn wanted(request: Request) -> Result<(Option<u64>, Option<Box<str>>), Problem> {
    refuse_idempotency_key(request.headers())?;
    let mut fields = Fields::read(request, ACQUIRE).await?;
    let ttl_ms = fields.seconds("ttl_seconds", TTL)?;
    let holder = fields.text("holder", HOLDER)?;
    if holder.as_deref().is_some_and(|holder| !is_holder(holder)) {
        return Err(Problem::out_of_range("holder", HOLDER));
    }
    Ok((ttl_ms, holder.map(String::into_boxed_str)))
}

fn is_holder(text: &str) -> bool {
    text.chars().count() <= HOLDER_MAX && !text.chars().any(char::is_control)
}

pub(super) async fn release(app: &App, pool: &str, lease: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let lease = Fields::read(request, RELEASE).await.and_then(|_| lease_id(lease));
    let lease = app.judged(&pool, lease).await?;
    let Reply::Done = app.ask(Call::Release { pool, lease }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(no_content())
}

pub(super) async fn renew(app: &App, pool: &str, lease: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let wanted = Fields::read(request, RENEW).await.and_then(|mut fields| {
        let ttl_ms = fields.seconds("ttl_seconds", TTL)?;
        Ok((ttl_ms, lease_id(lease)?))
    });
    let (ttl_ms, lease) = app.judged(&pool, wanted).await?;
    let call = Call::Renew { pool: pool.clone(), lease, ttl_ms };
    let Reply::Renewed(lease) = app.ask(call).await? else { unreachable!("{SHAPES}") };
    Ok(json(StatusCode::OK, &renewed(&pool, *lease)))
}

fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    LeaseId::parse(text).ok_or_else(|| Problem::lease_ended(None))
}

fn grant(pool: &PoolName, lease: LeaseView, value: &Secret) -> wire::Grant {
    wire::Grant {
        id: lease.id.to_string(),
        pool: pool.as_str().into(),
        key_id: lease.key_id.to_string(),
        key: wire::Secret(value.reveal().into()),
        fencing_token: lease.token,
        holder: lease.holder.map(Into::into),
        granted_at: UnixMs(lease.granted_at_ms),
        waited_seconds: Seconds::from_ms(0),
        expires_at: UnixMs(lease.expires_at_ms),
        expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
        key_expires_at: lease.key_expires_at_ms.map(UnixMs),
    }
}

fn renewed(pool: &PoolName, lease: LeaseView) -> wire::Lease {
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

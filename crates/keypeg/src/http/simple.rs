//! The plain face, over the default pool: the shape most public answers to this brief share.

use super::body::Fields;
use super::error::Problem;
use super::{Answered, Asking, Request, Response, SHAPES, json, refuse_cross_site, unrouted};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_engine::core::{KeyId, KeyRef, KeyState, KeyView, PoolName};
use keypeg_engine::{Call, Reply};
use serde_json::json as value;

/// All that is asked of `/keys`.
pub(super) async fn keys(app: &Asking<'_>, request: Request) -> Answered {
    match *request.method() {
        Method::POST => make(app, request).await,
        Method::GET => lend(app, &request).await.map_err(Problem::of_grant),
        _ => Err(unrouted(request.uri().path())),
    }
}

/// All that is asked of `/keys/{id}`.
pub(super) async fn key(app: &Asking<'_>, key: &str, request: &Request) -> Answered {
    let method = match *request.method() {
        Method::GET | Method::HEAD => named,
        Method::PUT => freed,
        Method::DELETE => deleted,
        _ => return Err(unrouted(request.uri().path())),
    };
    by_key(app, key, method).await
}

/// All that is asked of `/keepalive/{id}`.
pub(super) async fn keep_alive(app: &Asking<'_>, key: &str, request: &Request) -> Answered {
    match *request.method() {
        Method::PUT => by_key(app, key, kept).await,
        _ => Err(unrouted(request.uri().path())),
    }
}

fn named(pool: PoolName, key: KeyRef) -> Call {
    Call::GetKey { pool, key }
}

fn freed(pool: PoolName, key: KeyRef) -> Call {
    Call::ForceRelease { pool, key }
}

fn deleted(pool: PoolName, key: KeyRef) -> Call {
    Call::DeleteKey { pool, key }
}

fn kept(pool: PoolName, key: KeyRef) -> Call {
    Call::KeepAlive { pool, key }
}

async fn make(app: &Asking<'_>, request: Request) -> Answered {
    Fields::read(request, &[]).await?;
    let call = Call::Generate { pool: PoolName::default_pool(), count: 1 };
    let Reply::Keys(keys) = app.ask(call).await? else { unreachable!("{SHAPES}") };
    let key = keys.first().expect("invariant: one key was asked for");
    let body = value!({ "keyId": key.id.to_string(), "key": key.value.reveal() });
    Ok(json(StatusCode::CREATED, &body))
}

async fn lend(app: &Asking<'_>, request: &Request) -> Answered {
    refuse_cross_site(request.headers())?;
    let pool = PoolName::default_pool();
    let reply = match app.ask(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 }).await
    {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::NoKeyAvailable, not_there),
    };
    let Reply::Granted { lease, value, .. } = reply else { unreachable!("{SHAPES}") };
    let body = value!({ "keyId": lease.key_id.to_string(), "key": value.reveal() });
    Ok(json(StatusCode::OK, &body))
}

async fn by_key(app: &Asking<'_>, key: &str, call: fn(PoolName, KeyRef) -> Call) -> Answered {
    let Some(id) = KeyId::parse(key) else { return Ok(not_there()) };
    match app.ask(call(PoolName::default_pool(), KeyRef::Id(id))).await {
        Ok(Reply::Key(view)) => Ok(json(StatusCode::OK, &shown(&view))),
        Ok(_) => Ok(json(StatusCode::OK, &value!({}))),
        Err(problem) => problem.instead_of(Code::UnknownKey, not_there),
    }
}

fn not_there() -> Response {
    json(StatusCode::NOT_FOUND, &value!({}))
}

fn shown(view: &KeyView) -> serde_json::Value {
    value!({
        "isBlocked": view.state != KeyState::Available,
        "blockedAt": view.lease.as_ref().map(|lease| UnixMs(lease.granted_at_ms)),
        "createdAt": UnixMs(view.created_at_ms),
    })
}

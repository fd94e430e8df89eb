//! The simple API: a compatibility API over the default pool, with the routes and bodies that most
//! public key servers of this kind share.
//!
//! Only its own outcomes have its bodies; all other errors are problems, as for every route.

use crate::http::admit::{REPLY_VARIANT, RequestContext};
use crate::http::checks::refuse_cross_site;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::parse::body;
use crate::http::parse::members::NoFields;
use crate::http::respond::{HandlerResult, json_response};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_core::{KeyId, KeyRef, KeyState, KeyView, PoolName};
use keypeg_store::{Call, Reply};
use serde_json::json;

/// Answers `/keys`.
pub(crate) async fn keys(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    match *request.method() {
        Method::POST => create_key(context, request).await,
        Method::GET => acquire_key(context, &request).await.map_err(Problem::of_grant),
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

/// Answers `/keys/{id}`.
pub(crate) async fn key(
    context: &RequestContext<'_>,
    key: &str,
    request: &Request,
) -> HandlerResult {
    let call = match *request.method() {
        Method::GET | Method::HEAD => get_call,
        Method::PUT => release_call,
        Method::DELETE => delete_call,
        _ => return Err(Problem::unrouted(request.uri().path())),
    };
    call_on_key(context, key, call).await
}

/// Answers `/keepalive/{id}`.
pub(crate) async fn keep_alive(
    context: &RequestContext<'_>,
    key: &str,
    request: &Request,
) -> HandlerResult {
    match *request.method() {
        Method::PUT => call_on_key(context, key, keep_alive_call).await,
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

fn get_call(pool: PoolName, key: KeyRef) -> Call {
    Call::GetKey { pool, key }
}

fn release_call(pool: PoolName, key: KeyRef) -> Call {
    Call::ForceRelease { pool, key }
}

fn delete_call(pool: PoolName, key: KeyRef) -> Call {
    Call::DeleteKey { pool, key }
}

fn keep_alive_call(pool: PoolName, key: KeyRef) -> Call {
    Call::KeepAlive { pool, key }
}

async fn create_key(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    let NoFields = body::read(request).await?;
    let call = Call::Generate { pool: PoolName::default_pool(), count: 1 };
    let Reply::Keys(keys) = context.execute(call).await? else { unreachable!("{REPLY_VARIANT}") };
    let key = keys.first().expect("invariant: the call created one key");
    let body = json!({ "keyId": key.id.to_string(), "key": key.value.reveal() });
    Ok(json_response(StatusCode::CREATED, &body))
}

async fn acquire_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    refuse_cross_site(request.headers())?;
    let pool = PoolName::default_pool();
    let reply =
        match context.execute(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 }).await
        {
            Ok(reply) => reply,
            Err(problem) => return problem.instead_of(Code::NoKeyAvailable, empty_not_found),
        };
    let Reply::Granted { lease, value, .. } = reply else { unreachable!("{REPLY_VARIANT}") };
    let body = json!({ "keyId": lease.key_id.to_string(), "key": value.reveal() });
    Ok(json_response(StatusCode::OK, &body))
}

/// Runs a call on one key. The body is `{}` for every call that returns no key.
async fn call_on_key(
    context: &RequestContext<'_>,
    key: &str,
    call: fn(PoolName, KeyRef) -> Call,
) -> HandlerResult {
    let Some(id) = KeyId::parse(key) else { return Ok(empty_not_found()) };
    match context.execute(call(PoolName::default_pool(), KeyRef::Id(id))).await {
        Ok(Reply::Key(view)) => Ok(json_response(StatusCode::OK, &key_body(&view))),
        Ok(_) => Ok(json_response(StatusCode::OK, &json!({}))),
        Err(problem) => problem.instead_of(Code::UnknownKey, empty_not_found),
    }
}

fn empty_not_found() -> Response {
    json_response(StatusCode::NOT_FOUND, &json!({}))
}

fn key_body(view: &KeyView) -> serde_json::Value {
    json!({
        "isBlocked": view.state != KeyState::Available,
        "blockedAt": view.lease.as_ref().map(|lease| UnixMs(lease.granted_at_ms)),
        "createdAt": UnixMs(view.created_at_ms),
    })
}

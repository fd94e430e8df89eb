//! The simple API: a compatibility API over the default pool, with the routes and bodies that most
//! public key servers of this kind share.
//!
//! Only its own outcomes have its bodies; all other errors are problems, as for every route.

use super::default_pool::{self, OwnRefusal};
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::parse::body;
use crate::http::parse::members::NoFields;
use crate::http::respond::{HandlerResult, json_response, with_location};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_core::{KeyId, KeyRef, KeyState, KeyView, PoolName};
use keypeg_store::{Answer, Call, LeaseGrant, TypedCall};
use serde_json::{Value, json};

const NO_KEY: OwnRefusal = OwnRefusal { code: Code::NoKeyAvailable, response: empty_not_found };
const UNKNOWN_KEY: OwnRefusal = OwnRefusal { code: Code::UnknownKey, response: empty_not_found };

/// Answers `/keys`.
pub(crate) async fn keys(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    match *request.method() {
        Method::POST => create_key(context, request).await,
        Method::GET => acquire_key(context, &request).await,
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

/// Answers `/keys/{id}`.
pub(crate) async fn key(
    context: &RequestContext<'_>,
    key: &str,
    request: &Request,
) -> HandlerResult {
    match *request.method() {
        Method::GET | Method::HEAD => {
            call_on_key(context, key, Call::get_key, |view| key_body(&view)).await
        }
        Method::PUT => call_on_key(context, key, Call::force_release, |_| json!({})).await,
        Method::DELETE => call_on_key(context, key, Call::delete_key, |_| json!({})).await,
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

/// Answers `/keepalive/{id}`.
pub(crate) async fn keep_alive(
    context: &RequestContext<'_>,
    key: &str,
    request: &Request,
) -> HandlerResult {
    match *request.method() {
        Method::PUT => call_on_key(context, key, Call::keep_alive, |_| json!({})).await,
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

async fn create_key(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    let NoFields = body::read(context, request).await?;
    let call = Call::generate(PoolName::default_pool(), 1);
    let key = default_pool::create(context, call).await?;
    let body = json!({ "keyId": key.id.to_string(), "key": key.value.reveal() });
    let response = json_response(StatusCode::CREATED, &body);
    Ok(with_location(response, &format!("/keys/{}", key.id)))
}

async fn acquire_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    let grant = default_pool::acquire(context, request).await;
    NO_KEY.or_json(grant, |LeaseGrant { lease, value, .. }| {
        json!({ "keyId": lease.key_id.to_string(), "key": value.reveal() })
    })
}

/// Runs a call on one key.
async fn call_on_key<A: Answer>(
    context: &RequestContext<'_>,
    key: &str,
    call: fn(PoolName, KeyRef) -> TypedCall<A>,
    body: fn(A) -> Value,
) -> HandlerResult {
    let Some(id) = KeyId::parse(key) else { return Ok(empty_not_found()) };
    UNKNOWN_KEY.or_json(default_pool::on_key(context, KeyRef::Id(id), call).await, body)
}

fn empty_not_found() -> Response {
    json_response(StatusCode::NOT_FOUND, &json!({}))
}

fn key_body(view: &KeyView) -> Value {
    json!({
        "isBlocked": view.state != KeyState::Available,
        "blockedAt": view.lease.as_ref().map(|lease| UnixMs(lease.granted_at_ms)),
        "createdAt": UnixMs(view.created_at_ms),
    })
}

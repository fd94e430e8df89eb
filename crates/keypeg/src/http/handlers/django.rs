//! The Django API: the older compatibility API, over the default pool, with exactly the responses
//! that the readme of the original Django version gives.
//!
//! Requests name keys by their values, in the query, so no code may log a query. Only this API's
//! own outcomes have its bodies; framing, size and content type are refused as for every route.

use crate::http::admit::{REPLY_VARIANT, RequestContext};
use crate::http::checks::refuse_cross_site;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::parse::body::Fields;
use crate::http::parse::query::decoded;
use crate::http::respond::{HandlerResult, json_response};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_core::{ImportOptions, KeyRef, PoolName, Secret, VALUE_MAX};
use keypeg_store::{Call, Reply};
use serde_json::{Value, json};

/// The message of the Django version, including its trailing space. Repeated calls are harmless
/// here.
const SCHEDULER: &str =
    "Scheduler has been started to unblock keys at given condition, Kindly do not hit again ";

/// Answers `/api/v1/random_api_key/`.
pub(crate) async fn keys(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    match *request.method() {
        Method::POST => create_key(context, request).await,
        Method::GET => acquire_key(context, &request).await.map_err(Problem::of_grant),
        Method::PUT => release_key(context, &request).await,
        Method::DELETE => delete_key(context, &request).await,
        Method::PATCH => keep_key_alive(context, &request).await,
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

/// Answers `/api/v1/start_scheduler/`. Expiry always runs, so there is nothing to start.
pub(crate) fn start_scheduler(request: &Request) -> HandlerResult {
    match *request.method() {
        Method::GET | Method::HEAD => {
            Ok(json_response(StatusCode::OK, &json!({ "message": SCHEDULER })))
        }
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

async fn create_key(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    let pool = PoolName::default_pool();
    let call = match Fields::read_any(request).await?.take("api_key") {
        None => Call::Generate { pool, count: 1 },
        Some(value) => match secret_of(&value) {
            Ok(secret) => {
                Call::Import { pool, values: vec![secret], options: ImportOptions::default() }
            }
            Err(error) => {
                return Ok(json_response(StatusCode::BAD_REQUEST, &json!({ "api_key": [error] })));
            }
        },
    };
    let reply = match context.execute(call).await {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::KeyExists, key_exists),
    };
    let Reply::Keys(keys) = reply else { unreachable!("{REPLY_VARIANT}") };
    let key = keys.first().expect("invariant: the call created one key");
    let body = json!({
        "api_key": key.value.reveal(),
        "created_at": UnixMs(key.created_at_ms),
        "expires_at": key.expires_at_ms.map(UnixMs),
    });
    Ok(json_response(StatusCode::CREATED, &body))
}

/// Reads the value to import. An error has the text that the Django framework would give.
fn secret_of(value: &Value) -> Result<Secret, String> {
    match value {
        Value::String(text) if text.is_empty() => Err("This field may not be blank.".into()),
        Value::String(text) => Secret::new(text)
            .ok_or_else(|| format!("Ensure this field has no more than {VALUE_MAX} bytes.")),
        Value::Null => Err("This field may not be null.".into()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err("Not a valid string.".into())
        }
    }
}

async fn acquire_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    refuse_cross_site(request.headers())?;
    let pool = PoolName::default_pool();
    let reply =
        match context.execute(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 }).await
        {
            Ok(reply) => reply,
            Err(problem) => return problem.instead_of(Code::NoKeyAvailable, no_key),
        };
    let Reply::Granted { value, .. } = reply else { unreachable!("{REPLY_VARIANT}") };
    Ok(json_response(StatusCode::OK, &json!({ "api_key": value.reveal() })))
}

async fn release_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    let pool = PoolName::default_pool();
    let Some(value) = key_value_of(request) else { return Ok(unknown_key()) };
    let call = Call::ForceRelease { pool, key: KeyRef::Value(value.clone()) };
    match context.execute(call).await {
        Ok(_) => Ok(json_response(StatusCode::OK, &json!({ "api_key": value.reveal() }))),
        Err(problem) => problem.instead_of(Code::UnknownKey, unknown_key),
    }
}

async fn delete_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    let pool = PoolName::default_pool();
    let Some(value) = key_value_of(request) else { return Ok(unknown_key()) };
    match context.execute(Call::DeleteKey { pool, key: KeyRef::Value(value) }).await {
        Ok(_) => {
            Ok(json_response(StatusCode::OK, &json!({ "message": "Given key has been deleted" })))
        }
        Err(problem) => problem.instead_of(Code::UnknownKey, unknown_key),
    }
}

async fn keep_key_alive(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    let pool = PoolName::default_pool();
    let Some(value) = key_value_of(request) else { return Ok(unknown_key()) };
    let call = Call::KeepAlive { pool, key: KeyRef::Value(value.clone()) };
    let reply = match context.execute(call).await {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::UnknownKey, unknown_key),
    };
    let Reply::KeptAlive { expires_at_ms, .. } = reply else { unreachable!("{REPLY_VARIANT}") };
    let expires_at = expires_at_ms.map(UnixMs);
    Ok(json_response(
        StatusCode::OK,
        &json!({ "api_key": value.reveal(), "expires_at": expires_at }),
    ))
}

fn key_exists() -> Response {
    let error = "key with this api key already exists";
    json_response(StatusCode::BAD_REQUEST, &json!({ "api_key": [error] }))
}

fn no_key() -> Response {
    json_response(StatusCode::NOT_FOUND, &json!({ "message": "No available key found" }))
}

fn unknown_key() -> Response {
    let message = "Kindly send key to be updated, given key does not exist";
    json_response(StatusCode::BAD_REQUEST, &json!({ "message": message }))
}

/// Reads the value that names a key: the last `api_key` in the query, as Django does.
fn key_value_of(request: &Request) -> Option<Secret> {
    let query = request.uri().query()?;
    let parameter = |pair| {
        let (name, value) = str::split_once(pair, '=')?;
        (decoded(name) == "api_key").then(|| decoded(value))
    };
    Secret::new(&query.split('&').filter_map(parameter).next_back()?)
}

//! The seed's face, word for word from its readme, over the default pool.
//!
//! Keys are named by their values, in the query: nothing here, or anywhere, may log a query. Its
//! own answers have its own bodies; framing, size and content type are refused as everywhere.

use super::body::Fields;
use super::error::Problem;
use super::query::decoded;
use super::{Answered, Asking, Request, Response, SHAPES, json, refuse_cross_site, unrouted};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_engine::core::{KeyRef, PoolName, Secret, VALUE_MAX};
use keypeg_engine::{Call, Reply};
use serde_json::{Value, json as value};

/// The seed's own words, its last blank included. Any number of hits is harmless here.
const SCHEDULER: &str =
    "Scheduler has been started to unblock keys at given condition, Kindly do not hit again ";

/// All that is asked of `/api/v1/random_api_key/`.
pub(super) async fn keys(app: &Asking<'_>, request: Request) -> Answered {
    match *request.method() {
        Method::POST => make(app, request).await,
        Method::GET => lend(app, &request).await.map_err(Problem::of_grant),
        Method::PUT => put_back(app, &request).await,
        Method::DELETE => remove(app, &request).await,
        Method::PATCH => keep_alive(app, &request).await,
        _ => Err(unrouted(request.uri().path())),
    }
}

/// The clockwork always runs, so starting it has nothing to do.
pub(super) fn start_scheduler(request: &Request) -> Answered {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &value!({ "message": SCHEDULER }))),
        _ => Err(unrouted(request.uri().path())),
    }
}

async fn make(app: &Asking<'_>, request: Request) -> Answered {
    let pool = PoolName::default_pool();
    let call = match Fields::read_any(request).await?.take("api_key") {
        None => Call::Generate { pool, count: 1 },
        Some(given) => match value_of(&given) {
            Ok(value) => Call::Import { pool, values: vec![value] },
            Err(why) => return Ok(json(StatusCode::BAD_REQUEST, &value!({ "api_key": [why] }))),
        },
    };
    let reply = match app.ask(call).await {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::KeyExists, key_exists),
    };
    let Reply::Keys(keys) = reply else { unreachable!("{SHAPES}") };
    let key = keys.first().expect("invariant: one key was asked for");
    let body = value!({
        "api_key": key.value.reveal(),
        "created_at": UnixMs(key.created_at_ms),
        "expires_at": key.expires_at_ms.map(UnixMs),
    });
    Ok(json(StatusCode::CREATED, &body))
}

/// Reads the value to bring in; else says what is wrong with it, as the seed's framework would.
fn value_of(given: &Value) -> Result<Secret, String> {
    match given {
        Value::String(text) if text.is_empty() => Err("This field may not be blank.".into()),
        Value::String(text) => Secret::new(text)
            .ok_or_else(|| format!("Ensure this field has no more than {VALUE_MAX} bytes.")),
        Value::Null => Err("This field may not be null.".into()),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err("Not a valid string.".into())
        }
    }
}

async fn lend(app: &Asking<'_>, request: &Request) -> Answered {
    refuse_cross_site(request.headers())?;
    let pool = PoolName::default_pool();
    let reply = match app.ask(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 }).await
    {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::NoKeyAvailable, no_key),
    };
    let Reply::Granted { value, .. } = reply else { unreachable!("{SHAPES}") };
    Ok(json(StatusCode::OK, &value!({ "api_key": value.reveal() })))
}

async fn put_back(app: &Asking<'_>, request: &Request) -> Answered {
    let pool = PoolName::default_pool();
    let Some(value) = named(request) else { return Ok(no_such_key()) };
    let call = Call::ForceRelease { pool, key: KeyRef::Value(value.clone()) };
    match app.ask(call).await {
        Ok(_) => Ok(json(StatusCode::OK, &value!({ "api_key": value.reveal() }))),
        Err(problem) => problem.instead_of(Code::UnknownKey, no_such_key),
    }
}

async fn remove(app: &Asking<'_>, request: &Request) -> Answered {
    let pool = PoolName::default_pool();
    let Some(value) = named(request) else { return Ok(no_such_key()) };
    match app.ask(Call::DeleteKey { pool, key: KeyRef::Value(value) }).await {
        Ok(_) => Ok(json(StatusCode::OK, &value!({ "message": "Given key has been deleted" }))),
        Err(problem) => problem.instead_of(Code::UnknownKey, no_such_key),
    }
}

async fn keep_alive(app: &Asking<'_>, request: &Request) -> Answered {
    let pool = PoolName::default_pool();
    let Some(value) = named(request) else { return Ok(no_such_key()) };
    let call = Call::KeepAlive { pool, key: KeyRef::Value(value.clone()) };
    let reply = match app.ask(call).await {
        Ok(reply) => reply,
        Err(problem) => return problem.instead_of(Code::UnknownKey, no_such_key),
    };
    let Reply::KeptAlive { expires_at_ms, .. } = reply else { unreachable!("{SHAPES}") };
    let expires_at = expires_at_ms.map(UnixMs);
    Ok(json(StatusCode::OK, &value!({ "api_key": value.reveal(), "expires_at": expires_at })))
}

fn key_exists() -> Response {
    let why = "key with this api key already exists";
    json(StatusCode::BAD_REQUEST, &value!({ "api_key": [why] }))
}

fn no_key() -> Response {
    json(StatusCode::NOT_FOUND, &value!({ "message": "No available key found" }))
}

fn no_such_key() -> Response {
    let message = "Kindly send key to be updated, given key does not exist";
    json(StatusCode::BAD_REQUEST, &value!({ "message": message }))
}

/// Reads the value that names a key: the query's last `api_key`, as the seed's framework takes it.
fn named(request: &Request) -> Option<Secret> {
    let query = request.uri().query()?;
    let parameter = |pair| {
        let (name, value) = str::split_once(pair, '=')?;
        (decoded(name) == "api_key").then(|| decoded(value))
    };
    Secret::new(&query.split('&').filter_map(parameter).next_back()?)
}

//! The Django API: the older compatibility API, over the default pool, with exactly the responses
//! that the readme of the original Django version gives.
//!
//! Requests name keys by their values, in the query, so no code may log a query. Only this API's
//! own outcomes have its bodies; framing, size and content type are refused as for every route.

use super::default_pool::{self, OwnRefusal};
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::parse::body;
use crate::http::parse::members::{BodyFields, Member, Unchecked};
use crate::http::parse::query::decoded;
use crate::http::respond::{HandlerResult, json_response};
use hyper::{Method, StatusCode};
use keypeg_client::{Code, UnixMs};
use keypeg_core::{ImportOptions, KeptAlive, KeyRef, PoolName, Released, Secret, VALUE_MAX};
use keypeg_store::{Answer, Call, TypedCall};
use serde_json::{Value, json};

/// The message of the Django version, including its trailing space. Repeated calls are harmless
/// here.
const SCHEDULER: &str =
    "Scheduler has been started to unblock keys at given condition, Kindly do not hit again ";

const NO_KEY: OwnRefusal = OwnRefusal { code: Code::NoKeyAvailable, response: no_key };
const UNKNOWN_KEY: OwnRefusal = OwnRefusal { code: Code::UnknownKey, response: unknown_key };

/// Answers `/api/v1/random_api_key/`.
pub(crate) async fn keys(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    match *request.method() {
        Method::POST => create_key(context, request).await,
        Method::GET => acquire_key(context, &request).await,
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

/// The body of a request that creates a key.
#[derive(Debug, Default)]
struct CreateBody {
    api_key: Option<Unchecked>,
}

impl BodyFields for CreateBody {
    const MEMBERS: &'static [Member<Self>] =
        &[Member::Unchecked("api_key", |body| &mut body.api_key)];
    const IGNORES_UNKNOWN: bool = true;
}

async fn create_key(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    let pool = PoolName::default_pool();
    let call = match body::read::<CreateBody>(context, request).await?.api_key {
        None => Call::generate(pool, 1),
        Some(value) => match secret_of(&value) {
            Ok(secret) => Call::import(pool, vec![secret], ImportOptions::default()),
            Err(error) => {
                return Ok(json_response(StatusCode::BAD_REQUEST, &json!({ "api_key": [error] })));
            }
        },
    };
    let key = match default_pool::create(context, call).await {
        Ok(key) => key,
        Err(problem) => return problem.instead_of(Code::KeyExists, key_exists),
    };
    let body = json!({
        "api_key": key.value.reveal(),
        "created_at": UnixMs(key.created_at_ms),
        "expires_at": key.expires_at_ms.map(UnixMs),
    });
    Ok(json_response(StatusCode::CREATED, &body))
}

/// Reads the value to import. An error has the text that the Django framework would give.
fn secret_of(value: &Unchecked) -> Result<Secret, String> {
    match value {
        Unchecked::Text(text) if text.is_empty() => Err("This field may not be blank.".into()),
        Unchecked::Text(text) => Secret::new(text)
            .ok_or_else(|| format!("Ensure this field has no more than {VALUE_MAX} bytes.")),
        Unchecked::Null => Err("This field may not be null.".into()),
        Unchecked::Other => Err("Not a valid string.".into()),
    }
}

async fn acquire_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    let grant = default_pool::acquire(context, request).await;
    NO_KEY.or_json(grant, |grant| json!({ "api_key": grant.value.reveal() }))
}

async fn release_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    call_on_key(
        context,
        request,
        Call::force_release,
        |value, _| json!({ "api_key": value.reveal() }),
    )
    .await
}

async fn delete_key(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    call_on_key(
        context,
        request,
        Call::delete_key,
        |_, Released { .. }| json!({ "message": "Given key has been deleted" }),
    )
    .await
}

async fn keep_key_alive(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    call_on_key(context, request, Call::keep_alive, |value, KeptAlive { expires_at_ms, .. }| {
        json!({ "api_key": value.reveal(), "expires_at": expires_at_ms.map(UnixMs) })
    })
    .await
}

/// Runs a call on the key whose value the query gives.
async fn call_on_key<A: Answer>(
    context: &RequestContext<'_>,
    request: &Request,
    call: fn(PoolName, KeyRef) -> TypedCall<A>,
    body: fn(&Secret, A) -> Value,
) -> HandlerResult {
    let Some(value) = key_value_of(request) else { return Ok(unknown_key()) };
    let answer = default_pool::on_key(context, KeyRef::Value(value.clone()), call).await;
    UNKNOWN_KEY.or_json(answer, |answer| body(&value, answer))
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

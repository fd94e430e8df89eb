//! The operations endpoints: liveness, readiness, version, and metrics.
//!
//! All of them answer GET and HEAD only, and none changes anything.

use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::respond::{HandlerResult, json_response};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use keypeg_store::{Call, Principal, RequestError};
use serde_json::json;
use std::sync::atomic::Ordering;

/// Answers `/livez`: the process runs.
pub(crate) fn live(request: &Request) -> HandlerResult {
    require_read(request)?;
    Ok(json_response(StatusCode::OK, &json!({ "status": "live" })))
}

/// Answers `/readyz`: the server has recovered and is not stopping.
pub(crate) fn ready(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    require_read(request)?;
    if context.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&RequestError::ShuttingDown));
    }
    Ok(json_response(StatusCode::OK, &json!({ "status": "ready" })))
}

/// Answers `/version`.
pub(crate) fn version(request: &Request) -> HandlerResult {
    require_read(request)?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(json_response(StatusCode::OK, &json!({ "name": "keypeg", "version": version })))
}

/// Answers `/metrics` with `OpenMetrics` text.
pub(crate) async fn metrics(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    require_read(request)?;
    // As the server, whose calls a full lane does not refuse: metrics matter most under overload.
    let pools = context.execute_as(Principal::Server, Call::list_pools()).await?;
    let mut response = Response::new(context.server.metrics.text(&pools).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Ok(response)
}

fn require_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

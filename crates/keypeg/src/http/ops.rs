//! The operations endpoints: liveness, readiness, version, and metrics.
//!
//! All of them answer GET and HEAD only, and none changes anything.

use super::error::Problem;
use super::{
    HandlerResult, REPLY_VARIANT, Request, RequestContext, Response, json_response, unrouted,
};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use keypeg_store::{Call, Principal, Reply, RequestError};
use serde_json::json;
use std::sync::atomic::Ordering;

/// Answers `/livez`: the process runs.
pub(super) fn live(request: &Request) -> HandlerResult {
    require_read(request)?;
    Ok(json_response(StatusCode::OK, &json!({ "status": "live" })))
}

/// Answers `/readyz`: the server has recovered and is not stopping.
pub(super) fn ready(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    require_read(request)?;
    if context.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&RequestError::ShuttingDown));
    }
    Ok(json_response(StatusCode::OK, &json!({ "status": "ready" })))
}

/// Answers `/version`.
pub(super) fn version(request: &Request) -> HandlerResult {
    require_read(request)?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(json_response(StatusCode::OK, &json!({ "name": "keypeg", "version": version })))
}

/// Answers `/metrics` with `OpenMetrics` text.
pub(super) async fn metrics(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    require_read(request)?;
    // As the server, whose calls a full lane does not refuse: metrics matter most under overload.
    let pools = context.execute_as(Principal::Server, Call::ListPools);
    let Reply::Pools(pools) = pools.await? else { unreachable!("{REPLY_VARIANT}") };
    let mut response = Response::new(context.server.metrics.text(&pools).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Ok(response)
}

fn require_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(unrouted(request.uri().path())),
    }
}

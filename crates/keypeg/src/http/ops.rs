//! What tells about the server rather than about keys: whether it lives, is ready, and is which.

use super::error::Problem;
use super::{Answered, Asking, Request, Response, SHAPES, json, unrouted};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use keypeg_engine::{Call, Principal, Reply, RequestError};
use serde_json::json as value;
use std::sync::atomic::Ordering;

/// The process runs and answers.
pub(super) fn live(request: &Request) -> Answered {
    only_read(request)?;
    Ok(json(StatusCode::OK, &value!({ "status": "live" })))
}

/// The server takes requests: recovered, and not stopping.
pub(super) fn ready(app: &Asking<'_>, request: &Request) -> Answered {
    only_read(request)?;
    if app.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&RequestError::ShuttingDown));
    }
    Ok(json(StatusCode::OK, &value!({ "status": "ready" })))
}

/// Which version this is.
pub(super) fn version(request: &Request) -> Answered {
    only_read(request)?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(json(StatusCode::OK, &value!({ "name": "keypeg", "version": version })))
}

/// What the server counts, as `OpenMetrics` text.
pub(super) async fn metrics(app: &Asking<'_>, request: &Request) -> Answered {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    only_read(request)?;
    // In the server's name: figures are wanted most when there is more work than room.
    let asked = app.ask_as(Principal::Server, Call::ListPools);
    let Reply::Pools(pools) = asked.await? else { unreachable!("{SHAPES}") };
    let mut response = Response::new(app.server.metrics.text(&pools).into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    Ok(response)
}

fn only_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(unrouted(request.uri().path())),
    }
}

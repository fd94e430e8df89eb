//! What tells about the server rather than about keys: whether it lives, is ready, and is which.

use super::error::Problem;
use super::{Answered, App, Request, json};
use hyper::{Method, StatusCode};
use keypeg_engine::Refusal;
use serde_json::json as value;
use std::sync::atomic::Ordering;

/// The process runs and answers.
pub(super) fn live(request: &Request) -> Answered {
    only_read(request)?;
    Ok(json(StatusCode::OK, &value!({ "status": "live" })))
}

/// The server takes requests: recovered, and not stopping.
pub(super) fn ready(app: &App, request: &Request) -> Answered {
    only_read(request)?;
    if app.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&Refusal::ShuttingDown));
    }
    Ok(json(StatusCode::OK, &value!({ "status": "ready" })))
}

/// Which version this is.
pub(super) fn version(request: &Request) -> Answered {
    only_read(request)?;
    let version = env!("CARGO_PKG_VERSION");
    Ok(json(StatusCode::OK, &value!({ "name": "keypeg", "version": version })))
}

fn only_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Problem::method_not_allowed("GET, HEAD")),
    }
}

//! The operations endpoints: liveness, readiness, version, metrics, and what a token allows.
//!
//! All of them answer GET and HEAD only, and none changes anything.

use super::readiness;
use crate::build_info;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::{Request, Response};
use crate::http::metrics::ScrapedPools;
use crate::http::metrics::exposition::Format;
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response};
use hyper::header::{CONTENT_TYPE, HeaderValue, VARY};
use hyper::{Method, StatusCode};
use keypeg_client::routes;
use keypeg_fields::POOLS;
use keypeg_store::RequestError;
use serde_json::json;
use std::sync::atomic::Ordering;

/// Answers `/`: the paths at which a reader continues.
pub(crate) fn index(request: &Request) -> HandlerResult {
    require_read(request)?;
    let links = json!({
        "name": "keypeg",
        "docs": routes::DOCS,
        "openapi": routes::OPENAPI,
        "pools": routes::POOLS,
        "ready": routes::READYZ,
        "version": routes::VERSION,
    });
    let mut response = json_response(StatusCode::OK, &links);
    // A browser gets the dashboard.
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Answers `/livez`: the process runs.
pub(crate) fn live(request: &Request) -> HandlerResult {
    require_read(request)?;
    Ok(json_response(StatusCode::OK, &json!({ "status": "live" })))
}

/// Answers `/readyz`: the server has recovered and is not stopping. One that shares its pools must
/// reach its store and know an owner of each shard. It need not reach the other servers.
pub(crate) fn ready(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    require_read(request)?;
    if context.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&RequestError::ShuttingDown));
    }
    match context.lanes.cluster() {
        None => Ok(json_response(StatusCode::OK, &json!({ "status": "ready" }))),
        Some(cluster) => readiness::answer(&cluster.status(), &context.server.was_ready),
    }
}

/// Answers `/version`.
pub(crate) fn version(request: &Request) -> HandlerResult {
    require_read(request)?;
    let version = json!({
        "name": "keypeg",
        "version": build_info::VERSION,
        "commit": build_info::commit(),
        "built_at": build_info::built_at(),
        "target": build_info::TARGET,
    });
    Ok(json_response(StatusCode::OK, &version))
}

/// Answers `/v1/access`: what the access token of the request allows.
pub(crate) fn access(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    require_read(request)?;
    Query::read(request.uri().query(), &[])?;
    Ok(json_response(StatusCode::OK, &context.allowed()))
}

/// Answers `/metrics`, in the format that the scraper prefers.
pub(crate) async fn metrics(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    require_read(request)?;
    let query = Query::read(request.uri().query(), &[POOLS.name])?;
    let has_pools = query.integer(&POOLS, 1)? == 1;
    let format = Format::of(request.headers());
    let filter = context.listed_pools().filter(|filter| !filter.allows_all());
    let pools = match &filter {
        _ if !has_pools => ScrapedPools::None,
        None => ScrapedPools::All,
        Some(filter) => ScrapedPools::Allowed(filter),
    };
    let reading = context.server.metrics.read(&context.lanes).await?;
    let room = context.operator_room(reading.text_bytes(pools))?;
    let mut response = Response::new(reading.text(format, pools).await.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(VARY, HeaderValue::from_static("accept"));
    Ok(room.fill(response))
}

fn require_read(request: &Request) -> Result<(), Problem> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Problem::unrouted(request.uri().path())),
    }
}

//! Builds responses: JSON and empty ones, and the headers that every response has.

use super::error::Problem;
use super::message::{Body, Response};
use super::origin::RequestId;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use hyper::header::{HeaderName, HeaderValue, LOCATION};

/// What a handler returns: its response, or the problem to report.
pub(super) type HandlerResult = Result<Response, Problem>;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The content security policy of every response that is not an HTML page: allows nothing.
pub(super) const CSP_DENY_ALL: &str = "default-src 'none'; frame-ancestors 'none'";

/// The properties of a request on which the standard headers of its response depend.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseTraits {
    pub(super) id: RequestId,
    /// Whether the request may change something.
    pub(super) is_change: bool,
}

/// Adds the headers that every response has.
pub(super) fn add_standard_headers(response: &mut Response, of: ResponseTraits) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !of.is_change {
        // A page has set its own policy. The response to a change is JSON or empty, which a browser
        // does not render, so it needs no policy.
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CSP_DENY_ALL));
    }
    let id = HeaderValue::try_from(of.id.to_string()).expect("invariant: hex and dashes");
    headers.insert(REQUEST_ID, id);
    // Every response but an embedded page, which has its own rule, has a state that changes or a
    // secret. A cache in front of the server must answer none of them.
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Adds where a new resource is; the path consists of names and ids.
pub(super) fn with_location(mut response: Response, path: &str) -> Response {
    let path = HeaderValue::try_from(path).expect("invariant: a path consists of names and ids");
    response.headers_mut().insert(LOCATION, path);
    response
}

/// Returns a JSON response.
pub(super) fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("invariant: wire types always serialise");
    json_bytes(status, body)
}

/// Returns a response with JSON that is already serialised.
pub(super) fn json_bytes(status: StatusCode, json: Vec<u8>) -> Response {
    let mut response = Response::new(json.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns an empty response.
pub(super) fn no_content() -> Response {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

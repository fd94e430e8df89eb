//! The documentation that the server serves: the `OpenAPI` document, the reference page, and the
//! pages of error codes.
//!
//! The server only embeds the files: keypeg-openapi writes them from the code, except the style
//! sheet. Pages are static: no script, nothing from other hosts, readable without a network. This
//! file knows no operation.

mod problems;

use super::error::Problem;
use super::message::{Request, Response};
use super::respond::HandlerResult;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use keypeg_client::Code;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");
const REFERENCE: &str = include_str!("../../ui/docs/reference.html");
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("../../ui/docs/style.css");
/// A page loads its style sheet from this server, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Answers with the `OpenAPI` document.
pub(super) fn openapi(request: &Request) -> HandlerResult {
    fixed(request, "application/json", DOCUMENT)
}

/// Answers with the reference page.
pub(super) fn page(request: &Request) -> HandlerResult {
    fixed(request, HTML, REFERENCE)
}

/// Answers with the style sheet of all pages.
pub(super) fn style(request: &Request) -> HandlerResult {
    fixed(request, "text/css; charset=utf-8", STYLE)
}

/// Answers with the index of problem pages.
pub(super) fn problems(request: &Request) -> HandlerResult {
    fixed(request, HTML, problems::INDEX)
}

/// Answers with the page of one error code; an unknown code has no route.
pub(super) fn problem(request: &Request, word: &str) -> HandlerResult {
    let code = Code::from_word(word).ok_or_else(Problem::not_found)?;
    fixed(request, HTML, problems::page(code))
}

/// Builds an answer that never changes while the server runs.
fn fixed(request: &Request, content_type: &'static str, body: &'static str) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    let mut response = Response::new(Bytes::from_static(body.as_bytes()).into());
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

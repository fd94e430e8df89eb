//! The documentation that the server serves: the `OpenAPI` document, a page made from it, and the
//! pages of error codes.
//!
//! Pages are static: no script, nothing from other hosts, readable without a network. Operations,
//! fields and answers come from `docs/openapi.json`, terms and conventions from
//! `ui/docs/intro.html`, and error codes from the table of keypeg-client. This file knows no
//! operation.

mod page;
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
use std::sync::OnceLock;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");
const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("../../ui/docs/style.css");
/// A page loads its style sheet from this server, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Answers with the `OpenAPI` document.
pub(super) fn openapi(request: &Request) -> HandlerResult {
    fixed(request, "application/json", Bytes::from_static(DOCUMENT.as_bytes()))
}

/// Answers with the documentation page.
pub(super) fn page(request: &Request) -> HandlerResult {
    static PAGE: OnceLock<Bytes> = OnceLock::new();
    let page = PAGE.get_or_init(|| page::render(DOCUMENT).into());
    fixed(request, HTML, page.clone())
}

/// Answers with the style sheet of all pages.
pub(super) fn style(request: &Request) -> HandlerResult {
    fixed(request, "text/css; charset=utf-8", Bytes::from_static(STYLE.as_bytes()))
}

/// Answers with the index of problem pages.
pub(super) fn problems(request: &Request) -> HandlerResult {
    fixed(request, HTML, problems::index().into())
}

/// Answers with the page of one error code; an unknown code has no route.
pub(super) fn problem(request: &Request, word: &str) -> HandlerResult {
    let code = Code::from_word(word).ok_or_else(Problem::not_found)?;
    fixed(request, HTML, problems::page(code).into())
}

/// Builds an answer that never changes while the server runs.
fn fixed(request: &Request, content_type: &'static str, body: Bytes) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    let mut response = Response::new(body.into());
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

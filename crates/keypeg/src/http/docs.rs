//! The API's own description: the document as `docs/openapi.json` has it, and a page made from it.
//!
//! The page is static: no script, nothing from elsewhere, readable without a network. What calls
//! there are, their fields and their answers come from the document; words and conventions are
//! `ui/docs/intro.html`. Knows nothing of the calls themselves.

mod page;

use super::{Answered, Request, Response, unrouted};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use std::sync::OnceLock;

const DOCUMENT: &str = include_str!("../../../../docs/openapi.json");
const STYLE: &str = include_str!("../../ui/docs/style.css");
/// The page takes its style sheet from here and nothing from anywhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document.
pub(super) fn openapi(request: &Request) -> Answered {
    fixed(request, "application/json", Bytes::from_static(DOCUMENT.as_bytes()))
}

/// The page.
pub(super) fn page(request: &Request) -> Answered {
    static PAGE: OnceLock<Bytes> = OnceLock::new();
    let page = PAGE.get_or_init(|| page::render(DOCUMENT).into());
    fixed(request, "text/html; charset=utf-8", page.clone())
}

/// How the page looks.
pub(super) fn style(request: &Request) -> Answered {
    fixed(request, "text/css; charset=utf-8", Bytes::from_static(STYLE.as_bytes()))
}

/// An answer that is the same as long as the server runs.
fn fixed(request: &Request, content_type: &'static str, body: Bytes) -> Answered {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(unrouted(request.uri().path()));
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

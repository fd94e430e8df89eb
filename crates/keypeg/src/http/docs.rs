//! The documentation that the server serves: the `OpenAPI` document, the reference page, and the
//! pages of error codes.
//!
//! The server only embeds the files: keypeg-openapi writes them from the code, except the style
//! sheet. Pages are static: no script, nothing from other hosts, readable without a network. This
//! file knows no operation.

mod problems;

use super::embedded::EmbeddedFile;
use super::error::Problem;
use super::message::Request;
use super::respond::HandlerResult;
use hyper::Method;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue};
use keypeg_client::Code;
use std::sync::LazyLock;

static DOCUMENT: LazyLock<EmbeddedFile> = LazyLock::new(|| {
    EmbeddedFile::new("application/json", include_str!("../../../../docs/openapi.json"))
        .with_gzip(include_bytes!("../../ui/docs/openapi.json.gz"))
});
static REFERENCE: LazyLock<EmbeddedFile> = LazyLock::new(|| {
    EmbeddedFile::new(HTML, include_str!("../../ui/docs/reference.html"))
        .with_gzip(include_bytes!("../../ui/docs/reference.html.gz"))
});
static STYLE: LazyLock<EmbeddedFile> = LazyLock::new(|| {
    EmbeddedFile::new("text/css; charset=utf-8", include_str!("../../ui/docs/style.css"))
});
const HTML: &str = "text/html; charset=utf-8";
/// A page loads its style sheet from this server, and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Answers with the `OpenAPI` document.
pub(super) fn openapi(request: &Request) -> HandlerResult {
    file(request, &DOCUMENT)
}

/// Answers with the reference page.
pub(super) fn page(request: &Request) -> HandlerResult {
    file(request, &REFERENCE)
}

/// Answers with the style sheet of all pages.
pub(super) fn style(request: &Request) -> HandlerResult {
    file(request, &STYLE)
}

/// Answers with the index of problem pages.
pub(super) fn problems(request: &Request) -> HandlerResult {
    file(request, &EmbeddedFile::new(HTML, problems::INDEX))
}

/// Answers with the page of one error code; an unknown code has no route.
pub(super) fn problem(request: &Request, word: &str) -> HandlerResult {
    let code = Code::from_word(word).ok_or_else(Problem::not_found)?;
    file(request, &EmbeddedFile::new(HTML, problems::page(code)))
}

/// Answers with a file that never changes while the server runs.
fn file(request: &Request, file: &EmbeddedFile) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    let mut response = file.answer(request);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

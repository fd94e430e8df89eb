//! Replaces the responses that hyper writes by itself, to heads that it cannot parse and that no
//! handler sees, and answers the heads that hyper closes on without a response.
//!
//! hyper answers such a head with a bare status. [`HyperErrorFilter`] recognises that response by
//! what every response of this server has and it lacks, and replaces it with a problem of the same
//! status. A response of an unknown form passes unchanged.

use crate::http::app::App;
use crate::http::date::HttpDate;
use crate::http::error::Problem;
use crate::http::metrics::Family;
use crate::http::respond::{CSP_DENY_ALL, REQUEST_ID};
use crate::share::Budget;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use keypeg_client::Code;
use std::sync::Arc;
use std::time::Duration;

/// The filter of one connection. The first response it replaces is the connection's last.
#[derive(Debug)]
pub(super) struct HyperErrorFilter {
    app: Arc<App>,
    /// The bytes to send instead of hyper's.
    replacement: Vec<u8>,
    sent: usize,
}

impl HyperErrorFilter {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, replacement: Vec::new(), sent: 0 }
    }

    /// Checks the bytes that hyper is about to write. Returns `true` if they are an error response
    /// of its own: the caller must drop them and send [`HyperErrorFilter::unsent`] instead.
    /// `is_http2` is set if the client speaks HTTP/2.
    pub(super) fn intercept(&mut self, bytes: &[u8], is_http2: bool) -> bool {
        let Some(error) = HyperError::parse(bytes) else { return false };
        self.replacement =
            if is_http2 { http2_response(&self.app) } else { problem_response(&self.app, &error) };
        self.sent = 0;
        true
    }

    /// Prepares the response to a client that speaks HTTP/2; returns whether it is the first one.
    pub(super) fn refuse_http2(&mut self) -> bool {
        let is_first = self.replacement.is_empty();
        if is_first {
            self.replacement = http2_response(&self.app);
        }
        is_first
    }

    /// Returns the memory of all heads.
    pub(super) fn heads(&self) -> Arc<Budget> {
        Arc::clone(&self.app.server.heads)
    }

    /// Prepares the response to a head for which there is no memory. It could be a keep-alive's.
    pub(super) fn refuse_head(&mut self) {
        self.app.lanes.note_refused_keep_alive();
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let detail = "The memory for large request heads is full: send shorter headers, or try \
                      again later.";
        let problem = Problem::new(Code::Overloaded, detail).retry_after_ms(1_000);
        let start = "HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1";
        self.replacement = response(&self.app, status, problem, (start, "\r\n"));
        self.sent = 0;
    }

    /// Returns the bytes of the replacement that are still to be sent.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.replacement[self.sent..]
    }

    /// Marks `len` more bytes of the replacement as sent.
    pub(super) fn mark_sent(&mut self, len: usize) {
        self.sent += len;
    }
}

/// An error response that hyper wrote by itself.
#[derive(Debug, PartialEq, Eq)]
struct HyperError<'a> {
    status: StatusCode,
    /// The head up to its Content-Length, which is 0.
    before: &'a str,
    /// The head's other headers and its end.
    after: &'a str,
}

impl<'a> HyperError<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        // Bodies contain no CRLF, so bytes that end in an empty line are one head and nothing else.
        let code = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        if code[0] != b'4' || !bytes.ends_with(b"\r\n\r\n") {
            return None;
        }
        let head = std::str::from_utf8(bytes).ok()?;
        let (before, after) = head.split_once("\r\ncontent-length: 0\r\n")?;
        let has_request_id = head.contains(REQUEST_ID.as_str());
        let status = StatusCode::from_bytes(code).ok()?;
        (!has_request_id).then_some(Self { status, before, after })
    }
}

fn problem_response(app: &App, error: &HyperError<'_>) -> Vec<u8> {
    let HyperError { status, before, after } = *error;
    let (code, detail) = if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        (
            Code::TooLarge,
            "The request's line and headers are too large: send fewer or shorter headers.",
        )
    } else {
        (Code::Malformed, "The request's line or headers are not valid HTTP/1.1.")
    };
    response(app, status, Problem::new(code, detail), (before, after))
}

/// Returns the response to a client that speaks HTTP/2, which this version of HTTP can only show as
/// text.
fn http2_response(app: &App) -> Vec<u8> {
    let status = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    let detail = "This server accepts HTTP/1.1 and HTTP/1.0 only: send no HTTP/2 preface (h2c \
                  with prior knowledge).";
    let reason = status.canonical_reason().unwrap_or_default();
    let before = format!("HTTP/1.1 {} {reason}\r\nconnection: close", status.as_str());
    response(app, status, Problem::new(Code::Malformed, detail), (&before, "\r\n"))
}

/// Returns the response to a client that sends plain HTTP to a server with TLS.
pub(super) fn plain_http_response(app: &App) -> Vec<u8> {
    let detail = "This server accepts HTTPS only: use an address that begins with https://.";
    let problem = Problem::new(Code::Malformed, detail);
    let start = "HTTP/1.1 400 Bad Request\r\nconnection: close";
    response(app, StatusCode::BAD_REQUEST, problem, (start, "\r\n"))
}

/// Writes a problem between the start and the end of a head.
fn response(
    app: &App,
    status: StatusCode,
    problem: Problem,
    (before, after): (&str, &str),
) -> Vec<u8> {
    let id = app.next_request_id();
    app.counts.refused(problem.code());
    app.counts.answered(Family::Other, status, Duration::ZERO);
    let body = problem.unread(status).into_body(id, true);
    let date = HttpDate::now().text;
    let head = format!(
        "{before}\r\ncontent-length: {}\r\ncontent-type: application/problem+json\r\n\
         {X_CONTENT_TYPE_OPTIONS}: nosniff\r\n{CONTENT_SECURITY_POLICY}: {CSP_DENY_ALL}\r\n\
         {REQUEST_ID}: {id}\r\ndate: {date}\r\n{CACHE_CONTROL}: no-store\r\n{after}",
        body.len(),
    );
    [head.into_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_error_responses_of_hyper_itself_are_intercepted() {
        let bytes = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                     content-length: 0\r\n\r\n";
        let error = HyperError::parse(bytes.as_bytes()).unwrap();
        assert_eq!(error.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(error.before.ends_with("connection: close"));
        assert_eq!(error.after, "\r\n");
        for other in [
            "",
            "HTTP/1.1 4",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n{}",
            "HTTP/1.1 405 Method Not Allowed\r\nx-request-id: 1-2\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(HyperError::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}

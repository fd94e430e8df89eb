//! What hyper refuses by itself: heads that it cannot read, which no handler ever sees.
//!
//! hyper answers them with a bare status. Here such an answer is known by what every answer of ours
//! has and it has not, and its place is taken by a problem like any other, under the same status.
//! Where hyper's words are not known again, they go out as they are.

use super::error::Problem;
use super::metrics::Family;
use super::{App, NOTHING_NEEDED, REQUEST_ID};
use hyper::StatusCode;
use hyper::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use keypeg_client::Code;
use std::sync::Arc;
use std::time::Duration;

/// The refusals of one connection; the first is its last answer.
#[derive(Debug)]
pub(super) struct Unread {
    app: Arc<App>,
    /// What is to be sent in place of hyper's words.
    bytes: Vec<u8>,
    sent: usize,
}

impl Unread {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, bytes: Vec::new(), sent: 0 }
    }

    /// Takes what hyper is about to write, if it is a refusal of its own: [`Unread::rest`] is then
    /// to be sent instead.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let Some(refusal) = Refusal::of(bytes) else { return false };
        self.bytes = answer(&self.app, &refusal);
        self.sent = 0;
        true
    }

    /// What is still to be sent.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Tells that so much of the rest was sent.
    pub(super) fn sent(&mut self, len: usize) {
        self.sent += len;
    }
}

/// A refusal of hyper's own.
#[derive(Debug, PartialEq, Eq)]
struct Refusal<'a> {
    status: StatusCode,
    /// Its head up to the length of the body it does not have.
    before: &'a str,
    /// The head's other headers, and its end.
    after: &'a str,
}

impl<'a> Refusal<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        // Bodies hold no CRLF, so this can be nothing but one head.
        let code = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        if code[0] != b'4' || !bytes.ends_with(b"\r\n\r\n") {
            return None;
        }
        let head = std::str::from_utf8(bytes).ok()?;
        let (before, after) = head.split_once("\r\ncontent-length: 0\r\n")?;
        let ours = head.contains(REQUEST_ID.as_str());
        let status = StatusCode::from_bytes(code).ok()?;
        (!ours).then_some(Self { status, before, after })
    }
}

fn answer(app: &App, refusal: &Refusal<'_>) -> Vec<u8> {
    let Refusal { status, before, after } = *refusal;
    let (code, detail) = if status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
        (Code::TooLarge, "The request's head is too large.")
    } else {
        (Code::Malformed, "The request's head is not one of HTTP/1.1.")
    };
    let id = app.next_request_id();
    app.counts.refused(code);
    app.counts.answered(Family::Other, status, Duration::ZERO);
    let body = Problem::new(code, detail).unread(status).into_body(id, true);
    let head = format!(
        "{before}\r\ncontent-length: {}\r\ncontent-type: application/problem+json\r\n\
         {X_CONTENT_TYPE_OPTIONS}: nosniff\r\n{CONTENT_SECURITY_POLICY}: {NOTHING_NEEDED}\r\n\
         {REQUEST_ID}: {id}\r\n{after}",
        body.len(),
    );
    [head.into_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_hyper_says_by_itself_is_taken() {
        let hypers = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                      content-length: 0\r\ndate: Sun, 22 Nov 2026 21:29:00 GMT\r\n\r\n";
        let refusal = Refusal::of(hypers.as_bytes()).unwrap();
        assert_eq!(refusal.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert!(refusal.before.ends_with("connection: close"));
        assert!(refusal.after.starts_with("date: ") && refusal.after.ends_with("\r\n\r\n"));
        for other in [
            "",
            "HTTP/1.1 4",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n{}",
            "HTTP/1.1 405 Method Not Allowed\r\nx-request-id: 1-2\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert_eq!(Refusal::of(other.as_bytes()), None, "{other:?}");
        }
    }
}

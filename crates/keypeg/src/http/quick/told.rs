//! Answers as bytes: what hyper would write of them.
//!
//! What the calls answered here say when all is well is written straight into a buffer; a problem
//! is first the same answer that hyper would be given.

use super::super::answer::Body;
use super::super::{REQUEST_ID, RequestId, Response};
use crate::clock;
use hyper::StatusCode;
use hyper::header::CONNECTION;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use std::io::Write as _;

/// Where the answers of one core are put together.
#[derive(Debug, Default)]
pub(super) struct Writer {
    head: Vec<u8>,
    body: Vec<u8>,
    date: String,
    date_s: u64,
}

/// Why writing to a buffer cannot fail.
const ROOM: &str = "invariant: a buffer takes whatever is written";

impl Writer {
    /// Puts together an answer of a changing call that may carry secrets, JSON or nothing; gives
    /// its bytes.
    pub(super) fn tell(
        &mut self,
        status: StatusCode,
        write: impl FnOnce(&mut Vec<u8>),
        id: RequestId,
        last: bool,
    ) -> &[u8] {
        self.begin(status);
        self.body.clear();
        write(&mut self.body);
        let length = Some(self.body.len()).filter(|&length| length > 0);
        if length.is_some() {
            self.head.extend_from_slice(b"content-type: application/json\r\n");
        }
        write!(self.head, "x-content-type-options: nosniff\r\n{REQUEST_ID}: {id}\r\n").expect(ROOM);
        self.head.extend_from_slice(b"cache-control: no-store\r\n");
        self.end(length, last);
        self.head.extend_from_slice(&self.body);
        &self.head
    }

    /// Puts together an answer that is made already; gives its bytes, and whether it has its
    /// connection closed.
    pub(super) fn tell_made(&mut self, made: &Response, last: bool) -> (&[u8], bool) {
        self.begin(made.status());
        let (mut closes, mut said) = (last, false);
        for (name, value) in made.headers() {
            // There is no other than `close`, and it stands where it was put.
            closes |= name == CONNECTION;
            said |= name == CONNECTION;
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                self.head.extend_from_slice(part);
            }
        }
        let body = match made.body() {
            Body::Whole(body) => body,
            Body::Events(_) => unreachable!("invariant: no call here follows events"),
        };
        self.end(Some(body.len()), closes && !said);
        self.head.extend_from_slice(body);
        (&self.head, closes)
    }

    fn begin(&mut self, status: StatusCode) {
        self.head.clear();
        let reason = status.canonical_reason().unwrap_or_default();
        write!(self.head, "HTTP/1.1 {} {reason}\r\n", status.as_str()).expect(ROOM);
    }

    fn end(&mut self, length: Option<usize>, last: bool) {
        if last {
            self.head.extend_from_slice(b"connection: close\r\n");
        }
        if let Some(length) = length {
            write!(self.head, "content-length: {length}\r\n").expect(ROOM);
        }
        self.bring_date();
        self.head.extend_from_slice(b"date: ");
        self.head.extend_from_slice(self.date.as_bytes());
        self.head.extend_from_slice(b"\r\n\r\n");
    }

    fn bring_date(&mut self) {
        let now_s = clock::wall_ms() / 1_000;
        if now_s == self.date_s {
            return;
        }
        let instant = i64::try_from(now_s).ok().and_then(|now| Timestamp::from_second(now).ok());
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&instant.unwrap_or_default());
        self.date = date.unwrap_or_default();
        self.date_s = now_s;
    }
}

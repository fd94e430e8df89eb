//! Writes the responses of the fast path as bytes, exactly as hyper would write them.
//!
//! A success response is written directly into a buffer. A problem arrives as the response that
//! hyper would get.

use crate::http::date::HttpDate;
use crate::http::message::{Body, Response};
use crate::http::origin::RequestId;
use crate::http::respond::CSP_DENY_ALL;
use hyper::StatusCode;
use hyper::header::CONNECTION;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// One core's response buffers.
#[derive(Debug, Default)]
pub(super) struct ResponseWriter {
    head: Vec<u8>,
    body: Vec<u8>,
    /// The common prefix of this core's request ids, once one was written.
    id_prefix: Vec<u8>,
    date: String,
    /// When `date` must be replaced.
    date_valid_until: Option<Instant>,
}

/// The properties of a response apart from its content.
#[derive(Debug)]
pub(super) struct ResponseInfo {
    pub(super) id: RequestId,
    /// Whether the connection ends with it.
    pub(super) closes: bool,
    /// The time at which it is written.
    pub(super) now: Instant,
}

/// The header lines of a success response that depend on its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyLines<'a> {
    /// The lines of its content.
    pub(super) first: &'a [u8],
    /// Whether the request may have changed something.
    pub(super) is_change: bool,
}

/// Panic text for a failed write to a buffer.
const INFALLIBLE: &str = "invariant: writing to a buffer never fails";

impl ResponseWriter {
    /// Writes a success response that may carry secrets; its body is JSON or empty. Returns its
    /// bytes.
    pub(super) fn write_reply(
        &mut self,
        status: StatusCode,
        lines: ReplyLines<'_>,
        write_body: impl FnOnce(&mut Vec<u8>),
        info: &ResponseInfo,
    ) -> &[u8] {
        self.begin(status);
        self.head.extend_from_slice(lines.first);
        self.body.clear();
        write_body(&mut self.body);
        let length = Some(self.body.len()).filter(|&length| length > 0);
        if length.is_some() {
            self.head.extend_from_slice(b"content-type: application/json\r\n");
        }
        self.head.extend_from_slice(b"x-content-type-options: nosniff\r\n");
        if !lines.is_change {
            self.head.extend_from_slice(b"content-security-policy: ");
            self.head.extend_from_slice(CSP_DENY_ALL.as_bytes());
            self.head.extend_from_slice(b"\r\n");
        }
        self.head.extend_from_slice(b"x-request-id: ");
        self.push_id(info.id);
        self.head.extend_from_slice(b"\r\ncache-control: no-store\r\n");
        self.end(length, info.closes, info.now);
        self.head.extend_from_slice(&self.body);
        &self.head
    }

    /// Writes a finished response. Returns its bytes and whether it closes its connection.
    pub(super) fn write_response(
        &mut self,
        response: &Response,
        info: &ResponseInfo,
    ) -> (&[u8], bool) {
        self.begin(response.status());
        let mut has_close_header = false;
        for (name, value) in response.headers() {
            // The server writes no Connection header but `close`. It keeps its position.
            has_close_header |= name == CONNECTION;
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                self.head.extend_from_slice(part);
            }
        }
        let closes = info.closes || has_close_header;
        let body = match response.body() {
            Body::Complete(body) | Body::Counted(body, _) => body,
            Body::Events(_) | Body::Backup(_) | Body::Forwarded(_) => {
                unreachable!("invariant: no call of the fast path streams")
            }
        };
        let length = Some(body.len()).filter(|_| response.status() != StatusCode::NO_CONTENT);
        self.end(length, closes && !has_close_header, info.now);
        self.head.extend_from_slice(body);
        (&self.head, closes)
    }

    /// Starts a response with its status line.
    fn begin(&mut self, status: StatusCode) {
        self.head.clear();
        let common_line: &[u8] = match status {
            StatusCode::OK => b"HTTP/1.1 200 OK\r\n",
            StatusCode::CREATED => b"HTTP/1.1 201 Created\r\n",
            StatusCode::NO_CONTENT => b"HTTP/1.1 204 No Content\r\n",
            _ => b"",
        };
        self.head.extend_from_slice(common_line);
        if common_line.is_empty() {
            let reason = status.canonical_reason().unwrap_or_default();
            write!(self.head, "HTTP/1.1 {} {reason}\r\n", status.as_str()).expect(INFALLIBLE);
        }
    }

    /// Writes an id as its `Display` does, without the cost of formatting.
    fn push_id(&mut self, RequestId { run_id, core, sequence }: RequestId) {
        if self.id_prefix.is_empty() {
            write!(self.id_prefix, "{run_id:012x}-{core:x}-").expect(INFALLIBLE);
        }
        self.head.extend_from_slice(&self.id_prefix);
        let digits = sequence.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let leading_zeros = (sequence.leading_zeros() / 4).min(15);
        for digit in digits.skip(leading_zeros as usize) {
            self.head.push(b"0123456789abcdef"[usize::from(digit)]);
        }
    }

    /// Ends the head: Date, Connection and Content-Length.
    fn end(&mut self, length: Option<usize>, closes: bool, now: Instant) {
        if self.date_valid_until.is_none_or(|until| now >= until) {
            self.refresh_date(now);
        }
        self.head.extend_from_slice(b"date: ");
        self.head.extend_from_slice(self.date.as_bytes());
        self.head.extend_from_slice(b"\r\n");
        if closes {
            self.head.extend_from_slice(b"connection: close\r\n");
        }
        if let Some(length) = length {
            write!(self.head, "content-length: {length}\r\n").expect(INFALLIBLE);
        }
        self.head.extend_from_slice(b"\r\n");
    }

    /// Formats the current date, which is valid until the end of the current second.
    fn refresh_date(&mut self, now: Instant) {
        let HttpDate { text, valid_ms } = HttpDate::now();
        self.date = text;
        self.date_valid_until = Some(now + Duration::from_millis(valid_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::http::respond::REQUEST_ID;

    #[test]
    fn a_response_has_the_headers_and_the_id_of_any_other() {
        for sequence in [0, 1, 15, 16, 255, 0x1234_5678, u64::MAX] {
            let id = RequestId { run_id: 0xabc, core: 17, sequence };
            let info = ResponseInfo { id, closes: true, now: clock::stopwatch() };
            let mut writer = ResponseWriter::default();
            let write_body = |body: &mut Vec<u8>| body.extend_from_slice(b"{}");
            let response = writer.write_reply(
                StatusCode::OK,
                ReplyLines { first: b"", is_change: true },
                write_body,
                &info,
            );
            let response = String::from_utf8(response.to_vec()).unwrap();
            let (before, date) = response.split_once("date: ").unwrap();
            let expected = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                 x-content-type-options: nosniff\r\n{REQUEST_ID}: {id}\r\n\
                 cache-control: no-store\r\n"
            );
            assert_eq!(before, expected);
            let (date, rest) = date.split_once("\r\n").unwrap();
            assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
            assert_eq!(rest, "connection: close\r\ncontent-length: 2\r\n\r\n{}");
        }
    }

    #[test]
    fn a_date_is_reused_until_its_second_ends() {
        let mut writer = ResponseWriter::default();
        let now = clock::stopwatch();
        writer.refresh_date(now);
        let until = writer.date_valid_until.unwrap();
        assert!(until > now && until <= now + Duration::from_secs(1));
        writer.date = "old".into();
        writer.end(None, false, until.checked_sub(Duration::from_nanos(1)).unwrap());
        assert_eq!(writer.date, "old");
        writer.end(None, false, until);
        assert_eq!(writer.date.len(), 29);
    }
}

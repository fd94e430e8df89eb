//! Answers as bytes: what hyper would write of them.
//!
//! What the calls answered here say when all is well is written straight into a buffer; a problem
//! is first the same answer that hyper would be given.

#[cfg(test)]
use super::super::REQUEST_ID;
use super::super::answer::Body;
use super::super::{RequestId, Response};
use crate::clock;
use hyper::StatusCode;
use hyper::header::CONNECTION;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Where the answers of one core are put together.
#[derive(Debug, Default)]
pub(super) struct Writer {
    head: Vec<u8>,
    body: Vec<u8>,
    /// What all request ids of this core begin with, once there was one.
    ids: Vec<u8>,
    date: String,
    /// When that date is over.
    dated_until: Option<Instant>,
}

/// What an answer has beside what it says.
#[derive(Debug)]
pub(super) struct About {
    pub(super) id: RequestId,
    /// Whether its connection ends with it.
    pub(super) last: bool,
    /// When it is.
    pub(super) at: Instant,
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
        about: &About,
    ) -> &[u8] {
        self.begin(status);
        self.body.clear();
        write(&mut self.body);
        let length = Some(self.body.len()).filter(|&length| length > 0);
        if length.is_some() {
            self.head.extend_from_slice(b"content-type: application/json\r\n");
        }
        self.head.extend_from_slice(b"x-content-type-options: nosniff\r\nx-request-id: ");
        self.push_id(about.id);
        self.head.extend_from_slice(b"\r\ncache-control: no-store\r\n");
        self.end(length, about.last, about.at);
        self.head.extend_from_slice(&self.body);
        &self.head
    }

    /// Puts together an answer that is made already; gives its bytes, and whether it has its
    /// connection closed.
    pub(super) fn tell_made(&mut self, made: &Response, about: &About) -> (&[u8], bool) {
        self.begin(made.status());
        let (mut closes, mut said) = (about.last, false);
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
        self.end(Some(body.len()), closes && !said, about.at);
        self.head.extend_from_slice(body);
        (&self.head, closes)
    }

    fn begin(&mut self, status: StatusCode) {
        self.head.clear();
        let usual: &[u8] = match status {
            StatusCode::OK => b"HTTP/1.1 200 OK\r\n",
            StatusCode::CREATED => b"HTTP/1.1 201 Created\r\n",
            StatusCode::NO_CONTENT => b"HTTP/1.1 204 No Content\r\n",
            _ => b"",
        };
        self.head.extend_from_slice(usual);
        if usual.is_empty() {
            let reason = status.canonical_reason().unwrap_or_default();
            write!(self.head, "HTTP/1.1 {} {reason}\r\n", status.as_str()).expect(ROOM);
        }
    }

    /// Writes an id as its `Display` does, see the test.
    fn push_id(&mut self, RequestId { run, core, request }: RequestId) {
        if self.ids.is_empty() {
            write!(self.ids, "{run:012x}-{core:x}-").expect(ROOM);
        }
        self.head.extend_from_slice(&self.ids);
        let digits = request.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let zeros = (request.leading_zeros() / 4).min(15);
        for digit in digits.skip(zeros as usize) {
            self.head.push(b"0123456789abcdef"[usize::from(digit)]);
        }
    }

    fn end(&mut self, length: Option<usize>, last: bool, at: Instant) {
        if last {
            self.head.extend_from_slice(b"connection: close\r\n");
        }
        if let Some(length) = length {
            write!(self.head, "content-length: {length}\r\n").expect(ROOM);
        }
        if self.dated_until.is_none_or(|until| at >= until) {
            self.bring_date(at);
        }
        self.head.extend_from_slice(b"date: ");
        self.head.extend_from_slice(self.date.as_bytes());
        self.head.extend_from_slice(b"\r\n\r\n");
    }

    fn bring_date(&mut self, at: Instant) {
        let now_ms = clock::wall_ms();
        let instant = i64::try_from(now_ms).ok();
        let instant = instant.and_then(|now| Timestamp::from_millisecond(now).ok());
        let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&instant.unwrap_or_default());
        self.date = date.unwrap_or_default();
        self.dated_until = Some(at + Duration::from_millis(1_000 - now_ms % 1_000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_words_that_any_other_has() {
        for request in [0, 1, 15, 16, 255, 0x1234_5678, u64::MAX] {
            let id = RequestId { run: 0xabc, core: 17, request };
            let about = About { id, last: true, at: clock::stopwatch() };
            let mut writer = Writer::default();
            let told = writer.tell(StatusCode::OK, |body| body.extend_from_slice(b"{}"), &about);
            let told = String::from_utf8(told.to_vec()).unwrap();
            let (before, date) = told.split_once("date: ").unwrap();
            let expected = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                 x-content-type-options: nosniff\r\n{REQUEST_ID}: {id}\r\n\
                 cache-control: no-store\r\nconnection: close\r\ncontent-length: 2\r\n"
            );
            assert_eq!(before, expected);
            let (date, body) = date.split_once("\r\n\r\n").unwrap();
            assert!(date.len() == 29 && date.ends_with(" GMT") && body == "{}", "{date} {body}");
        }
    }

    #[test]
    fn a_date_is_told_until_its_second_is_over() {
        let mut writer = Writer::default();
        let now = clock::stopwatch();
        writer.bring_date(now);
        let until = writer.dated_until.unwrap();
        assert!(until > now && until <= now + Duration::from_secs(1));
        writer.date = "old".into();
        writer.end(None, false, until.checked_sub(Duration::from_nanos(1)).unwrap());
        assert_eq!(writer.date, "old");
        writer.end(None, false, until);
        assert_eq!(writer.date.len(), 29);
    }
}

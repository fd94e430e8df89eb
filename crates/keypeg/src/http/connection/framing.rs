//! Follows the heads and bodies on a connection, only as far as the timers and the check for an
//! ambiguous head need.
//!
//! Follows only what hyper accepts too: hyper refuses any other head or chunk and ends the
//! connection. What hyper accepts but this file does not is never followed by another request.

mod chunks;

use chunks::{ChunkStep, Chunks};

/// The position of a connection within its messages.
#[derive(Debug, Default)]
pub(super) struct Framing {
    phase: MessagePhase,
    /// The start of an incomplete line, at most [`LINE_KEPT`] bytes.
    line: Vec<u8>,
    /// The number of bytes of the incomplete line that are not kept.
    cut_len: usize,
    head: HeadState,
    /// Whether any head has been complete.
    had_head: bool,
    /// Whether a head has been complete since the last `take_head_ended`.
    head_ended: bool,
    /// The number of complete heads that can be read in one way only.
    clear_heads: u64,
    /// Whether a request line was that of an HTTP/2 connection. hyper refuses it.
    is_http2: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MessagePhase {
    #[default]
    Head,
    /// A body with this many bytes still to come.
    Body(u64),
    /// A chunked body.
    Chunked(Chunks),
    /// Behind a head that is ambiguous or that hyper refuses: not followed.
    Unfollowed,
    /// Behind chunks that hyper refuses.
    Broken,
}

#[derive(Clone, Copy, Debug, Default)]
struct HeadState {
    begun: bool,
    /// Whether it has a Content-Length of any value.
    has_length: bool,
    /// The Content-Length, if it is readable.
    length: Option<u64>,
    has_encoding: bool,
}

/// The most bytes of one incomplete line that are kept: the names and values that this file reads
/// are shorter, and hyper keeps the whole head.
const LINE_KEPT: usize = 128;
/// The first line of an HTTP/2 connection.
const HTTP2_LINE: &[u8] = b"PRI * HTTP/2.0";

impl Framing {
    /// Starts with a connection; `had_head` is set if a head on it was complete before.
    pub(super) fn new(had_head: bool) -> Self {
        Self { had_head, ..Self::default() }
    }

    /// Returns the number of complete heads before the first one that has both Content-Length and
    /// Transfer-Encoding, or that is not followed.
    pub(super) fn clear_heads(&self) -> u64 {
        self.clear_heads
    }

    /// Returns whether the client has begun an HTTP/2 connection (RFC 9113, 3.4).
    pub(super) fn is_http2(&self) -> bool {
        self.is_http2
    }

    /// Returns whether no further request can be located.
    pub(super) fn is_broken(&self) -> bool {
        self.phase == MessagePhase::Broken
    }

    /// Returns whether a head has been complete since the last call.
    pub(super) fn take_head_ended(&mut self) -> bool {
        std::mem::take(&mut self.head_ended)
    }

    /// Follows the next bytes.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.phase {
                MessagePhase::Head => bytes = self.follow_line(bytes),
                MessagePhase::Body(left) => {
                    let len = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.phase = match left - len as u64 {
                        0 => MessagePhase::Head,
                        left => MessagePhase::Body(left),
                    };
                    bytes = &bytes[len..];
                }
                MessagePhase::Chunked(mut chunks) => {
                    let (step, rest) = chunks.follow(bytes);
                    self.phase = match step {
                        ChunkStep::Inside => MessagePhase::Chunked(chunks),
                        ChunkStep::End => MessagePhase::Head,
                        ChunkStep::Invalid => MessagePhase::Broken,
                    };
                    bytes = rest;
                }
                MessagePhase::Unfollowed | MessagePhase::Broken => return,
            }
        }
    }

    /// Follows one line, or the start of one; returns the bytes after it.
    fn follow_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            self.keep(bytes);
            return &[];
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.line.is_empty() {
            self.end_line(line);
        } else {
            self.keep(line);
            let full_line = std::mem::take(&mut self.line);
            self.end_line(&full_line);
        }
        rest
    }

    fn keep(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(LINE_KEPT - self.line.len());
        self.cut_len = self.cut_len.saturating_add(bytes.len() - len);
        self.line.extend_from_slice(&bytes[..len]);
    }

    fn end_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_cut = std::mem::take(&mut self.cut_len) > 0;
        if line.is_empty() {
            if self.head.begun {
                self.end_head();
            }
        } else if !self.head.begun {
            self.head.begun = true;
            // The preface goes on with a second head.
            self.is_http2 |= line == HTTP2_LINE && !is_cut;
        } else if let Some(value) = value_of(line, b"content-length:") {
            self.head.has_length = true;
            // A value of that many bytes has blanks or zeros that no client sends: not followed.
            let value = std::str::from_utf8(value).ok().filter(|_| !is_cut);
            self.head.length = value.and_then(|value| value.trim().parse().ok());
        } else if value_of(line, b"transfer-encoding:").is_some() {
            self.head.has_encoding = true;
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.had_head = true;
        self.head_ended = true;
        self.phase = match head.length {
            _ if head.has_length && head.has_encoding => MessagePhase::Unfollowed,
            None if head.has_length => MessagePhase::Unfollowed,
            _ if head.has_encoding => MessagePhase::Chunked(Chunks::default()),
            None | Some(0) => MessagePhase::Head,
            Some(length) => MessagePhase::Body(length),
        };
        self.clear_heads += u64::from(self.phase != MessagePhase::Unfollowed);
    }

    /// Returns whether a head is awaited: the connection's first, or one that has begun.
    pub(super) fn awaits_head(&self) -> bool {
        self.phase == MessagePhase::Head
            && (!self.had_head || self.head.begun || !self.line.is_empty())
    }

    /// Returns whether the next byte belongs to a head, or begins one.
    pub(super) fn is_in_head(&self) -> bool {
        self.phase == MessagePhase::Head
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.phase == MessagePhase::Head && !self.head.begun && self.line.is_empty()
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

    /// Follows `bytes`, split at every position.
    fn check(bytes: &str, phase: MessagePhase, clear_heads: u64) {
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            framing.follow(&bytes.as_bytes()[..cut]);
            framing.follow(&bytes.as_bytes()[cut..]);
            assert_eq!(
                (framing.phase, framing.clear_heads),
                (phase, clear_heads),
                "{bytes:?} split at {cut}"
            );
        }
    }

    #[test]
    fn a_body_is_followed_by_its_content_length() {
        check("", MessagePhase::Head, 0);
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", MessagePhase::Head, 1);
        check(LENGTH, MessagePhase::Body(5), 1);
        check(&format!("{LENGTH}12345"), MessagePhase::Head, 1);
        check(&format!("{LENGTH}12345{LENGTH}123"), MessagePhase::Body(2), 2);
        check("\r\n\nPOST / HTTP/1.1\ncontent-LENGTH:7\n\n", MessagePhase::Body(7), 1);
        check("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", MessagePhase::Unfollowed, 0);
    }

    #[test]
    fn both_headers_in_one_head_are_detected_in_either_order() {
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, 0);
        let both = "Content-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, 0);
        check(&format!("{LENGTH}12345POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, 1);
        let chunked = format!("POST / HTTP/1.1\r\n{CHUNKED}2\r\n{{}}\r\n0\r\n\r\n");
        check(&format!("{chunked}POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, 1);
        for length in ["", "x", "-1", "18446744073709551616"] {
            let both = CHUNKED.replacen("\r\n", &format!("\r\nContent-Length: {length}\r\n"), 1);
            check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, 0);
        }
    }

    /// Regression: nothing was followed behind a chunked body, so every chunked request ended its
    /// connection.
    #[test]
    fn a_chunked_body_is_followed_to_its_end() {
        let head = format!("POST / HTTP/1.1\r\n{CHUNKED}");
        let body = "2;x\r\n{}\r\n0\r\nX: y\r\n\r\n";
        check(&format!("{head}{body}"), MessagePhase::Head, 1);
        check(&format!("{head}{body}{head}{body}{LENGTH}"), MessagePhase::Body(5), 3);
        check(&format!("{head}1\n"), MessagePhase::Broken, 1);
        check(&format!("{head}{body}{head}x{LENGTH}"), MessagePhase::Broken, 2);
    }

    #[test]
    fn the_preface_of_http_2_is_recognised() {
        for (line, is_http2) in [("PRI * HTTP/2.0", true), ("GET * HTTP/2.0", false)] {
            let mut framing = Framing::default();
            framing.follow(format!("{line}\r\n").as_bytes());
            assert_eq!(framing.is_http2(), is_http2, "{line}");
            framing.follow(b"\r\nSM\r\n\r\n");
            assert_eq!(framing.is_http2(), is_http2, "{line}");
        }
    }

    /// A head of 64 KiB without a line end was once kept a second time, in a buffer of 128 KiB.
    #[test]
    fn a_long_line_is_not_kept() {
        let mut framing = Framing::default();
        framing.follow(b"GET /?");
        for _ in 0..64 {
            framing.follow(&[b'a'; 1 << 10]);
            assert!(framing.line.capacity() <= 2 * LINE_KEPT && framing.awaits_head());
        }
        framing.follow(b" HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
        assert_eq!((framing.phase, framing.clear_heads), (MessagePhase::Body(5), 1));
        let padded = format!("POST / HTTP/1.1\r\nContent-Length:{}5\r\n", " ".repeat(LINE_KEPT));
        let mut framing = Framing::default();
        framing.follow(padded.as_bytes());
        assert_eq!(framing.head.length, Some(5), "a whole line is read");
        let mut framing = Framing::default();
        for byte in padded.bytes().chain(*b"\r\n") {
            framing.follow(&[byte]);
        }
        assert_eq!(framing.phase, MessagePhase::Unfollowed, "a line in parts is not");
    }

    #[test]
    fn header_names_in_bodies_and_values_are_ignored() {
        let body = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        check(&format!("{head}{body}"), MessagePhase::Head, 1);
        check("GET / HTTP/1.1\r\nX: Content-Length: 5\r\n\r\n", MessagePhase::Head, 1);
    }

    #[test]
    fn a_head_is_awaited_on_a_new_connection_and_once_begun() {
        let mut framing = Framing::default();
        assert!(framing.awaits_head());
        framing.follow(LENGTH.as_bytes());
        assert!(!framing.awaits_head());
        framing.follow(b"12345");
        assert!(!framing.awaits_head() && framing.is_between_messages());
        framing.follow(b"G");
        assert!(framing.awaits_head() && !framing.is_between_messages());
    }
}

//! Follows the heads and bodies on a connection, only as far as the timers and the check for an
//! ambiguous head need.

/// The position of a connection within its messages. Follows only what hyper accepts too: hyper
/// refuses any other head and ends the connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    phase: MessagePhase,
    /// The start of an incomplete line. hyper's limit on heads bounds it.
    line: Vec<u8>,
    head: HeadState,
    /// Whether any head has been complete.
    had_head: bool,
    /// Whether a head has been complete since the last `take_head_ended`.
    head_ended: bool,
    ambiguous: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MessagePhase {
    #[default]
    Head,
    /// A body with this many bytes still to come.
    Body(u64),
    /// A chunked body, or bytes that hyper refuses: not followed.
    Unfollowed,
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

/// The most bytes of one line that are kept; hyper refuses far smaller heads.
const LINE_MAX: usize = 1 << 20;

impl Framing {
    /// Starts with a connection; `had_head` is set if a head on it was complete before.
    pub(super) fn new(had_head: bool) -> Self {
        Self { had_head, ..Self::default() }
    }

    /// Returns whether a head with both Content-Length and Transfer-Encoding was complete.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous
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
                MessagePhase::Unfollowed => return,
            }
        }
    }

    /// Follows one line, or the start of one; returns the bytes after it.
    fn follow_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            self.line.extend_from_slice(bytes);
            if self.line.len() > LINE_MAX {
                self.phase = MessagePhase::Unfollowed;
            }
            return &[];
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.line.is_empty() {
            self.end_line(line);
        } else {
            let mut full_line = std::mem::take(&mut self.line);
            full_line.extend_from_slice(line);
            self.end_line(&full_line);
        }
        rest
    }

    fn end_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if self.head.begun {
                self.end_head();
            }
        } else if !self.head.begun {
            self.head.begun = true;
        } else if let Some(value) = value_of(line, b"content-length:") {
            self.head.has_length = true;
            self.head.length = std::str::from_utf8(value).ok().and_then(|v| v.trim().parse().ok());
        } else if value_of(line, b"transfer-encoding:").is_some() {
            self.head.has_encoding = true;
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.had_head = true;
        self.head_ended = true;
        self.ambiguous |= head.has_encoding && head.has_length;
        self.phase = match head.length {
            _ if head.has_encoding => MessagePhase::Unfollowed,
            None if head.has_length => MessagePhase::Unfollowed,
            None | Some(0) => MessagePhase::Head,
            Some(length) => MessagePhase::Body(length),
        };
    }

    /// Returns whether a head is awaited: the connection's first, or one that has begun.
    pub(super) fn awaits_head(&self) -> bool {
        self.phase == MessagePhase::Head
            && (!self.had_head || self.head.begun || !self.line.is_empty())
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

    /// Follows `bytes`, split at every position.
    fn check(bytes: &str, phase: MessagePhase, ambiguous: bool) {
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            framing.follow(&bytes.as_bytes()[..cut]);
            framing.follow(&bytes.as_bytes()[cut..]);
            assert_eq!(
                (framing.phase, framing.ambiguous),
                (phase, ambiguous),
                "{bytes:?} split at {cut}"
            );
        }
    }

    #[test]
    fn a_body_is_followed_by_its_content_length() {
        check("", MessagePhase::Head, false);
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", MessagePhase::Head, false);
        check(LENGTH, MessagePhase::Body(5), false);
        check(&format!("{LENGTH}12345"), MessagePhase::Head, false);
        check(&format!("{LENGTH}12345{LENGTH}123"), MessagePhase::Body(2), false);
        check("\r\n\nPOST / HTTP/1.1\ncontent-LENGTH:7\n\n", MessagePhase::Body(7), false);
        check("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", MessagePhase::Unfollowed, false);
    }

    #[test]
    fn both_headers_in_one_head_are_detected_in_either_order() {
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, true);
        let both = "Content-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, true);
        check(&format!("{LENGTH}12345POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, true);
        let one = "Transfer-Encoding: chunked\r\n\r\n";
        check(&format!("{LENGTH}12345POST / HTTP/1.1\r\n{one}"), MessagePhase::Unfollowed, false);
        check(
            &format!("POST / HTTP/1.1\r\n{one}0\r\n\r\n{LENGTH}"),
            MessagePhase::Unfollowed,
            false,
        );
        for length in ["", "x", "-1", "18446744073709551616"] {
            let both = format!("{}Content-Length: {length}\r\n\r\n", &one[..one.len() - 2]);
            check(&format!("POST / HTTP/1.1\r\n{both}"), MessagePhase::Unfollowed, true);
        }
    }

    #[test]
    fn header_names_in_bodies_and_values_are_ignored() {
        let body = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        check(&format!("{head}{body}"), MessagePhase::Head, false);
        check("GET / HTTP/1.1\r\nX: Content-Length: 5\r\n\r\n", MessagePhase::Head, false);
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

//! Watches the bytes of a connection on their way to and from hyper.
//!
//! hyper drops a Content-Length that stands beside a Transfer-Encoding before a service can see it,
//! and it has one timer for both heads and idle connections. So [`Framing`] follows heads and
//! bodies, only as far as needed to detect both headers in one head, a head that takes too long,
//! and a close while bytes are still arriving. hyper's own error responses go through
//! [`HyperErrorFilter`].

use super::fast_path::ReadAhead;
use super::hyper_errors::HyperErrorFilter;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, timeout};

/// How long a head may take, from a new connection or from its first byte on.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a client may accept no byte of its response.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long the server reads and discards a client's bytes after the last response.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// How many bytes it discards at most.
const LINGER_MAX: usize = 16 << 20;

/// A connection whose bytes are watched.
#[derive(Debug)]
pub(super) struct WatchedSocket {
    socket: TcpStream,
    /// Bytes that were read before hyper got the connection.
    read_ahead: Vec<u8>,
    /// How long the head being awaited may take; shorter if a part of it arrived before.
    head_time: Duration,
    framing: Framing,
    ambiguous: Arc<AtomicBool>,
    error_filter: HyperErrorFilter,
    head_timer: Timer,
    write_timer: Timer,
}

/// A timer that exists only while something is awaited.
type Timer = Option<Pin<Box<Sleep>>>;

impl WatchedSocket {
    /// Watches a connection of which the fast path has read the first bytes.
    pub(super) fn new(
        socket: TcpStream,
        error_filter: HyperErrorFilter,
        read_ahead: ReadAhead,
    ) -> Self {
        let ReadAhead { bytes, waited, answered_any } = read_ahead;
        Self {
            socket,
            read_ahead: bytes,
            head_time: HEAD_TIME.saturating_sub(waited),
            framing: Framing { had_head: answered_any, ..Framing::default() },
            ambiguous: Arc::default(),
            error_filter,
            head_timer: None,
            write_timer: None,
        }
    }

    /// Returns a flag that is set when a head with both Content-Length and Transfer-Encoding has
    /// arrived. Nothing is followed after a head with Transfer-Encoding, so the flag concerns the
    /// first such head, which must be the connection's last.
    pub(super) fn ambiguous(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ambiguous)
    }

    /// Lets a client that is still sending receive its response, see [`linger`].
    pub(super) async fn linger(self) {
        if !self.framing.is_between_messages() {
            Box::pin(linger(self.socket)).await;
        }
    }
}

/// Lets a client that is still sending receive its response (lingering close): a close with unread
/// bytes would reset the connection, and the client could lose the response. To be called when the
/// whole response has been sent.
pub(super) async fn linger(mut socket: TcpStream) {
    let discard = async move {
        // A client whose request timed out gets no response, but learns of the end at once.
        let _ = socket.shutdown().await;
        let mut discarded = [0; 4096];
        let mut left = LINGER_MAX;
        while let Ok(len @ 1..) = socket.read(&mut discarded).await
            && left > 0
        {
            left = left.saturating_sub(len);
        }
    };
    // A client that still sends after that time is cut off.
    let _ = timeout(LINGER_TIME, discard).await;
}

/// Fails once `time` has passed since the first call that found no running timer.
fn poll_timer(timer: &mut Timer, time: Duration, cx: &mut Context<'_>) -> Poll<io::Error> {
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
    sleep.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into())
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = if this.read_ahead.is_empty() {
            Pin::new(&mut this.socket).poll_read(cx, buffer)
        } else {
            let len = this.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.read_ahead[..len]);
            this.read_ahead.drain(..len);
            Poll::Ready(Ok(()))
        };
        if read.is_ready() {
            this.framing.follow(&buffer.filled()[before..]);
            if this.framing.ambiguous {
                this.ambiguous.store(true, Ordering::Relaxed);
            }
        }
        let head_ended = std::mem::take(&mut this.framing.head_ended);
        if head_ended || !this.framing.awaits_head() {
            this.head_timer = None;
            this.head_time = HEAD_TIME;
        }
        if this.framing.awaits_head() && read.is_pending() {
            let time = this.head_time;
            return poll_timer(&mut this.head_timer, time, cx).map(Err);
        }
        read
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.error_filter.intercept(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.watch_write(written, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let [bytes] = bytes
            && this.error_filter.intercept(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, bytes);
        this.watch_write(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_replacement(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

impl WatchedSocket {
    /// Sends the replacement of hyper's own error response, which hyper regards as sent.
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.error_filter.unsent().is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(cx, self.error_filter.unsent());
            match ready!(self.watch_write(written, cx))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => self.error_filter.mark_sent(len),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Applies the write timeout to the result of a write.
    fn watch_write(
        &mut self,
        written: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            return poll_timer(&mut self.write_timer, WRITE_TIME, cx).map(Err);
        }
        self.write_timer = None;
        written
    }
}

/// The position of a connection within its messages. Follows only what hyper accepts too: hyper
/// refuses any other head and ends the connection.
#[derive(Debug, Default)]
struct Framing {
    phase: MessagePhase,
    /// The start of an incomplete line. hyper's limit on heads bounds it.
    line: Vec<u8>,
    head: HeadState,
    /// Whether any head has been complete.
    had_head: bool,
    /// Whether a head has been complete since the last read of this flag.
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
    /// Follows the next bytes.
    fn follow(&mut self, mut bytes: &[u8]) {
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
    fn awaits_head(&self) -> bool {
        self.phase == MessagePhase::Head
            && (!self.had_head || self.head.begun || !self.line.is_empty())
    }

    fn is_between_messages(&self) -> bool {
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

//! One connection's bytes on their way to and from hyper.
//!
//! hyper drops a Content-Length that stands beside a Transfer-Encoding before a service can see
//! it, and its timer for heads is also its timer for idle connections. So the bytes are watched as
//! they pass: [`Framing`] follows heads and bodies, no more than is needed to notice both headers
//! in one head, a head that is late, and a close with bytes still to come. What hyper says by itself
//! of a head it cannot read goes through [`Unread`].

use super::hyper_errors::Unread;
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
/// How long a client may take no byte of its answer.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(30);
/// How long, and how many bytes, a client is listened to after the last answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_MAX: usize = 16 << 20;

/// A connection whose bytes are watched.
#[derive(Debug)]
pub(super) struct Wire {
    socket: TcpStream,
    /// What was read of it already.
    ahead: Vec<u8>,
    /// How long the head that is waited for may take: less where a part of it came before.
    head_time: Duration,
    framing: Framing,
    ambiguous: Arc<AtomicBool>,
    unread: Unread,
    head_timer: Timer,
    write_timer: Timer,
}

/// Runs while something is waited for.
type Timer = Option<Pin<Box<Sleep>>>;

impl Wire {
    /// Watches a connection of which `ahead` was read, the first of it so long ago; `met` tells
    /// that a request was answered before it, so that no first head is waited for.
    pub(super) fn new(
        socket: TcpStream,
        unread: Unread,
        ahead: Vec<u8>,
        waited: Duration,
        met: bool,
    ) -> Self {
        Self {
            socket,
            ahead,
            head_time: HEAD_TIME.saturating_sub(waited),
            framing: Framing { met, ..Framing::default() },
            ambiguous: Arc::default(),
            unread,
            head_timer: None,
            write_timer: None,
        }
    }

    /// Set when a head with both Content-Length and Transfer-Encoding has come. Nothing is
    /// followed after a head with Transfer-Encoding, so it is about the first such head, and it
    /// must be the connection's last.
    pub(super) fn ambiguous(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ambiguous)
    }

    /// Lets a client that still sends get to its answer, see [`linger`].
    pub(super) async fn linger(self) {
        if !self.framing.is_between_messages() {
            Box::pin(linger(self.socket)).await;
        }
    }
}

/// Lets a client that still sends get to its answer: closing with bytes unread would make the
/// kernel take the answer back from it. To be called when the answer's end has been sent.
pub(super) async fn linger(mut socket: TcpStream) {
    let listening = async move {
        // Whoever took too long gets no answer, but is told at once that none will come.
        let _ = socket.shutdown().await;
        let mut unread = [0; 4096];
        let mut left = LINGER_MAX;
        while let Ok(len @ 1..) = socket.read(&mut unread).await
            && left > 0
        {
            left = left.saturating_sub(len);
        }
    };
    // Whoever is not done by then is cut off.
    let _ = timeout(LINGER_TIME, listening).await;
}

/// Fails when the timer, started at the first call, is over.
fn poll_timer(timer: &mut Timer, time: Duration, context: &mut Context<'_>) -> Poll<io::Error> {
    let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
    sleep.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        let before = buffer.filled().len();
        let read = if wire.ahead.is_empty() {
            Pin::new(&mut wire.socket).poll_read(context, buffer)
        } else {
            let len = wire.ahead.len().min(buffer.remaining());
            buffer.put_slice(&wire.ahead[..len]);
            wire.ahead.drain(..len);
            Poll::Ready(Ok(()))
        };
        if read.is_ready() {
            wire.framing.follow(&buffer.filled()[before..]);
            if wire.framing.ambiguous {
                wire.ambiguous.store(true, Ordering::Relaxed);
            }
        }
        let ended = std::mem::take(&mut wire.framing.ended);
        if ended || !wire.framing.awaits_head() {
            wire.head_timer = None;
            wire.head_time = HEAD_TIME;
        }
        if wire.framing.awaits_head() && read.is_pending() {
            let time = wire.head_time;
            return poll_timer(&mut wire.head_timer, time, context).map(Err);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if wire.unread.take(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut wire.socket).poll_write(context, bytes);
        wire.watch_write(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        if let [bytes] = bytes
            && wire.unread.take(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut wire.socket).poll_write_vectored(context, bytes);
        wire.watch_write(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.poll_unread(context))?;
        Pin::new(&mut wire.socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.poll_unread(context))?;
        Pin::new(&mut wire.socket).poll_shutdown(context)
    }
}

impl Wire {
    /// Sends what stands in for a refusal of hyper's own, which hyper takes for sent.
    fn poll_unread(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unread.rest().is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(context, self.unread.rest());
            match ready!(self.watch_write(written, context))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                len => self.unread.sent(len),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn watch_write(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            return poll_timer(&mut self.write_timer, WRITE_TIME, context).map(Err);
        }
        self.write_timer = None;
        written
    }
}

/// Where in its messages a connection is. Follows only what hyper takes too: whatever else a head
/// may hold, hyper refuses it and ends the connection.
#[derive(Debug, Default)]
struct Framing {
    phase: Phase,
    /// The beginning of a line whose end has not come; bounded by hyper's bound on heads.
    line: Vec<u8>,
    head: Head,
    /// Whether any head has been complete.
    met: bool,
    /// Whether one has been since somebody looked.
    ended: bool,
    ambiguous: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// A chunked body, or bytes that hyper refuses: not followed.
    Unfollowed,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    begun: bool,
    /// Whether it has a Content-Length, of whatever value.
    lengths: bool,
    /// The length it tells, where that can be read.
    length: Option<u64>,
    encoded: bool,
}

/// The most bytes of one line that are kept; hyper refuses heads far below it.
const LINE_MAX: usize = 1 << 20;

impl Framing {
    /// Takes the bytes that came next.
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.phase {
                Phase::Head => bytes = self.follow_line(bytes),
                Phase::Body(left) => {
                    let here = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.phase = match left - here as u64 {
                        0 => Phase::Head,
                        left => Phase::Body(left),
                    };
                    bytes = &bytes[here..];
                }
                Phase::Unfollowed => return,
            }
        }
    }

    /// Takes one line, or the beginning of one; gives the bytes after it.
    fn follow_line<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            self.line.extend_from_slice(bytes);
            if self.line.len() > LINE_MAX {
                self.phase = Phase::Unfollowed;
            }
            return &[];
        };
        let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.line.is_empty() {
            self.end_line(line);
        } else {
            let mut whole = std::mem::take(&mut self.line);
            whole.extend_from_slice(line);
            self.end_line(&whole);
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
            self.head.lengths = true;
            self.head.length = std::str::from_utf8(value).ok().and_then(|v| v.trim().parse().ok());
        } else if value_of(line, b"transfer-encoding:").is_some() {
            self.head.encoded = true;
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.met = true;
        self.ended = true;
        self.ambiguous |= head.encoded && head.lengths;
        self.phase = match head.length {
            _ if head.encoded => Phase::Unfollowed,
            None if head.lengths => Phase::Unfollowed,
            None | Some(0) => Phase::Head,
            Some(length) => Phase::Body(length),
        };
    }

    /// Tells whether a head is being waited for: the first one, or one that has begun.
    fn awaits_head(&self) -> bool {
        self.phase == Phase::Head && (!self.met || self.head.begun || !self.line.is_empty())
    }

    fn is_between_messages(&self) -> bool {
        self.phase == Phase::Head && !self.head.begun && self.line.is_empty()
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

    /// Follows `bytes` cut at every place.
    fn check(bytes: &str, phase: Phase, ambiguous: bool) {
        for cut in 0..=bytes.len() {
            let mut framing = Framing::default();
            framing.follow(&bytes.as_bytes()[..cut]);
            framing.follow(&bytes.as_bytes()[cut..]);
            assert_eq!(
                (framing.phase, framing.ambiguous),
                (phase, ambiguous),
                "{bytes:?} at {cut}"
            );
        }
    }

    #[test]
    fn bodies_are_followed_by_their_length() {
        check("", Phase::Head, false);
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Phase::Head, false);
        check(LENGTH, Phase::Body(5), false);
        check(&format!("{LENGTH}12345"), Phase::Head, false);
        check(&format!("{LENGTH}12345{LENGTH}123"), Phase::Body(2), false);
        check("\r\n\nPOST / HTTP/1.1\ncontent-LENGTH:7\n\n", Phase::Body(7), false);
        check("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", Phase::Unfollowed, false);
    }

    #[test]
    fn both_headers_in_one_head_are_noticed_in_either_order() {
        let both = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), Phase::Unfollowed, true);
        let both = "Content-Length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        check(&format!("POST / HTTP/1.1\r\n{both}"), Phase::Unfollowed, true);
        check(&format!("{LENGTH}12345POST / HTTP/1.1\r\n{both}"), Phase::Unfollowed, true);
        let one = "Transfer-Encoding: chunked\r\n\r\n";
        check(&format!("{LENGTH}12345POST / HTTP/1.1\r\n{one}"), Phase::Unfollowed, false);
        check(&format!("POST / HTTP/1.1\r\n{one}0\r\n\r\n{LENGTH}"), Phase::Unfollowed, false);
        for length in ["", "x", "-1", "18446744073709551616"] {
            let both = format!("{}Content-Length: {length}\r\n\r\n", &one[..one.len() - 2]);
            check(&format!("POST / HTTP/1.1\r\n{both}"), Phase::Unfollowed, true);
        }
    }

    #[test]
    fn names_of_headers_in_bodies_and_values_are_nothing() {
        let body = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
        check(&format!("{head}{body}"), Phase::Head, false);
        check("GET / HTTP/1.1\r\nX: Content-Length: 5\r\n\r\n", Phase::Head, false);
    }

    #[test]
    fn a_head_is_awaited_at_first_and_once_begun() {
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

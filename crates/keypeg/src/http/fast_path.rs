//! The fast path: acquire, renew, release and the keep-alive of one key, answered without hyper.
//!
//! A request is accepted here if it has arrived completely, has one of the plain forms that nearly
//! every client sends ([`head`]), and is valid. Any other request goes to hyper with the same
//! bytes, and so does all that follows on its connection: one place refuses invalid requests. From
//! there on both paths are equal: the same admission, the same readers and wire types, the same
//! counters, and byte-identical responses. A connection that waits for its next request holds no
//! buffer.

mod calls;
mod head;
mod writer;

use super::accept::{IDLE_TIME, ServerPhase, reached};
use super::admit::{self, RequestContext, Target};
use super::error::Problem;
use super::leases::LeaseGrant;
use super::metrics::Family;
use super::wire::{HEAD_TIME, WRITE_TIME};
use super::{App, Origin, Response, ResponseTraits, add_standard_headers, is_host};
use crate::clock;
use calls::{FastCall, FastReply};
use head::Parsed;
use keypeg_store::{Principal, Request};
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep, timeout};
use writer::{ResponseInfo, ResponseWriter};

/// The size of the read buffer in bytes, and the most unconsumed bytes of one connection.
const READ_MAX: usize = 16 << 10;
/// The longest Host that a connection remembers: a name of 253 bytes, a dot, a colon and a port.
const HOST_MAX: usize = 260;
/// How long the fast path waits for the rest of a request: many clients send the body right after
/// the head. A slower request goes to hyper, whose timer counts from the request's first byte.
const REST_TIME: Duration = Duration::from_millis(500);

/// The buffers of one core, shared by its connections: locked while bytes are moved, never across a
/// wait.
#[derive(Debug)]
pub(super) struct Buffers(Mutex<BufferPair>);

#[derive(Debug)]
struct BufferPair {
    read: Box<[u8]>,
    writer: ResponseWriter,
}

impl Default for Buffers {
    fn default() -> Self {
        let read = vec![0; READ_MAX].into_boxed_slice();
        Self(Mutex::new(BufferPair { read, writer: ResponseWriter::default() }))
    }
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, BufferPair> {
        // A poisoned lock is usable: no content outlives the request it was for.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the fast path ends for a connection.
pub(super) enum ConnEnd {
    /// The connection ends, with or without unread bytes.
    Closed { has_unread: bool },
    /// hyper continues the connection.
    HandToHyper { read_ahead: ReadAhead },
}

/// The bytes that the fast path read but did not consume.
#[derive(Debug)]
pub(super) struct ReadAhead {
    pub(super) bytes: Vec<u8>,
    /// How long ago the first of them arrived.
    pub(super) waited: Duration,
    /// Whether a request was answered before them.
    pub(super) answered_any: bool,
}

/// Answers a connection's requests while each of them is one for the fast path.
pub(super) async fn serve(
    app: &App,
    client_ip: Option<IpAddr>,
    socket: &mut TcpStream,
    phase: &mut watch::Receiver<ServerPhase>,
) -> ConnEnd {
    let now = clock::stopwatch();
    let mut reader = RequestReader {
        app,
        client_ip,
        unconsumed: Vec::new(),
        scanned: true,
        answered_any: false,
        last_host: Vec::new(),
        first_byte_at: now,
        deadline: now + HEAD_TIME,
        timer: pin!(sleep(HEAD_TIME)),
        draining: pin!(reached(phase, ServerPhase::Draining)),
    };
    loop {
        let request = match std::future::poll_fn(|cx| reader.poll_next(socket, cx)).await {
            Ok(request) => request,
            Err(end) => return end,
        };
        reader.answered_any = true;
        let len_before = reader.unconsumed.len();
        let sent = respond(app, request, socket, &mut reader.unconsumed).await;
        reader.scanned &= reader.unconsumed.len() == len_before;
        match sent {
            Ok(Sent { closes: false, at }) => reader.deadline = at + IDLE_TIME,
            Ok(Sent { closes: true, .. }) => {
                return ConnEnd::Closed { has_unread: !reader.unconsumed.is_empty() };
            }
            Err(_) => return ConnEnd::Closed { has_unread: false },
        }
    }
}

/// Reads the next request of a connection.
struct RequestReader<'a, D> {
    app: &'a App,
    client_ip: Option<IpAddr>,
    /// Received bytes that no request has consumed: the beginning of a request, or pipelined
    /// requests.
    unconsumed: Vec<u8>,
    /// Whether `unconsumed` was scanned for a request.
    scanned: bool,
    /// Whether a request was answered here.
    answered_any: bool,
    /// The last accepted Host, which need not be checked again: most clients repeat it.
    last_host: Vec<u8>,
    /// When the first byte of `unconsumed` arrived; for a pipelined request, when the request
    /// before it was answered.
    first_byte_at: Instant,
    /// When to stop waiting.
    deadline: Instant,
    /// Fires at the deadline or earlier, so that it need not be reset for each request.
    timer: Pin<&'a mut Sleep>,
    draining: Pin<&'a mut D>,
}

impl<'a, D: Future<Output = ()>> RequestReader<'a, D> {
    /// Waits for a request; without one, returns how the connection continues.
    fn poll_next(
        &mut self,
        socket: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<FastRequest<'a>, ConnEnd>> {
        if !self.scanned {
            let bytes = std::mem::take(&mut self.unconsumed);
            self.first_byte_at = clock::stopwatch();
            if let Some(next) = self.scan(&bytes, self.first_byte_at) {
                return Poll::Ready(next);
            }
        }
        let mut buffers = self.app.buffers.lock();
        loop {
            let old_len = self.unconsumed.len();
            if old_len == READ_MAX {
                return Poll::Ready(Err(self.end()));
            }
            buffers.read[..old_len].copy_from_slice(&self.unconsumed);
            let mut buffer = ReadBuf::new(&mut buffers.read[old_len..]);
            match Pin::new(&mut *socket).poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Err(ConnEnd::Closed { has_unread: false }));
                }
                Poll::Ready(Ok(())) => {}
            }
            let new_len = buffer.filled().len();
            if new_len == 0 {
                return Poll::Ready(Err(self.end()));
            }
            let now = clock::stopwatch();
            if old_len == 0 {
                self.first_byte_at = now;
            }
            if let Some(next) = self.scan(&buffers.read[..old_len + new_len], now) {
                return Poll::Ready(next);
            }
        }
        drop(buffers);
        self.poll_end(cx).map(Err)
    }

    /// Scans received bytes, the last of which arrived at `now`; returns `None` if more must
    /// arrive.
    fn scan(&mut self, bytes: &[u8], now: Instant) -> Option<Result<FastRequest<'a>, ConnEnd>> {
        // A panic here leaves the request to hyper: it would panic there too, and is answered
        // there.
        let (app, client_ip, last_host) = (self.app, self.client_ip, &mut self.last_host);
        let scanned =
            catch_unwind(AssertUnwindSafe(|| parse_request(app, client_ip, now, bytes, last_host)));
        self.scanned = true;
        match scanned.unwrap_or(Err(NotFast::Unsupported)) {
            Ok((request, len)) => {
                self.unconsumed = bytes[len..].to_vec();
                self.scanned = self.unconsumed.is_empty();
                Some(Ok(request))
            }
            Err(NotFast::Incomplete) => {
                self.unconsumed = bytes.to_vec();
                self.deadline = self.first_byte_at + REST_TIME;
                self.timer.as_mut().reset(self.deadline.into());
                None
            }
            Err(NotFast::Unsupported) => {
                self.unconsumed = bytes.to_vec();
                Some(Err(self.end()))
            }
        }
    }

    /// Becomes ready at the deadline or when the server drains.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ConnEnd> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if clock::stopwatch() >= self.deadline {
                return Poll::Ready(self.end());
            }
            self.timer.as_mut().reset(self.deadline.into());
        }
        ready!(self.draining.as_mut().poll(cx));
        Poll::Ready(self.end())
    }

    /// Ends the fast path: hyper continues with a request that has begun.
    fn end(&mut self) -> ConnEnd {
        let bytes = std::mem::take(&mut self.unconsumed);
        if bytes.is_empty() {
            return ConnEnd::Closed { has_unread: false };
        }
        let waited = clock::stopwatch().saturating_duration_since(self.first_byte_at);
        let answered_any = self.answered_any;
        ConnEnd::HandToHyper { read_ahead: ReadAhead { bytes, waited, answered_any } }
    }
}

/// A request that the fast path answers.
struct FastRequest<'a> {
    origin: Origin,
    family: Family,
    /// The admitted request, or why it is refused.
    context: Result<RequestContext<'a>, Problem>,
    call: FastCall,
}

/// Why received bytes are not a request for the fast path.
enum NotFast {
    /// They may become one.
    Incomplete,
    /// hyper must read them.
    Unsupported,
}

/// Parses and admits the first request of `bytes`; returns it with its length in bytes.
fn parse_request<'a>(
    app: &'a App,
    client_ip: Option<IpAddr>,
    started: Instant,
    bytes: &[u8],
    last_host: &mut Vec<u8>,
) -> Result<(FastRequest<'a>, usize), NotFast> {
    let (head, len) = match head::parse(bytes) {
        Parsed::Complete { head, len } => (head, len),
        Parsed::Incomplete => return Err(NotFast::Incomplete),
        Parsed::Unsupported => return Err(NotFast::Unsupported),
    };
    if *last_host != head.host {
        if !app.accepts_host(head.host) {
            return Err(NotFast::Unsupported);
        }
        remember(last_host, head.host);
    }
    let call = FastCall::read(&head).ok_or(NotFast::Unsupported)?;
    let origin = Origin { client_ip, id: app.next_request_id(), started };
    let target = Target { method: "POST", path: head.path };
    let bearer = || Ok(head.authorization.and_then(admit::bearer));
    let context = admit::admit(app, target, bearer, &origin);
    Ok((FastRequest { origin, family: Family::of(head.path), context, call }, len))
}

/// Remembers an accepted Host unless it is longer than any name with a port: an idle connection
/// holds no buffer. An empty value stands for none; the server accepts an empty Host anyway.
fn remember(last_host: &mut Vec<u8>, host: &[u8]) {
    last_host.clear();
    if host.len() <= HOST_MAX {
        last_host.extend_from_slice(host);
    }
}

/// A response that was sent.
struct Sent {
    /// Whether the connection ends with it.
    closes: bool,
    at: Instant,
}

/// Runs a request and sends its response.
async fn respond(
    app: &App,
    request: FastRequest<'_>,
    socket: &mut TcpStream,
    unconsumed: &mut Vec<u8>,
) -> io::Result<Sent> {
    let FastRequest { origin, family, context, call } = request;
    let result = match context {
        Ok(context) => run_call(context, call, socket, unconsumed).await?,
        Err(problem) => Err(problem),
    };
    let result = result.map_err(|problem| {
        let mut response = app.refuse(problem, origin.id, true);
        let traits = ResponseTraits { id: origin.id, is_change: true, has_secrets: true };
        add_standard_headers(&mut response, traits);
        response
    });
    let sent = send(app, socket, &result, &origin, family).await;
    if sent.is_err()
        && let Ok(FastReply::Granted(grant)) = &result
    {
        app.revoke_undelivered(grant);
    }
    sent
}

/// Runs a call; fails if its client disconnects while the call waits.
async fn run_call(
    context: RequestContext<'_>,
    call: FastCall,
    socket: &mut TcpStream,
    unconsumed: &mut Vec<u8>,
) -> io::Result<Result<FastReply, Problem>> {
    let (call, kind) = match call {
        FastCall::Engine(call, kind) => (call, kind),
        #[cfg(feature = "bench-constant")]
        FastCall::Constant(constant) => return Ok(Ok(FastReply::Constant(constant))),
    };
    let may_wait = call.may_wait();
    let mut reply = pin!(context.submit(call));
    let reply = std::future::poll_fn(|cx| match reply.as_mut().poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Ok(reply)),
        // Dropping the pending reply removes the call from the wait queue.
        Poll::Pending if may_wait => context.poll_disconnect(socket, unconsumed, cx).map(Err),
        Poll::Pending => Poll::Pending,
    });
    let reply = reply.await?;
    let result = catch_unwind(AssertUnwindSafe(|| kind.map_reply(&context, reply)));
    let result = result.unwrap_or_else(|_| Err(Problem::panicked()));
    if let Ok(FastReply::Granted(grant)) = &result
        && std::future::poll_fn(|cx| Poll::Ready(has_disconnected(socket, cx))).await
    {
        context.revoke_undelivered(grant);
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    context.finish_audit(result.as_ref().map(FastReply::status));
    Ok(result)
}

impl App {
    /// Revokes a grant that its client did not receive.
    fn revoke_undelivered(&self, grant: &LeaseGrant) {
        let call = grant.revoke_call();
        drop(self.lane.submit(Request { by: Principal::Server, call }));
    }

    /// Returns whether a Host is well-formed and names this server.
    fn accepts_host(&self, host: &[u8]) -> bool {
        let hosts = &self.server.access.hosts;
        is_host(host) && std::str::from_utf8(host).is_ok_and(|host| hosts.take(host))
    }

    /// Reads from a client whose call waits: keeps pipelined bytes, and becomes ready when the
    /// client has disconnected. Beyond [`READ_MAX`] bytes nothing more is read (back-pressure).
    fn poll_disconnect(
        &self,
        socket: &mut TcpStream,
        unconsumed: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        while unconsumed.len() < READ_MAX {
            let mut buffers = self.buffers.lock();
            let mut buffer = ReadBuf::new(&mut buffers.read[unconsumed.len()..]);
            let read = ready!(Pin::new(&mut *socket).poll_read(cx, &mut buffer));
            match read.map(|()| buffer.filled()) {
                Ok([]) => return Poll::Ready(io::ErrorKind::ConnectionAborted.into()),
                Ok(bytes) => unconsumed.extend_from_slice(bytes),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }
}

/// Returns whether a client has closed its end since it sent the request.
fn has_disconnected(socket: &TcpStream, cx: &mut Context<'_>) -> bool {
    if socket.poll_read_ready(cx).is_pending() {
        return false;
    }
    // Readable: either a pipelined request or the end of the stream.
    match pin!(socket.ready(Interest::READABLE)).poll(cx) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

/// Sends a response.
async fn send(
    app: &App,
    socket: &mut TcpStream,
    result: &Result<FastReply, Response>,
    origin: &Origin,
    family: Family,
) -> io::Result<Sent> {
    let written =
        std::future::poll_fn(|cx| Poll::Ready(try_send(app, socket, result, origin, family, cx)));
    let (sent, rest) = written.await?;
    if !rest.is_empty() {
        timeout(WRITE_TIME, socket.write_all(&rest)).await??;
    }
    Ok(sent)
}

/// Sends as much of a response as the socket accepts; returns the rest.
fn try_send(
    app: &App,
    socket: &mut TcpStream,
    result: &Result<FastReply, Response>,
    origin: &Origin,
    family: Family,
    cx: &mut Context<'_>,
) -> io::Result<(Sent, Vec<u8>)> {
    let status = result.as_ref().map_or_else(Response::status, FastReply::status);
    let now = clock::stopwatch();
    app.counts.answered(family, status, now.saturating_duration_since(origin.started));
    let closes = app.server.stopping.load(Ordering::Relaxed);
    let mut buffers = app.buffers.lock();
    let info = ResponseInfo { id: origin.id, closes, now };
    let (bytes, closes) = match result {
        Ok(reply) => (buffers.writer.write_reply(status, |body| reply.write(body), &info), closes),
        Err(response) => buffers.writer.write_response(response, &info),
    };
    let sent_len = match Pin::new(socket).poll_write(cx, bytes) {
        Poll::Ready(len) => len?,
        Poll::Pending => 0,
    };
    Ok((Sent { closes, at: now }, bytes[sent_len..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Host of `localhost:` and 15 000 more bytes was once kept for the life of its connection.
    #[test]
    fn a_connection_remembers_no_host_longer_than_a_name_and_port() {
        let mut last_host = Vec::new();
        for (host, expected) in [
            (&b"localhost:8000"[..], &b"localhost:8000"[..]),
            (&[b'a'; HOST_MAX], &[b'a'; HOST_MAX]),
            (&[b'a'; HOST_MAX + 1], b""),
            (&[b'a'; READ_MAX], b""),
        ] {
            remember(&mut last_host, host);
            assert_eq!(last_host, expected);
            assert!(last_host.capacity() <= 2 * HOST_MAX, "{}", last_host.capacity());
        }
    }
}

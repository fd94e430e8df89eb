//! The fast path: acquire, renew, release, the keep-alive of one key and both forms of verify,
//! answered without hyper.
//!
//! A request is accepted here if it has arrived completely, has one of the plain forms that nearly
//! every client sends ([`head`]), and is valid. Any other request goes to hyper with the same
//! bytes, and so does all that follows on its connection: one place refuses invalid requests. From
//! there on both paths are equal: the same admission, the same readers and wire types, the same
//! counters, and byte-identical responses. A connection that waits for its next request holds no
//! buffer.

mod buffers;
mod calls;
mod head;
mod send;
mod writer;

use super::places::Place;
use super::stream::Connection;
use super::write_watch::WriteWatch;
use crate::access::Admitted;
use crate::clock;
use crate::http::admit::{self, RequestContext, Target};
use crate::http::app::App;
use crate::http::checks::accepts_host;
use crate::http::error::Problem;
use crate::http::handlers::abandon::Abandoning;
use crate::http::handlers::payload::Payload;
use crate::http::handlers::verify;
use crate::http::message::Response;
use crate::http::metrics::Family;
use crate::http::origin::Origin;
use crate::http::request_log::RequestLog;
use crate::http::respond::{ResponseTraits, add_standard_headers};
use crate::http::shutdown::{ServerPhase, reached};
use crate::http::timeouts::Timeouts;
pub(super) use buffers::Buffers;
use buffers::READ_MAX;
use calls::FastCall;
use head::{Parsed, remember};
use keypeg_client::Code;
use keypeg_store::{Call, LeaseGrant, Principal, Request};
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

/// The most bytes of an incomplete request that the fast path keeps; hyper's path counts more.
const INCOMPLETE_MAX: usize = 8 << 10;
/// How long the fast path waits for the rest of a request: many clients send the body right after
/// the head. A slower request goes to hyper, whose timer counts from the request's first byte.
const REST_TIME: Duration = Duration::from_millis(500);

/// How the fast path ends for a connection.
pub(super) enum ConnEnd {
    /// The connection ends, with or without unread bytes.
    Closed { has_unread: bool },
    /// hyper continues the connection.
    HandToHyper { read_ahead: ReadAhead },
}

/// The bytes that the fast path read but did not consume.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    pub(super) bytes: Vec<u8>,
    /// How long ago the first of them arrived.
    pub(super) waited: Duration,
    /// Whether a request was answered before them.
    pub(super) answered_any: bool,
}

/// What the fast path of one connection works with.
#[derive(Debug)]
pub(super) struct FastPath<'a> {
    pub(super) app: &'a App,
    /// The buffers of the connection's core.
    pub(super) buffers: &'a Buffers,
    /// `None` unless the access rules use addresses.
    pub(super) client_ip: Option<IpAddr>,
    pub(super) place: &'a Place,
}

impl FastPath<'_> {
    /// Answers a connection's requests while each of them is one for the fast path.
    pub(super) async fn serve(
        &self,
        connection: &mut Connection,
        phase: &mut watch::Receiver<ServerPhase>,
    ) -> ConnEnd {
        let now = clock::stopwatch();
        let Timeouts { idle: idle_time, head: head_time, .. } = self.app.server.timeouts;
        let mut reader = RequestReader {
            fast_path: self,
            unconsumed: Vec::new(),
            scanned: true,
            answered_any: false,
            last_host: Vec::new(),
            first_byte_at: now,
            deadline: now + head_time,
            timer: pin!(sleep(head_time.min(idle_time))),
            draining: pin!(reached(phase, ServerPhase::Draining)),
            watches_draining: false,
        };
        let mut write_watch = WriteWatch::default();
        loop {
            let mut request =
                match std::future::poll_fn(|cx| reader.poll_next(connection, cx)).await {
                    Ok(request) => request,
                    Err(end) => return end,
                };
            let bytes = std::mem::take(&mut request.bytes);
            let len_before = reader.unconsumed.len();
            let client = Client { connection, write_watch: &mut write_watch };
            let sent = self.respond(request, client, &mut reader.unconsumed).await;
            reader.scanned &= reader.unconsumed.len() == len_before;
            match sent {
                Ok(Some(Sent { closes: false, at })) => {
                    reader.answered_any = true;
                    self.place.end(at);
                    reader.deadline = at + idle_time;
                }
                Ok(Some(Sent { closes: true, .. })) => {
                    return ConnEnd::Closed { has_unread: !reader.unconsumed.is_empty() };
                }
                Ok(None) => return reader.hand_back(bytes),
                Err(_) => return ConnEnd::Closed { has_unread: false },
            }
        }
    }
}

/// Reads the next request of a connection.
struct RequestReader<'a, D> {
    fast_path: &'a FastPath<'a>,
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
    /// Whether `draining` was polled, and so wakes this task.
    watches_draining: bool,
}

impl<'a, D: Future<Output = ()>> RequestReader<'a, D> {
    /// Waits for a request; without one, returns how the connection continues.
    fn poll_next(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<FastRequest<'a>, ConnEnd>> {
        if !self.scanned {
            let bytes = std::mem::take(&mut self.unconsumed);
            self.first_byte_at = clock::stopwatch();
            if let Some(next) = self.scan(&bytes, self.first_byte_at) {
                return Poll::Ready(next);
            }
        }
        let mut buffers = self.fast_path.buffers.lock();
        loop {
            let old_len = self.unconsumed.len();
            if old_len == READ_MAX {
                return Poll::Ready(Err(self.end()));
            }
            buffers.read[..old_len].copy_from_slice(&self.unconsumed);
            let mut buffer = ReadBuf::new(&mut buffers.read[old_len..]);
            match Pin::new(&mut *connection).poll_read(cx, &mut buffer) {
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
        let (fast_path, last_host) = (self.fast_path, &mut self.last_host);
        let scanned =
            catch_unwind(AssertUnwindSafe(|| fast_path.parse_request(now, bytes, last_host)));
        self.scanned = true;
        match scanned.unwrap_or(Err(NotFast::Unsupported)) {
            Ok((mut request, len)) => {
                if !request.begins_on(self.fast_path.place) {
                    return Some(Err(ConnEnd::Closed { has_unread: false }));
                }
                // Another server may have to answer it, which hyper's path asks.
                if self.fast_path.app.lanes.cluster().is_some() {
                    request.bytes = bytes[..len].to_vec();
                }
                self.unconsumed = bytes[len..].to_vec();
                self.scanned = self.unconsumed.is_empty();
                Some(Ok(request))
            }
            Err(NotFast::Incomplete) if bytes.len() < INCOMPLETE_MAX => {
                self.unconsumed = bytes.to_vec();
                let head_time = self.fast_path.app.server.timeouts.head;
                self.deadline = self.first_byte_at + REST_TIME.min(head_time);
                self.timer.as_mut().reset(self.deadline.into());
                None
            }
            Err(NotFast::Incomplete | NotFast::Unsupported) => {
                self.unconsumed = bytes.to_vec();
                Some(Err(self.end()))
            }
        }
    }

    /// Becomes ready at the deadline or when the server drains.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ConnEnd> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = clock::stopwatch();
            if now >= self.deadline {
                return Poll::Ready(self.end());
            }
            // A request that arrives meanwhile sets a deadline at least the idle time ahead.
            let idle_time = self.fast_path.app.server.timeouts.idle;
            self.timer.as_mut().reset(self.deadline.min(now + idle_time).into());
        }
        // The server sets the flag before it wakes the tasks.
        if self.watches_draining && !self.fast_path.app.server.stopping.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.watches_draining = true;
        ready!(self.draining.as_mut().poll(cx));
        Poll::Ready(self.end())
    }

    /// Ends the fast path with a request that this server has surely not applied: hyper continues
    /// with it.
    fn hand_back(mut self, mut bytes: Vec<u8>) -> ConnEnd {
        bytes.append(&mut self.unconsumed);
        self.unconsumed = bytes;
        self.first_byte_at = clock::stopwatch();
        self.end()
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
    log: RequestLog,
    /// The bytes of the request, if other servers share the pools.
    bytes: Vec<u8>,
}

impl FastRequest<'_> {
    /// Begins the request unless it is refused. Returns `false` if its connection must end.
    fn begins_on(&self, place: &Place) -> bool {
        self.context.as_ref().map_or(true, |context| context.begins_on(place, self.origin.started))
    }
}

/// Why received bytes are not a request for the fast path.
enum NotFast {
    /// They may become one.
    Incomplete,
    /// hyper must read them.
    Unsupported,
}

impl<'a> FastPath<'a> {
    /// Parses and admits the first request of `bytes`; returns it with its length in bytes.
    fn parse_request(
        &self,
        started: Instant,
        bytes: &[u8],
        last_host: &mut Vec<u8>,
    ) -> Result<(FastRequest<'a>, usize), NotFast> {
        let Self { app, client_ip, .. } = *self;
        let (head, len) = match head::parse(bytes) {
            Parsed::Complete { head, len } => (head, len),
            Parsed::Incomplete => return Err(NotFast::Incomplete),
            Parsed::Unsupported => return Err(NotFast::Unsupported),
        };
        if *last_host != head.host {
            if !accepts_host(&app.server.access.hosts, head.host) {
                return Err(NotFast::Unsupported);
            }
            remember(last_host, head.host);
        }
        let call = FastCall::read(&head).ok_or(NotFast::Unsupported)?;
        if !call.is_served_here(&app.lanes) {
            return Err(NotFast::Unsupported);
        }
        let proxies = &app.server.proxies;
        let client_ip = client_ip.map(|ip| {
            if proxies.is_empty() {
                return ip;
            }
            proxies.caller(ip, head.forwarded.into_iter(), head.x_forwarded_for.into_iter())
        });
        let origin = Origin { client_ip, id: app.next_request_id(), started };
        let target = Target { method: head.method, path: head.path };
        let bearer = || Ok(head.authorization.and_then(admit::bearer));
        let mut log = RequestLog::begin(head.method, head.path, &origin);
        let context = admit::admit(app, target, bearer, None, &origin);
        log.set_token(context.as_ref().ok().and_then(RequestContext::token_name));
        let family = call.family();
        Ok((FastRequest { origin, family, context, call, log, bytes: Vec::new() }, len))
    }
}

/// The client of a request.
struct Client<'a> {
    connection: &'a mut Connection,
    write_watch: &'a mut WriteWatch,
}

/// A response that was sent.
struct Sent {
    /// Whether the connection ends with it.
    closes: bool,
    at: Instant,
}

impl FastPath<'_> {
    /// Runs a request and sends its response; `None` if another server has to answer it.
    async fn respond(
        &self,
        request: FastRequest<'_>,
        client: Client<'_>,
        unconsumed: &mut Vec<u8>,
    ) -> io::Result<Option<Sent>> {
        let FastRequest { origin, family, context, call, mut log, .. } = request;
        let is_change = !matches!(call, FastCall::Authorize(_));
        // The request is in flight until its response is sent.
        let (result, admitted) = match context {
            Ok(context) => self.run_call(context, call, client.connection, unconsumed).await?,
            Err(problem) => (Err(problem), None),
        };
        if result.as_ref().is_err_and(|problem| self.is_for_hyper(problem)) {
            return Ok(None);
        }
        let refuse = |problem| self.app.refuse(problem, origin.id, is_change);
        let result = match result {
            Ok(payload) if is_change => Ok(payload),
            Ok(Payload::Kept(key)) => Ok(Payload::Authorized(key)),
            // Its content is in headers, so it is sent as a complete response.
            Ok(payload) => Err(verify::authorization(payload).unwrap_or_else(refuse)),
            Err(problem) => Err(refuse(problem)),
        };
        let result = result.map_err(|mut response| {
            let traits = ResponseTraits { id: origin.id, is_change };
            add_standard_headers(&mut response, traits);
            response
        });
        log.set_status(result.as_ref().map_or_else(Response::status, Payload::status));
        let sent = self.send(client, &result, &origin, family, admitted.as_ref()).await;
        if sent.is_err()
            && let Ok(Payload::Granted(grant)) = &result
        {
            self.revoke_undelivered(grant);
        }
        sent.map(Some)
    }

    /// Runs a call; fails if its client closes its sending side while the call is in a wait queue.
    async fn run_call(
        &self,
        mut context: RequestContext<'_>,
        call: FastCall,
        connection: &mut Connection,
        unconsumed: &mut Vec<u8>,
    ) -> io::Result<(Result<Payload, Problem>, Option<Admitted>)> {
        // In a block, so that the future keeps no room for the operation while it runs.
        let (may_wait, lane, mut running) = {
            match call {
                FastCall::Operation(operation) | FastCall::Authorize(operation) => {
                    let lane = operation.lane(&self.app.lanes);
                    (operation.may_wait(), lane, operation.run(&context))
                }
                #[cfg(feature = "bench-constant")]
                FastCall::Constant(constant) => return Ok((Ok(Payload::Constant(constant)), None)),
            }
        };
        let mut abandoning = Abandoning::default();
        let result = std::future::poll_fn(|cx| {
            match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut running).poll(cx))) {
                Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
                Ok(Poll::Pending) if may_wait => {
                    let closed =
                        |cx: &mut Context<'_>| self.poll_closed(connection, unconsumed, cx);
                    abandoning.poll(lane, closed, cx).map(Err)
                }
                Ok(Poll::Pending) => Poll::Pending,
                Err(_) => Poll::Ready(Ok(Err(Problem::panicked()))),
            }
        });
        let result = result.await?;
        drop(running);
        if result.as_ref().is_err_and(|problem| self.is_for_hyper(problem)) {
            context.discard_audit();
            return Ok((result, None));
        }
        let admitted = context.finish_audit(result.as_ref().map(Payload::status));
        Ok((result, admitted))
    }

    /// Returns whether another server may answer what this one has refused. Hyper's path asks it.
    fn is_for_hyper(&self, problem: &Problem) -> bool {
        self.app.lanes.cluster().is_some()
            && matches!(problem.code(), Code::NotOwner | Code::ShuttingDown)
    }

    /// Revokes a grant that its client did not receive.
    fn revoke_undelivered(&self, grant: &LeaseGrant) {
        let LeaseGrant { pool, lease, .. } = grant;
        let call = Call::RevokeUndelivered { pool: pool.clone(), lease: lease.id };
        drop(self.app.lanes.of(pool).submit(Request::new(Principal::Server, call)));
    }

    /// Reads from a client whose call can wait: keeps pipelined bytes, and becomes ready when the
    /// client has closed its sending side, or with the error of a broken connection. While
    /// [`READ_MAX`] bytes wait, the server stops reading from the connection (back-pressure).
    fn poll_closed(
        &self,
        connection: &mut Connection,
        unconsumed: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while unconsumed.len() < READ_MAX {
            let mut buffers = self.buffers.lock();
            let mut buffer = ReadBuf::new(&mut buffers.read[unconsumed.len()..]);
            let read = ready!(Pin::new(&mut *connection).poll_read(cx, &mut buffer));
            match read.map(|()| buffer.filled()) {
                Ok([]) => return Poll::Ready(Ok(())),
                Ok(bytes) => unconsumed.extend_from_slice(bytes),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Pending
    }
}

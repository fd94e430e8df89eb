//! The calls that workers make all day, answered ahead of hyper: acquire, renew, release, and
//! keeping one key alive.
//!
//! A request is taken here when all of it has come, in one of the plain forms that nearly every
//! client sends ([`head`]), and nothing is wrong with it. Whatever is not like that goes to hyper,
//! with the same bytes, and all that follows on its connection: so there is one place that refuses
//! what cannot be read. From there on a request is what it would be over there: let through by the
//! same gate, asked by the same handlers, counted by the same counters. A connection that waits here
//! for its next request holds no buffer.

mod calls;
mod head;
mod writer;

use super::accept::{IDLE_TIME, Phase, reached};
use super::admit::{self, Asking};
use super::error::Problem;
use super::leases::Granted;
use super::metrics::Family;
use super::wire::{HEAD_TIME, WRITE_TIME};
use super::{App, Came, Response, dress, is_host};
use crate::clock;
use calls::{Hot, Told};
use head::Read;
use keypeg_engine::{Principal, Request as Asked};
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
use writer::About;

/// Bytes of requests that are looked at at once.
const READ_MAX: usize = 16 << 10;
/// The longest Host that a connection remembers: of a name 253, a dot, a colon and a port.
const HOST_MAX: usize = 260;
/// How long the rest of a request is waited for, which many clients send right behind its head.
/// What takes longer is hyper's, and counts from its first byte on.
const REST_TIME: Duration = Duration::from_millis(500);

/// What one core reads into and writes from: held while bytes are moved, never while waiting.
#[derive(Debug)]
pub(super) struct Buffers(Mutex<Both>);

#[derive(Debug)]
struct Both {
    read: Box<[u8]>,
    written: writer::Writer,
}

impl Default for Buffers {
    fn default() -> Self {
        let read = vec![0; READ_MAX].into_boxed_slice();
        Self(Mutex::new(Both { read, written: writer::Writer::default() }))
    }
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Both> {
        // Nothing in it outlives the request it was for.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a connection.
pub(super) enum Left {
    /// It is over, with bytes unread or without.
    Over { unread: bool },
    /// It goes on elsewhere, with these bytes, the first of which came so long ago. `met` tells
    /// that a request was answered before them.
    Other { bytes: Vec<u8>, waited: Duration, met: bool },
}

/// Answers a connection's requests for as long as they are of these.
pub(super) async fn serve(
    app: &App,
    from: Option<IpAddr>,
    socket: &mut TcpStream,
    phase: &mut watch::Receiver<Phase>,
) -> Left {
    let now = clock::stopwatch();
    let mut waiting = Waiting {
        app,
        from,
        kept: Vec::new(),
        looked: true,
        met: false,
        host: Vec::new(),
        since: now,
        until: now + HEAD_TIME,
        timer: pin!(sleep(HEAD_TIME)),
        draining: pin!(reached(phase, Phase::Draining)),
    };
    loop {
        let taken = match std::future::poll_fn(|context| waiting.poll(socket, context)).await {
            Ok(taken) => taken,
            Err(left) => return left,
        };
        waiting.met = true;
        let before = waiting.kept.len();
        let answered = answer(app, taken, socket, &mut waiting.kept).await;
        waiting.looked &= waiting.kept.len() == before;
        match answered {
            Ok(Sent { last: false, at }) => waiting.until = at + IDLE_TIME,
            Ok(Sent { last: true, .. }) => return Left::Over { unread: !waiting.kept.is_empty() },
            Err(_) => return Left::Over { unread: false },
        }
    }
}

/// A connection between two requests.
struct Waiting<'a, D> {
    app: &'a App,
    from: Option<IpAddr>,
    /// What came and was not taken: the beginning of a request, or requests sent ahead.
    kept: Vec<u8>,
    /// Whether that was looked at.
    looked: bool,
    /// Whether a request was taken.
    met: bool,
    /// The last Host that was taken: a client tends to send the same.
    host: Vec<u8>,
    /// When the first of it came, or, where it came behind a request, when that was answered.
    since: Instant,
    /// When waiting is over.
    until: Instant,
    /// Rings then or sooner, so that it need not be set for each request.
    timer: Pin<&'a mut Sleep>,
    draining: Pin<&'a mut D>,
}

impl<'a, D: Future<Output = ()>> Waiting<'a, D> {
    /// Waits for a request to take; where there is none, tells why.
    fn poll(
        &mut self,
        socket: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<Result<Taken<'a>, Left>> {
        if !self.looked {
            let kept = std::mem::take(&mut self.kept);
            self.since = clock::stopwatch();
            if let Some(next) = self.look(&kept, self.since) {
                return Poll::Ready(next);
            }
        }
        let mut both = self.app.buffers.lock();
        loop {
            let have = self.kept.len();
            if have == READ_MAX {
                return Poll::Ready(Err(self.leave()));
            }
            both.read[..have].copy_from_slice(&self.kept);
            let mut buffer = ReadBuf::new(&mut both.read[have..]);
            match Pin::new(&mut *socket).poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Left::Over { unread: false })),
                Poll::Ready(Ok(())) => {}
            }
            let len = buffer.filled().len();
            if len == 0 {
                return Poll::Ready(Err(self.leave()));
            }
            let now = clock::stopwatch();
            if have == 0 {
                self.since = now;
            }
            if let Some(next) = self.look(&both.read[..have + len], now) {
                return Poll::Ready(next);
            }
        }
        drop(both);
        self.poll_end(context).map(Err)
    }

    /// Looks at bytes that came, the last of them now; `None` where more must come.
    fn look(&mut self, bytes: &[u8], now: Instant) -> Option<Result<Taken<'a>, Left>> {
        // A panic here would be one over there too, and there it is answered.
        let (app, from, host) = (self.app, self.from, &mut self.host);
        let looked = catch_unwind(AssertUnwindSafe(|| look(app, (from, now), bytes, host)));
        self.looked = true;
        match looked.unwrap_or(Err(NotTaken::Other)) {
            Ok((taken, used)) => {
                self.kept = bytes[used..].to_vec();
                self.looked = self.kept.is_empty();
                Some(Ok(taken))
            }
            Err(NotTaken::Part) => {
                self.kept = bytes.to_vec();
                self.until = self.since + REST_TIME;
                self.timer.as_mut().reset(self.until.into());
                None
            }
            Err(NotTaken::Other) => {
                self.kept = bytes.to_vec();
                Some(Err(self.leave()))
            }
        }
    }

    /// Ready when nothing is waited for any longer.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Left> {
        while self.timer.as_mut().poll(context).is_ready() {
            if clock::stopwatch() >= self.until {
                return Poll::Ready(self.leave());
            }
            self.timer.as_mut().reset(self.until.into());
        }
        ready!(self.draining.as_mut().poll(context));
        Poll::Ready(self.leave())
    }

    /// Leaves: who has begun to ask is listened to elsewhere.
    fn leave(&mut self) -> Left {
        let bytes = std::mem::take(&mut self.kept);
        if bytes.is_empty() {
            return Left::Over { unread: false };
        }
        let waited = clock::stopwatch().saturating_duration_since(self.since);
        Left::Other { bytes, waited, met: self.met }
    }
}

/// A request that was let through, or why it was not.
struct Taken<'a> {
    came: Came,
    family: Family,
    asking: Result<Asking<'a>, Problem>,
    hot: Hot,
}

/// Why bytes that came are no request to take.
enum NotTaken {
    /// They may become one.
    Part,
    /// They are something else.
    Other,
}

/// Takes the first request of `bytes`; gives how many of them it is.
fn look<'a>(
    app: &'a App,
    (from, begun): (Option<IpAddr>, Instant),
    bytes: &[u8],
    host: &mut Vec<u8>,
) -> Result<(Taken<'a>, usize), NotTaken> {
    let (head, used) = match head::read(bytes) {
        Read::Whole(head, used) => (head, used),
        Read::Part => return Err(NotTaken::Part),
        Read::Other => return Err(NotTaken::Other),
    };
    if *host != head.host {
        if !app.goes_by(head.host) {
            return Err(NotTaken::Other);
        }
        remember(host, head.host);
    }
    let asked = Hot::read(&head).ok_or(NotTaken::Other)?;
    let came = Came { from, id: app.next_request_id(), begun };
    let bearer = || Ok(head.authorization.and_then(admit::bearer));
    let asking = admit::admit(app, ("POST", head.path), bearer, &came);
    Ok((Taken { came, family: Family::of(head.path), asking, hot: asked }, used))
}

/// Remembers a Host that was taken, but for one that is longer than any name and its port: a
/// connection that waits holds no buffer. Nothing remembered is as an empty one, which any server goes
/// by.
fn remember(known: &mut Vec<u8>, host: &[u8]) {
    known.clear();
    if host.len() <= HOST_MAX {
        known.extend_from_slice(host);
    }
}

/// An answer that was sent.
struct Sent {
    /// Whether the connection is over with it.
    last: bool,
    at: Instant,
}

/// Plays and answers.
async fn answer(
    app: &App,
    taken: Taken<'_>,
    socket: &mut TcpStream,
    kept: &mut Vec<u8>,
) -> io::Result<Sent> {
    let Taken { came, family, asking, hot } = taken;
    let played = match asking {
        Ok(asking) => play(asking, hot, socket, kept).await?,
        Err(problem) => Err(problem),
    };
    let made = played.map_err(|problem| {
        let mut made = app.refuse(problem, came.id, true);
        dress(&mut made, came.id, true, true);
        made
    });
    let sent = send(app, socket, &made, (&came, family)).await;
    if sent.is_err()
        && let Ok(Told::Granted(granted)) = &made
    {
        app.undo_undelivered(granted);
    }
    sent
}

/// Plays a request; fails when its caller hangs up while it waits.
async fn play(
    app: Asking<'_>,
    hot: Hot,
    socket: &mut TcpStream,
    kept: &mut Vec<u8>,
) -> io::Result<Result<Told, Problem>> {
    let (call, kind) = match hot {
        Hot::Asked(call, kind) => (call, kind),
        #[cfg(feature = "bench-constant")]
        Hot::Constant(constant) => return Ok(Ok(Told::Constant(constant))),
    };
    let waits = call.may_wait();
    let mut reply = pin!(app.begin(call));
    let reply = std::future::poll_fn(|context| match reply.as_mut().poll(context) {
        Poll::Ready(reply) => Poll::Ready(Ok(reply)),
        // Given up, it leaves the line.
        Poll::Pending if waits => app.poll_gone(socket, kept, context).map(Err),
        Poll::Pending => Poll::Pending,
    });
    let reply = reply.await?;
    let told = catch_unwind(AssertUnwindSafe(|| kind.told(&app, reply)));
    let told = told.unwrap_or_else(|_| Err(Problem::panicked()));
    if let Ok(Told::Granted(granted)) = &told
        && std::future::poll_fn(|context| Poll::Ready(has_left(socket, context))).await
    {
        app.undo_undelivered(granted);
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    app.end(match &told {
        Ok(told) => (told.status(), None),
        Err(problem) => (problem.status(), Some(problem.code())),
    });
    Ok(told)
}

impl App {
    /// Has a grant taken back that nobody received.
    fn undo_undelivered(&self, granted: &Granted) {
        let call = granted.taken_back();
        drop(self.lane.submit(Asked { by: Principal::Server, call }));
    }

    /// Whether a Host is one, and this server's.
    fn goes_by(&self, host: &[u8]) -> bool {
        let hosts = &self.server.access.hosts;
        is_host(host) && std::str::from_utf8(host).is_ok_and(|host| hosts.take(host))
    }

    /// Listens to a caller who waits: keeps what he sends ahead, and is ready when he has gone. Who
    /// sends more than is kept is not listened to any further.
    fn poll_gone(
        &self,
        socket: &mut TcpStream,
        kept: &mut Vec<u8>,
        context: &mut Context<'_>,
    ) -> Poll<io::Error> {
        while kept.len() < READ_MAX {
            let mut both = self.buffers.lock();
            let mut buffer = ReadBuf::new(&mut both.read[kept.len()..]);
            let read = ready!(Pin::new(&mut *socket).poll_read(context, &mut buffer));
            match read.map(|()| buffer.filled()) {
                Ok([]) => return Poll::Ready(io::ErrorKind::ConnectionAborted.into()),
                Ok(more) => kept.extend_from_slice(more),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }
}

/// Tells whether a client has closed its end since it asked.
fn has_left(socket: &TcpStream, context: &mut Context<'_>) -> bool {
    if socket.poll_read_ready(context).is_pending() {
        return false;
    }
    // More of its requests, or that there will be none.
    match pin!(socket.ready(Interest::READABLE)).poll(context) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

/// Writes an answer.
async fn send(
    app: &App,
    socket: &mut TcpStream,
    made: &Result<Told, Response>,
    about: (&Came, Family),
) -> io::Result<Sent> {
    let begun =
        std::future::poll_fn(|context| Poll::Ready(begin(app, socket, made, about, context)));
    let (sent, rest) = begun.await?;
    if !rest.is_empty() {
        timeout(WRITE_TIME, socket.write_all(&rest)).await??;
    }
    Ok(sent)
}

/// Writes an answer; gives what the socket did not take.
fn begin(
    app: &App,
    socket: &mut TcpStream,
    made: &Result<Told, Response>,
    (came, family): (&Came, Family),
    context: &mut Context<'_>,
) -> io::Result<(Sent, Vec<u8>)> {
    let status = made.as_ref().map_or_else(Response::status, Told::status);
    let at = clock::stopwatch();
    app.counts.answered(family, status, at.saturating_duration_since(came.begun));
    let last = app.server.stopping.load(Ordering::Relaxed);
    let mut both = app.buffers.lock();
    let about = About { id: came.id, last, at };
    let (bytes, last) = match made {
        Ok(told) => (both.written.tell(status, |body| told.write(body), &about), last),
        Err(made) => both.written.tell_made(made, &about),
    };
    let sent = match Pin::new(socket).poll_write(context, bytes) {
        Poll::Ready(sent) => sent?,
        Poll::Pending => 0,
    };
    Ok((Sent { last, at }, bytes[sent..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `localhost:` and 15 000 more were once kept as long as their connection was open.
    #[test]
    fn a_connection_remembers_no_more_of_a_host_than_a_name() {
        let mut known = Vec::new();
        for (host, kept) in [
            (&b"localhost:8000"[..], &b"localhost:8000"[..]),
            (&[b'a'; HOST_MAX], &[b'a'; HOST_MAX]),
            (&[b'a'; HOST_MAX + 1], b""),
            (&[b'a'; READ_MAX], b""),
        ] {
            remember(&mut known, host);
            assert_eq!(known, kept);
            assert!(known.capacity() <= 2 * HOST_MAX, "{}", known.capacity());
        }
    }
}

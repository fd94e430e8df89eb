//! Connections: accepted by the first core, handed round to all, served by hyper.
//!
//! One current-thread runtime a core, each with its lane to the engine. Connections are bounded;
//! one over the bound is closed at once. When the server stops, nothing more is accepted, idle
//! connections are closed, and what was begun has a while to be answered.

use super::fast_path::{self, Buffers, Left};
use super::hyper_errors::Unread;
use super::metrics::{Begun, CoreCounts, Metrics};
use super::wire::{Wire, linger};
use super::{App, Server, respond};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use keypeg_engine::{Lane, RandomSource};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

/// Connections at once; the next are closed.
const CONNECTIONS_MAX: usize = 10_000;
/// Descriptors that are not for connections: the journal and the key set must be able to open files
/// whatever clients do.
const DESCRIPTORS_KEPT: usize = 64;
/// Connections on their way to a core.
const ARRIVALS_MAX: usize = 1_024;
/// The largest head, and about as much of a body is read ahead.
const HEAD_MAX: usize = 64 << 10;
/// How long a connection may be idle between requests. Clients tend to give theirs up at 60 s, and
/// who closes second has no request cut off.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(75);
/// How long what was begun may take when the server stops.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How long accepting rests when the process or the system is out of descriptors or memory.
const SHORTAGE_TIME: Duration = Duration::from_millis(50);

/// Where the server is in its life, as the cores see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    Draining,
    Over,
}

/// A connection on its way to its core.
struct Arrival {
    socket: TcpStream,
    permit: OwnedSemaphorePermit,
}

/// Lets this process have as many descriptors as it is allowed: shells tend to give 1024, and a
/// connection takes one. Where that is not granted, accepting waits for descriptors instead.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// How many connections there may be at once: as many as descriptors allow.
pub(crate) fn connections_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.map(usize::try_from);
    let limit = limit.and_then(Result::ok).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(limit - DESCRIPTORS_KEPT.min(limit / 2))
}

/// Serves `listener` on one core a lane until `stop` is ready and what was begun is answered, or
/// its time is over.
pub(crate) fn run(
    listener: TcpListener,
    lanes: Vec<Lane>,
    begun: Begun,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let counts: Vec<_> = lanes.iter().map(|_| Arc::<CoreCounts>::default()).collect();
    let connections_max = connections_max();
    if connections_max < CONNECTIONS_MAX {
        let max = connections_max;
        tracing::warn!(max, "fewer connections than 10 000: the descriptor limit is low");
    }
    let connections = Arc::new(Semaphore::new(connections_max));
    let access = Arc::clone(&begun.access);
    let server = Arc::new(Server {
        access,
        stopping: AtomicBool::new(false),
        run: run_number(),
        metrics: Metrics::new(begun, counts.clone(), Arc::clone(&connections), connections_max),
    });
    let (phase, watched) = watch::channel(Phase::Serving);
    let mut cores = Vec::new();
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    for (core, (lane, counts)) in lanes.into_iter().zip(counts).enumerate() {
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        senders.push(sender);
        let (server, requests) = (Arc::clone(&server), AtomicU64::new(0));
        let buffers = Buffers::default();
        let app = App { lane, server, core, requests, counts, buffers };
        cores.push(Core { app: Arc::new(app), arrivals, phase: watched.clone() });
    }
    let mut cores = cores.into_iter();
    let first = cores.next().expect("invariant: a server has a core");
    for (at, core) in cores.enumerate() {
        threads.push(spawn(core, at + 1)?);
    }
    let outcome = runtime()?.block_on(async {
        tokio::spawn(first.run());
        let accepted = tokio::select! {
            () = stop => Ok(()),
            failed = accept(listener, senders, Arc::clone(&connections)) => failed,
        };
        server.stopping.store(true, Ordering::Relaxed);
        phase.send_replace(Phase::Draining);
        let all = u32::try_from(connections_max).expect("invariant: a bound of some thousands");
        if timeout(DRAIN_TIME, connections.acquire_many(all)).await.is_err() {
            let open = connections_max - connections.available_permits();
            tracing::warn!(open, "cutting connections off that are not done");
        }
        accepted
    });
    phase.send_replace(Phase::Over);
    for thread in threads {
        // A core's panic has been told by its hook; the others are done all the same.
        let _ = thread.join();
    }
    outcome
}

fn run_number() -> u64 {
    let mut bytes = [0; 8];
    crate::SystemRandom::new().fill(&mut bytes[..6]);
    u64::from_le_bytes(bytes)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn spawn(core: Core, at: usize) -> io::Result<JoinHandle<()>> {
    let runtime = runtime()?;
    std::thread::Builder::new()
        .name(format!("keypeg-core-{at}"))
        .spawn(move || runtime.block_on(core.run()))
}

/// Accepts until it fails for good, handing connections round.
async fn accept(
    listener: TcpListener,
    cores: Vec<mpsc::Sender<Arrival>>,
    connections: Arc<Semaphore>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut next = cores.iter().cycle();
    loop {
        // A socket leaves this core's reactor for that of the core that will serve it.
        match listener.accept().await.and_then(|(socket, _)| socket.into_std()) {
            Ok(socket) => {
                let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                    tracing::debug!("a connection over the bound is closed");
                    continue;
                };
                let core = next.next().expect("invariant: a server has a core");
                // A core that is behind by as many connections gets no more: this one is closed.
                let _ = core.try_send(Arrival { socket, permit });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken for a moment");
                sleep(SHORTAGE_TIME).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// One core: its lane, and the connections handed to it.
struct Core {
    app: Arc<App>,
    arrivals: mpsc::Receiver<Arrival>,
    phase: watch::Receiver<Phase>,
}

impl Core {
    async fn run(mut self) {
        let lane = self.app.lane.clone();
        tokio::spawn(async move { lane.run_delivery().await });
        while let Some(arrival) = self.arrivals.recv().await {
            tokio::spawn(connection(Arc::clone(&self.app), arrival, self.phase.clone()));
        }
        reached(&mut self.phase, Phase::Over).await;
    }
}

pub(super) async fn reached(watched: &mut watch::Receiver<Phase>, phase: Phase) {
    // Nobody left to say how far it is means that it is over.
    let _ = watched.wait_for(|now| *now >= phase).await;
}

async fn connection(app: Arc<App>, arrival: Arrival, mut phase: watch::Receiver<Phase>) {
    let Arrival { socket, permit: _permit } = arrival;
    // Asked for where somebody wants to know.
    let from = app.server.access.wants_addresses().then(|| socket.peer_addr().ok()).flatten();
    let from = from.map(|from| from.ip());
    let socket = socket.set_nodelay(true).and_then(|()| tokio::net::TcpStream::from_std(socket));
    let Ok(mut socket) = socket else { return };
    match fast_path::serve(&app, from, &mut socket, &mut phase).await {
        Left::Over { unread: false } => {}
        // Boxed, as the last: few connections come to it, and all would hold its room.
        Left::Over { unread: true } => Box::pin(linger(socket)).await,
        Left::Other { bytes, waited, met } => {
            let wire = Wire::new(socket, Unread::new(Arc::clone(&app)), bytes, waited, met);
            Box::pin(other(app, from, wire, phase)).await;
        }
    }
}

/// Serves a connection by hyper until its end.
async fn other(app: Arc<App>, from: Option<IpAddr>, wire: Wire, mut phase: watch::Receiver<Phase>) {
    let ambiguous = wire.ambiguous();
    let service = service_fn(move |request| {
        let (app, ambiguous) = (Arc::clone(&app), ambiguous.load(Ordering::Relaxed));
        async move { Ok::<_, Infallible>(respond(&app, from, ambiguous, request).await) }
    });
    let mut connection = http().serve_connection(TokioIo::new(wire), service);
    let served = tokio::select! {
        biased;
        ended = &mut connection => Some(ended),
        () = reached(&mut phase, Phase::Draining) => None,
    };
    let ended = if let Some(ended) = served {
        ended
    } else {
        Pin::new(&mut connection).graceful_shutdown();
        (&mut connection).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    connection.into_parts().io.into_inner().linger().await;
}

/// Without `pipeline_flush`: with it, hyper 1.12 keeps finished answers back as long as any byte
/// after their requests is unread, be it half a request or a stray line end.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIME)
        .max_header_size(HEAD_MAX)
        .max_buf_size(HEAD_MAX);
    http
}

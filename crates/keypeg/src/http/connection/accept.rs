//! Connections: accepted on the first core, and distributed round-robin; `serve.rs` serves them.
//!
//! Each core has a current-thread runtime and its own lanes to the engine. [`Places`] bounds the
//! connections: when places run short, a new one displaces an idle one, or is closed at once. When
//! the server stops, it accepts no connection, closes idle ones, and gives requests in progress
//! [`DRAIN_TIME`] to finish. A head that is incomplete then has a second.

use super::client::Client;
use super::descriptors::{DescriptorNeeds, OPS_CONNECTIONS_MAX};
use super::fast_path::Buffers;
use super::places::{Arrived, Place, Places};
use super::serve::{read_clock_in_hyper, serve, serve_ops};
use crate::clock;
use crate::http::app::{App, Server};
use crate::http::core_turns::OwnTurns;
use crate::http::forward::LinkPlaces;
use crate::http::history::History;
use crate::http::lanes::Lanes;
use crate::http::metrics::{CoreCounts, Metrics, StartInfo};
use crate::http::origin::Sender;
use crate::http::sampler;
use crate::http::shutdown::{ServerPhase, reached};
use crate::http::timeouts::{DRAIN_TIME, Timeouts};
use crate::http::watchdog::{CoreWatch, watches};
use crate::random::SystemRandom;
use crate::share::{Budget, CallerId, ReservedBudget};
use crate::supervisor;
use crate::vital;
use keypeg_core::RandomSource;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// The most connections at once.
const CONNECTIONS_MAX: usize = 10_000;
/// The bytes that a connection takes, with the first bytes of a head. They are half of the memory of
/// connections; the other half is for the rest of heads.
const CONNECTION_BYTES: u64 = 8 << 10;
/// The bytes that a connection with TLS takes.
const TLS_CONNECTION_BYTES: u64 = 32 << 10;
/// The most accepted connections in the queue of one core.
const ARRIVALS_MAX: usize = 1_024;
/// How long accepting pauses when the process or the system is out of descriptors or memory.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection in the queue of its core.
struct Arrival {
    socket: TcpStream,
    client_ip: IpAddr,
    place: Place,
}

/// The sockets that the server listens on.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub(crate) clients: TcpListener,
    /// For operations alone, if there is one.
    pub(crate) ops: Option<TcpListener>,
}

/// Returns the most connections at once that the descriptor limit and `memory` bytes allow.
pub(crate) fn connections_max(memory: u64, has_tls: bool, descriptors: DescriptorNeeds) -> usize {
    let bytes = if has_tls { TLS_CONNECTION_BYTES } else { CONNECTION_BYTES };
    let in_memory = usize::try_from(memory / 2 / bytes).unwrap_or(usize::MAX);
    CONNECTIONS_MAX.min(in_memory).min(descriptors.connections_max())
}

/// Serves the listeners with one core for each of `lanes` until `stop` is ready, then until the requests in
/// progress are answered or [`DRAIN_TIME`] has passed.
pub(crate) fn run(
    listeners: Listeners,
    lanes: Vec<Lanes>,
    start_info: StartInfo,
    timeouts: Timeouts,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let counts: Vec<_> = lanes.iter().map(|_| Arc::<CoreCounts>::default()).collect();
    let (has_tls, descriptors) = (start_info.tls.is_some(), start_info.descriptors);
    let connections_max = connections_max(start_info.memory.connections, has_tls, descriptors);
    if descriptors.connections_max() <= connections_max && connections_max < CONNECTIONS_MAX {
        let (max, needed) = (connections_max, descriptors.needed_for(CONNECTIONS_MAX));
        tracing::warn!(
            max,
            "the open-file limit allows only {max} connections instead of {CONNECTIONS_MAX}: \
             raise it to {needed} (`ulimit -n`, LimitNOFILE)"
        );
    }
    let ops_counts = Arc::<CoreCounts>::default();
    let all_counts = counts.iter().chain([&ops_counts]).map(Arc::clone).collect();
    let memory = start_info.memory;
    let places = Places::new(connections_max, clock::stopwatch());
    let (access, audit) = (Arc::clone(&start_info.access), start_info.audit.clone());
    let turns = start_info.core_turns.clone().map(|turns| Arc::new(OwnTurns::new(turns)));
    let server = Arc::new(Server {
        access,
        audit,
        tls: start_info.tls.clone(),
        peer_tls: start_info.peer_tls.clone(),
        peer_faults: Arc::default(),
        link_places: Arc::new(LinkPlaces::new(descriptors.links_max(connections_max))),
        proxies: start_info.proxies.clone(),
        stopping: AtomicBool::new(false),
        was_ready: AtomicBool::new(false),
        run_id: random_run_id(),
        timeouts,
        bodies: Arc::new(ReservedBudget::new(memory.bodies, memory.bodies / 8)),
        heads: Budget::new(memory.connections / 2),
        answers: Budget::new(memory.answers_of_all()),
        operator_answers: Budget::new(memory.answers_of_operators()),
        streams: Budget::new(memory.event_streams()),
        backups: start_info.backups.clone(),
        key_versions: start_info.key_versions.clone(),
        verified_keys_of_core: memory.verified_keys / lanes.len() as u64,
        streamed_requests: Budget::new(connections_max as u64),
        history: History::new(memory.history(), clock::stopwatch()),
        metrics: Metrics::new(start_info, all_counts, lanes.clone(), Arc::clone(&places)),
    });
    let ops = OpsStart { lanes: lanes[0].clone(), core: lanes.len(), counts: ops_counts };
    let ops = listeners.ops.map(|listener| ops.spawn(listener, &server)).transpose()?;
    let (phase, watched) = watch::channel(ServerPhase::Serving);
    let mut cores = Vec::new();
    let mut senders = Vec::new();
    let mut threads = Vec::new();
    let cores_count = lanes.len();
    let watchers = watches(cores_count);
    for (core, ((lanes, counts), watch)) in lanes.into_iter().zip(counts).zip(watchers).enumerate()
    {
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        senders.push(sender);
        let app = Arc::new(App::new(lanes, Arc::clone(&server), core, counts));
        let own_turns = turns.clone().filter(|_| core + 1 == cores_count);
        let (buffers, phase) = (Arc::default(), watched.clone());
        cores.push(Core { app, buffers, arrivals, phase, watch, turns: own_turns });
    }
    let receivers = Receivers { cores: senders, next: 0, turns };
    let mut cores = cores.into_iter();
    let first = cores.next().expect("invariant: a server has a core");
    let first_lanes = first.app.lanes.clone();
    for (index, core) in cores.enumerate() {
        threads.push(spawn(core, index + 1)?);
    }
    let outcome = runtime()?.block_on(async {
        tokio::spawn(sampler::sample(Arc::clone(&server), first_lanes.clone()));
        let first = tokio::spawn(first.run());
        tokio::spawn(async move {
            if first.await.is_err_and(|error| error.is_panic()) {
                vital::end_process("the first core panicked");
            }
        });
        let drain = || {
            server.stopping.store(true, Ordering::Relaxed);
            phase.send_replace(ServerPhase::Draining);
        };
        let accepted = tokio::select! {
            // Before the listener closes, which shows clients that the server stops.
            () = async { stop.await; drain() } => Ok(()),
            failed = accept(listeners.clients, receivers, &places, &first_lanes) => failed,
        };
        drain();
        if timeout(DRAIN_TIME, places.emptied()).await.is_err() {
            let open = places.open();
            let seconds = DRAIN_TIME.as_secs();
            tracing::warn!(open, "closing {open} connections that did not finish in {seconds} s");
        }
        accepted
    });
    phase.send_replace(ServerPhase::Stopped);
    for thread in threads {
        thread.join().expect("invariant: a panic of a core's thread ends the process");
    }
    if let Some((phase, thread)) = ops {
        phase.send_replace(ServerPhase::Stopped);
        thread.join().expect("invariant: a panic of this thread ends the process");
    }
    outcome
}

/// What the listener for operations starts with.
struct OpsStart {
    lanes: Lanes,
    /// The number that distinguishes its requests from those of the cores.
    core: usize,
    counts: Arc<CoreCounts>,
}

impl OpsStart {
    /// Serves the listener on a thread of its own until the phase that is returned is `Stopped`. It
    /// also answers while the server drains.
    fn spawn(
        self,
        listener: TcpListener,
        server: &Arc<Server>,
    ) -> io::Result<(watch::Sender<ServerPhase>, JoinHandle<()>)> {
        let Self { lanes, core, counts } = self;
        let app = Arc::new(App::new(lanes, Arc::clone(server), core, counts).for_ops());
        let (phase, mut watched) = watch::channel(ServerPhase::Serving);
        let runtime = runtime()?;
        let serve = async move {
            read_clock_in_hyper().await;
            let connections_phase = watched.clone();
            tokio::select! {
                failed = accept_ops(listener, app, connections_phase) => {
                    tracing::warn!(?failed, "the listener for operations ended");
                }
                () = reached(&mut watched, ServerPhase::Stopped) => {}
            }
        };
        let thread = vital::spawn("keypeg-ops", move || runtime.block_on(serve))?;
        Ok((phase, thread))
    }
}

/// Accepts and serves the connections of the listener for operations.
async fn accept_ops(
    listener: TcpListener,
    app: Arc<App>,
    phase: watch::Receiver<ServerPhase>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Places::new(OPS_CONNECTIONS_MAX, clock::stopwatch());
    loop {
        let Some((socket, ip)) = next_arrival(&listener).await else { continue };
        let _ = timeout(SHORTAGE_PAUSE, places.displaced_ended()).await;
        let caller = CallerId::of_address(Some(ip));
        let Some(Arrived { place, .. }) = places.enter(caller, clock::stopwatch()) else {
            continue;
        };
        let place = Arc::new(place);
        let sender = Sender { ip, certificate: None };
        let client = Client { sender, place: Arc::clone(&place) };
        let served = serve_ops(Arc::clone(&app), socket, client, phase.clone());
        place.served_by(tokio::spawn(served).abort_handle());
    }
}

/// Waits for the next connection; `None` after a pause because the process or the system is short of
/// something.
async fn next_arrival(listener: &tokio::net::TcpListener) -> Option<(TcpStream, IpAddr)> {
    loop {
        let accepted = listener.accept().await;
        // The socket moves from this core's reactor to that of the core that will serve it.
        match accepted.and_then(|(socket, address)| Ok((socket.into_std()?, address.ip()))) {
            Ok(arrived) => return Some(arrived),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                let pause_ms = SHORTAGE_PAUSE.as_millis();
                tracing::warn!(%error, "cannot accept a connection: retrying in {pause_ms} ms");
                sleep(SHORTAGE_PAUSE).await;
                return None;
            }
        }
    }
}

fn random_run_id() -> u64 {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes[..6]);
    u64::from_le_bytes(bytes)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn spawn(core: Core, index: usize) -> io::Result<JoinHandle<()>> {
    let runtime = runtime()?;
    vital::spawn(&format!("keypeg-core-{index}"), move || runtime.block_on(core.run()))
}

/// Accepts connections and distributes them round-robin, until it fails permanently. A connection
/// that gets no place could have brought a keep-alive.
async fn accept(
    listener: TcpListener,
    mut cores: Receivers,
    places: &Arc<Places>,
    lanes: &Lanes,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let Some((socket, client_ip)) = next_arrival(&listener).await else {
            lanes.note_refused_keep_alive();
            continue;
        };
        let caller = CallerId::of_address(Some(client_ip));
        // The tasks of displaced connections end as soon as their cores have time.
        let _ = timeout(SHORTAGE_PAUSE, places.displaced_ended()).await;
        let Some(Arrived { place, was_hasty }) = places.enter(caller, clock::stopwatch()) else {
            tracing::debug!("connection limit reached: closed a new connection");
            lanes.note_refused_keep_alive();
            continue;
        };
        let core = cores.next();
        // A full queue means that the core is overloaded: the connection is closed.
        let is_full = core.try_send(Arrival { socket, client_ip, place }).is_err();
        if was_hasty || is_full {
            lanes.note_refused_keep_alive();
        }
    }
}

/// Where accepted connections go.
struct Receivers {
    cores: Vec<mpsc::Sender<Arrival>>,
    next: usize,
    /// The turns of the last core. It gets all connections, and the first core, its reserve, those that
    /// arrive while one of its turns hangs.
    turns: Option<Arc<OwnTurns>>,
}

impl Receivers {
    /// Returns the core of the next connection.
    fn next(&mut self) -> &mpsc::Sender<Arrival> {
        let last = self.cores.len() - 1;
        let core = match &self.turns {
            Some(turns) if turns.hangs() => 0,
            Some(_) => last,
            None => self.next,
        };
        self.next = if self.next == last { 0 } else { self.next + 1 };
        &self.cores[core]
    }
}

fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// One core: its lanes and the connections it serves.
struct Core {
    app: Arc<App>,
    buffers: Arc<Buffers>,
    arrivals: mpsc::Receiver<Arrival>,
    phase: watch::Receiver<ServerPhase>,
    watch: CoreWatch,
    /// The turns of the store that this core runs.
    turns: Option<Arc<OwnTurns>>,
}

impl Core {
    /// Serves connections until the server has stopped.
    async fn run(mut self) {
        read_clock_in_hyper().await;
        tokio::spawn(self.watch.run(self.app.lanes.clone(), supervisor::notify));
        if let Some(turns) = self.turns.take() {
            tokio::spawn(async move { turns.run().await });
        }
        for lane in self.app.lanes.all() {
            let lane = lane.clone();
            let delivery = tokio::spawn(async move { lane.run_delivery().await });
            tokio::spawn(async move {
                // Without it no request of this core would be answered again.
                if delivery.await.is_err_and(|error| error.is_panic()) {
                    vital::end_process("the delivery of replies panicked");
                }
            });
        }
        while let Some(arrival) = self.arrivals.recv().await {
            let (app, buffers) = (Arc::clone(&self.app), Arc::clone(&self.buffers));
            let Arrival { socket, client_ip, place } = arrival;
            let place = Arc::new(place);
            let sender = Sender { ip: client_ip, certificate: None };
            let client = Client { sender, place: Arc::clone(&place) };
            let served = tokio::spawn(serve(app, buffers, socket, client, self.phase.clone()));
            place.served_by(served.abort_handle());
        }
        reached(&mut self.phase, ServerPhase::Stopped).await;
    }
}

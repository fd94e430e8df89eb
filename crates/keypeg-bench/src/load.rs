//! The load: connections that each send a request, wait for the response and repeat.
//!
//! Connections are opened and shake hands before the clock starts. Responses within the run count;
//! leases still held at its end are released, and counted apart. An open loop takes the due times
//! of its requests from [`Dispatcher`], and records the latency of each, even of those answered
//! after the end. Cheap on purpose, since it shares a machine with the server it measures.

use crate::clock::stopwatch;
use crate::histogram::Histogram;
use crate::process;
use crate::protocol::{ExchangeError, Protocol, Response};
use crate::schedule::{Dispatcher, Schedule};
use crate::stream::{Endpoint, Stream};
use crate::workload::NewProtocol;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use tokio::task::LocalSet;
use tokio::time::timeout_at;

/// Time for requests in flight at the end.
const GRACE: Duration = Duration::from_secs(10);
/// Time after the end in which requests that were due in time are still sent.
const LATE: Duration = Duration::from_secs(5);
/// The longest response, in bytes.
const RESPONSE_MAX: usize = 64 << 20;

/// The options of a run.
pub(crate) struct Plan {
    pub(crate) endpoint: Endpoint,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) duration: Duration,
    pub(crate) schedule: Option<Schedule>,
    /// The names of the kinds of requests.
    pub(crate) kinds: &'static [&'static str],
    /// Returns the protocol of the connection with this number.
    pub(crate) new_protocol: NewProtocol,
    /// The server's processes, whose processor time and memory are measured.
    pub(crate) pids: Vec<u32>,
}

/// The reason why a run did not take place.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    message: String,
    source: Option<ExchangeError>,
}

impl From<&str> for RunError {
    fn from(message: &str) -> Self {
        Self { message: message.to_owned(), source: None }
    }
}

/// The outcome of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) duration: Duration,
    pub(crate) unsent: u64,
    pub(crate) server: Option<ServerUsage>,
    pub(crate) own_cpu_seconds: f64,
}

/// The resources of the server's processes: processor time within the run, memory at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerUsage {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
}

/// The counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Latencies of successes by kind: of responses within the run, and in an open loop of all
    /// requests due within it.
    pub(crate) latencies: Vec<Histogram>,
    /// The number of those that came after the end.
    pub(crate) late: u64,
    /// Responses other than successes, by status.
    pub(crate) refused: BTreeMap<u16, u64>,
    /// Successes after the run: late responses, and releases of leases still held.
    pub(crate) after: u64,
    /// Requests whose connection failed or whose response could not be parsed.
    pub(crate) broken: u64,
    /// The error of the last of them.
    pub(crate) broken_why: Option<ExchangeError>,
}

impl Tally {
    fn new(kinds: usize) -> Self {
        Self { latencies: vec![Histogram::default(); kinds], ..Self::default() }
    }

    fn merge(&mut self, other: Self) {
        for (latency, more) in self.latencies.iter_mut().zip(&other.latencies) {
            latency.merge(more);
        }
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
        self.late += other.late;
        self.after += other.after;
        self.broken += other.broken;
        self.broken_why = other.broken_why.or(self.broken_why.take());
    }
}

/// The state that the threads of a run share.
struct Run {
    plan: Plan,
    dispatcher: Option<Dispatcher>,
    /// Passed when all connections are open.
    opened: Barrier,
    /// Passed when the clock has started.
    started: Barrier,
    /// Passed when the server's memory is measured, so that connections may close.
    measured: Barrier,
    start: OnceLock<Instant>,
    failure: OnceLock<RunError>,
}

/// Executes a plan; fails if a connection cannot be opened.
pub(crate) fn run(plan: Plan) -> Result<Outcome, RunError> {
    let threads = plan.threads;
    let run = Arc::new(Run {
        dispatcher: plan.schedule.map(Dispatcher::new),
        opened: Barrier::new(threads + 1),
        started: Barrier::new(threads + 1),
        measured: Barrier::new(threads + 1),
        start: OnceLock::new(),
        failure: OnceLock::new(),
        plan,
    });
    let spawned: Vec<_> = (0..threads)
        .map(|thread| {
            let run = Arc::clone(&run);
            std::thread::spawn(move || run_thread(&run, thread))
        })
        .collect();
    run.opened.wait();
    let cpu_before = process::cpu_seconds(&run.plan.pids);
    let own_cpu_before = process::own_cpu_seconds();
    let start = *run.start.get_or_init(stopwatch);
    run.started.wait();
    let has_failed = run.failure.get().is_some();
    let end = start + run.plan.duration;
    match &run.dispatcher {
        _ if has_failed => {}
        Some(dispatcher) => dispatcher.run(start, run.plan.duration, stopwatch),
        None => park_until(end),
    }
    let duration = stopwatch().saturating_duration_since(start);
    let cpu_after = process::cpu_seconds(&run.plan.pids);
    let own_cpu_seconds = process::own_cpu_seconds() - own_cpu_before;
    let resident_bytes = process::resident_bytes(&run.plan.pids);
    run.measured.wait();
    let unsent = run.dispatcher.as_ref().map_or(0, Dispatcher::unsent);
    let mut tally = Tally::new(run.plan.kinds.len());
    for thread in spawned {
        tally.merge(thread.join().expect("invariant: a connection's thread does not panic"));
    }
    let server = cpu_before
        .zip(cpu_after)
        .map(|(before, after)| ServerUsage { cpu_seconds: after - before, resident_bytes });
    match run.failure.get() {
        Some(error) => Err(error.clone()),
        None => Ok(Outcome { tally, duration, unsent, server, own_cpu_seconds }),
    }
}

fn park_until(end: Instant) {
    loop {
        let left = end.saturating_duration_since(stopwatch());
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

/// Runs one thread with its share of the connections.
fn run_thread(run: &Arc<Run>, thread: usize) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::new(run.plan.kinds.len())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let opened = match &runtime {
        Ok(runtime) => runtime.block_on(open_all(run, thread)),
        Err(error) => Err(RunError::from(&*error.to_string())),
    };
    let connections = opened.unwrap_or_else(|error| {
        // Only the first error of all threads is reported.
        let _ = run.failure.set(error);
        Vec::new()
    });
    run.opened.wait();
    run.started.wait();
    let start = *run.start.get().expect("invariant: the clock starts before this barrier");
    let mut still_open = Vec::new();
    if let (Ok(runtime), None) = (&runtime, run.failure.get()) {
        let local = LocalSet::new();
        still_open = local.block_on(runtime, drive_all(run, connections, start, &tally));
    }
    run.measured.wait();
    drop(still_open);
    tally.take()
}

async fn open_all(run: &Run, thread: usize) -> Result<Vec<Connection>, RunError> {
    let mut connections = Vec::new();
    for number in (thread..run.plan.connections).step_by(run.plan.threads) {
        let addr = run.plan.endpoint.addr;
        let opened = Connection::open(&run.plan, number).await.map_err(|error| {
            let message = format!("cannot open connection {} to {addr}: {error}", number + 1);
            RunError { message, source: Some(error) }
        });
        connections.push(opened?);
    }
    Ok(connections)
}

/// Drives connections to the end and leaves them open: a server with one process per connection
/// holds memory for as long as they are open.
async fn drive_all(
    run: &Arc<Run>,
    connections: Vec<Connection>,
    start: Instant,
    tally: &Rc<RefCell<Tally>>,
) -> Vec<Connection> {
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            let (run, tally) = (Arc::clone(run), Rc::clone(tally));
            tokio::task::spawn_local(async move { drive(&run, connection, start, &tally).await })
        })
        .collect();
    let deadline = start + run.plan.duration + GRACE;
    let mut still_open = Vec::new();
    for task in tasks {
        if let Ok(ended) = timeout_at(deadline.into(), task).await {
            still_open.extend(ended.ok().flatten());
        } else {
            let mut tally = tally.borrow_mut();
            tally.broken += 1;
            let why = ExchangeError::Protocol("no response within 10 s after the end");
            tally.broken_why = Some(why);
        }
    }
    still_open
}

/// Drives one connection to the end; `None` if it could not be reopened.
async fn drive(
    run: &Run,
    mut connection: Connection,
    start: Instant,
    tally: &RefCell<Tally>,
) -> Option<Connection> {
    let end = start + run.plan.duration;
    let mut dispatcher = run.dispatcher.as_ref();
    let mut now = stopwatch();
    loop {
        let due = match dispatcher.filter(|_| now < end + LATE) {
            Some(dispatcher) => dispatcher.next(start).await,
            None => None,
        };
        if due.is_none() && run.dispatcher.is_some() {
            // The schedule has ended; only leases still held remain to be released.
            (dispatcher, now) = (None, end.max(stopwatch()));
        }
        if due.is_none() && now >= end && !connection.protocol.must_release() {
            return Some(connection);
        }
        let from = due.unwrap_or(now);
        let exchanged = connection.exchange().await;
        now = stopwatch();
        let closes = match exchanged {
            Ok((kind, response)) => {
                let mut tally = tally.borrow_mut();
                if response.status >= 300 {
                    *tally.refused.entry(response.status).or_default() += 1;
                } else {
                    let is_late = now > end;
                    if !is_late || due.is_some() {
                        tally.latencies[kind].record(now.saturating_duration_since(from));
                    }
                    tally.late += u64::from(is_late && due.is_some());
                    tally.after += u64::from(is_late);
                }
                response.closes
            }
            Err(error) => {
                let mut tally = tally.borrow_mut();
                tally.broken += 1;
                tally.broken_why = Some(error);
                true
            }
        };
        if closes && connection.reopen(&run.plan).await.is_err() {
            return None;
        }
    }
}

/// A connection with the state of its protocol.
struct Connection {
    number: usize,
    stream: Stream,
    protocol: Box<dyn Protocol>,
    out: Vec<u8>,
    input: Vec<u8>,
    /// The number of bytes at the start of `input` that are received and not yet parsed.
    filled: usize,
}

impl Connection {
    async fn open(plan: &Plan, number: usize) -> Result<Self, ExchangeError> {
        let stream = plan.endpoint.connect().await?;
        let protocol = (plan.new_protocol)(number);
        let (out, input) = (Vec::new(), vec![0; 4096]);
        let mut connection = Self { number, stream, protocol, out, input, filled: 0 };
        connection.shake_hands().await?;
        Ok(connection)
    }

    /// Connects again. A lease stays held if the response to its release never came.
    async fn reopen(&mut self, plan: &Plan) -> Result<(), ExchangeError> {
        self.stream = plan.endpoint.connect().await?;
        self.filled = 0;
        if !self.protocol.must_release() {
            self.protocol = (plan.new_protocol)(self.number);
        }
        self.shake_hands().await
    }

    async fn shake_hands(&mut self) -> Result<(), ExchangeError> {
        while self.protocol.handshake() {
            let (_, response) = self.exchange().await?;
            if response.status >= 300 {
                return Err(ExchangeError::Protocol("the server refused the handshake"));
            }
        }
        Ok(())
    }

    /// Sends the next request and waits for its response; returns the kind of the request too.
    async fn exchange(&mut self) -> Result<(usize, Response), ExchangeError> {
        self.out.clear();
        let kind = self.protocol.write_request(&mut self.out);
        self.stream.write_all(&self.out).await?;
        loop {
            if let Some(response) = self.protocol.parse_response(&self.input[..self.filled])? {
                self.input.copy_within(response.len..self.filled, 0);
                self.filled -= response.len;
                return Ok((kind, response));
            }
            if self.filled == self.input.len() {
                if self.filled >= RESPONSE_MAX {
                    return Err(ExchangeError::Protocol("a response larger than 64 MiB"));
                }
                self.input.resize(self.filled * 2, 0);
            }
            let read = self.stream.read(&mut self.input[self.filled..]).await?;
            if read == 0 {
                return Err(ExchangeError::Protocol("the connection closed before the response"));
            }
            self.filled += read;
        }
    }
}

//! Loading a server: connections that each ask, hear the answer and ask again.
//!
//! Connections are opened and greeted before the clock starts. What is answered within the run
//! counts; what was still to be given back at its end is asked, and counted apart. An open loop
//! takes the instants of its requests from [`Pace`], and tells the latency of each of them, of those
//! answered after the end too. Cheap on purpose: it shares a machine with what it measures.

use super::Broken;
use super::histogram::Histogram;
use super::pace::{Pace, Schedule};
use super::process;
use super::talk::{Heard, Talk};
use crate::clock::stopwatch;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout_at;

/// How long what is under way at the end may take.
const GRACE: Duration = Duration::from_secs(10);
/// How long what was due in time is still sent after the end.
const LATE: Duration = Duration::from_secs(5);
/// How long a connection may take to open.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// The longest answer.
const ANSWER_MAX: usize = 64 << 20;

/// What to load, how.
pub(super) struct Plan {
    pub(super) addr: SocketAddr,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) length: Duration,
    pub(super) schedule: Option<Schedule>,
    /// The names of the kinds of requests.
    pub(super) kinds: &'static [&'static str],
    /// Makes a connection's conversation.
    pub(super) talk: Box<dyn Fn(usize) -> Box<dyn Talk> + Send + Sync>,
    /// Whose processor time is told.
    pub(super) pids: Vec<u32>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) tally: Tally,
    pub(super) length: Duration,
    pub(super) unsent: u64,
    pub(super) server: Option<Server>,
    pub(super) own_cpu_seconds: f64,
}

/// What the server's processes used: time within the run, memory at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Server {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Good answers by kind: those within the run, and of an open loop all that were due within it.
    pub(super) lengths: Vec<Histogram>,
    /// How many of those came after the end.
    pub(super) late: u64,
    /// Answers that were no success, by status.
    pub(super) refused: BTreeMap<u16, u64>,
    /// Good answers after the run: what came late, and what was given back.
    pub(super) after: u64,
    /// Requests whose connection was lost, or whose answer was not understood.
    pub(super) broken: u64,
    /// Why the last of them was.
    pub(super) why: Option<String>,
}

impl Tally {
    fn new(kinds: usize) -> Self {
        Self { lengths: vec![Histogram::default(); kinds], ..Self::default() }
    }

    fn merge(&mut self, other: Self) {
        for (length, more) in self.lengths.iter_mut().zip(&other.lengths) {
            length.merge(more);
        }
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
        self.late += other.late;
        self.after += other.after;
        self.broken += other.broken;
        self.why = other.why.or(self.why.take());
    }
}

/// What the threads of a run share.
struct Run {
    plan: Plan,
    pace: Option<Pace>,
    /// All connections are open; the clock has started; memory is told, so they may close.
    open: Barrier,
    go: Barrier,
    told: Barrier,
    begin: OnceLock<Instant>,
    failed: OnceLock<String>,
}

/// Runs a plan; fails when a connection cannot be opened.
pub(super) fn run(plan: Plan) -> Result<Loaded, String> {
    let threads = plan.threads;
    let run = Arc::new(Run {
        pace: plan.schedule.map(Pace::new),
        open: Barrier::new(threads + 1),
        go: Barrier::new(threads + 1),
        told: Barrier::new(threads + 1),
        begin: OnceLock::new(),
        failed: OnceLock::new(),
        plan,
    });
    let spawned: Vec<_> = (0..threads)
        .map(|thread| {
            let run = Arc::clone(&run);
            std::thread::spawn(move || work(&run, thread))
        })
        .collect();
    run.open.wait();
    let before = process::cpu_seconds(&run.plan.pids);
    let own = process::own_cpu_seconds();
    let begin = *run.begin.get_or_init(stopwatch);
    run.go.wait();
    let failed = run.failed.get().is_some();
    let end = begin + run.plan.length;
    match &run.pace {
        _ if failed => {}
        Some(pace) => pace.run(begin, run.plan.length, stopwatch),
        None => pass_until(end),
    }
    let length = stopwatch().saturating_duration_since(begin);
    let after = process::cpu_seconds(&run.plan.pids);
    let own_cpu_seconds = process::own_cpu_seconds() - own;
    let resident_bytes = process::resident_bytes(&run.plan.pids);
    run.told.wait();
    let unsent = run.pace.as_ref().map_or(0, Pace::unsent);
    let mut tally = Tally::new(run.plan.kinds.len());
    for thread in spawned {
        tally.merge(thread.join().expect("invariant: a connection's thread does not panic"));
    }
    let server = before
        .zip(after)
        .map(|(before, after)| Server { cpu_seconds: after - before, resident_bytes });
    match run.failed.get() {
        Some(why) => Err(why.clone()),
        None => Ok(Loaded { tally, length, unsent, server, own_cpu_seconds }),
    }
}

fn pass_until(end: Instant) {
    loop {
        let left = end.saturating_duration_since(stopwatch());
        if left.is_zero() {
            break;
        }
        std::thread::park_timeout(left);
    }
}

/// One thread with its share of the connections.
fn work(run: &Arc<Run>, thread: usize) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::new(run.plan.kinds.len())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let opened = match &runtime {
        Ok(runtime) => runtime.block_on(open(run, thread)),
        Err(error) => Err(error.to_string()),
    };
    let lines = opened.unwrap_or_else(|why| {
        // Only one reason is told, and any will do.
        let _ = run.failed.set(why);
        Vec::new()
    });
    run.open.wait();
    run.go.wait();
    let begin = *run.begin.get().expect("invariant: the clock starts before it is gone");
    let mut open = Vec::new();
    if let (Ok(runtime), None) = (&runtime, run.failed.get()) {
        let local = LocalSet::new();
        open = local.block_on(runtime, drive_all(run, lines, begin, &tally));
    }
    run.told.wait();
    drop(open);
    tally.take()
}

async fn open(run: &Run, thread: usize) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    for number in (thread..run.plan.connections).step_by(run.plan.threads) {
        let opened = Line::open(&run.plan, number).await;
        let addr = run.plan.addr;
        lines.push(opened.map_err(|why| format!("connection {} to {addr}: {why}", number + 1))?);
    }
    Ok(lines)
}

/// Drives connections to the end and leaves them open: a server of a process each has its memory in
/// them.
async fn drive_all(
    run: &Arc<Run>,
    lines: Vec<Line>,
    begin: Instant,
    tally: &Rc<RefCell<Tally>>,
) -> Vec<Line> {
    let driven: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let (run, tally) = (Arc::clone(run), Rc::clone(tally));
            tokio::task::spawn_local(async move { drive(&run, line, begin, &tally).await })
        })
        .collect();
    let late = begin + run.plan.length + GRACE;
    let mut open = Vec::new();
    for each in driven {
        if let Ok(ended) = timeout_at(late.into(), each).await {
            open.extend(ended.ok().flatten());
        } else {
            let mut tally = tally.borrow_mut();
            tally.broken += 1;
            tally.why = Some("no answer long after the end".into());
        }
    }
    open
}

/// One connection, until the end; `None` when it could not be opened again.
async fn drive(run: &Run, mut line: Line, begin: Instant, tally: &RefCell<Tally>) -> Option<Line> {
    let end = begin + run.plan.length;
    let mut pace = run.pace.as_ref();
    let mut now = stopwatch();
    loop {
        let due = match pace.filter(|_| now < end + LATE) {
            Some(pace) => pace.next(begin).await,
            None => None,
        };
        if due.is_none() && run.pace.is_some() {
            // The schedule is over, and so is the run but for what is to be given back.
            (pace, now) = (None, end.max(stopwatch()));
        }
        if due.is_none() && now >= end && !line.talk.owes() {
            return Some(line);
        }
        let from = due.unwrap_or(now);
        let exchanged = line.exchange().await;
        now = stopwatch();
        let closes = match exchanged {
            Ok((kind, heard)) => {
                let mut tally = tally.borrow_mut();
                if heard.status >= 300 {
                    *tally.refused.entry(heard.status).or_default() += 1;
                } else {
                    let late = now > end;
                    if !late || due.is_some() {
                        tally.lengths[kind].record(now.saturating_duration_since(from));
                    }
                    tally.late += u64::from(late && due.is_some());
                    tally.after += u64::from(late);
                }
                heard.closes
            }
            Err(why) => {
                let mut tally = tally.borrow_mut();
                tally.broken += 1;
                tally.why = Some(why.to_string());
                true
            }
        };
        if closes && line.reopen(&run.plan).await.is_err() {
            return None;
        }
    }
}

/// A connection and its conversation.
struct Line {
    number: usize,
    stream: TcpStream,
    talk: Box<dyn Talk>,
    out: Vec<u8>,
    bytes: Vec<u8>,
    filled: usize,
}

impl Line {
    async fn open(plan: &Plan, number: usize) -> Result<Self, Broken> {
        let stream = connect(plan.addr).await?;
        let talk = (plan.talk)(number);
        let (out, bytes) = (Vec::new(), vec![0; 4096]);
        let mut line = Self { number, stream, talk, out, bytes, filled: 0 };
        line.greet().await?;
        Ok(line)
    }

    /// Begins again on a new connection. What was held stays held if its answer never came.
    async fn reopen(&mut self, plan: &Plan) -> Result<(), Broken> {
        self.stream = connect(plan.addr).await?;
        self.filled = 0;
        if !self.talk.owes() {
            self.talk = (plan.talk)(self.number);
        }
        self.greet().await
    }

    async fn greet(&mut self) -> Result<(), Broken> {
        while self.talk.greets() {
            let (_, heard) = self.exchange().await?;
            if heard.status >= 300 {
                return Err(Broken::Unclear("a refusal at the greeting"));
            }
        }
        Ok(())
    }

    async fn exchange(&mut self) -> Result<(usize, Heard), Broken> {
        self.out.clear();
        let kind = self.talk.ask(&mut self.out);
        self.stream.write_all(&self.out).await?;
        loop {
            if let Some(heard) = self.talk.hear(&self.bytes[..self.filled])? {
                self.bytes.copy_within(heard.used..self.filled, 0);
                self.filled -= heard.used;
                return Ok((kind, heard));
            }
            if self.filled == self.bytes.len() {
                if self.filled >= ANSWER_MAX {
                    return Err(Broken::Unclear("an answer without an end"));
                }
                self.bytes.resize(self.filled * 2, 0);
            }
            let read = self.stream.read(&mut self.bytes[self.filled..]).await?;
            if read == 0 {
                return Err(Broken::Unclear("the end of the connection instead of an answer"));
            }
            self.filled += read;
        }
    }
}

async fn connect(addr: SocketAddr) -> Result<TcpStream, Broken> {
    let stream = tokio::time::timeout(CONNECT_TIME, TcpStream::connect(addr)).await;
    let stream = stream.map_err(|_| Broken::Unclear("no connection in 10 s"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

//! The server on a throw-away store: `serve` with the naive store of the engine's tests.
//!
//! It shows what a second store needs, and that HTTP does not depend on the embedded engine. The
//! HTTP tests run on it: `KEYPEG_BINARY=target/debug/examples/naive_server cargo test -p keypeg`.

#[path = "../../keypeg-engine/tests/naive_store/mod.rs"]
mod naive_store;

use keypeg::{Cli, Command, Config, Failure, SystemClock};
use keypeg_engine::Clock;
use keypeg_store::{EngineLane, OpenedStore, StartReport, Store, StoreMetrics, Wakeup, lane};
use naive_store::NaiveStore;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the store looks for what has expired.
const TICK: Duration = Duration::from_millis(5);

#[derive(Debug)]
struct NaiveThread {
    wakeup: Wakeup,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Store for NaiveThread {
    fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::default()
    }

    fn cancel_waits(&self) {}

    fn stop(self: Box<Self>) {
        self.stopping.store(true, Ordering::Release);
        self.wakeup.notify();
        self.thread.join().expect("the store's thread ends");
    }
}

fn open(count: usize) -> Result<OpenedStore, Failure> {
    let (wakeup, stopping) = (Wakeup::default(), Arc::<AtomicBool>::default());
    let (lanes, engine_lanes) = (0..count).map(|_| lane(&wakeup)).unzip();
    let clock = SystemClock::new()?;
    let (listener, is_stopping) = (wakeup.clone(), Arc::clone(&stopping));
    let thread = std::thread::spawn(move || run(engine_lanes, clock, &listener, &is_stopping));
    let report = StartReport { created: true, pools: 1, ..StartReport::default() };
    Ok(OpenedStore { store: Box::new(NaiveThread { wakeup, stopping, thread }), lanes, report })
}

fn run(mut lanes: Vec<EngineLane>, mut clock: SystemClock, wakeup: &Wakeup, stopping: &AtomicBool) {
    wakeup.listen();
    let mut store = NaiveStore::new();
    loop {
        let is_last = stopping.load(Ordering::Acquire);
        if is_last {
            lanes.iter().for_each(EngineLane::close_inbox);
        }
        store.now = clock.read().wall_us / 1_000;
        store.run(&mut lanes);
        if is_last {
            break;
        }
        if !wakeup.take() {
            std::thread::park_timeout(TICK);
        }
    }
    lanes.iter().for_each(EngineLane::close_outbox);
}

fn main() -> Result<(), Failure> {
    let command = Cli::read().map(|cli| cli.command);
    let Ok(Command::Serve(args)) = command else { std::process::exit(64) };
    let config = Config::new(*args)?;
    let stop = keypeg::stop_signal()?;
    let listener = keypeg::listen(&config)?;
    keypeg::serve_store(&config, open, listener, stop, |ready| {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{ready}").and_then(|()| out.flush());
    })
}

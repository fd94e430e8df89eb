//! The program on a throw-away store: `serve` opens the naive store of the engine's tests.
//!
//! It shows what a second store needs, and that HTTP does not depend on the embedded engine. The
//! server's tests run on it, except those of the folder `durability`: see CONTRIBUTING.md.

#[path = "../../keypeg-engine/tests/naive_store/mod.rs"]
mod naive_store;

use keypeg::{Config, Failure, SystemClock};
use keypeg_engine::Clock;
use keypeg_store::{
    BackupSource, EngineLane, OpenedStore, StartReport, Store, StoreMetrics, Wakeup, lane,
};
use naive_store::NaiveStore;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the store looks for what has expired.
const TICK: Duration = Duration::from_millis(5);

/// How far the store's instant is behind the clock at most: it is rounded down to a millisecond, and
/// a request can arrive after it was read.
const CLOCK_LAG_MS: u64 = 2;

/// What the server requests of the store's thread.
#[derive(Debug, Default)]
struct Signals {
    cancel_waits: AtomicBool,
    stop: AtomicBool,
}

#[derive(Debug)]
struct NaiveThread {
    wakeup: Wakeup,
    metrics: Arc<StoreMetrics>,
    signals: Arc<Signals>,
    thread: JoinHandle<()>,
}

impl Store for NaiveThread {
    fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        None
    }

    fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.metrics)
    }

    fn cancel_waits(&self) {
        self.signals.cancel_waits.store(true, Ordering::Release);
        self.wakeup.notify();
    }

    fn stop(self: Box<Self>) {
        self.signals.stop.store(true, Ordering::Release);
        self.wakeup.notify();
        self.thread.join().expect("the store's thread ends");
    }
}

fn open(config: &Config, lane_count: usize) -> Result<OpenedStore, Failure> {
    let (wakeup, signals) = (Wakeup::default(), Arc::<Signals>::default());
    let metrics = Arc::<StoreMetrics>::default();
    let (lanes, engine_lanes): (Vec<_>, _) = (0..lane_count).map(|_| lane(&wakeup)).unzip();
    let clock = SystemClock::new()?;
    let refusals = Arc::clone(&metrics);
    let store =
        NaiveStore::new(config.default_policy.clone(), config.max_keys, Arc::clone(&metrics));
    let (listener, received) = (wakeup.clone(), Arc::clone(&signals));
    let thread = std::thread::spawn(move || {
        run(store, engine_lanes, clock, &listener, &received, &refusals);
    });
    let report = StartReport { created: true, pools: 1, ..StartReport::default() };
    let store = Box::new(NaiveThread { wakeup, metrics, signals, thread });
    let lanes = lanes.into_iter().map(Into::into).collect();
    Ok(OpenedStore { store, lanes, report, cluster: None })
}

fn run(
    mut store: NaiveStore,
    mut lanes: Vec<EngineLane>,
    mut clock: SystemClock,
    wakeup: &Wakeup,
    signals: &Signals,
    metrics: &StoreMetrics,
) {
    store.clock_lag_ms = CLOCK_LAG_MS;
    wakeup.listen();
    loop {
        let is_last = signals.stop.load(Ordering::Acquire);
        if is_last {
            lanes.iter().for_each(EngineLane::close_inbox);
        }
        store.cancels_waits = is_last || signals.cancel_waits.load(Ordering::Acquire);
        store.now = clock.read().wall_us / 1_000;
        // It counts refused keep-alives, although no key of it is purged by serving time.
        let refused = lanes.iter_mut().map(EngineLane::take_refused_keep_alives).sum();
        metrics.refused_keep_alives.fetch_add(refused, Ordering::Relaxed);
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

fn main() -> ExitCode {
    keypeg::run_program(open)
}

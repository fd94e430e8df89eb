//! Turns of a core and of the engine's thread, with an engine in memory. In most tests no thread
//! runs, so that the test decides who has a turn.

use super::*;
use crate::start::EngineConfig;
use crate::state::{EngineState, JournalSizes};
use crate::thread::LaneEnd;
use crate::{Clock, ClockReading};
use keypeg_core::{NewLabels, Policy, PoolName};
use keypeg_store::{Call, Lane, PendingReply, Principal, Reply, Request, RequestError};
use keypeg_testkit::SeededRandom;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_mins(1);

/// The time since the start of the test.
struct RealClock(Instant);

impl Clock for RealClock {
    fn read(&mut self) -> ClockReading {
        let us = u64::try_from(self.0.elapsed().as_micros()).expect("a short test") + 1;
        ClockReading { boot_us: us, boot_id: 1, wall_us: us }
    }
}

/// A time, in microseconds, that only the test moves.
#[derive(Clone, Default)]
struct TimeOfTest(Arc<AtomicU64>);

impl Clock for TimeOfTest {
    fn read(&mut self) -> ClockReading {
        let us = self.0.load(Ordering::Relaxed) + 1;
        ClockReading { boot_us: us, boot_id: 1, wall_us: us }
    }
}

#[expect(clippy::disallowed_methods, reason = "the engine's thread sleeps in real time")]
fn now() -> Instant {
    Instant::now()
}

struct Unpark(Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.unpark();
    }
}

/// An engine, and a core that is the thread of the test.
struct Rig {
    shared: Arc<SharedRun>,
    lane: Lane,
    unpark: Arc<Unpark>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    /// Has an engine whose thread does not run, with this many keys. Its time stands still.
    fn new(keys: u32) -> Self {
        Self::with_clock(keys, TimeOfTest::default())
    }

    fn with_clock(keys: u32, clock: impl Clock + 'static) -> Self {
        let config = EngineConfig {
            data: None,
            lanes: 1,
            core_turns: true,
            default_policy: Policy { keepalive_ttl_ms: None, ..Policy::default() },
            max_keys: 1_000_000,
            memory: u64::MAX,
            memory_max: u64::MAX,
            cache: 4 << 20,
            must_exist: false,
            seal: None,
        };
        let (clock, random) = (Box::new(clock), Box::new(SeededRandom(1)));
        let sizes = JournalSizes::default();
        let (state, _) = EngineState::open(None, sizes, &config, clock, random).unwrap();
        let requests = Wakeup::default();
        let (lane, engine_lane) = keypeg_store::lane(&requests);
        let signals = Signals {
            wakeup: state.wakeup(),
            lookups: None,
            requests: Some(requests.clone()),
            stopping: Arc::default(),
            cancels_waits: Arc::default(),
        };
        let run = Run::new(state, vec![engine_lane], signals, LaneEnd::Closed);
        let shared = Arc::new(SharedRun::new(run, requests));
        let unpark = Arc::new(Unpark(std::thread::current(), AtomicUsize::new(0)));
        let rig = Self { shared, lane, unpark, thread: None };
        let waker = rig.waker();
        let listening = rig.shared.requests.poll_is_notified(&Context::from_waker(&waker));
        assert!(listening.is_pending());
        if keys > 0 {
            let generated = rig.turn_of(generate(keys));
            assert!(matches!(generated, Reply::Keys(_)), "{generated:?}");
        }
        rig
    }

    fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.unpark))
    }

    fn poll<F: Future + Unpin>(&self, future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&self.waker()))
    }

    fn submit(&self, call: Call) -> PendingReply {
        self.lane.submit(Request::new(Principal::Anyone, call))
    }

    /// Returns the reply, if it has come.
    fn reply(&self, pending: &mut PendingReply) -> Poll<Reply> {
        let mut delivery = pin!(self.lane.run_delivery());
        let _ = delivery.as_mut().poll(&mut Context::from_waker(&self.waker()));
        self.poll(pending)
    }

    /// Runs a turn of the core, after that of the thread if it runs one now.
    fn turn(&self) {
        let began = now();
        while self.shared.turn() == CoreTurn::Busy {
            assert!(self.thread.is_some(), "only the test runs turns");
            assert!(began.elapsed() < PATIENCE, "the turn of the thread does not end");
            std::thread::yield_now();
        }
    }

    /// Returns the reply to a call that a turn of the core executes.
    fn turn_of(&self, call: Call) -> Reply {
        let mut pending = self.submit(call);
        self.turn();
        let Poll::Ready(reply) = self.reply(&mut pending) else { panic!("no reply") };
        reply
    }

    /// Returns the reply that another thread sends.
    fn reply_of_thread(&self, pending: &mut PendingReply) -> Reply {
        let began = now();
        loop {
            if let Poll::Ready(reply) = self.reply(pending) {
                return reply;
            }
            assert!(began.elapsed() < PATIENCE, "the engine's thread sends no reply");
            std::thread::park_timeout(PATIENCE);
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.thread = Some(std::thread::spawn(move || shared.run().unwrap()));
    }

    fn stop(&mut self) {
        self.shared.signals.stopping.store(true, Ordering::Release);
        self.shared.signals.wakeup.notify();
        self.thread.take().expect("it was started").join().unwrap();
    }
}

fn generate(count: u32) -> Call {
    Call::Generate { pool: PoolName::default_pool(), count, labels: NewLabels::default() }
}

fn acquire(ttl_ms: u64, wait_ms: u64) -> Call {
    let (pool, ttl_ms) = (PoolName::default_pool(), Some(ttl_ms));
    Call::Acquire { pool, ttl_ms, holder: None, wait_ms }
}

#[test]
fn the_replies_of_a_turn_of_the_core_are_there_when_it_returns() {
    let rig = Rig::new(2);
    for _ in 0..2 {
        let reply = rig.turn_of(acquire(1_000, 0));
        assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    }
    let reply = rig.turn_of(acquire(1_000, 0));
    assert!(matches!(reply, Reply::Refused(RequestError::Refused(_))), "{reply:?}");
    assert!(!rig.shared.requests.is_notified(), "its notification is taken");
    rig.shared.signals.wakeup.notify();
    assert_eq!(rig.shared.turn(), CoreTurn::Done);
    assert!(rig.shared.signals.wakeup.is_notified(), "without a request the core runs no turn");
}

#[test]
fn a_core_does_not_wait_for_the_turn_of_the_thread_and_is_woken_after_it() {
    let rig = Rig::new(1);
    let held = rig.shared.held.lock().unwrap();
    let mut pending = rig.submit(acquire(1_000, 0));
    assert_eq!(rig.shared.turn(), CoreTurn::Busy);
    drop(held);
    let wakes = rig.unpark.1.load(Ordering::Relaxed);
    rig.shared.pass_to_core();
    assert_eq!(rig.unpark.1.load(Ordering::Relaxed), wakes + 1);
    assert_eq!(rig.shared.turn(), CoreTurn::Done);
    assert!(matches!(rig.reply(&mut pending), Poll::Ready(Reply::Granted { .. })));
    let wakes = rig.unpark.1.load(Ordering::Relaxed);
    rig.shared.pass_to_core();
    assert_eq!(rig.unpark.1.load(Ordering::Relaxed), wakes, "no request waits");
}

#[test]
fn a_long_call_is_left_to_the_thread_and_short_ones_are_not() {
    let mut rig = Rig::new(1);
    let mut long = rig.submit(generate(100));
    let mut short = rig.submit(acquire(1_000, 0));
    assert_eq!(rig.shared.turn(), CoreTurn::Done);
    assert!(matches!(rig.reply(&mut short), Poll::Ready(Reply::Granted { .. })));
    assert!(rig.reply(&mut long).is_pending());
    assert!(rig.shared.signals.wakeup.is_notified(), "the thread must run");
    rig.start_thread();
    let reply = rig.reply_of_thread(&mut long);
    assert!(matches!(&reply, Reply::Keys(keys) if keys.len() == 100), "{reply:?}");
    rig.stop();
}

#[test]
fn while_the_disk_is_slow_the_thread_runs_the_turns() {
    let mut rig = Rig::new(1);
    rig.shared.held.lock().unwrap().disk.observe(100_000);
    let first = rig.turn_of(acquire(1_000, 0));
    assert!(matches!(first, Reply::Granted { .. }), "the pace is known after the turn");
    let mut pending = rig.submit(acquire(1_000, 0));
    assert_eq!(rig.shared.turn(), CoreTurn::Done);
    assert!(rig.reply(&mut pending).is_pending());
    assert!(rig.shared.signals.wakeup.is_notified(), "the thread must run");
    rig.start_thread();
    let reply = rig.reply_of_thread(&mut pending);
    assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
    rig.stop();
}

/// The thread sleeps until it is woken: nothing was due before the turn of the core.
#[test]
fn a_deadline_from_a_turn_of_the_core_is_kept_by_the_thread() {
    let time = TimeOfTest::default();
    let mut rig = Rig::with_clock(1, time.clone());
    rig.start_thread();
    let began = now();
    while rig.shared.held.lock().unwrap().thread_wakes_us.is_some() {
        assert!(began.elapsed() < PATIENCE, "the engine's thread does not sleep");
        std::thread::yield_now();
    }
    let first = rig.turn_of(acquire(30, 0));
    assert!(matches!(first, Reply::Granted { .. }), "{first:?}");
    let mut waiting = rig.submit(acquire(30, 600_000));
    rig.turn();
    assert!(rig.reply(&mut waiting).is_pending(), "the lease runs");
    time.0.fetch_add(30_000, Ordering::Relaxed);
    let reply = rig.reply_of_thread(&mut waiting);
    assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    rig.stop();
}

/// A core, on a thread of its own, as the core of a server runs turns.
fn run_core(shared: &SharedRun, ends: &AtomicBool) {
    let unpark = Arc::new(Unpark(std::thread::current(), AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&unpark));
    while !ends.load(Ordering::Acquire) {
        let seen = unpark.1.load(Ordering::Acquire);
        let notified = shared.requests.poll_is_notified(&Context::from_waker(&waker));
        if notified.is_ready() && shared.turn() == CoreTurn::Done {
            continue;
        }
        while unpark.1.load(Ordering::Acquire) == seen && !ends.load(Ordering::Acquire) {
            std::thread::park();
        }
    }
}

#[test]
fn each_request_is_answered_once_while_core_and_thread_take_turns() {
    let mut rig = Rig::with_clock(8, RealClock(now()));
    rig.start_thread();
    let ends = Arc::<AtomicBool>::default();
    let core = std::thread::spawn({
        let (shared, ends) = (Arc::clone(&rig.shared), Arc::clone(&ends));
        move || run_core(&shared, &ends)
    });
    let (mut granted, mut refused, mut generated) = (0, 0, 0);
    for round in 0..1_000 {
        // Long calls are the thread's, and so are leases that end.
        let calls = (0..4).map(|call| if call == round % 8 { generate(80) } else { acquire(1, 0) });
        let pending: Vec<_> = calls.map(|call| rig.submit(call)).collect();
        for mut call in pending {
            let reply = rig.reply_of_thread(&mut call);
            granted += usize::from(matches!(reply, Reply::Granted { .. }));
            refused += usize::from(matches!(reply, Reply::Refused(_)));
            generated += usize::from(matches!(reply, Reply::Keys(_)));
        }
    }
    assert_eq!(granted + refused + generated, 4_000);
    assert_eq!(generated, 500);
    assert!(granted >= 8, "{granted} grants");
    let mut last: Vec<_> = (0..64).map(|_| rig.submit(acquire(1_000, 0))).collect();
    rig.stop();
    for call in &mut last {
        assert!(rig.reply(call).is_ready(), "a stop leaves no request without a reply");
    }
    ends.store(true, Ordering::Release);
    core.thread().unpark();
    core.join().unwrap();
    rig.shared.requests.notify();
    rig.shared.signals.wakeup.notify();
    assert_eq!(rig.shared.turn(), CoreTurn::Done);
    assert!(rig.shared.signals.wakeup.is_notified(), "after the end no turn runs");
    assert!(!rig.shared.requests.is_notified(), "the core has nothing to do");
}

#[test]
fn a_disk_is_slow_by_its_average_and_quick_again_well_below_it() {
    let mut disk = DiskPace::default();
    let quick_after = |disk: &mut DiskPace, took_us: u64, commits: u32| {
        for _ in 0..commits {
            disk.observe(took_us);
        }
        disk.is_quick()
    };
    for (took_us, commits, is_quick) in [
        (900, 1_000, true),
        (1_200, 1, true),
        (1_200, 1_000, false),
        (700, 1_000, false),
        (100, 1_000, true),
        // A disk that hangs once.
        (2_000_000, 1, false),
        (100, 20, false),
        (100, 50, true),
    ] {
        assert_eq!(quick_after(&mut disk, took_us, commits), is_quick, "{took_us} us, {commits}");
    }
}

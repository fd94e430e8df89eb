//! What the engine's benches share: an engine on a directory, a real clock, a cheap random source,
//! and a way to wait for replies.

use keypeg_core::Policy;
use keypeg_core::RandomSource;
use keypeg_engine::{Clock, ClockReading, Engine, EngineConfig};
use keypeg_store::{Call, Lane, PendingReply, Principal, Request};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

/// An engine on a directory, with one lane whose replies a thread delivers.
pub(crate) struct StartedEngine {
    pub(crate) lane: Lane,
    engine: Engine,
    delivery_thread: JoinHandle<()>,
}

impl StartedEngine {
    pub(crate) fn open(dir: PathBuf, max_keys: u64) -> Self {
        let config = EngineConfig {
            data: Some(dir),
            lanes: 1,
            core_turns: false,
            default_policy: Policy { keepalive_ttl_ms: None, ..Policy::default() },
            max_keys,
            memory: u64::MAX,
            memory_max: u64::MAX,
            cache: 64 << 20,
            must_exist: false,
            seal: None,
        };
        let (engine, lanes, _) =
            Engine::start(&config, Box::new(SystemClock), Box::new(CheapRandom(1)))
                .expect("a directory to use");
        let lane = lanes.into_iter().next().expect("one lane");
        let deliverer = lane.clone();
        let delivery_thread = std::thread::spawn(move || block_on(deliverer.run_delivery()));
        Self { lane, engine, delivery_thread }
    }

    /// Stops the engine, after all replies.
    pub(crate) fn stop(self) {
        self.engine.stop();
        self.delivery_thread.join().expect("the delivery thread ends");
    }
}

/// Returns the directory of the first argument, or `name` in the system's temporary directory.
pub(crate) fn directory(name: &str) -> PathBuf {
    argument(1).map_or_else(|| std::env::temp_dir().join(name), PathBuf::from)
}

/// Returns an argument by its position, without the flags of `cargo bench`.
pub(crate) fn argument(position: usize) -> Option<String> {
    std::env::args().filter(|word| !word.starts_with("--")).nth(position)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the machine's clock")]
    fn read(&mut self) -> ClockReading {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let us = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000;
        let boot_us = us + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000;
        ClockReading { boot_us, boot_id: 1, wall_us: boot_us }
    }
}

/// A cheap random source: the drawn values do not matter here.
pub(crate) struct CheapRandom(pub(crate) u64);

impl RandomSource for CheapRandom {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 32) % u64::from(bound)).unwrap_or(0)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = u8::try_from(self.below(256)).unwrap_or(0);
        }
    }
}

pub(crate) fn submit(lane: &Lane, call: Call) -> PendingReply {
    lane.submit(Request::new(Principal::Anyone, call))
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

//! What benches of the engine share: an engine on a directory, a real clock, cheap random, and a way
//! to wait for answers.

use keypeg_engine::core::Policy;
use keypeg_engine::{
    Call, Clock, ClockReading, Engine, EngineConfig, Lane, PendingReply, Principal, RandomSource,
    Request,
};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

/// An engine on a directory, with one lane whose answers a thread delivers.
pub(crate) struct Started {
    pub(crate) lane: Lane,
    engine: Engine,
    delivering: JoinHandle<()>,
}

impl Started {
    pub(crate) fn on(dir: PathBuf, max_keys: u64) -> Self {
        let setup = EngineConfig {
            data: Some(dir),
            lanes: 1,
            default_policy: Policy { keepalive_ttl_ms: None, ..Policy::default() },
            max_keys,
            must_exist: false,
        };
        let (engine, lanes, _) =
            Engine::start(&setup, Box::new(Real), Box::new(Cheap(1))).expect("a directory to use");
        let lane = lanes.into_iter().next().expect("one lane");
        let deliverer = lane.clone();
        let delivering = std::thread::spawn(move || block_on(deliverer.run_delivery()));
        Self { lane, engine, delivering }
    }

    /// Stops it, once all is answered.
    pub(crate) fn stop(self) {
        self.engine.stop();
        self.delivering.join().expect("delivered");
    }
}

/// The directory that is the first argument, or one of that name in the system's.
pub(crate) fn directory(name: &str) -> PathBuf {
    argument(1).map_or_else(|| std::env::temp_dir().join(name), PathBuf::from)
}

/// An argument by its place, those of `cargo bench` apart.
pub(crate) fn argument(place: usize) -> Option<String> {
    std::env::args().filter(|word| !word.starts_with("--")).nth(place)
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
pub(crate) struct Real;

impl Clock for Real {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the machine's clock")]
    fn read(&mut self) -> ClockReading {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let us = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000;
        let boot_us = us + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000;
        ClockReading { boot_us, boot_id: 1, wall_us: boot_us }
    }
}

/// Cheap random: what is drawn does not matter here.
pub(crate) struct Cheap(pub(crate) u64);

impl RandomSource for Cheap {
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

pub(crate) fn ask(lane: &Lane, call: Call) -> PendingReply {
    lane.submit(Request { by: Principal::Anyone, call })
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
pub(crate) fn begin() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

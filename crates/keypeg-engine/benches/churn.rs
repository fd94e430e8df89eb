//! Lends and returns keys through the engine's lanes, again and again, on a real directory, and
//! prints how large the directory was at the most: the journal must stay small whatever happened.
//!
//! `cargo bench -p keypeg-engine --bench churn -- DIR CYCLES`

use keypeg_engine::core::{Policy, PoolName, Verdict};
use keypeg_engine::{
    Answer, Call, Chance, Clock, Engine, Lane, Principal, Reading, Reply, Request, Setup,
};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

/// Calls under way at once.
const AT_ONCE: u64 = 4_000;
const KEYS: u32 = 10_000;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
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
struct Real;

impl Clock for Real {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the machine's clock")]
    fn read(&mut self) -> Reading {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let us = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000;
        let boot_us = us + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000;
        Reading { boot_us, boot_id: 1, wall_us: boot_us }
    }
}

/// Cheap chance: what is drawn does not matter here.
struct Cheap(u64);

impl Chance for Cheap {
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

fn ask(lane: &Lane, call: Call) -> Answer {
    lane.call(Request { by: Principal::Anyone, call })
}

fn bytes_in(dir: &Path) -> (u64, u64) {
    let (mut journal, mut all) = (0, 0);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let len = entry.metadata().map_or(0, |meta| meta.len());
        all += len;
        if entry.file_name().to_string_lossy().starts_with("journal") {
            journal += len;
        }
    }
    (journal, all)
}

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|word| !word.starts_with("--")).collect();
    let dir =
        arguments.get(1).map_or_else(|| std::env::temp_dir().join("keypeg-churn"), PathBuf::from);
    let cycles: u64 = arguments.get(2).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let setup = Setup {
        data: Some(dir.clone()),
        lanes: 1,
        default_policy: Policy { keepalive_ttl_ms: None, ..Policy::default() },
        max_keys: 100_000,
        existing: false,
    };
    let (engine, lanes, _) =
        Engine::start(&setup, Box::new(Real), Box::new(Cheap(1))).expect("a directory to use");
    let lane = lanes.into_iter().next().expect("one lane");
    let deliverer = lane.clone();
    let delivering = std::thread::spawn(move || block_on(deliverer.deliver()));
    let (begun, mut most) = (begin(), (0, 0));
    block_on(ask(&lane, Call::Generate { pool: PoolName::default_pool(), count: KEYS }));
    let mut done = 0;
    while done < cycles {
        done += lend_and_return(&lane);
        let now = bytes_in(&dir);
        most = (most.0.max(now.0), most.1.max(now.1));
    }
    let seconds = begun.elapsed().as_secs_f64();
    engine.stop();
    delivering.join().expect("delivered");
    let mib = |bytes: u64| bytes >> 20;
    report(&format!(
        "{done} cycles in {seconds:.0} s; journal at most {} MiB, directory at most {} MiB, \
         at the end {} MiB",
        mib(most.0),
        mib(most.1),
        mib(bytes_in(&dir).1)
    ));
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn begin() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
fn report(line: &str) {
    println!("{line}");
}

/// Lends and returns many keys at once; gives how many.
fn lend_and_return(lane: &Lane) -> u64 {
    let acquire =
        || Call::Acquire { pool: PoolName::default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let grants: Vec<_> = (0..AT_ONCE).map(|_| ask(lane, acquire())).collect();
    let releases: Vec<_> = grants
        .into_iter()
        .map(block_on)
        .map(|reply| {
            let Reply::Granted { pool, lease, .. } = reply else { panic!("{reply:?}") };
            ask(lane, Call::Release { pool, lease: lease.id, verdict: Verdict::default() })
        })
        .collect();
    for release in releases {
        let reply = block_on(release);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }
    AT_ONCE
}

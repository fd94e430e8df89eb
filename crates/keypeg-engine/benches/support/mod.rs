//! What benches of the engine share: a real clock, cheap chance, and a way to wait for answers.

use keypeg_engine::{Answer, Call, Chance, Clock, Lane, Principal, Reading, Request};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

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
    fn read(&mut self) -> Reading {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let us = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000;
        let boot_us = us + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000;
        Reading { boot_us, boot_id: 1, wall_us: boot_us }
    }
}

/// Cheap chance: what is drawn does not matter here.
pub(crate) struct Cheap(pub(crate) u64);

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

pub(crate) fn ask(lane: &Lane, call: Call) -> Answer {
    lane.call(Request { by: Principal::Anyone, call })
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
pub(crate) fn begin() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "a bench reports")]
pub(crate) fn report(line: &str) {
    println!("{line}");
}

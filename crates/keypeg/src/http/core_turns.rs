//! Turns of the store on the only HTTP thread of a server: this core runs one after it has read all
//! requests that have arrived, so that the requests of many connections share one sync. While a turn
//! hangs, because the disk does, new connections go to another core, the reserve.
//!
//! Does not know what a turn does, nor which turns the store's own thread runs.

use crate::clock;
use keypeg_store::{CoreTurn, CoreTurns};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;
use tokio::task::yield_now;

/// A turn that takes longer, in microseconds, hangs.
const HANGS_AFTER_US: u64 = 20_000;
/// No turn runs.
const NONE: u64 = u64::MAX;

/// The turns of a core.
#[derive(Debug)]
pub(super) struct OwnTurns {
    turns: Arc<dyn CoreTurns>,
    created: Instant,
    /// When the turn that runs began, in microseconds since `created`.
    began_us: AtomicU64,
}

impl OwnTurns {
    pub(super) fn new(turns: Arc<dyn CoreTurns>) -> Self {
        Self { turns, created: clock::stopwatch(), began_us: AtomicU64::new(NONE) }
    }

    /// Runs turns on this thread as long as the runtime lasts.
    pub(super) async fn run(&self) {
        let requests = self.turns.requests();
        loop {
            poll_fn(|context| requests.poll_is_notified(context)).await;
            // All that can be read now is read first.
            yield_now().await;
            self.began_us.store(self.now_us(), Ordering::Relaxed);
            let turn = self.turns.turn();
            self.began_us.store(NONE, Ordering::Relaxed);
            if turn == CoreTurn::Busy {
                woken().await;
            }
        }
    }

    /// Returns whether a turn hangs, so that the core answers nothing.
    pub(super) fn hangs(&self) -> bool {
        self.hangs_at(self.now_us())
    }

    /// `now_us` is the time since `created`.
    fn hangs_at(&self, now_us: u64) -> bool {
        let began_us = self.began_us.load(Ordering::Relaxed);
        began_us != NONE && now_us.saturating_sub(began_us) > HANGS_AFTER_US
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_micros()).unwrap_or(NONE - 1)
    }
}

/// Waits until this task is woken.
async fn woken() {
    let mut is_polled_again = false;
    poll_fn(|_| {
        if std::mem::replace(&mut is_polled_again, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_store::Wakeup;
    use std::sync::Mutex;

    /// Refuses a turn as often as `busy` says, and notes each.
    #[derive(Debug, Default)]
    struct Turns {
        requests: Wakeup,
        busy: Mutex<u32>,
        done: AtomicU64,
    }

    impl CoreTurns for Turns {
        fn requests(&self) -> &Wakeup {
            &self.requests
        }

        fn turn(&self) -> CoreTurn {
            let mut busy = self.busy.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                return CoreTurn::Busy;
            }
            let _ = self.requests.take();
            self.done.fetch_add(1, Ordering::Relaxed);
            CoreTurn::Done
        }
    }

    async fn yield_often() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_core_whose_turn_is_refused_tries_again_when_it_is_woken_and_not_before() {
        let turns = Arc::<Turns>::default();
        let own = Arc::new(OwnTurns::new(Arc::clone(&turns) as Arc<dyn CoreTurns>));
        tokio::spawn({
            let own = Arc::clone(&own);
            async move { own.run().await }
        });
        yield_often().await;
        assert_eq!(turns.done.load(Ordering::Relaxed), 0, "no request has come");
        *turns.busy.lock().unwrap() = 2;
        turns.requests.notify();
        for busy in [1, 0] {
            yield_often().await;
            assert_eq!(*turns.busy.lock().unwrap(), busy);
            assert_eq!(turns.done.load(Ordering::Relaxed), 0);
            turns.requests.wake();
        }
        yield_often().await;
        assert_eq!(turns.done.load(Ordering::Relaxed), 1);
        assert!(!own.hangs(), "no turn runs");
    }

    #[test]
    fn a_turn_hangs_once_it_takes_too_long() {
        let own = OwnTurns::new(Arc::<Turns>::default());
        assert!(!own.hangs_at(u64::MAX - 1), "no turn runs");
        own.began_us.store(1_000, Ordering::Relaxed);
        // The turn can begin after the clock was read.
        for (now_us, hangs) in [(0, false), (1_000, false), (21_000, false), (21_001, true)] {
            assert_eq!(own.hangs_at(now_us), hangs, "{now_us}");
        }
    }
}

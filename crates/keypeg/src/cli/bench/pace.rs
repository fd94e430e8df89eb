//! When requests are due: a schedule that does not wait for anybody.
//!
//! In an open loop request number k is due k/rate seconds after the begin, whatever became of those
//! before it, and its latency counts from then: a server that stalls cannot make its stall look
//! short by being asked less meanwhile. What is due within the run is sent even after its end, where
//! no connection was idle before. Which connection sends it is random: the next idle one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How many requests are due by when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    per_second: f64,
}

impl Schedule {
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second }
    }

    /// How long after the begin a request is due.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 requests")]
    pub(super) fn due(self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.per_second)
    }

    /// How many requests are due, so long after the begin.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of one run"
    )]
    pub(super) fn count(self, elapsed: Duration) -> u64 {
        let guess = (elapsed.as_secs_f64() * self.per_second) as u64;
        // Divided and multiplied back, a number can be one off.
        let first = guess.saturating_sub(1);
        first + (first..=guess + 1).take_while(|&number| self.due(number) <= elapsed).count() as u64
    }
}

/// Hands requests that are due to connections that are idle.
#[derive(Debug)]
pub(super) struct Pace {
    schedule: Schedule,
    due: Semaphore,
    taken: AtomicU64,
    /// How many requests are due in all: known at the end.
    all: AtomicU64,
}

/// How often the schedule is looked at, at most: latencies are told that much too high.
const LOOK_TIME: Duration = Duration::from_micros(100);

impl Pace {
    pub(super) fn new(schedule: Schedule) -> Self {
        let (taken, all) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Self { schedule, due: Semaphore::new(0), taken, all }
    }

    /// Waits for a request that is due and takes it; `None` when the run is over and all were taken.
    pub(super) async fn next(&self, begin: Instant) -> Option<Instant> {
        // Closed, it gives no permits: what is left is then handed out by its number alone.
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        let all = self.all.load(Ordering::Acquire);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < all).then_some(taken + 1)
        });
        Some(begin + self.schedule.due(taken.ok()?))
    }

    /// Makes requests due as their time comes, until the end. To be run by one thread of its own.
    pub(super) fn run(&self, begin: Instant, length: Duration, now: impl Fn() -> Instant) {
        let mut given = 0;
        loop {
            let elapsed = now().saturating_duration_since(begin).min(length);
            let due = self.schedule.count(elapsed);
            self.due.add_permits(usize::try_from(due - given).unwrap_or(0));
            given = due;
            if elapsed >= length {
                self.all.store(given, Ordering::Release);
                break self.due.close();
            }
            let next = self.schedule.due(due).min(length);
            std::thread::park_timeout((next.saturating_sub(elapsed)).max(LOOK_TIME));
        }
    }

    /// How many requests were due within the run, which is over, and sent by nobody.
    pub(super) fn unsent(&self) -> u64 {
        let all = self.all.load(Ordering::Acquire);
        all.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_due_from_its_instant_on() {
        for rate in [0.3, 1.0, 7.0, 999.9, 20_000.0, 1e6 / 3.0] {
            let schedule = Schedule::new(rate);
            assert_eq!(schedule.due(0), Duration::ZERO);
            for number in [0, 1, 2, 3, 10, 99_999, 1_234_567] {
                let due = schedule.due(number);
                assert_eq!(schedule.count(due), number + 1, "{rate}: {number}");
                if let Some(before) = due.checked_sub(Duration::from_nanos(2)) {
                    assert_eq!(schedule.count(before), number, "{rate}: before {number}");
                }
            }
        }
    }

    /// A server that stalls is asked late, but each request's time still counts from when it was
    /// due: what a closed loop would leave out.
    #[tokio::test]
    async fn who_is_late_still_counts_from_when_it_was_due() {
        let begin = crate::clock::stopwatch();
        let pace = Pace::new(Schedule::new(100.0));
        let (length, over) = (Duration::from_millis(95), begin + Duration::from_millis(95));
        let threads =
            std::thread::scope(|scope| scope.spawn(|| pace.run(begin, length, || over)).join());
        assert!(threads.is_ok());
        assert_eq!(pace.unsent(), 10, "due from the first instant to the last");
        for number in 0..10 {
            let due = begin + Duration::from_millis(10 * number);
            assert_eq!(pace.next(begin).await, Some(due), "sent late, and told as late");
        }
        assert_eq!((pace.next(begin).await, pace.unsent()), (None, 0));
    }
}

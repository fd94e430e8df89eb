//! The schedule of an open loop: the times at which requests are due, independent of responses.
//!
//! Request number k is due k/rate seconds after the start, whatever happened to the requests before
//! it, and its latency counts from then. So a server that stalls cannot hide its stall by receiving
//! fewer requests meanwhile (coordinated omission). A request that was due within the run is sent
//! even after its end, if no connection was idle before. The next idle connection sends it.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Requests per second of an open loop: 0.1 to 10 million.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(f64);

/// The reason why a text is not a [`Rate`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rate must be 0.1 to 10000000 requests per second")]
pub struct RateError;

impl Rate {
    pub(crate) fn per_second(self) -> f64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let rate = text.parse().ok().filter(|rate| (0.1..=10_000_000.0).contains(rate));
        rate.map(Self).ok_or(RateError)
    }
}

/// A schedule with a constant rate of requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    per_second: f64,
}

impl Schedule {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { per_second: rate.per_second() }
    }

    /// Returns the time from the start at which a request is due.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 requests")]
    pub(crate) fn due(self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.per_second)
    }

    /// Returns the number of requests due at a time after the start.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of one run"
    )]
    pub(crate) fn count(self, elapsed: Duration) -> u64 {
        let guess = (elapsed.as_secs_f64() * self.per_second) as u64;
        // Rounding in floating point can make the guess wrong by one.
        let first = guess.saturating_sub(1);
        first + (first..=guess + 1).take_while(|&number| self.due(number) <= elapsed).count() as u64
    }
}

/// Hands due requests to idle connections.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    schedule: Schedule,
    /// One permit per request that is due and not yet taken.
    due: Semaphore,
    taken: AtomicU64,
    /// The number of requests due in the whole run; `u64::MAX` until its end.
    total: AtomicU64,
}

/// The shortest pause between two checks of the schedule; reported latencies are up to that much
/// too high.
const CHECK_INTERVAL: Duration = Duration::from_micros(100);

impl Dispatcher {
    pub(crate) fn new(schedule: Schedule) -> Self {
        let (taken, total) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        Self { schedule, due: Semaphore::new(0), taken, total }
    }

    /// Waits for the next due request and returns the time it was due; `None` after the run, when
    /// all are taken.
    pub(crate) async fn next(&self, start: Instant) -> Option<Instant> {
        // A closed semaphore has no permits: remaining requests are then counted by `taken` alone.
        if let Ok(permit) = self.due.acquire().await {
            permit.forget();
        }
        let total = self.total.load(Ordering::Acquire);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < total).then_some(taken + 1)
        });
        Some(start + self.schedule.due(taken.ok()?))
    }

    /// Adds requests as they become due, until the end of the run. Blocks: call it once, from one
    /// thread.
    pub(crate) fn run(&self, start: Instant, duration: Duration, now: impl Fn() -> Instant) {
        let mut added = 0;
        loop {
            let elapsed = now().saturating_duration_since(start).min(duration);
            let due = self.schedule.count(elapsed);
            self.due.add_permits(usize::try_from(due - added).unwrap_or(0));
            added = due;
            if elapsed >= duration {
                self.total.store(added, Ordering::Release);
                break self.due.close();
            }
            let next = self.schedule.due(due).min(duration);
            std::thread::park_timeout((next.saturating_sub(elapsed)).max(CHECK_INTERVAL));
        }
    }

    /// Returns the number of requests that were due within the run and not sent; call it after the
    /// run.
    pub(crate) fn unsent(&self) -> u64 {
        let total = self.total.load(Ordering::Acquire);
        total.saturating_sub(self.taken.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_checked() {
        assert_eq!("0.5".parse(), Ok(Rate(0.5)));
        assert!(["0", "-1", "NaN", "inf", "many"].iter().all(|bad| bad.parse::<Rate>().is_err()));
    }

    #[test]
    fn a_request_is_due_from_its_time_on() {
        for rate in [0.3, 1.0, 7.0, 999.9, 20_000.0, 1e6 / 3.0] {
            let schedule = Schedule::new(Rate(rate));
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

    /// A stalled server receives requests late, but each latency counts from the due time, which a
    /// closed loop would omit.
    #[tokio::test]
    async fn a_late_request_counts_from_the_time_it_was_due() {
        let start = crate::clock::stopwatch();
        let dispatcher = Dispatcher::new(Schedule::new(Rate(100.0)));
        let duration = Duration::from_millis(95);
        let end = start + duration;
        let run = std::thread::scope(|scope| {
            scope.spawn(|| dispatcher.run(start, duration, || end)).join()
        });
        assert!(run.is_ok());
        assert_eq!(dispatcher.unsent(), 10, "one is due at the start, then one each 10 ms");
        for number in 0..10 {
            let due = start + Duration::from_millis(10 * number);
            assert_eq!(dispatcher.next(start).await, Some(due), "sent late, with its due time");
        }
        assert_eq!((dispatcher.next(start).await, dispatcher.unsent()), (None, 0));
    }
}

//! Ends the response of a client that does not read it, or reads it too slowly.
//!
//! Time counts only while the socket accepts no byte. The count continues from response to response
//! until the socket accepts a response at once, so that a client that pipelines requests gets no
//! further grace. Knows neither sockets nor responses.

use crate::clock;
use crate::http::timeouts::Timeouts;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

/// By how much a client may fall behind the lowest rate; less if the write timeout is shorter.
const GRACE: Duration = Duration::from_secs(5);

/// What the server writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Written {
    /// A response of a known length, for which the lowest rate applies.
    #[default]
    Response,
    /// Frames of a stream, which come when something happens. A client has the write timeout for
    /// each.
    Stream,
}

/// Watches the writes to one client. Allocates only for a client that does not accept a response at
/// once.
#[derive(Debug, Default)]
pub(super) struct WriteWatch(Option<Box<Blocking>>);

#[derive(Debug)]
struct Blocking {
    pace: Pace,
    /// Fires at the deadline or earlier, so that it need not be reset for each write.
    timer: Pin<Box<Sleep>>,
    /// Whether the client was too slow.
    has_failed: bool,
}

impl WriteWatch {
    /// Fails once the client is too slow. To be called when the socket accepts nothing.
    pub(super) fn poll_blocked(
        &mut self,
        limits: &Timeouts,
        what: Written,
        cx: &mut Context<'_>,
    ) -> Poll<io::Error> {
        let now = clock::stopwatch();
        let blocking = self.0.get_or_insert_with(|| {
            let pace = Pace::new(now);
            let timer = Box::pin(sleep_until(pace.deadline(limits, what).into()));
            Box::new(Blocking { pace, timer, has_failed: false })
        });
        let Blocking { pace, timer, has_failed } = &mut **blocking;
        pace.block(now);
        let deadline = pace.deadline(limits, what);
        if timer.deadline() > deadline.into() {
            timer.as_mut().reset(deadline.into());
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if clock::stopwatch() >= deadline {
                *has_failed = true;
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            timer.as_mut().reset(deadline.into());
        }
    }

    /// Returns whether the socket has accepted nothing since the last write.
    pub(super) fn is_blocked(&self) -> bool {
        self.0.as_ref().is_some_and(|blocking| blocking.pace.blocked_since.is_some())
    }

    /// Returns whether the client was too slow.
    pub(super) fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|blocking| blocking.has_failed)
    }

    /// Notes that the socket has accepted `len` bytes.
    pub(super) fn progress(&mut self, len: usize) {
        if let Some(blocking) = &mut self.0 {
            blocking.pace.progress(clock::stopwatch(), len as u64);
        }
    }

    /// Notes that the socket has accepted the whole response, or a whole frame.
    pub(super) fn complete(&mut self, what: Written) {
        self.0.take_if(|blocking| blocking.pace.complete() || what == Written::Stream);
    }
}

/// How fast a client accepts what is written.
#[derive(Debug)]
struct Pace {
    /// When the socket first accepted nothing.
    began: Instant,
    /// Since when the socket accepts nothing.
    blocked_since: Option<Instant>,
    /// How long it accepted nothing before.
    blocked: Duration,
    /// The bytes that it accepted since `began`.
    written: u64,
    /// Whether it ever accepted nothing during this response.
    was_blocked: bool,
}

impl Pace {
    fn new(now: Instant) -> Self {
        let (blocked, written) = (Duration::ZERO, 0);
        Self { began: now, blocked_since: None, blocked, written, was_blocked: false }
    }

    fn block(&mut self, now: Instant) {
        self.was_blocked = true;
        self.blocked_since.get_or_insert(now);
    }

    fn progress(&mut self, now: Instant, len: u64) {
        if let Some(since) = self.blocked_since.take() {
            self.blocked += now.saturating_duration_since(since);
        }
        self.written += len;
    }

    /// Ends a response; returns whether the socket accepted it at once.
    fn complete(&mut self) -> bool {
        !std::mem::take(&mut self.was_blocked)
    }

    /// Returns when the client is too slow if it goes on accepting nothing.
    fn deadline(&self, limits: &Timeouts, what: Written) -> Instant {
        let since = self.blocked_since.unwrap_or(self.began);
        if what == Written::Stream {
            return self.began + limits.write;
        }
        let silent = since + limits.write;
        if limits.write_rate == 0 {
            return silent;
        }
        let allowed_us = self.written.saturating_mul(1_000_000) / limits.write_rate;
        let allowed = GRACE.min(limits.write) + Duration::from_micros(allowed_us);
        silent.min(since + allowed.saturating_sub(self.blocked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const LIMITS: Timeouts = Timeouts {
        idle: Duration::ZERO,
        head: Duration::ZERO,
        body: Duration::ZERO,
        write: Duration::from_secs(30),
        write_rate: 16 << 10,
    };

    /// Writes `len` bytes every `ms` milliseconds; returns the second in which the client is too
    /// slow, within an hour.
    fn cut_after(len: u64, ms: u64, limits: &Timeouts, what: Written) -> Option<u64> {
        let start = clock::stopwatch();
        let mut pace = Pace::new(start);
        for step in 1..=3_600_000 / ms {
            pace.block(start + Duration::from_millis((step - 1) * ms));
            let now = start + Duration::from_millis(step * ms);
            let deadline = pace.deadline(limits, what);
            if now >= deadline {
                return Some(deadline.duration_since(start).as_secs());
            }
            pace.progress(now, len);
        }
        None
    }

    /// 3 000 bytes every 10 s once kept an answer for as long as the client wanted.
    #[test]
    fn a_client_that_reads_slower_than_the_lowest_rate_is_cut() {
        assert_eq!(cut_after(3_000, 10_000, &LIMITS, Written::Response), Some(5));
        assert_eq!(cut_after(8 << 10, 1_000, &LIMITS, Written::Response), Some(9));
        assert_eq!(cut_after(15 << 10, 1_000, &LIMITS, Written::Response), Some(65));
    }

    #[test]
    fn a_client_that_reads_at_the_lowest_rate_is_not_cut() {
        assert_eq!(cut_after(16 << 10, 1_000, &LIMITS, Written::Response), None);
        assert_eq!(cut_after(64 << 10, 4_000, &LIMITS, Written::Response), None);
    }

    #[test]
    fn without_a_lowest_rate_any_progress_is_enough() {
        let limits = Timeouts { write_rate: 0, ..LIMITS };
        assert_eq!(cut_after(1, 29_000, &limits, Written::Response), None);
        assert_eq!(cut_after(1, 30_000, &limits, Written::Response), Some(30));
    }

    #[test]
    fn a_short_write_timeout_shortens_the_grace() {
        let limits = Timeouts { write: Duration::from_secs(2), ..LIMITS };
        assert_eq!(cut_after(1, 1_000, &limits, Written::Response), Some(2));
    }

    /// The frames of a stream have no lowest rate, but a frame that is read byte by byte ends.
    #[test]
    fn a_frame_of_a_stream_must_be_read_within_the_write_timeout() {
        assert_eq!(cut_after(100, 1_000, &LIMITS, Written::Stream), Some(30));
    }

    /// A client that pipelines requests for small answers reads each of them within the grace.
    #[test]
    fn the_time_goes_on_until_a_response_is_accepted_at_once() {
        let start = clock::stopwatch();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        let mut cut_at = None;
        for answer in 0..100 {
            pace.block(at(answer * 1_000));
            let deadline = pace.deadline(&LIMITS, Written::Response);
            if at((answer + 1) * 1_000) > deadline {
                cut_at = Some(answer);
                break;
            }
            pace.progress(at((answer + 1) * 1_000), 400);
            assert!(!pace.complete(), "it was not accepted at once");
        }
        assert_eq!(cut_at, Some(5));
        pace.progress(at(7_000), 400);
        assert!(!pace.complete());
        pace.progress(at(8_000), 400);
        assert!(pace.complete(), "accepted at once: nothing is left to watch");
    }

    /// The timer is armed for the deadline that was known when the socket first accepted nothing, and
    /// a later one can come earlier.
    #[tokio::test]
    async fn a_client_that_accepts_nothing_is_too_slow_at_its_deadline_which_can_come_earlier() {
        let limits = |write| Timeouts { write, write_rate: 0, ..LIMITS };
        let (short, long) = (limits(Duration::from_millis(10)), limits(Duration::from_hours(1)));
        for is_earlier in [false, true] {
            let mut watch = WriteWatch::default();
            if is_earlier {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                assert!(watch.poll_blocked(&long, Written::Response, &mut cx).is_pending());
            }
            let too_slow = poll_fn(|cx| watch.poll_blocked(&short, Written::Response, cx));
            let ended = tokio::time::timeout(Duration::from_mins(1), too_slow).await;
            let error = ended.unwrap_or_else(|_| panic!("never, {is_earlier}"));
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(watch.has_failed());
        }
    }

    #[tokio::test]
    async fn a_watch_without_a_blocked_write_holds_nothing() {
        let mut watch = WriteWatch::default();
        watch.progress(100);
        watch.complete(Written::Response);
        assert!(watch.0.is_none() && !watch.is_blocked());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(watch.poll_blocked(&LIMITS, Written::Response, &mut cx).is_pending());
        assert!(watch.is_blocked());
        watch.progress(100);
        assert!(!watch.is_blocked());
        watch.complete(Written::Response);
        watch.complete(Written::Response);
        assert!(watch.0.is_none());
    }
}

//! The requests of one connection: how many are in progress, and which responses the client does
//! not accept.
//!
//! A connection ends when it is idle for too long, when its client does not accept a response, and
//! when its client resets most of what it requests. Knows neither frames nor handlers.

use crate::clock;
use crate::http::connection::places::Place;
use crate::http::timeouts::{GOAWAY_TIME, Timeouts};
use crate::share::Held;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep_until};

/// How many requests a client may cancel beyond the number of those that it let complete.
const CANCELLED_MAX: u64 = 200;
/// By how much a client may fall behind the lowest rate; less if the write timeout is shorter.
const GRACE: Duration = Duration::from_secs(5);
/// The time over which the rate of a client is measured.
const RATE_WINDOW: Duration = Duration::from_mins(1);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// After the responses to the requests in progress.
    WhenAnswered,
    /// At once.
    Now,
}

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    timeouts: Timeouts,
    place: Arc<Place>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// The requests in progress, until the client has accepted their responses.
    active: usize,
    completed: u64,
    cancelled: u64,
    /// Whether the connection ends when its requests have.
    ends: bool,
    /// Whether it has begun to end.
    is_stopping: bool,
    /// Since when no request is in progress.
    idle_since: Instant,
    /// The responses that wait for the client.
    waiting: HashMap<u64, Waiting>,
    /// Since when any response waits, at most [`RATE_WINDOW`] ago.
    waiting_since: Instant,
    /// The bytes that the client has accepted since then.
    accepted: u64,
    /// The task of the connection.
    waker: Option<Waker>,
}

/// A response that waits for the client.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Since when the client has accepted nothing of it.
    since: Instant,
    /// Whether the lowest rate applies: not to events, which come when something happens.
    is_rated: bool,
}

/// One request and its response.
#[derive(Debug)]
pub(crate) struct Stream {
    streams: Arc<Streams>,
    number: u64,
    /// What the request and its response hold until the client has accepted the response.
    under_way: Mutex<Vec<Held>>,
    is_complete: AtomicBool,
}

impl Streams {
    pub(super) fn new(timeouts: Timeouts, place: Arc<Place>, now: Instant) -> Arc<Self> {
        let state = State {
            next: 0,
            active: 0,
            completed: 0,
            cancelled: 0,
            ends: false,
            is_stopping: false,
            idle_since: now,
            waiting: HashMap::new(),
            waiting_since: now,
            accepted: 0,
            waker: None,
        };
        Arc::new(Self { timeouts, place, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is usable: a panic interrupts no change of more than one field.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a request. It ends when the last handle is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<Stream> {
        let mut state = self.lock();
        state.active += 1;
        state.next += 1;
        let (number, streams) = (state.next, Arc::clone(self));
        let (under_way, is_complete) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Stream { streams, number, under_way, is_complete })
    }

    /// Shortens the time in which the connection may still be idle.
    pub(super) fn stop(&self, now: Instant) {
        let mut state = self.lock();
        state.is_stopping = true;
        state.idle_since = now;
    }

    /// Waits until the connection must end. For the task of the connection.
    pub(super) fn watch(self: &Arc<Self>) -> impl Future<Output = End> + use<> {
        let streams = Arc::clone(self);
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        std::future::poll_fn(move |cx| streams.poll_end(&mut timer, cx))
    }

    fn poll_end(&self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let (deadline, end) = {
                let mut state = self.lock();
                if state.cancelled > CANCELLED_MAX + state.completed {
                    return Poll::Ready(End::Now);
                }
                if state.ends && !state.is_stopping {
                    return Poll::Ready(End::WhenAnswered);
                }
                state.waker = Some(cx.waker().clone());
                state.deadline(&self.timeouts)
            };
            let Some(deadline) = deadline else { return Poll::Pending };
            if clock::stopwatch() >= deadline {
                return Poll::Ready(end);
            }
            let sleep = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
            // A later deadline is found when the timer fires.
            if sleep.deadline() > deadline.into() || sleep.is_elapsed() {
                sleep.as_mut().reset(deadline.into());
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

impl State {
    /// Returns when the connection must end if nothing happens, and how.
    fn deadline(&self, limits: &Timeouts) -> (Option<Instant>, End) {
        if let Some(oldest) = self.waiting.values().map(|waiting| waiting.since).min() {
            let silent = oldest + limits.write;
            let is_rated = self.waiting.values().all(|waiting| waiting.is_rated);
            if limits.write_rate == 0 || !is_rated {
                return (Some(silent), End::Now);
            }
            let allowed_us = self.accepted.saturating_mul(1_000_000) / limits.write_rate;
            let allowed = GRACE.min(limits.write) + Duration::from_micros(allowed_us);
            let slow = self.waiting_since.checked_add(allowed).unwrap_or(silent);
            return (Some(slow.min(silent)), End::Now);
        }
        if self.active > 0 {
            return (None, End::Now);
        }
        if self.is_stopping {
            return (Some(self.idle_since + GOAWAY_TIME), End::Now);
        }
        let time = if self.next == 0 { limits.head.min(limits.idle) } else { limits.idle };
        (Some(self.idle_since + time), End::WhenAnswered)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Stream {
    /// Ends the connection when all its requests have ended.
    pub(crate) fn end_connection(&self) {
        let mut state = self.streams.lock();
        state.ends = true;
        state.wake();
    }

    /// Keeps what the response holds until the client has accepted it.
    pub(crate) fn hold(&self, under_way: impl IntoIterator<Item = Option<Held>>) {
        let mut held = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        held.extend(under_way.into_iter().flatten());
    }

    /// Notes that the response waits for the client from now on: hyper takes a part of it when the
    /// client has room.
    pub(super) fn wait(&self, is_rated: bool, now: Instant) {
        let mut state = self.streams.lock();
        if state.waiting.is_empty() {
            (state.waiting_since, state.accepted) = (now, 0);
        }
        state.waiting.insert(self.number, Waiting { since: now, is_rated });
        state.wake();
    }

    /// Notes that the client has room and the response has nothing for it at present.
    pub(super) fn catch_up(&self) {
        self.streams.lock().waiting.remove(&self.number);
    }

    /// Notes that a part was sent.
    pub(super) fn part_sent(&self, len: usize, now: Instant) {
        let mut state = self.streams.lock();
        if now.saturating_duration_since(state.waiting_since) > RATE_WINDOW {
            (state.waiting_since, state.accepted) = (now, 0);
        }
        state.accepted = state.accepted.saturating_add(len as u64);
        if let Some(waiting) = state.waiting.get_mut(&self.number) {
            waiting.since = now;
        }
    }

    /// Notes that hyper has taken the whole response.
    pub(super) fn complete(&self) {
        self.is_complete.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let is_complete = *self.is_complete.get_mut();
        let now = clock::stopwatch();
        let mut state = self.streams.lock();
        state.waiting.remove(&self.number);
        state.active -= 1;
        if is_complete {
            state.completed += 1;
        } else {
            state.cancelled += 1;
        }
        if state.active == 0 {
            state.idle_since = now;
            self.streams.place.end(now);
        }
        state.wake();
    }
}

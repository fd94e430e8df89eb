//! The places of connections: their number is bounded, and callers share them. When places run
//! short, a new connection displaces the one that has been idle longest.
//!
//! A connection belongs to its client's network until it has shown a valid token, then to the token.
//! It is proven once the server has admitted a request of it. Unproven connections are displaced
//! first, then idle ones, never one with an admitted request in progress. A displacement costs
//! O(log n); a request costs two atomic operations. Knows no sockets; time is an argument.

mod queue;
mod state;
#[cfg(test)]
mod tests;

use crate::share::CallerId;
use queue::{Queue, Rank};
use state::State;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// A connection that is displaced sooner than this after its arrival had no time for a request.
const CHANCE: Duration = Duration::from_secs(1);
/// All places of a listener.
#[derive(Debug)]
pub(in crate::http) struct Places {
    max: usize,
    /// The number of connections at which places run short.
    short: usize,
    started: Instant,
    queue: Mutex<Queue>,
    /// Notified when a displaced connection has ended, or the last one.
    ended: Notify,
    displaced: AtomicU64,
    refused: AtomicU64,
}

/// The place of one connection; it is free when this is dropped.
#[derive(Debug)]
pub(in crate::http) struct Place {
    places: Arc<Places>,
    index: usize,
    state: Arc<State>,
    is_proven: AtomicBool,
}

/// The result of an arrival that got a place.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) place: Place,
    /// Whether a connection was displaced that had no time to send a request.
    pub(super) was_hasty: bool,
}

/// The counts of a listener's places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) struct PlaceCounts {
    pub(in crate::http) open: u64,
    /// Open connections of which the server has admitted no request.
    pub(in crate::http) unproven: u64,
    /// Connections that were displaced.
    pub(in crate::http) displaced: u64,
    /// Connections that got no place.
    pub(in crate::http) refused: u64,
}

impl Places {
    /// Creates `max` places, which run short above seven eighths.
    pub(in crate::http) fn new(max: usize, started: Instant) -> Arc<Self> {
        Arc::new(Self {
            max,
            short: (max - max / 8).max(1),
            started,
            queue: Mutex::default(),
            ended: Notify::new(),
            displaced: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Gives a new connection a place, which can be that of a displaced one; `None` if there is none.
    pub(super) fn enter(self: &Arc<Self>, caller: CallerId, now: Instant) -> Option<Arrived> {
        let now_ms = self.ms(now);
        let mut queue = self.lock();
        // Displaced connections that have not ended yet still need their descriptors.
        if queue.len() >= self.max {
            return self.refuse();
        }
        let mut found = None;
        if queue.staying() >= self.short {
            let fills_share = queue.fills_share(&caller, self.short);
            found = queue.find_displaced(&caller, fills_share, now_ms);
            if found.is_none() && fills_share {
                return self.refuse();
            }
        }
        let displaced = found.map(|index| queue.displace(index));
        let (index, state) = queue.insert(caller, now_ms);
        drop(queue);
        let mut was_hasty = false;
        if let Some(displaced) = displaced {
            let age_ms = now_ms.saturating_sub(displaced.arrived_ms);
            was_hasty = displaced.rank == Rank::Unproven && Duration::from_millis(age_ms) < CHANCE;
            self.end(displaced.task);
        }
        let (places, is_proven) = (Arc::clone(self), AtomicBool::new(false));
        Some(Arrived { place: Place { places, index, state, is_proven }, was_hasty })
    }

    fn refuse<T>(&self) -> Option<T> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Ends the task of a displaced connection, if it has begun.
    fn end(&self, task: Option<AbortHandle>) {
        self.displaced.fetch_add(1, Ordering::Relaxed);
        if let Some(task) = task {
            task.abort();
        }
    }

    /// Returns the number of open connections.
    pub(super) fn open(&self) -> usize {
        self.lock().len()
    }

    /// Returns the counts for metrics.
    pub(in crate::http) fn counts(&self) -> PlaceCounts {
        let (open, unproven) = {
            let queue = self.lock();
            (queue.len() as u64, queue.unproven() as u64)
        };
        let [displaced, refused] =
            [&self.displaced, &self.refused].map(|count| count.load(Ordering::Relaxed));
        PlaceCounts { open, unproven, displaced, refused }
    }

    /// Waits while every place is taken and displaced connections are about to end. For one task.
    pub(super) async fn displaced_ended(&self) {
        while self.lock().is_full_until_ends(self.max) {
            self.ended.notified().await;
        }
    }

    /// Waits until no connection is open. For one task.
    pub(super) async fn emptied(&self) {
        while self.open() > 0 {
            self.ended.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A poisoned lock is usable: a panic would be a bug of this module, and a place that is
        // counted twice only makes room later.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2)
    }
}

impl Place {
    /// Names the task that serves the connection; a displacement ends it.
    pub(super) fn served_by(&self, task: AbortHandle) {
        self.places.lock().set_task(self.index, task);
    }

    /// Marks the begin of an admitted request, so that the connection stays. After the first one,
    /// the connection belongs to the token that `token` returns, if any. Returns whether the request
    /// may begin: a connection that was displaced must end without it.
    pub(in crate::http) fn begin(
        &self,
        token: impl FnOnce() -> Option<CallerId>,
        now: Instant,
    ) -> bool {
        let begins = self.state.begin();
        if begins && !self.is_proven.load(Ordering::Relaxed) {
            self.is_proven.store(true, Ordering::Relaxed);
            self.prove(token(), now);
        }
        begins
    }

    /// Returns whether an admitted request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.state.is_busy()
    }

    /// Marks the end of a request: from `now` on the connection waits for the next.
    pub(super) fn end(&self, now: Instant) {
        self.state.end(self.places.ms(now));
    }

    fn prove(&self, token: Option<CallerId>, now: Instant) {
        let places = &self.places;
        let now_ms = places.ms(now);
        let mut queue = places.lock();
        let Some(caller) = queue.prove(self.index, token) else { return };
        let is_crowded = queue.staying() > places.short && queue.fills_share(&caller, places.short);
        let displaced = is_crowded.then(|| queue.find_displaced(&caller, true, now_ms)).flatten();
        let displaced = displaced.map(|index| queue.displace(index));
        drop(queue);
        if let Some(displaced) = displaced {
            places.end(displaced.task);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.places.lock();
        let was_leaving = queue.remove(self.index);
        if was_leaving || queue.len() == 0 {
            self.places.ended.notify_one();
        }
    }
}

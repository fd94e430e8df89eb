//! Turns on two threads: that of the engine, and the only core of a server, which so gets its
//! replies without a switch of threads.
//!
//! A lock around the [`Run`] gives each turn one thread. The core never waits for it: if the
//! engine's thread has it, that thread wakes the core afterwards. The engine's thread does all that
//! is not short: long calls, what is due while no request comes, and all turns while the disk is
//! slow. It does not know what a turn does.

use crate::end::{AbortOnPanic, EXIT_IO, end_process};
use crate::state::CommitError;
use crate::thread::{AfterTurn, Run, Signals};
use keypeg_store::{CoreTurn, CoreTurns, Wakeup};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// Why the process ends after a failed commit.
pub(crate) const NOT_ACKNOWLEDGED: &str = "no change of the last batch was acknowledged";

/// A running engine whose turns run on its thread or on a core.
pub(crate) struct SharedRun {
    held: Mutex<Held>,
    signals: Signals,
    /// What the requests of the core notify.
    requests: Wakeup,
    /// Whether the disk is quick, so that the core may wait for it.
    disk_is_quick: AtomicBool,
}

/// What the thread of a turn holds.
struct Held {
    run: Run,
    disk: DiskPace,
    /// When the engine's thread wakes without a notification, by the stopwatch of the engine: at
    /// once before its first turn, and never if `None`.
    thread_wakes_us: Option<u64>,
    /// Whether the engine has ended, so that no turn may follow.
    has_ended: bool,
}

impl SharedRun {
    /// `requests` is the wakeup of the lane of the core.
    pub(crate) fn new(run: Run, requests: Wakeup) -> Self {
        let signals = run.signals.clone();
        let held =
            Held { run, disk: DiskPace::default(), thread_wakes_us: Some(0), has_ended: false };
        Self { held: Mutex::new(held), signals, requests, disk_is_quick: AtomicBool::new(true) }
    }

    /// Does the turns that the core does not, until a stop is requested and every request is
    /// answered. Runs on the engine's thread.
    pub(crate) fn run(&self) -> Result<(), CommitError> {
        self.signals.listen();
        loop {
            let after = self.turn_of_thread()?;
            self.pass_to_core();
            match after {
                AfterTurn::Turn => {}
                AfterTurn::Pause(timeout) => self.signals.sleep(timeout),
                AfterTurn::End => return Ok(()),
            }
        }
    }

    /// Runs one turn, and after the last one closes the engine.
    fn turn_of_thread(&self) -> Result<AfterTurn, CommitError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let after = held.turn(true);
        held.has_ended = !matches!(after, Ok(AfterTurn::Turn | AfterTurn::Pause(_)));
        self.note_pace(&held);
        let after = after?;
        match after {
            AfterTurn::Turn => {}
            AfterTurn::Pause(timeout) => held.thread_wakes_us = held.in_us(timeout),
            AfterTurn::End => held.run.close()?,
        }
        Ok(after)
    }

    /// Wakes the core if requests have come during the turn.
    fn pass_to_core(&self) {
        // Either this thread sees the notification of a core that did not get the lock, or the core
        // gets the lock.
        fence(Ordering::SeqCst);
        if self.requests.is_notified() {
            self.requests.wake();
        }
    }

    fn note_pace(&self, held: &MutexGuard<'_, Held>) {
        self.disk_is_quick.store(held.disk.is_quick(), Ordering::Relaxed);
    }
}

impl CoreTurns for SharedRun {
    fn requests(&self) -> &Wakeup {
        &self.requests
    }

    fn turn(&self) -> CoreTurn {
        // A panic leaves the pools in an unknown state, on whichever thread.
        let _guard = AbortOnPanic;
        if !self.disk_is_quick.load(Ordering::Relaxed) {
            let _ = self.requests.take();
            self.signals.wakeup.notify();
            return CoreTurn::Done;
        }
        fence(Ordering::SeqCst);
        let mut held = match self.held.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return CoreTurn::Busy,
        };
        if held.has_ended {
            // The lane refuses what follows.
            let _ = self.requests.take();
            return CoreTurn::Done;
        }
        if !self.requests.is_notified() {
            return CoreTurn::Done;
        }
        let after = match held.turn(false) {
            Ok(after) => after,
            Err(error) => end_process(&error, NOT_ACKNOWLEDGED, EXIT_IO),
        };
        self.note_pace(&held);
        let needs_thread = match after {
            AfterTurn::Turn | AfterTurn::End => true,
            AfterTurn::Pause(timeout) => {
                let due_us = held.in_us(timeout).unwrap_or(u64::MAX);
                due_us < held.thread_wakes_us.unwrap_or(u64::MAX)
            }
        };
        if needs_thread {
            self.signals.wakeup.notify();
        }
        CoreTurn::Done
    }
}

impl Held {
    /// Runs one turn, on the engine's thread or on the core.
    fn turn(&mut self, is_thread: bool) -> Result<AfterTurn, CommitError> {
        self.run.state.set_executes_long_calls(is_thread);
        let after = self.run.turn();
        if let Some(took_us) = self.run.state.take_commit_time() {
            self.disk.observe(took_us);
        }
        after
    }

    /// Returns the time of the stopwatch after this pause.
    fn in_us(&mut self, pause: Option<Duration>) -> Option<u64> {
        let pause_us = u64::try_from(pause?.as_micros()).unwrap_or(u64::MAX);
        Some(self.run.state.stopwatch_us().saturating_add(pause_us))
    }
}

impl fmt::Debug for SharedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedRun")
    }
}

/// How long commits take, on average over about the last eight of them. While they are slow, a core
/// that waited for them could not read the requests that come meanwhile.
#[derive(Debug, Default)]
struct DiskPace {
    average_us: u64,
    is_slow: bool,
}

impl DiskPace {
    /// Above this average a disk is slow.
    const SLOW_US: u64 = 1_000;
    /// Below this average it is quick again.
    const QUICK_US: u64 = 500;

    fn observe(&mut self, took_us: u64) {
        self.average_us = (7 * self.average_us + took_us) / 8;
        let bound_us = if self.is_slow { Self::QUICK_US } else { Self::SLOW_US };
        self.is_slow = self.average_us >= bound_us;
    }

    fn is_quick(&self) -> bool {
        !self.is_slow
    }
}

#[cfg(test)]
mod tests;

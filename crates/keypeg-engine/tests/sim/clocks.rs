//! The clocks of a simulation, in whole milliseconds: the true time, which nothing in the
//! simulation can read, and what the machine reports.

use keypeg_engine::{Clock, ClockReading};
use std::sync::{Arc, Mutex};

/// Where the wall clock starts: 2026-11-22T00:00:00Z.
const WALL_MS: i64 = 1_795_305_600_000;

#[derive(Clone, Debug)]
struct Instants {
    /// Always increases.
    true_ms: u64,
    boot_ms: u64,
    boot_id: u128,
    /// Wall time minus true time.
    wall_shift_ms: i64,
    /// The true times of the readings since they were last taken, each once.
    readings_ms: Vec<u64>,
}

/// The clocks. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct SimClock(Arc<Mutex<Instants>>);

impl SimClock {
    pub(crate) fn new() -> Self {
        let (true_ms, boot_ms, boot_id) = (0, 1_000, 1);
        let (wall_shift_ms, readings_ms) = (WALL_MS, Vec::new());
        let start = Instants { true_ms, boot_ms, boot_id, wall_shift_ms, readings_ms };
        Self(Arc::new(Mutex::new(start)))
    }

    /// Returns a separate clock with the same time: of the same machine, or of another one.
    pub(crate) fn apart(&self, same_machine: bool) -> Self {
        let mut now = self.0.lock().unwrap().clone();
        if !same_machine {
            (now.boot_id, now.boot_ms) = (now.boot_id ^ (1 << 64), now.true_ms % 977);
        }
        Self(Arc::new(Mutex::new(now)))
    }

    pub(crate) fn advance(&self, ms: u64) {
        let mut now = self.0.lock().unwrap();
        now.true_ms += ms;
        now.boot_ms += ms;
    }

    /// Turns the machine off for `off_ms`, and boots it.
    pub(crate) fn reboot(&self, off_ms: u64) {
        let mut now = self.0.lock().unwrap();
        now.true_ms += off_ms;
        now.boot_ms = off_ms % 50;
        now.boot_id += 1;
    }

    pub(crate) fn step_wall(&self, by_ms: i64) {
        self.0.lock().unwrap().wall_shift_ms = WALL_MS + by_ms;
    }

    /// Takes the true times at which the clock was read.
    pub(crate) fn take_readings(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.lock().unwrap().readings_ms)
    }

    pub(crate) fn true_ms(&self) -> u64 {
        self.0.lock().unwrap().true_ms
    }

    pub(crate) fn boot_ms(&self) -> u64 {
        self.0.lock().unwrap().boot_ms
    }

    pub(crate) fn wall_ms(&self) -> u64 {
        let now = self.0.lock().unwrap();
        now.true_ms.checked_add_signed(now.wall_shift_ms).unwrap()
    }
}

impl Clock for SimClock {
    fn read(&mut self) -> ClockReading {
        let wall_us = self.wall_ms() * 1_000;
        let mut now = self.0.lock().unwrap();
        let read_ms = now.true_ms;
        if now.readings_ms.last() != Some(&read_ms) {
            now.readings_ms.push(read_ms);
        }
        ClockReading { boot_us: now.boot_ms * 1_000, boot_id: now.boot_id, wall_us }
    }
}

//! The two deciding clocks, lease time and serving time, derived from the machine's clocks.
//!
//! Lease time is boot time plus an offset, so that it continues where the journal's last clock
//! stood: downtime counts over a restart in the same boot, but not over a reboot, so a lease can
//! end late but never early. Serving time advances by at most a second in each step, and not while
//! keep-alives are refused, so that no purge comes nearer while no client can prevent it. Neither
//! clock ever goes back.

use crate::clock::{Clock, ClockReading};
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{Now, US_PER_S};

/// The most serving time that one step adds, however long it took: no client could reach a server
/// that was stopped, suspended or waiting for its disk.
const SERVING_STEP_MAX_US: u64 = US_PER_S;

/// How long serving time stands still after a refused keep-alive: a refusal asks its client to try
/// again in a second, and the client may be late by as much.
const REFUSAL_US: u64 = 2 * US_PER_S;

/// The clocks of a running engine.
pub(crate) struct Times {
    clock: Box<dyn Clock>,
    /// Lease time minus boot time, wrapping.
    lease_offset_us: u64,
    boot_us: u64,
    serving_us: u64,
    /// Whether a keep-alive was refused since the last step.
    was_refused: bool,
    /// The boot time until which serving time stands still.
    stands_until_us: u64,
}

/// The last clock values in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastClock {
    pub(crate) boot_id: u128,
    /// The boot time at `lease_us`.
    pub(crate) boot_us: u64,
    pub(crate) lease_us: u64,
}

impl Times {
    /// Continues the journal's clock; starts at zero without one.
    pub(crate) fn resume(
        clock: Box<dyn Clock>,
        reading: ClockReading,
        last: Option<LastClock>,
    ) -> Self {
        let reading = deciding(reading);
        let lease_offset_us = match last {
            None => 0_u64.wrapping_sub(reading.boot_us),
            Some(last) if last.boot_id == reading.boot_id && last.boot_us <= reading.boot_us => {
                last.lease_us.wrapping_sub(last.boot_us)
            }
            Some(last) => {
                let skipped_us =
                    if enabled(Sabotage::ShortenAfterReboot) { 5 * US_PER_S } else { 0 };
                (last.lease_us + skipped_us).wrapping_sub(reading.boot_us)
            }
        };
        Self {
            clock,
            lease_offset_us,
            boot_us: reading.boot_us,
            serving_us: 0,
            was_refused: false,
            stands_until_us: 0,
        }
    }

    /// Returns the boot time of the last reading, which pairs with its lease time.
    pub(crate) fn boot_us(&self) -> u64 {
        self.boot_us
    }

    /// Notes that keep-alives were refused since the last step: that time does not count as serving
    /// time, nor does [`REFUSAL_US`] after the next step.
    pub(crate) fn note_refused_keep_alives(&mut self) {
        self.was_refused = !enabled(Sabotage::PurgeWhileRefusing);
    }

    /// Returns how long serving time stands still from the last step on.
    pub(crate) fn standstill_us(&self) -> u64 {
        self.stands_until_us.saturating_sub(self.boot_us)
    }

    /// Reads the boot time, to measure durations; the deciding clocks do not advance.
    pub(crate) fn stopwatch_us(&mut self) -> u64 {
        self.clock.read().boot_us
    }

    /// Reads the clocks and advances both deciding clocks; serving time only if `serving`.
    pub(crate) fn now(&mut self, serving: bool) -> Now {
        let reading = deciding(self.clock.read());
        let boot_us = reading.boot_us.max(self.boot_us);
        if std::mem::take(&mut self.was_refused) {
            self.boot_us = boot_us;
            self.stands_until_us = boot_us + REFUSAL_US;
        }
        if serving {
            let uncapped = enabled(Sabotage::PurgeByLeaseClock);
            let step_max_us = if uncapped { u64::MAX } else { SERVING_STEP_MAX_US };
            let counted_from_us = self.stands_until_us.clamp(self.boot_us, boot_us);
            self.serving_us += (boot_us - counted_from_us).min(step_max_us);
        }
        self.boot_us = boot_us;
        Now {
            lease_us: boot_us.wrapping_add(self.lease_offset_us),
            serving_us: self.serving_us,
            wall_us: reading.wall_us,
        }
    }
}

/// Returns the reading with the boot time that the deciding clocks use.
fn deciding(reading: ClockReading) -> ClockReading {
    let boot_us = if enabled(Sabotage::CountWallTime) { reading.wall_us } else { reading.boot_us };
    ClockReading { boot_us, ..reading }
}

impl std::fmt::Debug for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Times").field("serving_us", &self.serving_us).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    struct ScriptedClock(VecDeque<u64>);

    impl Clock for ScriptedClock {
        fn read(&mut self) -> ClockReading {
            reading(1, self.0.pop_front().expect("a scripted reading"))
        }
    }

    fn reading(boot_id: u128, boot_us: u64) -> ClockReading {
        ClockReading { boot_us, boot_id, wall_us: 0 }
    }

    fn lease_after(last: Option<LastClock>, boot_id: u128, boot_us: u64) -> u64 {
        let clock = Box::new(ScriptedClock([boot_us].into()));
        Times::resume(clock, reading(boot_id, boot_us), last).now(true).lease_us
    }

    #[test]
    fn lease_time_counts_downtime_but_not_a_reboot() {
        let last = Some(LastClock { boot_id: 1, boot_us: 500, lease_us: 90 });
        assert_eq!(lease_after(None, 1, 700), 0, "a new directory starts at zero");
        assert_eq!(lease_after(last, 1, 700), 290, "same boot: the 200 µs of downtime count");
        assert_eq!(lease_after(last, 1, 500), 90);
        assert_eq!(
            lease_after(last, 2, 700),
            90,
            "another boot: lease time continues where it stood"
        );
        assert_eq!(lease_after(last, 2, 10), 90);
        assert_eq!(lease_after(last, 1, 499), 90, "a boot time that went back means another boot");
    }

    #[test]
    fn serving_time_adds_at_most_a_second_and_no_clock_goes_back() {
        let clock = Box::new(ScriptedClock([10, 5, 20, 20 + 400 * US_PER_S].into()));
        let mut times = Times::resume(clock, reading(1, 0), None);
        let mut steps = || {
            let now = times.now(true);
            (now.lease_us, now.serving_us)
        };
        assert_eq!(steps(), (10, 10));
        assert_eq!(steps(), (10, 10), "lease time stands still when the clock goes back");
        assert_eq!(steps(), (20, 20));
        assert_eq!(steps(), (20 + 400 * US_PER_S, 20 + US_PER_S), "a pause of 400 s");
    }

    #[test]
    fn serving_time_stands_still_while_keep_alives_are_refused_and_until_clients_have_retried() {
        let readings = [300_000, 900_000, 1_500_000, 2_800_000, 3_100_000, 4_000_000];
        let mut times =
            Times::resume(Box::new(ScriptedClock(readings.into())), reading(1, 0), None);
        assert_eq!(times.now(true).serving_us, 300_000);
        times.note_refused_keep_alives();
        assert_eq!(times.now(true).serving_us, 300_000, "since the last step");
        assert_eq!(times.standstill_us(), REFUSAL_US);
        assert_eq!(times.now(true).serving_us, 300_000);
        assert_eq!(times.now(true).serving_us, 300_000);
        assert_eq!(times.standstill_us(), 100_000);
        let now = times.now(true);
        assert_eq!((now.lease_us, now.serving_us), (3_100_000, 500_000), "from 2.9 s on");
        assert_eq!(times.standstill_us(), 0);
        assert_eq!(times.now(true).serving_us, 1_400_000);
    }
}

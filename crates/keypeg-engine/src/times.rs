//! From readings of the machine's clocks to the two clocks that decide.
//!
//! Lease time is boot time moved so that it goes on where the journal's last clock stood: over a
//! restart in the same boot downtime counts, over a reboot it does not, so a lease can end late
//! but never early. Serving time adds at most a second a step, so that no key pays for a stop.

use crate::core::sabotage::{Sabotage, enabled};
use crate::core::{Now, US_PER_S};
use crate::{Clock, ClockReading};

/// The most serving time that one step can add, however long it was: nobody could reach a server
/// that was stopped, suspended or waiting for its disk.
const SERVING_STEP_MAX_US: u64 = US_PER_S;

/// The clocks of a running engine.
pub(crate) struct Times {
    clock: Box<dyn Clock>,
    /// Lease time is boot time plus this, wrapping.
    shift: u64,
    boot_us: u64,
    serving_us: u64,
}

/// Where a journal's clock stood last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastClock {
    pub(crate) boot_id: u128,
    /// Boot time at `lease_us`.
    pub(crate) boot_us: u64,
    pub(crate) lease_us: u64,
}

impl Times {
    /// Goes on from where the journal stood; from zero without one.
    pub(crate) fn resume(
        clock: Box<dyn Clock>,
        reading: ClockReading,
        last: Option<LastClock>,
    ) -> Self {
        let reading = taken(reading);
        let shift = match last {
            None => 0_u64.wrapping_sub(reading.boot_us),
            Some(last) if last.boot_id == reading.boot_id && last.boot_us <= reading.boot_us => {
                last.lease_us.wrapping_sub(last.boot_us)
            }
            Some(last) => {
                let off = if enabled(Sabotage::ShortenAfterReboot) { 5 * US_PER_S } else { 0 };
                (last.lease_us + off).wrapping_sub(reading.boot_us)
            }
        };
        Self { clock, shift, boot_us: reading.boot_us, serving_us: 0 }
    }

    /// Boot time at the instant last read: the pair of its lease time.
    pub(crate) fn boot_us(&self) -> u64 {
        self.boot_us
    }

    /// Boot time now, to measure with; the clocks that decide do not move.
    pub(crate) fn stopwatch_us(&mut self) -> u64 {
        self.clock.read().boot_us
    }

    /// Reads the clocks; neither of the two that decide ever goes back. Serving time stands still
    /// where the server does not serve.
    pub(crate) fn now(&mut self, serving: bool) -> Now {
        let reading = taken(self.clock.read());
        let boot_us = reading.boot_us.max(self.boot_us);
        if serving {
            let uncapped = enabled(Sabotage::PurgeByLeaseClock);
            let most_us = if uncapped { u64::MAX } else { SERVING_STEP_MAX_US };
            self.serving_us += (boot_us - self.boot_us).min(most_us);
        }
        self.boot_us = boot_us;
        Now {
            lease_us: boot_us.wrapping_add(self.shift),
            serving_us: self.serving_us,
            wall_us: reading.wall_us,
        }
    }
}

/// What of a reading decides.
fn taken(reading: ClockReading) -> ClockReading {
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

    struct Given(VecDeque<u64>);

    impl Clock for Given {
        fn read(&mut self) -> ClockReading {
            reading(1, self.0.pop_front().expect("given"))
        }
    }

    fn reading(boot_id: u128, boot_us: u64) -> ClockReading {
        ClockReading { boot_us, boot_id, wall_us: 0 }
    }

    fn lease_after(last: Option<LastClock>, boot_id: u128, boot_us: u64) -> u64 {
        let clock = Box::new(Given([boot_us].into()));
        Times::resume(clock, reading(boot_id, boot_us), last).now(true).lease_us
    }

    #[test]
    fn lease_time_counts_downtime_but_not_over_a_reboot() {
        let last = Some(LastClock { boot_id: 1, boot_us: 500, lease_us: 90 });
        assert_eq!(lease_after(None, 1, 700), 0, "a new directory begins at zero");
        assert_eq!(lease_after(last, 1, 700), 290, "same boot: the 200 µs down count");
        assert_eq!(lease_after(last, 1, 500), 90);
        assert_eq!(lease_after(last, 2, 700), 90, "another boot: it goes on where it stood");
        assert_eq!(lease_after(last, 2, 10), 90);
        assert_eq!(lease_after(last, 1, 499), 90, "boot time gone back is another boot");
    }

    #[test]
    fn serving_time_adds_a_second_at_most_and_nothing_goes_back() {
        let clock = Box::new(Given([10, 5, 20, 20 + 400 * US_PER_S].into()));
        let mut times = Times::resume(clock, reading(1, 0), None);
        let mut steps = || {
            let now = times.now(true);
            (now.lease_us, now.serving_us)
        };
        assert_eq!(steps(), (10, 10));
        assert_eq!(steps(), (10, 10), "a clock that goes back stands still here");
        assert_eq!(steps(), (20, 20));
        assert_eq!(steps(), (20 + 400 * US_PER_S, 20 + US_PER_S), "six minutes stopped");
    }
}

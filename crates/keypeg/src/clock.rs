//! The only file that reads time.
//!
//! Deadlines use time since boot; wall time is only displayed. The displayed wall time is time
//! since boot plus an offset that stays constant while the system clock is slewed, so that
//! timestamps of one run keep their exact distances. Only a step of more than half a second changes
//! the offset.

use crate::failure::{Failure, exit};
use keypeg_engine::{Clock, ClockReading};
use rustix::time::ClockId;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Difference between the system's wall clock and the displayed one above which the offset changes.
const STEP_MIN_US: u64 = 500_000;
/// The beginning of the year 10000, in seconds since 1970.
const YEAR_10000_S: u64 = 253_402_300_800;

/// The system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    boot_id: u128,
    wall: Wall,
}

/// Reads the monotonic clock that measures request durations.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(crate) fn stopwatch() -> Instant {
    Instant::now()
}

/// Reads the monotonic clock in microseconds, as a supervisor reads it: for the messages to it.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(crate) fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000
}

/// Reads the time since boot in microseconds, including suspend: the clock of the engine's deadlines.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(crate) fn boot_us() -> u64 {
    let boot = rustix::time::clock_gettime(ClockId::Boottime);
    u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000
}

/// Reads the processor time that this process has used, in microseconds.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(crate) fn process_cpu_us() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000
}

/// Reads the wall clock, for display and for dated expiry: milliseconds since 1970, and 0 before.
pub(crate) fn wall_ms() -> u64 {
    u64::try_from(wall_since_1970().unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Refuses a wall clock that HTTP cannot express: before 1970, or after the year 9999.
pub(crate) fn check_wall_clock() -> Result<(), Failure> {
    check_wall(wall_since_1970())
}

fn check_wall(since_1970: Option<Duration>) -> Result<(), Failure> {
    if since_1970.is_some_and(|wall| wall.as_secs() < YEAR_10000_S) {
        return Ok(());
    }
    let message = "the system clock is before the year 1970 or after 9999: set it, then start";
    Err(Failure::new(exit::OS, message))
}

/// Reads the wall clock; returns `None` before 1970.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
fn wall_since_1970() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// The offset from time since boot to displayed wall time.
#[derive(Debug)]
struct Wall {
    offset_us: u64,
}

impl SystemClock {
    /// Reads the boot id and the initial offset.
    pub fn new() -> Result<Self, Failure> {
        let text = std::fs::read_to_string(BOOT_ID)
            .map_err(|error| Failure::new(exit::OS, format!("cannot read {BOOT_ID}: {error}")))?;
        let boot_id = parse_boot_id(&text).ok_or_else(|| {
            Failure::new(exit::OS, format!("{BOOT_ID} does not contain a boot id"))
        })?;
        let (boot_us, wall_us) = read_us();
        Ok(Self { boot_id, wall: Wall { offset_us: wall_us.saturating_sub(boot_us) } })
    }
}

impl Clock for SystemClock {
    fn read(&mut self) -> ClockReading {
        let (boot_us, wall_us) = read_us();
        ClockReading {
            boot_us,
            boot_id: self.boot_id,
            wall_us: self.wall.displayed_us(boot_us, wall_us),
        }
    }
}

impl Wall {
    fn displayed_us(&mut self, boot_us: u64, wall_us: u64) -> u64 {
        let offset_us = wall_us.saturating_sub(boot_us);
        if offset_us.abs_diff(self.offset_us) > STEP_MIN_US {
            self.offset_us = offset_us;
        }
        boot_us + self.offset_us
    }
}

fn read_us() -> (u64, u64) {
    let boot_us = boot_us();
    // Through the C library, unlike boot time: a test can step it there for this process only.
    let wall = wall_since_1970().unwrap_or_default();
    (boot_us, u64::try_from(wall.as_micros()).unwrap_or(u64::MAX))
}

fn parse_boot_id(text: &str) -> Option<u128> {
    let digits: String = text.trim().chars().filter(|&c| c != '-').collect();
    if digits.len() != 32 {
        return None;
    }
    u128::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displayed_time_keeps_its_distances_until_the_clock_is_stepped() {
        let mut wall = Wall { offset_us: 1_000_000_000 };
        for (boot_us, wall_us, displayed_us) in [
            (0, 1_000_000_000, 1_000_000_000),
            (7, 1_000_000_107, 1_000_000_007),
            (10, 1_000_500_010, 1_000_000_010),
            (20, 1_000_500_021, 1_000_500_021),
            (30, 999_000_000, 999_000_000),
        ] {
            assert_eq!(wall.displayed_us(boot_us, wall_us), displayed_us, "at {boot_us}");
        }
    }

    #[test]
    fn a_wall_clock_outside_the_years_of_http_is_refused() {
        let at = |seconds| check_wall(Some(Duration::from_secs(seconds))).is_ok();
        assert!(check_wall(None).is_err());
        assert_eq!([at(0), at(YEAR_10000_S - 1), at(YEAR_10000_S)], [true, true, false]);
        let year: jiff::Timestamp = "9999-12-30T00:00:00Z".parse().unwrap();
        assert_eq!(u64::try_from(year.as_second()).unwrap() + 2 * 86_400, YEAR_10000_S);
    }

    #[test]
    fn a_boot_id_is_128_bits_of_hex() {
        let id = "0c3f7b51-3a0e-4a6b-9d55-0f6c6b0a2f11\n";
        assert_eq!(parse_boot_id(id), Some(0x0c3f_7b51_3a0e_4a6b_9d55_0f6c_6b0a_2f11));
        for bad in ["", "0", "zc3f7b51-3a0e-4a6b-9d55-0f6c6b0a2f11"] {
            assert_eq!(parse_boot_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let mut clock = SystemClock::new().unwrap();
        let (first, second) = (clock.read(), clock.read());
        assert!(second.boot_us >= first.boot_us);
        assert_eq!(second.boot_id, first.boot_id);
        assert_ne!(first.boot_id, 0);
    }
}

//! The progress of long work, as one line on a terminal that is drawn again in place.
//!
//! Stderr gets it, so a result on stdout stays whole. Without a terminal nothing is drawn: a log
//! keeps every line. Knows nothing of the work.

use crate::output::{cut, terminal_width};
use crate::{clock, log};
use std::io;
use std::time::{Duration, Instant};

/// The shortest time between two drawings.
const REDRAW: Duration = Duration::from_millis(100);
/// The columns of the bar.
const BAR: usize = 20;
/// The width of a terminal that does not tell its size.
const WIDTH: usize = 80;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Keys.
    Keys,
    /// Bytes.
    Bytes,
    /// Milliseconds of a run with a known length.
    Time,
}

/// The progress of one piece of work. Dropping it removes its line.
#[derive(Debug)]
pub(super) struct Progress {
    count: Count,
    started: Instant,
    /// When the line was drawn last.
    drawn: Option<Instant>,
    /// Whether the line is on the terminal.
    is_visible: bool,
    /// The width of the terminal; `None` if nothing is drawn.
    width: Option<usize>,
}

/// How much of the work is done.
#[derive(Clone, Copy, Debug)]
struct Count {
    verb: &'static str,
    unit: Unit,
    done: u64,
    total: Option<u64>,
}

impl Progress {
    /// Begins work that is described by a verb, such as `importing`. Draws nothing yet.
    pub(super) fn new(is_quiet: bool, verb: &'static str, unit: Unit, total: Option<u64>) -> Self {
        let stderr = io::stderr();
        let is_terminal = !is_quiet && io::IsTerminal::is_terminal(&stderr);
        Self {
            count: Count { verb, unit, done: 0, total },
            started: clock::stopwatch(),
            drawn: None,
            is_visible: false,
            width: is_terminal.then(|| terminal_width(&stderr).unwrap_or(WIDTH)),
        }
    }

    /// Notes that so much more is done. Draws the line, unless all is done or it was just drawn.
    pub(super) fn add(&mut self, more: u64) {
        self.set(self.count.done + more);
    }

    /// Notes how much is done.
    pub(super) fn set(&mut self, done: u64) {
        self.count.done = done;
        let now = clock::stopwatch();
        let is_new = self.drawn.is_none_or(|drawn| now - drawn >= REDRAW);
        if let Some(width) = self.width.filter(|_| is_new && self.count.total != Some(done)) {
            // One column stays free: some terminals wrap a line that fills them.
            let line = cut(&self.count.line(now - self.started), width.saturating_sub(1));
            log::report_text(format!("\r{line}\x1b[K").into_bytes());
            (self.drawn, self.is_visible) = (Some(now), true);
        }
    }

    /// Removes the line, before anything else is printed.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_visible) {
            log::report_text(b"\r\x1b[K".to_vec());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Count {
    /// Returns the line after so much time.
    fn line(self, elapsed: Duration) -> String {
        let Self { verb, unit, done, total } = self;
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let per_second = u128::from(done) * 1_000 / u128::from(ms);
        let per_second = u64::try_from(per_second).unwrap_or(u64::MAX);
        let rate = match unit {
            Unit::Time => String::new(),
            Unit::Keys | Unit::Bytes => format!("  {}/s", amount(unit, per_second)),
        };
        let Some(total) = total.filter(|total| *total > 0) else {
            return format!("{verb}  {}{rate}", amount(unit, done));
        };
        let done = done.min(total);
        let share = |of: usize| {
            let part = u128::from(done) * of as u128 / u128::from(total);
            usize::try_from(part).unwrap_or(of)
        };
        let bar = format!("{}{}", "#".repeat(share(BAR)), ".".repeat(BAR - share(BAR)));
        let left = match (unit, per_second) {
            (Unit::Time, _) => format!("  {} left", amount(unit, total - done)),
            (_, 0) => String::new(),
            (_, rate) => format!("  {} left", seconds((total - done).div_ceil(rate))),
        };
        let percent = share(100);
        let counted = match unit {
            Unit::Keys => format!("  {done} of {total} keys"),
            Unit::Bytes => format!("  {} of {}", amount(unit, done), amount(unit, total)),
            Unit::Time => String::new(),
        };
        format!("{verb}  [{bar}] {percent:3} %{counted}{rate}{left}")
    }
}

/// Returns an amount with its unit.
fn amount(unit: Unit, number: u64) -> String {
    match unit {
        Unit::Keys => format!("{number} keys"),
        Unit::Bytes => bytesize::ByteSize(number).display().iec().to_string(),
        Unit::Time => seconds(number.div_ceil(1_000)),
    }
}

/// Returns a length of time: `59 s`, `1 m 05 s`, `2 h 00 m`.
pub(super) fn seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} m", seconds / 3_600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_states_what_is_done_how_fast_and_what_is_left() {
        let line = |unit, done, total, seconds| {
            Count { verb: "working", unit, done, total }.line(Duration::from_secs(seconds))
        };
        for (line, expected) in [
            (
                line(Unit::Keys, 20_000, Some(50_000), 4),
                "working  [########............]  40 %  20000 of 50000 keys  5000 keys/s  6 s left",
            ),
            (line(Unit::Bytes, 3 << 20, None, 2), "working  3.0 MiB  1.5 MiB/s"),
            (
                line(Unit::Time, 5_000, Some(90_000), 5),
                "working  [#...................]   5 %  1 m 25 s left",
            ),
            // Nothing yet, more than expected, and an empty work.
            (
                line(Unit::Keys, 0, Some(7), 0),
                "working  [....................]   0 %  0 of 7 keys  0 keys/s",
            ),
            (
                line(Unit::Keys, 9, Some(7), 1),
                "working  [####################] 100 %  7 of 7 keys  9 keys/s  0 s left",
            ),
            (line(Unit::Keys, 0, Some(0), 1), "working  0 keys  0 keys/s"),
            (
                line(Unit::Keys, u64::MAX, Some(u64::MAX), 1),
                "working  [####################] 100 %  18446744073709551615 of \
                 18446744073709551615 keys  18446744073709551615 keys/s  0 s left",
            ),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn a_length_of_time_is_short() {
        assert_eq!(
            [0, 59, 60, 3_599, 7_200].map(seconds),
            ["0 s", "59 s", "1 m 00 s", "59 m 59 s", "2 h 00 m"]
        );
    }
}

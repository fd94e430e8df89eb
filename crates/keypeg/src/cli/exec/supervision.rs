//! The time between the start of a command and the end of its last process.
//!
//! Forwards signals, and ends the command with all its processes: SIGTERM, and SIGKILL after the
//! grace. An end of the lease that is known beforehand begins so early that the grace fits into the
//! lease, or a quarter of a short lease.

use super::job::{Job, Remaining};
use super::signals::{Arrived, Signals};
use super::terminal::print_message;
use super::watchdog::Watchdog;
use keypeg_client::{LeaseEnd, LeaseGuard};
use rustix::process::{Pid, Signal};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The time between two looks at processes that have to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long processes may still exist after SIGKILL, for example while they wait for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// The exit code of a command that was ended by SIGKILL.
const KILLED: u8 = 128 + 9;

/// How a command has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The command has ended by itself or by a signal.
    Ended {
        /// Its exit code, as a shell reports it.
        code: u8,
    },
    /// The lease has ended, or was about to end, so the command was ended; why.
    LeaseEnded(LeaseEnd),
    /// `exec` was stopped, and its watchdog ended the command before the renewed lease was used.
    Stopped,
    /// Some processes do not end, not even by SIGKILL; in words.
    Stuck(String),
}

/// The command that is supervised.
#[derive(Debug)]
pub(super) struct Supervision {
    job: Job,
    watchdog: Watchdog,
    grace: Duration,
    is_quiet: bool,
    /// Why the lease has ended.
    lease_end: Option<LeaseEnd>,
    /// When all processes get SIGKILL.
    kill_at: Option<Instant>,
    /// The processes that have got SIGTERM. A second one can end a process that cleans up.
    asked: Vec<Pid>,
}

impl Supervision {
    pub(super) fn new(job: Job, watchdog: Watchdog, grace: Duration, is_quiet: bool) -> Self {
        Self { job, watchdog, grace, is_quiet, lease_end: None, kill_at: None, asked: Vec::new() }
    }

    /// Waits until no process of the command runs. `key_gone` is ready when the key is gone.
    pub(super) async fn run(
        mut self,
        signals: &mut Signals,
        guard: &LeaseGuard,
        key_gone: impl Future<Output = LeaseEnd>,
    ) -> Outcome {
        let lead = self.lead(guard);
        let lease_end = async {
            tokio::select! {
                cause = guard.ends_within(lead) => cause,
                cause = key_gone => cause,
            }
        };
        let mut lease_end = std::pin::pin!(lease_end);
        let mut known_end = guard.valid_until();
        let outcome = loop {
            self.job.reap();
            if self.job.on_stop() {
                // exec has stopped and runs again. The stop that it asked for is its own.
                signals.discard(Signal::TSTP);
            }
            if let Some(outcome) = self.check() {
                break outcome;
            }
            tokio::select! {
                cause = &mut lease_end, if self.lease_end.is_none() => {
                    self.lose(cause, guard.valid_until(), lead);
                }
                end = guard.next_end(known_end) => {
                    known_end = Some(end);
                    self.watchdog.extend(end - Instant::now());
                }
                arrived = signals.next() => self.on_signal(arrived, guard),
                () = sleep(LOOK_EVERY), if self.kill_at.is_some() => {}
            }
        };
        self.job.take_terminal_back();
        self.watchdog.finish();
        match outcome {
            Outcome::Ended { code } => {
                let lost = match guard.valid_until() {
                    None => Some(guard.ended().await),
                    Some(_) => None,
                };
                outcome_of(code, lost, known_end.is_some_and(|end| end <= Instant::now()))
            }
            Outcome::LeaseEnded(_) | Outcome::Stopped | Outcome::Stuck(_) => outcome,
        }
    }

    /// Returns how long before the end of the lease the command has to end.
    fn lead(&self, guard: &LeaseGuard) -> Duration {
        let length = guard.valid_until().map_or(Duration::ZERO, |end| end - Instant::now());
        self.grace.min(length / 4)
    }

    /// Ends what has to end now; returns the outcome when no process is left.
    fn check(&mut self) -> Option<Outcome> {
        let now = Instant::now();
        let exited = self.job.exit_code();
        if exited.is_none() && self.kill_at.is_none_or(|kill_at| now < kill_at) {
            return None;
        }
        let remaining = self.job.remaining(self.watchdog.pid);
        if let Some(code) = exited.filter(|_| remaining.is_none()) {
            let lease_end = self.lease_end.take();
            let outcome = lease_end.map(Outcome::LeaseEnded);
            return Some(outcome.unwrap_or(Outcome::Ended { code }));
        }
        match self.kill_at {
            None => {
                self.print_left(&remaining);
                self.end_by(now + self.grace);
            }
            Some(kill_at) if now >= kill_at + KILL_PATIENCE => {
                return Some(Outcome::Stuck(remaining.words()));
            }
            Some(kill_at) if now >= kill_at => {
                self.job.signal_all(Signal::KILL, self.watchdog.pid);
            }
            Some(_) => self.ask_others(&remaining),
        }
        None
    }

    /// Sends SIGTERM to the processes that have not got it: a process can start another one while it
    /// ends.
    fn ask_others(&mut self, remaining: &Remaining) {
        let others = remaining.without(&self.asked);
        if others.is_none() || self.grace.is_zero() {
            return;
        }
        self.print_left(&others);
        self.ask(&others);
    }

    fn ask(&mut self, others: &Remaining) {
        if !self.grace.is_zero() {
            others.signal(Signal::TERM);
            others.signal(Signal::CONT);
            self.asked.extend(others.pids());
        }
    }

    fn on_signal(&mut self, arrived: Arrived, guard: &LeaseGuard) {
        let Arrived::Signal(signal) = arrived else { return };
        if signal == Signal::CONT {
            // After a stop that was longer than the lease, the command is ended instead.
            if guard.valid_until().is_some() {
                self.job.resume();
            }
            return;
        }
        if signal == Signal::TERM {
            // Before the signal: a process that is started because of it has not got it.
            let remaining = self.job.remaining(self.watchdog.pid);
            self.asked.extend(remaining.in_group(self.job.group()));
            // A command that ignores SIGTERM leaves them no other time to clean up.
            self.ask(&remaining.without(&self.asked));
        }
        self.job.signal(signal);
        if signal == Signal::TERM {
            self.kill_by(Instant::now() + self.grace);
        }
    }

    fn lose(&mut self, cause: LeaseEnd, end: Option<Instant>, lead: Duration) {
        let now = Instant::now();
        let kill_at = match end {
            // The last quarter of the lead is for SIGKILL.
            Some(end) if end - now <= lead => end.checked_sub(lead / 4).unwrap_or(now),
            _ => now + self.grace,
        };
        print_message(&format!("the lease ends: {cause}; ending the command"));
        self.lease_end = Some(cause);
        self.end_by(kill_at);
    }

    /// Asks all processes to end, and ends them at `kill_at`.
    fn end_by(&mut self, kill_at: Instant) {
        self.kill_by(kill_at);
        if !self.grace.is_zero() {
            self.asked.extend(self.job.remaining(self.watchdog.pid).pids());
            self.job.signal_all(Signal::TERM, self.watchdog.pid);
            self.job.signal_all(Signal::CONT, self.watchdog.pid);
        }
    }

    fn kill_by(&mut self, kill_at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
    }

    fn print_left(&self, remaining: &Remaining) {
        if !self.is_quiet {
            let words = remaining.words();
            print_message(&format!("the command has ended; {words} are left and are ended"));
        }
    }
}

/// Returns what an end of the command means. `lost` is why the lease has ended, if it has; `is_late`
/// says that the end of the lease that the watchdog knows has passed.
fn outcome_of(code: u8, lost: Option<LeaseEnd>, is_late: bool) -> Outcome {
    match lost {
        // exec was stopped, and the watchdog has ended the command. Both ends are seen at once.
        Some(cause) => Outcome::LeaseEnded(cause),
        // It was stopped after a renewal, before the watchdog knew of that.
        None if code == KILLED && is_late => Outcome::Stopped,
        None => Outcome::Ended { code },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stop of `exec` between a renewal and the report of it to the watchdog is too short to be
    /// caused from outside.
    #[test]
    fn a_command_that_its_watchdog_has_killed_did_not_end_by_itself() {
        for (code, is_late, expected) in [
            (0, false, Outcome::Ended { code: 0 }),
            (0, true, Outcome::Ended { code: 0 }),
            (KILLED, false, Outcome::Ended { code: KILLED }),
            (KILLED, true, Outcome::Stopped),
        ] {
            assert_eq!(outcome_of(code, None, is_late), expected, "{code}, {is_late}");
            let lost = outcome_of(code, Some(LeaseEnd::MaxHold), is_late);
            assert_eq!(lost, Outcome::LeaseEnded(LeaseEnd::MaxHold), "{code}, {is_late}");
        }
    }
}

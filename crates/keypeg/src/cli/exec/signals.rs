//! The signals that `exec` receives for its command.
//!
//! A signal that the caller ignores, as after `nohup`, is left ignored: then `exec` does not get it
//! and the command inherits that. All other handlers end with the exec of the command.

use rustix::process::Signal;
use std::io;
use tokio::signal::unix::{self, SignalKind, signal};

/// The signals that end the wait for a key, and that are forwarded to the command.
const FORWARDED: [Signal; 6] =
    [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT, Signal::USR1, Signal::USR2];
/// The signals of job control, which have their default effect until the command runs.
const JOB_CONTROL: [Signal; 2] = [Signal::TSTP, Signal::CONT];

/// The received signals.
pub(super) struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
    children: unix::Signal,
    ignored: u64,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// A signal, from a terminal or another process.
    Signal(Signal),
    /// A child has stopped or ended.
    Child,
}

impl Signals {
    /// Installs handlers for the signals that end the wait for a key.
    pub(super) fn new() -> io::Result<Self> {
        // Before the first handler is installed, because that replaces "ignored".
        let ignored = ignored();
        let children = signal(SignalKind::child())?;
        let mut signals = Self { streams: Vec::new(), children, ignored };
        signals.install(&FORWARDED)?;
        Ok(signals)
    }

    /// Installs handlers for job control, from when there is a command to stop and continue.
    pub(super) fn control_job(&mut self) -> io::Result<()> {
        self.install(&JOB_CONTROL)
    }

    fn install(&mut self, wanted: &[Signal]) -> io::Result<()> {
        for &kind in wanted {
            if !is_in(self.ignored, kind) {
                self.streams.push((kind, signal(SignalKind::from_raw(kind.as_raw()))?));
            }
        }
        Ok(())
    }

    /// Waits for the next signal or child. Cancel safe.
    pub(super) async fn next(&mut self) -> Arrived {
        let Self { streams, children, .. } = self;
        std::future::poll_fn(|context| {
            for (kind, stream) in &mut *streams {
                if stream.poll_recv(context).is_ready() {
                    return Arrived::Signal(*kind).into();
                }
            }
            children.poll_recv(context).map(|_| Arrived::Child)
        })
        .await
    }

    /// Waits for the next signal that a terminal or another process sends.
    pub(super) async fn next_signal(&mut self) -> Signal {
        loop {
            if let Arrived::Signal(signal) = self.next().await {
                return signal;
            }
        }
    }

    /// Discards a signal of this kind that has arrived and was not returned.
    pub(super) fn discard(&mut self, kind: Signal) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for (_, stream) in self.streams.iter_mut().filter(|(found, _)| *found == kind) {
            let _ = stream.poll_recv(&mut context);
        }
    }
}

/// Returns the set of ignored signals, one bit each; empty where `/proc` does not show it.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(set: u64, signal: Signal) -> bool {
    (set >> (signal.as_raw() - 1)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_one_bit_for_each_signal() {
        assert!(is_in(1, Signal::HUP) && !is_in(1, Signal::INT));
        assert!(is_in(0x4000, Signal::TERM) && !is_in(0x4000, Signal::USR1));
    }
}

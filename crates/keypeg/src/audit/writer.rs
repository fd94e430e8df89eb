//! The writing thread of the audit log: takes lines from the queue, and writes them until it can.
//!
//! Twice a second and at SIGHUP it looks whether the path still leads to its file, so no request
//! pays for that. While the file cannot be written it says so in the state that requests read, and
//! retries.

use super::file::LogFile;
use super::line::Summary;
use super::queue::{Message, State};
use super::refusals::Moment;
use crate::clock;
use crate::failure::{Failure, exit};
use crate::reloads::Reloads;
use crate::vital;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

/// Bytes per write, about.
const WRITE_MAX: usize = 64 << 10;
/// Interval between two looks at the path.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before the next attempt after a failed write.
const RETRY: Duration = Duration::from_secs(1);

/// The handle of the writing thread.
#[derive(Debug)]
pub(crate) struct AuditWriter {
    lines: mpsc::Sender<Message>,
    stopping: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl AuditWriter {
    /// Starts the thread.
    pub(super) fn start(
        log: LogFile,
        (lines, messages): (mpsc::Sender<Message>, mpsc::Receiver<Message>),
        state: Arc<State>,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(exit::OS, format!("cannot start the audit log's thread: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let stopping = Arc::<Notify>::default();
        let looks = runtime.block_on(async { looks() });
        let writing = Writing {
            log,
            state,
            messages,
            reloads: Reloads::join(),
            looks,
            stopping: Arc::clone(&stopping),
            bytes: Vec::new(),
            lines: 0,
        };
        let thread = vital::spawn("keypeg-audit", move || runtime.block_on(writing.run()));
        Ok(Self { lines, stopping, thread: thread.map_err(failed)? })
    }

    /// Writes and syncs all queued lines, if possible, and ends the thread.
    pub(crate) fn end(self) {
        self.stopping.notify_one();
        let _ = self.lines.blocking_send(Message::Stop);
        self.thread.join().expect("invariant: a panic of the thread ends the process");
    }
}

fn now() -> Moment {
    Moment { at: clock::stopwatch(), wall_ms: clock::wall_ms() }
}

fn looks() -> Interval {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// The state of the thread.
struct Writing {
    log: LogFile,
    state: Arc<State>,
    messages: mpsc::Receiver<Message>,
    reloads: Reloads,
    looks: Interval,
    /// Notified once, when no attempt may wait any longer.
    stopping: Arc<Notify>,
    /// Lines that are taken from the queue and not written, and their number.
    bytes: Vec<u8>,
    lines: u64,
}

impl Writing {
    async fn run(mut self) {
        let (mut is_last, mut is_stopping) = (false, false);
        while !is_last || !self.bytes.is_empty() {
            let mut is_reload = false;
            if self.bytes.is_empty() {
                tokio::select! {
                    () = self.reloads.requested() => {
                        is_reload = true;
                        self.reopen();
                    }
                    _ = self.looks.tick() => {
                        self.follow_path();
                        let due = self.state.refusals().take_due(now());
                        self.summarise(due);
                    }
                    message = self.messages.recv() => {
                        is_last = self.take(message);
                        if is_last {
                            let all = self.state.refusals().take_all(now());
                            self.summarise(all);
                        }
                    }
                }
            } else {
                tokio::select! {
                    () = sleep(RETRY) => {}
                    // The write that follows opens the file again, and notes the result.
                    () = self.reloads.requested() => {
                        is_reload = true;
                        self.log.close();
                    }
                    () = self.stopping.notified() => is_stopping = true,
                }
            }
            if !self.bytes.is_empty() {
                self.write();
            }
            if is_reload {
                self.reloads.done();
            }
            if is_stopping && !self.bytes.is_empty() {
                tracing::error!(
                    lines = self.lines,
                    "the audit log could not be written before the stop: lines are lost"
                );
                self.bytes.clear();
                self.lines = 0;
            }
        }
        self.log.sync();
    }

    /// Takes a message and those that follow it, as much as one write should have. Returns whether
    /// the last one was among them.
    fn take(&mut self, first: Option<Message>) -> bool {
        let mut next = first;
        loop {
            match next {
                Some(Message::Line(line)) => {
                    line.write_to(&mut self.bytes);
                    self.lines += 1;
                }
                Some(Message::Stop) | None => return true,
            }
            if self.bytes.len() >= WRITE_MAX {
                return false;
            }
            let Ok(message) = self.messages.try_recv() else { return false };
            next = Some(message);
        }
    }

    fn summarise(&mut self, summaries: Vec<Summary>) {
        for mut summary in summaries {
            summary.write_to(&mut self.bytes);
            self.lines += 1;
        }
    }

    fn write(&mut self) {
        let written = self.log.write(&self.bytes);
        if self.note(written).is_some() {
            self.state.written.fetch_add(self.lines, Ordering::Relaxed);
            self.bytes.clear();
            self.lines = 0;
        }
    }

    fn reopen(&mut self) {
        let reopened = self.log.reopen();
        if self.note(reopened).is_some() {
            tracing::info!("reopened the audit log {}", self.log.path().display());
        }
    }

    fn follow_path(&mut self) {
        let followed = self.log.follow_path();
        if self.note(followed) == Some(true) {
            let path = self.log.path().display();
            tracing::info!("reopened the audit log {path}: the file was moved or removed");
        }
    }

    /// Notes whether the file can be written; returns the value of a success.
    fn note<T>(&self, result: io::Result<T>) -> Option<T> {
        let was_failing = self.state.is_failing.swap(result.is_err(), Ordering::Relaxed);
        if let (Err(error), false) = (&result, was_failing) {
            let path = self.log.path().display();
            tracing::error!(
                "cannot write the audit log {path}: {error}; changes are refused until a write \
                 succeeds"
            );
        }
        result.ok()
    }
}

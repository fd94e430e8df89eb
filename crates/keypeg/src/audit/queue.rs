//! The queue of the audit log, as requests use it: a place is reserved before a change is made.
//!
//! With a full queue or a file that cannot be written, no place is given, so that no change lacks
//! its line. Does not know the file.

use super::line::{Line, Outcome};
use super::refusals::{Moment, Refusals};
use crate::clock;
use crate::share::CallerId;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{self, OwnedPermit};

/// Lines that may wait to be written. More than the limit on requests, so that acquires in a wait
/// queue, which reserve a place each, leave enough for others.
pub(super) const QUEUE_MAX: usize = 16_384;

/// The audit log as requests use it.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: mpsc::Sender<Message>,
    state: Arc<State>,
}

/// What requests and the writing thread share.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) is_failing: AtomicBool,
    pub(super) written: AtomicU64,
    refused: AtomicU64,
    pub(super) refusals: Mutex<Refusals>,
}

impl State {
    pub(super) fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message to the writing thread.
#[derive(Debug)]
pub(super) enum Message {
    Line(Box<Line>),
    Stop,
}

/// How and when a request was refused at its admission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) at: Instant,
}

/// A line with its reserved place in the queue. Dropped before [`Entry::end`] it is written with
/// the outcome `unknown`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: Line,
    permit: Option<OwnedPermit<Message>>,
}

impl Entry {
    /// Gives the place back without a line: another server handles the request.
    pub(crate) fn discard(mut self) {
        self.permit = None;
    }

    /// Sets the outcome and queues the line.
    pub(crate) fn end(mut self, outcome: Outcome, status: u16, code: Option<&'static str>) {
        self.line.end(outcome, status, code);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut line = std::mem::take(&mut self.line);
        line.date();
        permit.send(Message::Line(Box::new(line)));
    }
}

impl Audit {
    pub(super) fn new(lines: mpsc::Sender<Message>, state: Arc<State>) -> Self {
        Self { lines, state }
    }

    /// Reserves a place for a line. Returns `None` with a full queue or a file that cannot be
    /// written: then the caller must refuse the change.
    pub(crate) fn begin(&self) -> Option<Entry> {
        let entry = self.reserve();
        if entry.is_none() {
            self.state.refused.fetch_add(1, Ordering::Relaxed);
        }
        entry
    }

    fn reserve(&self) -> Option<Entry> {
        let is_failing = self.state.is_failing.load(Ordering::Relaxed);
        let permit = self.lines.clone().try_reserve_owned().ok().filter(|_| !is_failing)?;
        Some(Entry { line: Line::default(), permit: Some(permit) })
    }

    /// Logs a request that was refused at its admission: on a line of its own, which `fill`
    /// completes, or counted for the next summary of its caller. It needs no place in the queue.
    pub(crate) fn refused(
        &self,
        caller: &CallerId,
        refusal: Refusal,
        fill: impl FnOnce(&mut Line),
    ) {
        let Refusal { status, code, at } = refusal;
        let now = Moment { at, wall_ms: clock::wall_ms() };
        if !self.state.refusals().note(caller, code, now) {
            return;
        }
        if let Some(mut entry) = self.reserve() {
            fill(&mut entry.line);
            entry.end(Outcome::Refused, status, Some(code));
        } else {
            // It is counted, as all further ones are.
            self.state.refusals().note(caller, code, now);
        }
    }

    /// Returns the counters.
    pub(crate) fn counters(&self) -> AuditCounters {
        let State { is_failing, written, refused, .. } = &*self.state;
        AuditCounters {
            written: written.load(Ordering::Relaxed),
            refused: refused.load(Ordering::Relaxed),
            is_failing: is_failing.load(Ordering::Relaxed),
        }
    }
}

/// The counters of an audit log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AuditCounters {
    /// The lines written.
    pub(crate) written: u64,
    /// The changes refused because the log could not take their entry.
    pub(crate) refused: u64,
    /// Whether the file cannot be written.
    pub(crate) is_failing: bool,
}

//! What the engine asks the carrier to look up in the database, and what it found.
//!
//! Asked and answered in order, by two threads that never wait for each other: a question wakes the
//! carrier, an answer rings the engine's wakeup.

use crate::core::{KeyId, PoolId};
use crate::lanes::{Wakeup, locked};
use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};
use std::thread::Thread;

/// Questions and answers.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    asked: Mutex<VecDeque<Lookup>>,
    found: Mutex<VecDeque<Found>>,
    wakeup: Wakeup,
    carrier: OnceLock<Thread>,
}

/// Which of these ids, of values that are to be brought into a pool, are of values that were in it.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) pool: PoolId,
    pub(crate) ids: Vec<KeyId>,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The place of the first that was in the pool, if any was.
    First(Option<usize>),
    /// The disk is full: the database cannot be asked.
    Full,
}

impl Lookups {
    /// Rung by each answer.
    pub(crate) fn wakeup(&self) -> Wakeup {
        self.wakeup.clone()
    }

    pub(crate) fn ask(&self, lookup: Lookup) {
        locked(&self.asked).push_back(lookup);
        if let Some(carrier) = self.carrier.get() {
            carrier.unpark();
        }
    }

    /// The next question.
    pub(crate) fn next(&self) -> Option<Lookup> {
        locked(&self.asked).pop_front()
    }

    pub(crate) fn answer(&self, found: Found) {
        locked(&self.found).push_back(found);
        self.wakeup.notify();
    }

    /// The next answer, in the order of the questions.
    pub(crate) fn found(&self) -> Option<Found> {
        locked(&self.found).pop_front()
    }

    /// Names the thread that answers.
    pub(crate) fn answered_here(&self) {
        self.carrier.get_or_init(std::thread::current);
    }
}

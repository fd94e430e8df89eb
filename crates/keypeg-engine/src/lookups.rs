//! Lookups of retired keys: the engine sends them to the checkpointer, which searches the database
//! and returns the results.
//!
//! Requests and results have the same order. The two threads never wait for each other: a lookup
//! unparks the checkpointer, a result notifies the engine's [`Wakeup`].

#[cfg(doc)]
use keypeg_core::KNOWN_MAX;
use keypeg_core::{KeyId, PoolId};
use keypeg_store::Wakeup;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

/// The queues of lookups and of their results.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    requests: Mutex<VecDeque<Lookup>>,
    results: Mutex<VecDeque<LookupResult>>,
    wakeup: Wakeup,
    checkpointer: OnceLock<Thread>,
}

/// A search for the ids of an import's values among the retired keys of its pool.
#[derive(Debug)]
pub(crate) struct Lookup {
    pub(crate) pool: PoolId,
    pub(crate) ids: Vec<KeyId>,
}

/// The result of a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LookupResult {
    /// The indices of the ids that were in the pool before: the first [`KNOWN_MAX`] of them.
    Retired(Box<[u32]>),
    /// The disk is full: the database cannot be opened.
    StorageFull,
}

impl Lookups {
    /// Returns the wakeup that each result notifies.
    pub(crate) fn wakeup(&self) -> Wakeup {
        self.wakeup.clone()
    }

    pub(crate) fn request(&self, lookup: Lookup) {
        locked(&self.requests).push_back(lookup);
        if let Some(checkpointer) = self.checkpointer.get() {
            checkpointer.unpark();
        }
    }

    /// Takes the next lookup.
    pub(crate) fn next_request(&self) -> Option<Lookup> {
        locked(&self.requests).pop_front()
    }

    pub(crate) fn answer(&self, result: LookupResult) {
        locked(&self.results).push_back(result);
        self.wakeup.notify();
    }

    /// Takes the next result; results have the order of the lookups.
    pub(crate) fn next_result(&self) -> Option<LookupResult> {
        locked(&self.results).pop_front()
    }

    /// Registers the current thread as the one that serves lookups.
    pub(crate) fn listen(&self) {
        self.checkpointer.get_or_init(std::thread::current);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A queue is consistent at every point where a push or a pop can panic: a poisoned lock is safe
    // to use.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

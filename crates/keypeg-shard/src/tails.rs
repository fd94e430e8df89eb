//! The last frames that this server has appended or applied: a snapshot names the frame that it
//! holds, by position and id.

use keypeg_log::Tail;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Frames that are remembered. The position of a snapshot is at most a few turns old when it is
/// looked up.
const REMEMBERED: usize = 4_096;

/// The last frames of a shard. A clone is the same list.
#[derive(Clone, Debug)]
pub struct Tails(Arc<Mutex<List>>);

#[derive(Debug)]
struct List {
    tails: VecDeque<Tail>,
    /// Frames that were added since the list began.
    pushed: u64,
    /// Their bytes.
    bytes: u64,
}

impl Tails {
    /// Begins the list with the frame that was applied last.
    pub(crate) fn beginning_at(tail: Tail) -> Self {
        let list = List { tails: VecDeque::from([tail]), pushed: 0, bytes: 0 };
        Self(Arc::new(Mutex::new(list)))
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the next frame, which has so many bytes.
    pub(crate) fn push(&self, tail: Tail, bytes: usize) {
        let mut list = self.lock();
        if list.tails.len() == REMEMBERED {
            list.tails.pop_front();
        }
        list.tails.push_back(tail);
        list.pushed += 1;
        list.bytes += bytes as u64;
    }

    /// Returns the frame that lies so many frames before the last one; `None` if it is forgotten.
    pub fn before_last(&self, frames: u64) -> Option<Tail> {
        let list = self.lock();
        let index = u64::try_from(list.tails.len()).ok()?.checked_sub(1 + frames)?;
        list.tails.get(usize::try_from(index).ok()?).copied()
    }

    /// Returns the frame that was added as the `count`th; `None` if it is forgotten. 0 is the frame
    /// with which the list began.
    pub(crate) fn added(&self, count: u64) -> Option<Tail> {
        let list = self.lock();
        let before = list.pushed.checked_sub(count)?;
        let index = u64::try_from(list.tails.len()).ok()?.checked_sub(1 + before)?;
        list.tails.get(usize::try_from(index).ok()?).copied()
    }

    /// Returns how many frames were added, and how many bytes they have.
    pub(crate) fn total(&self) -> (u64, u64) {
        let list = self.lock();
        (list.pushed, list.bytes)
    }

    /// Returns the last frame.
    pub fn last(&self) -> Tail {
        self.before_last(0).expect("invariant: the list is never empty")
    }
}

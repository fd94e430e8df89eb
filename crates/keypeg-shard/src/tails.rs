//! The last frames that this server has appended or applied: a snapshot names the frame that it
//! holds, by position and id.

use keypeg_log::Tail;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Frames that are remembered. The position of a snapshot is at most a few turns old when it is
/// looked up.
const REMEMBERED: usize = 4_096;

/// The last frames of a shard. A clone is the same list.
#[derive(Clone, Debug)]
pub struct Tails(Arc<Mutex<VecDeque<Tail>>>);

impl Tails {
    /// Begins the list with the frame that was applied last.
    pub(crate) fn beginning_at(tail: Tail) -> Self {
        Self(Arc::new(Mutex::new(VecDeque::from([tail]))))
    }

    /// Adds the next frame.
    pub(crate) fn push(&self, tail: Tail) {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tails.len() == REMEMBERED {
            tails.pop_front();
        }
        tails.push_back(tail);
    }

    /// Returns the frame that lies so many frames before the last one; `None` if it is forgotten.
    pub fn before_last(&self, frames: u64) -> Option<Tail> {
        let tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = u64::try_from(tails.len()).ok()?.checked_sub(1 + frames)?;
        tails.get(usize::try_from(index).ok()?).copied()
    }

    /// Returns the last frame.
    pub fn last(&self) -> Tail {
        self.before_last(0).expect("invariant: the list is never empty")
    }
}

//! Requests in the wait queues, as the engine handles them: outcomes, disconnects, cancellations.
//!
//! The queues themselves are in the pools. Each call gets exactly one reply, also when its client
//! has disconnected, since only a reply frees the call's slot.

use super::EngineState;
use super::work::CallId;
use crate::turn;
use keypeg_store::{Reply, RequestError};

impl EngineState {
    /// Refuses all waiting requests, and those that would wait, from the next turn on, and ends
    /// all subscriptions: the server stops.
    pub fn cancel_waits(&mut self) {
        self.cancels_waits = true;
        self.batch.feed.close();
    }

    /// Returns why no request can wait any more. The next owner of a shard has wait queues of its
    /// own.
    pub(super) fn why_no_waits(&self) -> RequestError {
        if self.appends_to_a_log() { RequestError::NotOwner } else { RequestError::ShuttingDown }
    }

    /// Refuses, in an engine that must not be used any more, what is still in the wait queues, and
    /// ends all subscriptions and the backup. O(waiters).
    pub(crate) fn abandon_waits(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        self.cancel_waits();
        self.cancel_all_waits(&RequestError::NotOwner, replies);
    }

    /// Refuses all waiting requests. O(waiters). Used for a stop, and for a full disk, on which no
    /// grant could be logged.
    pub(super) fn cancel_all_waits(
        &mut self,
        why: &RequestError,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        let refused = |waiter_id| (CallId::of(waiter_id), Reply::Refused(why.clone()));
        self.pools.cancel_all_waits(|waiter_id| replies.push(refused(waiter_id)));
    }

    /// Adds the replies of the requests that have left their wait queue.
    pub(super) fn drain_wait_outcomes(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        for wait in self.pools.drain_wait_outcomes() {
            replies.push((CallId::of(wait.waiter_id), turn::wait_reply(wait.outcome)));
        }
    }

    /// Removes an abandoned call from its wait queue. It gets a reply too: that frees its slot. A
    /// call that is carried over or queued is skipped when its turn comes.
    pub(super) fn abandon(&mut self, call_id: CallId, replies: &mut Vec<(CallId, Reply)>) {
        if self.pools.cancel_wait(call_id.waiter_id()) {
            replies.push((call_id, Reply::Done));
        } else if !self.carried_over.is_empty() || self.long_calls.len() > 0 {
            self.abandoned.insert(call_id);
        }
    }

    /// Answers a carried-over or queued request that was abandoned; returns whether it did.
    pub(super) fn skip_abandoned(
        &mut self,
        call_id: CallId,
        is_carried_over: bool,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> bool {
        // Nearly always there is none: then the id is not hashed.
        if self.abandoned.is_empty() {
            return false;
        }
        // A new request with this id belongs to another client.
        let is_abandoned = self.abandoned.remove(&call_id) && is_carried_over;
        if is_abandoned {
            replies.push((call_id, Reply::Done));
        }
        is_abandoned
    }
}

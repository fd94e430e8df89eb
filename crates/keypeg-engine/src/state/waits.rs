//! Who waits in line, as the works see it: what they got, who has gone, who is sent away.

use super::EngineState;
use crate::core::WaiterId;
use crate::request::{Call, Reply, Request, RequestError};
use crate::turn;

/// Where a reply goes: whatever tells the asker apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    /// Which lane.
    pub lane: u32,
    /// Which call of that lane.
    pub slot: u32,
}

impl CallId {
    pub(super) fn waiter_id(self) -> WaiterId {
        WaiterId(u64::from(self.lane) << 32 | u64::from(self.slot))
    }

    pub(super) fn of(WaiterId(bits): WaiterId) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits");
        Self { lane: half(bits >> 32), slot: half(bits) }
    }
}

impl EngineState {
    /// Sends everybody away who waits, or would, from the next turn on, and ends all that follow:
    /// the server stops.
    pub fn cancel_waits(&mut self) {
        self.turns_away = true;
        self.batch.feed.close();
    }

    /// Refuses everybody who waits. O(waiters): for a stop, and for a full disk, on which no grant
    /// could be remembered.
    pub(super) fn cancel_all_waits(
        &mut self,
        why: &RequestError,
        replies: &mut Vec<(CallId, Reply)>,
    ) {
        let sent_away = |call_id| (CallId::of(call_id), Reply::Refused(why.clone()));
        self.pools.cancel_all_waits(|call_id| replies.push(sent_away(call_id)));
    }

    /// Gives those who waited what they got.
    pub(super) fn hand_out(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        for handed in self.pools.drain_wait_outcomes() {
            replies.push((CallId::of(handed.waiter_id), turn::handed(handed.outcome)));
        }
    }

    /// Plays a leave, or skips a request that goes over and whose asker has left. Whoever left is
    /// answered all the same: that frees the call_id.
    pub(super) fn has_left(
        &mut self,
        call_id: CallId,
        request: &Request,
        goes_over: bool,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> bool {
        let leaves = matches!(request.call, Call::CancelWait);
        let gone = if leaves {
            self.pools.cancel_wait(call_id.waiter_id())
        } else {
            // A call_id that comes again is somebody else's.
            self.left.remove(&call_id) && goes_over
        };
        if gone {
            replies.push((call_id, Reply::Done));
        } else if leaves && !self.late.is_empty() {
            self.left.insert(call_id);
        }
        leaves || gone
    }
}

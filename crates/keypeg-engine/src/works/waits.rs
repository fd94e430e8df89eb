//! Who waits in line, as the works see it: what they got, who has gone, who is sent away.

use super::Works;
use crate::request::{Call, Refusal, Reply, Request};
use crate::turn;

/// Where a reply goes: whatever tells the asker apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Which lane.
    pub lane: u32,
    /// Which call of that lane.
    pub slot: u32,
}

impl Ticket {
    pub(super) fn bits(self) -> u64 {
        u64::from(self.lane) << 32 | u64::from(self.slot)
    }

    pub(super) fn of(bits: u64) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits");
        Self { lane: half(bits >> 32), slot: half(bits) }
    }
}

impl Works {
    /// Sends everybody away who waits, or would, from the next turn on, and ends all that follow:
    /// the server stops.
    pub fn turn_waiters_away(&mut self) {
        self.turns_away = true;
        self.batch.feed.close();
    }

    /// Refuses everybody who waits. O(waiters): for a stop, and for a full disk, on which no grant
    /// could be remembered.
    pub(super) fn turn_away(&mut self, why: &Refusal, replies: &mut Vec<(Ticket, Reply)>) {
        let sent_away = |ticket| (Ticket::of(ticket), Reply::Refused(why.clone()));
        self.pools.turn_away(|ticket| replies.push(sent_away(ticket)));
    }

    /// Gives those who waited what they got.
    pub(super) fn hand_out(&mut self, replies: &mut Vec<(Ticket, Reply)>) {
        for handed in self.pools.take_handed() {
            replies.push((Ticket::of(handed.ticket), turn::handed(handed.outcome)));
        }
    }

    /// Plays a leave, or skips a request that goes over and whose asker has left. Whoever left is
    /// answered all the same: that frees the ticket.
    pub(super) fn has_left(
        &mut self,
        ticket: Ticket,
        request: &Request,
        goes_over: bool,
        replies: &mut Vec<(Ticket, Reply)>,
    ) -> bool {
        let leaves = matches!(request.call, Call::Leave);
        let gone = if leaves {
            self.pools.leave(ticket.bits())
        } else {
            // A ticket that comes again is somebody else's.
            self.left.remove(&ticket) && goes_over
        };
        if gone {
            replies.push((ticket, Reply::Done));
        } else if leaves && !self.late.is_empty() {
            self.left.insert(ticket);
        }
        leaves || gone
    }
}

//! Which calls are refused first when the disk fills, and which last.

use super::{LAG_MAX, Works};
use crate::journal::{Journal, Room};
use crate::request::{Call, Refusal};

impl Works {
    /// What there is room for: all of it in memory alone.
    pub(super) fn room(&self) -> Room {
        self.journal.as_ref().map_or(Room::Plenty, Journal::room)
    }

    /// Whether so much is to be carried that new keys must wait: the journal cannot shrink before.
    pub(super) fn carrier_lags(&self) -> bool {
        let carried = self.progress.carried();
        let to_carry = self.journal.as_ref().map_or(0, |journal| journal.bytes_to_carry(carried));
        to_carry > self.sizes.journal.saturating_mul(LAG_MAX)
    }
}

/// Why a call cannot be played with this much room, or while the carrier lags, which only what
/// makes keys waits for.
pub(super) fn refusal(call: &Call, room: Room, lags: bool) -> Option<Refusal> {
    let call = call.itself();
    let makes_keys = matches!(call, Call::Generate { .. } | Call::Import { .. });
    if room < room_for(call) {
        Some(Refusal::StorageFull)
    } else {
        (makes_keys && lags).then_some(Refusal::Overloaded)
    }
}

/// The room that a call needs: what makes keys is refused first when the disk is full, then
/// grants; what gives back goes on as long as it can. What reads needs none.
fn room_for(call: &Call) -> Room {
    match call {
        Call::Generate { .. } | Call::Import { .. } | Call::PutPool { .. } => Room::Plenty,
        Call::Acquire { .. } | Call::Renew { .. } => Room::Grants,
        Call::Release { .. }
        | Call::TakeBack { .. }
        | Call::ReleaseKey { .. }
        | Call::DeleteKey { .. }
        | Call::DropPool { .. } => Room::GivingBack,
        Call::ListPools
        | Call::Leave
        | Call::Once { .. }
        | Call::Follow { .. }
        | Call::ListKeys { .. }
        | Call::ShowPool { .. }
        | Call::ShowKey { .. }
        | Call::Reveal { .. }
        | Call::KeepAlive { .. }
        | Call::KeepAliveMany { .. }
        | Call::KeepAliveAll { .. } => Room::Nothing,
    }
}

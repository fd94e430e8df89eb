//! Which calls are refused first when the disk fills, and which last.

use super::{EngineState, LAG_MAX};
use crate::journal::{DiskSpace, Journal};
use crate::request::{Call, RequestError};

impl EngineState {
    /// What there is room for: all of it in memory alone.
    pub(super) fn room(&self) -> DiskSpace {
        self.journal.as_ref().map_or(DiskSpace::Normal, Journal::disk_space)
    }

    /// Whether so much is to be carried that new keys must wait: the journal cannot shrink before.
    pub(super) fn carrier_lags(&self) -> bool {
        let carried = self.progress.checkpointed();
        let to_carry =
            self.journal.as_ref().map_or(0, |journal| journal.bytes_to_checkpoint(carried));
        to_carry > self.sizes.journal.saturating_mul(LAG_MAX)
    }
}

/// Why a call cannot be played with this much room, or while the carrier lags, which only what
/// makes keys waits for.
pub(super) fn refusal(call: &Call, room: DiskSpace, lags: bool) -> Option<RequestError> {
    let call = call.itself();
    let makes_keys = matches!(call, Call::Generate { .. } | Call::Import { .. });
    if room < room_for(call) {
        Some(RequestError::StorageFull)
    } else {
        (makes_keys && lags).then_some(RequestError::Overloaded)
    }
}

/// The room that a call needs: what makes keys is refused first when the disk is full, then
/// grants; what gives back goes on as long as it can. What reads needs none.
fn room_for(call: &Call) -> DiskSpace {
    match call {
        Call::Generate { .. } | Call::Import { .. } | Call::PutPool { .. } => DiskSpace::Normal,
        Call::Acquire { .. } | Call::Renew { .. } => DiskSpace::NoNewKeys,
        Call::Release { .. }
        | Call::RevokeUndelivered { .. }
        | Call::ForceRelease { .. }
        | Call::DeleteKey { .. }
        | Call::DeletePool { .. } => DiskSpace::ReleasesOnly,
        Call::ListPools
        | Call::CancelWait
        | Call::Idempotent { .. }
        | Call::Subscribe { .. }
        | Call::ListKeys { .. }
        | Call::GetPool { .. }
        | Call::GetKey { .. }
        | Call::Reveal { .. }
        | Call::KeepAlive { .. }
        | Call::KeepAliveMany { .. }
        | Call::KeepAliveAll { .. } => DiskSpace::Full,
    }
}

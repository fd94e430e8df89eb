//! The order in which calls are refused while the disk fills up or the checkpointer lags.
//!
//! Calls that create keys are refused first, then grants. Releases and deletions are accepted for
//! as long as the journal has room for them; reads need no room.

use super::{CHECKPOINT_LAG_MAX, EngineState};
use crate::journal::{DiskSpace, Journal};
use keypeg_store::{Call, RequestError};

impl EngineState {
    /// Returns the level of disk space; an engine in memory always has normal space.
    pub(super) fn disk_space(&self) -> DiskSpace {
        self.journal.as_ref().map_or(DiskSpace::Normal, Journal::disk_space)
    }

    /// Returns whether the checkpointer is so far behind that new keys must wait: the journal
    /// cannot shrink before it has caught up.
    pub(super) fn checkpointer_lags(&self) -> bool {
        let checkpointed = self.progress.checkpointed();
        let lag =
            self.journal.as_ref().map_or(0, |journal| journal.bytes_to_checkpoint(checkpointed));
        lag > self.sizes.journal.saturating_mul(CHECKPOINT_LAG_MAX)
    }
}

/// Returns why a call is refused at this level of disk space, or while the checkpointer lags; a
/// lag refuses only calls that create keys.
pub(super) fn refusal(
    call: &Call,
    available: DiskSpace,
    checkpointer_lags: bool,
) -> Option<RequestError> {
    let creates_keys = matches!(call, Call::Generate { .. } | Call::Import { .. });
    if available < required_for(call) {
        Some(RequestError::StorageFull)
    } else {
        (creates_keys && checkpointer_lags).then_some(RequestError::Overloaded)
    }
}

/// Returns the lowest level of disk space at which a call is executed.
fn required_for(call: &Call) -> DiskSpace {
    match call {
        Call::Generate { .. }
        | Call::Import { .. }
        | Call::SetLabel { .. }
        | Call::PutPool { .. }
        | Call::PutPoolIf { .. } => DiskSpace::Normal,
        Call::Acquire { .. }
        | Call::Renew { .. }
        | Call::QuarantineKey { .. }
        | Call::EndQuarantine { .. } => DiskSpace::NoNewKeys,
        Call::Release { .. }
        | Call::RevokeUndelivered { .. }
        | Call::ForceRelease { .. }
        | Call::DeleteKey { .. }
        | Call::DeletePool { .. } => DiskSpace::ReleasesOnly,
        Call::ListPools { .. }
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

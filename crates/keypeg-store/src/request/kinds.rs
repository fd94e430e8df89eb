//! The kinds of calls: which can take long, which only keep keys alive, and which a full lane refuses
//! first.
//!
//! Every call has its place here, so a new one does not compile without. Knows nothing of their cost.

use super::Call;

impl Call {
    /// Returns whether the reply can take long and changes nothing while it is awaited, so that the
    /// engine must learn of a client that disconnects before it.
    pub fn may_wait(&self) -> bool {
        match self {
            Self::Acquire { wait_ms, .. } => *wait_ms > 0,
            Self::ListPools { .. } | Self::ListKeys { .. } => self.is_long(),
            Self::PutPool { .. }
            | Self::PutPoolIf { .. }
            | Self::GetPool { .. }
            | Self::DeletePool { .. }
            | Self::Generate { .. }
            | Self::Import { .. }
            | Self::RevokeUndelivered { .. }
            | Self::Subscribe { .. }
            | Self::Release { .. }
            | Self::Renew { .. }
            | Self::Reveal { .. }
            | Self::ForceRelease { .. }
            | Self::QuarantineKey { .. }
            | Self::EndQuarantine { .. }
            | Self::DeleteKey { .. }
            | Self::KeepAlive { .. }
            | Self::KeepAliveMany { .. }
            | Self::KeepAliveAll { .. }
            | Self::GetKey { .. }
            | Self::SetLabel { .. } => false,
        }
    }

    /// Returns whether the call only moves the keep-alive deadlines of keys.
    pub fn keeps_alive(&self) -> bool {
        matches!(
            self,
            Self::KeepAlive { .. } | Self::KeepAliveMany { .. } | Self::KeepAliveAll { .. }
        )
    }

    /// Returns whether a full lane refuses this call first. Calls that release or keep alive have
    /// the reserve [`LANE_RESERVE`](crate::LANE_RESERVE) instead.
    pub fn is_new_work(&self) -> bool {
        match self {
            Self::ListPools { .. }
            | Self::PutPool { .. }
            | Self::PutPoolIf { .. }
            | Self::GetPool { .. }
            | Self::DeletePool { .. }
            | Self::Generate { .. }
            | Self::Import { .. }
            | Self::Acquire { .. }
            | Self::Subscribe { .. }
            | Self::ListKeys { .. }
            | Self::GetKey { .. }
            | Self::SetLabel { .. }
            | Self::Reveal { .. } => true,
            Self::RevokeUndelivered { .. }
            | Self::Release { .. }
            | Self::Renew { .. }
            | Self::ForceRelease { .. }
            | Self::QuarantineKey { .. }
            | Self::EndQuarantine { .. }
            | Self::DeleteKey { .. }
            | Self::KeepAlive { .. }
            | Self::KeepAliveMany { .. }
            | Self::KeepAliveAll { .. } => false,
        }
    }
}

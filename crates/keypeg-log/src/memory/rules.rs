//! What the in-memory log checks, which faults it has, and which defects a test can give it.

use crate::log::Guarantee;

/// What one client of the store observes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) guarantee: Guarantee,
    pub(super) defect: Option<Defect>,
}

impl Rules {
    pub(super) fn has(self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    pub(super) fn is_chained(self) -> bool {
        self.guarantee == Guarantee::Chained
    }
}

/// Faults of the network and of the store. Without them each call ends at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Of a thousand requests, how many never arrive.
    pub lost_requests: u32,
    /// Of a thousand calls, how many are applied without an answer.
    pub lost_answers: u32,
    /// Of a thousand requests, how many arrive a second time, up to `late_max_us` later.
    pub late_duplicates: u32,
    /// The longest time until a request arrives, and until its answer does.
    pub delay_max_us: u64,
    /// How late the second arrival of a request can be.
    pub late_max_us: u64,
    /// The longest time until a change is replicated. Changes are replicated in order.
    pub replication_max_us: u64,
    /// After this time a call ends without an answer.
    pub timeout_us: u64,
}

/// One respect in which a log does not keep the contract. The conformance suite detects each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// An append replaces the frame at its position.
    IgnoreCondition,
    /// An append compares the position of the predecessor, and not its id.
    IgnorePredecessor,
    /// A repeated append of the same frame is taken.
    ForgetOwnFrames,
    /// An append that another frame has overtaken is appended.
    AppendNothing,
    /// A read continues after a hole.
    SkipHoles,
    /// A read above the last frame returns nothing, also where frames were trimmed.
    HideTrimmedEnd,
    /// A read returns all frames, whatever their bytes.
    ReadWithoutBound,
    /// The tail of an empty log remains the one of an older frame after a trim.
    ForgetTrimmedTail,
    /// A second snapshot of a position replaces the first.
    ReplaceSnapshots,
    /// A snapshot is listed with its first part.
    ListIncompleteSnapshots,
    /// The parts of two attempts at a position are stored in one place.
    MixAttempts,
    /// A trim needs no snapshot.
    TrimWithoutSnapshot,
    /// A trim removes the snapshot at its position too.
    TrimNewestSnapshot,
    /// A trim removes no frames.
    TrimNothing,
    /// A trim removes takeover frames.
    TrimTakeoverFrames,
    /// A takeover frame at a position that was trimmed is appended.
    AppendIntoTrimmed,
    /// The second installation replaces the first.
    ReplaceInstallation,
    /// A heartbeat keeps its first count.
    FreezeHeartbeats,
    /// A server that stopped stays listed.
    ForgetNothing,
    /// All shards have one log.
    MixShards,
}

impl Defect {
    /// All defects.
    pub const ALL: [Self; 20] = [
        Self::IgnoreCondition,
        Self::IgnorePredecessor,
        Self::ForgetOwnFrames,
        Self::AppendNothing,
        Self::SkipHoles,
        Self::HideTrimmedEnd,
        Self::ReadWithoutBound,
        Self::ForgetTrimmedTail,
        Self::ReplaceSnapshots,
        Self::ListIncompleteSnapshots,
        Self::MixAttempts,
        Self::TrimWithoutSnapshot,
        Self::TrimNewestSnapshot,
        Self::TrimNothing,
        Self::TrimTakeoverFrames,
        Self::AppendIntoTrimmed,
        Self::ReplaceInstallation,
        Self::FreezeHeartbeats,
        Self::ForgetNothing,
        Self::MixShards,
    ];

    /// Returns whether the defect changes a log with this guarantee.
    pub fn applies_to(self, guarantee: Guarantee) -> bool {
        match self {
            Self::IgnorePredecessor => guarantee == Guarantee::Chained,
            Self::TrimTakeoverFrames | Self::AppendIntoTrimmed => guarantee == Guarantee::Created,
            Self::IgnoreCondition
            | Self::ForgetOwnFrames
            | Self::AppendNothing
            | Self::SkipHoles
            | Self::HideTrimmedEnd
            | Self::ReadWithoutBound
            | Self::ForgetTrimmedTail
            | Self::ReplaceSnapshots
            | Self::ListIncompleteSnapshots
            | Self::MixAttempts
            | Self::TrimWithoutSnapshot
            | Self::TrimNewestSnapshot
            | Self::TrimNothing
            | Self::ReplaceInstallation
            | Self::FreezeHeartbeats
            | Self::ForgetNothing
            | Self::MixShards => true,
        }
    }
}

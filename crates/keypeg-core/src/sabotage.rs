//! Defects that a test can enable, to prove that the simulation detects each of them, and limits
//! that it can lower, to reach their edges.
//!
//! Without the feature `sabotage` every function here returns a constant, so that the compiler
//! removes all of it from a server. Settings apply to one thread, because a simulation has one, or to
//! all threads of a server that is built for tests.

/// A deliberate defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Replies are sent once a batch is written; it is synced with the next one.
    AnswerBeforeSync,
    /// A commit whose sync fails is treated as durable.
    IgnoreFailedSync,
    /// A start treats records after the last proven sync as durable.
    TrustUnprovenTail,
    /// The directory entries of new segments are not synced.
    ForgetDirectorySync,
    /// A response that depends on a passed deadline does not force a batch.
    ForgetTheClock,
    /// A batch is written in two frames, each with its own sync.
    HalfBatch,
    /// Segments are deleted before their changes to the key set are checkpointed.
    DropBeforeCarry,
    /// The checkpointer reads past the last synced batch.
    CarryPastSynced,
    /// Segments are deleted before their live records have been logged again.
    SkipRetelling,
    /// A snapshot record of a lease contains an earlier end.
    RetellOldEnd,
    /// A snapshot record of a lease omits its borrower.
    ForgetBorrower,
    /// A start grants tokens that were reserved before but are not in the journal.
    RepeatTokens,
    /// A release does not compare the lease: it ends any lease that runs on the key.
    ReleaseWhoeverHolds,
    /// A renewed lease expires at its end before the renewal.
    OldTimerEndsLease,
    /// Lease time is wall time.
    CountWallTime,
    /// A reboot shortens every lease by five seconds.
    ShortenAfterReboot,
    /// Serving time advances while the server cannot serve.
    PurgeByLeaseClock,
    /// Serving time advances while the server refuses keep-alives.
    PurgeWhileRefusing,
    /// A purge is not recorded.
    ForgetPurge,
    /// An imported value is not retired when its key is deleted or purged.
    ForgetRetired,
    /// A generated value is accepted by an import after its key was deleted or purged.
    ForgetGenerated,
    /// A change of a label is not recorded.
    ForgetLabel,
    /// A quarantine that begins when a lease ends is not recorded.
    ForgetDrain,
    /// A draining pool grants its available keys.
    GrantWhileDraining,
    /// That a pool drains is not recorded.
    ForgetPoolDrain,
    /// A keep-alive gives a deadline to a key without one.
    GiveDeadline,
    /// "No key" is returned although something in the pool is due.
    FalseNone,
    /// A released key is available to new requests although others wait.
    NewcomerFirst,
    /// A key is due only after its deadline: a keep-alive at the deadline still succeeds.
    RaiseAtDeadline,
    /// A grant that no client received is not revoked.
    KeepUndelivered,
    /// A restore holds no key.
    HoldNothingAtRestore,
    /// A restored server grants tokens from those on that were reserved at the backup.
    KeepTokensAtRestore,
    /// The engine deletes segments that a backup reads.
    DropUnderBackup,
    /// A turn of a shard answers without a frame of its own, if it changed nothing.
    AnswerWithoutFrame,
    /// A shard is served before its takeover frame stands.
    SkipTakeoverFrame,
    /// The clock of another machine counts as the own one at a takeover.
    CountForeignClock,
    /// An append whose outcome is not known is treated as durable.
    TrustUnknownAppend,
    /// An append whose outcome is not known is followed by another frame in its place.
    OtherFrameAfterUnknown,
    /// A follower applies frames that do not follow what it has applied.
    FollowWithoutChain,
}

impl Sabotage {
    /// The defects of servers that share a log.
    pub const OF_SHARDS: [Self; 6] = [
        Self::AnswerWithoutFrame,
        Self::SkipTakeoverFrame,
        Self::CountForeignClock,
        Self::TrustUnknownAppend,
        Self::OtherFrameAfterUnknown,
        Self::FollowWithoutChain,
    ];
    /// All defects of one server.
    pub const ALL: [Self; 33] = [
        Self::AnswerBeforeSync,
        Self::IgnoreFailedSync,
        Self::TrustUnprovenTail,
        Self::ForgetDirectorySync,
        Self::ForgetTheClock,
        Self::HalfBatch,
        Self::DropBeforeCarry,
        Self::CarryPastSynced,
        Self::SkipRetelling,
        Self::RetellOldEnd,
        Self::ForgetBorrower,
        Self::RepeatTokens,
        Self::ReleaseWhoeverHolds,
        Self::OldTimerEndsLease,
        Self::CountWallTime,
        Self::ShortenAfterReboot,
        Self::PurgeByLeaseClock,
        Self::PurgeWhileRefusing,
        Self::ForgetPurge,
        Self::ForgetRetired,
        Self::ForgetGenerated,
        Self::ForgetLabel,
        Self::ForgetDrain,
        Self::GrantWhileDraining,
        Self::ForgetPoolDrain,
        Self::GiveDeadline,
        Self::FalseNone,
        Self::NewcomerFirst,
        Self::RaiseAtDeadline,
        Self::KeepUndelivered,
        Self::HoldNothingAtRestore,
        Self::KeepTokensAtRestore,
        Self::DropUnderBackup,
    ];
}

/// A limit that a simulation can lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestLimit {
    /// Waiting requests in all pools together.
    Waiters,
    /// Expiries in one turn.
    Expire,
    /// Tokens reserved at a time.
    TokenReservation,
    /// Bytes of the last segment that are reserved.
    LastRoom,
    /// Facts in one checkpoint.
    Facts,
    /// Snapshot records written in one turn.
    SnapshotRecords,
    /// Slots that one page of keys examines.
    PageSlots,
    /// Units of work up to which a call is short.
    ShortUnits,
    /// Units of work for the long calls of one turn.
    LongUnits,
    /// Long calls that are queued.
    LongCalls,
}

#[cfg(not(feature = "sabotage"))]
mod set {
    use super::{Sabotage, TestLimit};

    /// Returns whether a defect is enabled: never.
    #[inline]
    pub const fn enabled(_: Sabotage) -> bool {
        false
    }

    /// Returns a limit: the default.
    #[inline]
    pub const fn limit(_: TestLimit, default: u64) -> u64 {
        default
    }
}

#[cfg(feature = "sabotage")]
mod set {
    use super::{Sabotage, TestLimit};
    use std::cell::{Cell, RefCell};
    use std::sync::OnceLock;

    static OF_PROCESS: OnceLock<Vec<Sabotage>> = OnceLock::new();

    thread_local! {
        static ENABLED: Cell<Option<Sabotage>> = const { Cell::new(None) };
        static LIMITS: RefCell<Vec<(TestLimit, u64)>> = const { RefCell::new(Vec::new()) };
    }

    /// Returns whether a defect is enabled on this thread, or in this process.
    pub fn enabled(sabotage: Sabotage) -> bool {
        ENABLED.get() == Some(sabotage)
            || OF_PROCESS.get().is_some_and(|defects| defects.contains(&sabotage))
    }

    /// Returns a limit on this thread.
    pub fn limit(limit: TestLimit, default: u64) -> u64 {
        let find = |limits: &Vec<(TestLimit, u64)>| {
            limits.iter().find(|(which, _)| *which == limit).copied()
        };
        LIMITS.with_borrow(find).map_or(default, |(_, lowered)| lowered)
    }

    /// Enables one defect, or disables all, and lowers limits, on this thread.
    pub fn configure(sabotage: Option<Sabotage>, limits: Vec<(TestLimit, u64)>) {
        ENABLED.set(sabotage);
        LIMITS.replace(limits);
    }

    /// Enables defects on all threads of this process, from now on. A second call has no effect.
    pub fn configure_process(defects: Vec<Sabotage>) {
        let _ = OF_PROCESS.set(defects);
    }
}

pub use set::*;

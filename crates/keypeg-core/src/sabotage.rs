//! Defects that a test can switch on, to prove that the simulation sees each of them, and bounds
//! that it can make small, to get to their edges.
//!
//! Without the feature `sabotage` every question here is answered by a constant, so that nothing
//! of it is left in a server. What is switched is switched for one thread: a simulation is one.

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Replies go out when a batch is written; it is synced with the next one.
    AnswerBeforeSync,
    /// A commit whose sync fails is taken for durable.
    IgnoreFailedSync,
    /// A start takes what it read behind the last proven sync for durable.
    TrustUnprovenTail,
    /// Names of new segments are not synced.
    ForgetDirectorySync,
    /// An answer that rests on a deadline that has passed does not force a batch.
    ForgetTheClock,
    /// A batch is written in two frames, each synced by itself.
    HalfBatch,
    /// Segments go before what they changed of the key set is carried.
    DropBeforeCarry,
    /// The carrier reads on past what is synced.
    CarryPastSynced,
    /// Segments go before what lives of them has been told anew.
    SkipRetelling,
    /// A lease is told anew with an earlier end.
    RetellOldEnd,
    /// A lease is told anew in nobody's name.
    ForgetBorrower,
    /// A start goes on with the tokens that were reserved and not seen in the journal.
    RepeatTokens,
    /// A release does not compare the lease: it ends whichever runs on that key.
    ReleaseWhoeverHolds,
    /// A lease that was renewed ends by the timer of before.
    OldTimerEndsLease,
    /// Lease time is wall time.
    CountWallTime,
    /// A reboot takes five seconds off every lease.
    ShortenAfterReboot,
    /// Serving time runs on while nobody could be served.
    PurgeByLeaseClock,
    /// A purge is not remembered.
    ForgetPurge,
    /// An imported value is forgotten with its key.
    ForgetRetired,
    /// "None free" is said while something of the pool is due.
    FalseNone,
    /// A key that comes back is free for newcomers while others wait.
    NewcomerFirst,
    /// A key is over after its deadline only: a keep-alive at the deadline raises it.
    RaiseAtDeadline,
    /// A grant that nobody received is not taken back.
    KeepUndelivered,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 23] = [
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
        Self::ForgetPurge,
        Self::ForgetRetired,
        Self::FalseNone,
        Self::NewcomerFirst,
        Self::RaiseAtDeadline,
        Self::KeepUndelivered,
    ];
}

/// A bound that a simulation can make small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestLimit {
    /// Waiters in all pools together.
    Waiters,
    /// Ends by time that a turn plays.
    Expire,
    /// Tokens reserved at a time.
    TokenReservation,
    /// Bytes of the last segment that are kept.
    LastRoom,
    /// Facts that one change of the key set takes.
    Facts,
    /// Holds told anew in one turn.
    SnapshotRecords,
}

#[cfg(not(feature = "sabotage"))]
mod set {
    use super::{Sabotage, TestLimit};

    /// Tells whether a defect is switched on: never.
    #[inline]
    pub const fn enabled(_: Sabotage) -> bool {
        false
    }

    /// Tells a bound: the usual one.
    #[inline]
    pub const fn limit(_: TestLimit, usual: u64) -> u64 {
        usual
    }
}

#[cfg(feature = "sabotage")]
mod set {
    use super::{Sabotage, TestLimit};
    use std::cell::{Cell, RefCell};

    thread_local! {
        static ON: Cell<Option<Sabotage>> = const { Cell::new(None) };
        static BOUNDS: RefCell<Vec<(TestLimit, u64)>> = const { RefCell::new(Vec::new()) };
    }

    /// Tells whether a defect is switched on, on this thread.
    pub fn enabled(sabotage: Sabotage) -> bool {
        ON.get() == Some(sabotage)
    }

    /// Tells a bound, on this thread.
    pub fn limit(bound: TestLimit, usual: u64) -> u64 {
        let set =
            |bounds: &Vec<(TestLimit, u64)>| bounds.iter().find(|(of, _)| *of == bound).copied();
        BOUNDS.with_borrow(set).map_or(usual, |(_, small)| small)
    }

    /// Switches one defect on, or all off, and sets bounds, on this thread.
    pub fn configure(sabotage: Option<Sabotage>, bounds: Vec<(TestLimit, u64)>) {
        ON.set(sabotage);
        BOUNDS.replace(bounds);
    }
}

pub use set::*;

//! Why a pool says no: a closed set, as data. A refusal has changed nothing.

use crate::policy::OutOfRange;

/// How many keys stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// Free to be lent.
    pub available: u64,
    /// GrantedLease.
    pub leased: u64,
    /// Back, but not served yet.
    pub resting: u64,
    /// Out of rotation.
    pub quarantined: u64,
}

impl KeyCounts {
    /// Keys that are away for a time: leased or resting.
    pub fn leased_or_resting(&self) -> u64 {
        self.leased + self.resting
    }

    /// All keys there are.
    pub fn total(&self) -> u64 {
        self.available + self.leased + self.resting + self.quarantined
    }
}

/// Why no key is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKeyCause {
    /// The pool has no keys.
    PoolEmpty,
    /// All are lent.
    AllLeased,
    /// All rest.
    AllResting,
    /// All are out of rotation.
    AllQuarantined,
    /// Some of each.
    NoneFree,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// A call gave the key back.
    Released,
    /// Its time was over.
    Expired,
    /// Its time was over and somebody else holds the key now.
    Superseded,
    /// Its key was deleted or purged.
    KeyGone,
}

/// Why a pool says no. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no pool of that name.
    UnknownPool,
    /// The default pool cannot be removed.
    DefaultPool,
    /// The server keeps as many pools as it may.
    TooManyPools {
        /// Its bound.
        max: usize,
    },
    /// A value is out of its range.
    Invalid(OutOfRange),
    /// The pool, or the server, keeps as many keys as it may.
    PoolFull {
        /// The bound that would be passed, in keys.
        max: u64,
        /// Whether it is the whole server's bound.
        of_server: bool,
    },
    /// A value to import is in the pool, or was and is never used again.
    KeyExists {
        /// Its index in the request, from 0.
        index: usize,
    },
    /// No key is free.
    NoKey {
        /// Why.
        cause: NoKeyCause,
        /// How many stand where.
        counts: KeyCounts,
        /// How long until the first comes back, in milliseconds, where one does.
        next_hold_end_in_ms: Option<u64>,
    },
    /// As many wait as may, on the whole server.
    WaitQueueFull {
        /// Its bound.
        max: usize,
    },
    /// The borrower has as many leases as it may, those it waits for among them.
    TooManyLeases {
        /// Its bound.
        max: u32,
    },
    /// There is no such key: never was, deleted, or purged.
    UnknownKey,
    /// The lease has ended, or never was.
    LeaseEnded {
        /// How, as far as that is known.
        cause: Option<EndCause>,
    },
    /// The Idempotency-Key was used with another body.
    IdempotencyMismatch,
    /// Keys that the Idempotency-Key's answer told of are gone.
    KeysGone,
    /// The same Idempotency-Key was asked again, and that request has this one's place in line.
    TakenOver,
    /// As many answers of Idempotency-Keys are kept as may be, on the whole server.
    TooManyAnswers {
        /// Its bound.
        max: usize,
    },
    /// A cursor of another pool or another run, or none at all.
    BadCursor,
    /// The lease cannot be made to end later than it does.
    MaxHoldReached {
        /// When it ends.
        expires_at_ms: u64,
    },
    /// More is due than one turn may settle: to be asked again in the next turn.
    Settling,
}

//! Why the pools refuse a call: a closed set, as data. A refused call has changed nothing except
//! what time had already ended.

use crate::key_counts::KeyCounts;
use crate::policy::OutOfRange;

/// Why no key is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoKeyCause {
    /// The pool has no keys.
    PoolEmpty,
    /// All keys are leased.
    AllLeased,
    /// All keys rest.
    AllResting,
    /// All keys are quarantined.
    AllQuarantined,
    /// The keys are in several of these states.
    NoneFree,
    /// The pool is draining: it grants no key, whatever the states of its keys are.
    Draining,
}

impl NoKeyCause {
    /// Every cause.
    pub const ALL: [Self; 6] = [
        Self::PoolEmpty,
        Self::AllLeased,
        Self::AllResting,
        Self::AllQuarantined,
        Self::NoneFree,
        Self::Draining,
    ];

    /// Returns the name of the cause, as metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PoolEmpty => "pool_empty",
            Self::AllLeased => "all_leased",
            Self::AllResting => "all_resting",
            Self::AllQuarantined => "all_quarantined",
            Self::NoneFree => "none_free",
            Self::Draining => "draining",
        }
    }

    /// Returns whether a request can wait for a key: time or a call on a key can make one available.
    pub(crate) fn allows_wait(self) -> bool {
        match self {
            Self::PoolEmpty
            | Self::AllLeased
            | Self::AllResting
            | Self::AllQuarantined
            | Self::NoneFree => true,
            Self::Draining => false,
        }
    }
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// A call released it.
    Released,
    /// It expired.
    Expired,
    /// It expired, and another lease on the key runs now.
    Superseded,
    /// Its key was deleted or purged.
    KeyGone,
}

/// Why a call is refused. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No pool has that name.
    UnknownPool,
    /// The default pool cannot be deleted.
    DefaultPool,
    /// The server's limit of pools is reached.
    TooManyPools {
        /// The limit.
        max: usize,
    },
    /// A value is out of its range.
    Invalid(OutOfRange),
    /// The pool's or the server's limit of keys would be exceeded.
    PoolFull {
        /// The limit, in keys.
        max: u64,
        /// Whether it is the server's limit.
        of_server: bool,
    },
    /// The memory for keys is used up.
    KeyMemoryFull {
        /// The limit, in bytes.
        max: u64,
    },
    /// The memory for pools, leases, waiting requests and stored answers is used up.
    MemoryFull {
        /// The limit, in bytes.
        max: u64,
    },
    /// A value to import is in the pool, or was in it before and is retired.
    KeyExists {
        /// Its index in the request, from 0.
        index: usize,
    },
    /// No key is available.
    NoKey {
        /// The cause.
        cause: NoKeyCause,
        /// The number of keys in each state.
        counts: KeyCounts,
        /// Milliseconds until the first lease or rest ends; `None` when no key is leased or rests,
        /// and when that makes no key available, because the pool is draining.
        next_hold_end_in_ms: Option<u64>,
    },
    /// A deadline has passed that this call depends on, and the disk is too full to record that. A
    /// crash could still undo it, so no answer may rely on it.
    StorageFull,
    /// The server's limit of waiting requests is reached.
    WaitQueueFull {
        /// The limit.
        max: usize,
    },
    /// The borrower's limit of leases is reached; waiting requests count as leases.
    TooManyLeases {
        /// The limit.
        max: u32,
    },
    /// The key does not exist: it was never created, or it was deleted or purged.
    UnknownKey,
    /// The lease has ended or never existed.
    LeaseEnded {
        /// How it ended, as far as that is known.
        cause: Option<EndCause>,
    },
    /// The Idempotency-Key was used with a different body.
    IdempotencyMismatch,
    /// Keys in the stored answer of the Idempotency-Key are deleted or purged.
    KeysGone,
    /// A later request with the same Idempotency-Key took over this one's position in the wait
    /// queue.
    TakenOver,
    /// The server's limit of stored answers is reached, or the share of the request's borrower.
    TooManyAnswers {
        /// The limit of the server.
        max: usize,
        /// Whether only the share is reached: other borrowers still have room.
        is_share: bool,
    },
    /// The cursor is invalid, or belongs to another pool or another run of the server.
    BadCursor,
    /// The lease cannot end later than it does.
    MaxHoldReached {
        /// Its end.
        expires_at_ms: u64,
    },
    /// More is due than one turn may expire: the caller must repeat the call in the next turn.
    Settling,
}

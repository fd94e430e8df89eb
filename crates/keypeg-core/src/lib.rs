//! The pools: the rules for keys and leases, and nothing else.
//!
//! A pure state machine without a clock, I/O, locks, async or serialisation. Time ([`Now`]) and
//! randomness ([`RandomSource`]) are arguments; changes are emitted as [`Fact`]s, and facts
//! replayed in order rebuild the pools. Start reading at `pool.rs`.

mod available;
mod borrowers;
mod chunks;
mod clocks;
mod deadlines;
mod event;
mod fact;
mod holds;
mod idempotency_store;
mod ids;
mod index;
mod indices;
mod key;
mod key_counts;
mod lease;
mod numbers;
mod policy;
mod pool;
mod pools;
mod refusal;
mod replayer;
mod retired;
pub mod sabotage;
mod shared;
mod slots;
mod symbols;
mod wait_queue;

pub use borrowers::Borrower;
pub use clocks::{NEVER_US, Now, US_PER_MS, US_PER_S};
pub use event::Event;
pub use fact::{Fact, FactSink, Grant, IdempotencyRecord, IdempotentResult, PackedValues};
pub use idempotency_store::ANSWERS_MAX;
pub use ids::{BodyDigest, Cursor, IdHashKey, IdempotencyId, KeyId, LeaseId, TOKEN_MAX};
pub use key::{
    KeptAlive, KeptAliveMany, KeyPage, KeyRef, KeyState, KeyView, ListOptions, NewKey, Secret,
    VALUE_MAX,
};
pub use key_counts::KeyCounts;
pub use lease::{AcquireOptions, Granted, GrantedLease, LeaseView, ReleaseOptions, WaitOptions};
pub use numbers::{BorrowerId, KeyNumber, Lsn, PoolId, WaiterId};
pub use policy::{
    DURATION_MAX_MS, KEY_LENGTH, KEY_PREFIX_MAX, OutOfRange, POOL_KEYS_MAX, Policy, PolicyPatch,
    PoolName,
};
pub use pool::{IdempotencyKey, IdempotentCall, Pool, StepContext};
pub use pools::{IdsToCheck, NextDue, Pools, SnapshotCursor};
pub use refusal::{EndCause, NoKeyCause, Refusal};
pub use replayer::{Checkpointed, ReplayError, Replayer, StoredKey, StoredPool};
pub use shared::{
    Counters, JournalPositions, Limits, SharedState, TOKEN_RESERVATION, WAITERS_MAX, WaitOutcome,
};

/// A source of randomness: an argument, so that a seed can replace it in tests.
pub trait RandomSource {
    /// Returns a uniformly random number below `bound`, which is at least 1.
    fn below(&mut self, bound: u32) -> u32;
    /// Fills `bytes` from the operating system's CSPRNG: secrets are generated from them.
    fn fill(&mut self, bytes: &mut [u8]);
}

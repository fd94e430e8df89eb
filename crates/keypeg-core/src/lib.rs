//! The pools: what may happen to keys and leases, and nothing else.
//!
//! Pure: no clock, no I/O, no lock, no async, no serialisation. Time ([`Now`]) and random
//! ([`RandomSource`]) are arguments; what happened comes out as [`Fact`]s, and facts in order give the
//! pools back. Start reading at `pool.rs`.

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
mod key;
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
    KeptAlive, KeptAliveMany, KeyPage, KeyRef, KeyState, KeyView, LeaseView, ListOptions, NewKey,
    ReleaseOptions, Secret, VALUE_MAX,
};
pub use numbers::{BorrowerId, KeyNumber, Lsn, PoolId, WaiterId};
pub use policy::{
    DURATION_MAX_MS, KEY_LENGTH, KEY_PREFIX_MAX, OutOfRange, POOL_KEYS_MAX, Policy, PolicyPatch,
    PoolName,
};
pub use pool::{
    AcquireOptions, Granted, GrantedLease, IdempotencyKey, IdempotentCall, Pool, StepContext,
    WaitOptions,
};
pub use pools::{IdsToCheck, NextDue, Pools, SnapshotCursor};
pub use refusal::{EndCause, KeyCounts, NoKeyCause, Refusal};
pub use replayer::{Checkpointed, ReplayError, Replayer, StoredKey, StoredPool};
pub use shared::{
    Counters, JournalPositions, Limits, SharedState, TOKEN_RESERVATION, WAITERS_MAX, WaitOutcome,
};

/// Where random comes from: an argument, so that a seed can play it.
pub trait RandomSource {
    /// Draws a number below `bound`, each as likely; `bound` is at least 1.
    fn below(&mut self, bound: u32) -> u32;
    /// Fills `bytes` from the operating system's CSPRNG: what secrets are made of.
    fn fill(&mut self, bytes: &mut [u8]);
}

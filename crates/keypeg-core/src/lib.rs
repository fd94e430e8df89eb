//! The pools: the rules for keys and leases, and nothing else.
//!
//! A pure state machine without a clock, I/O, locks, async or serialisation. Time ([`Now`]) and
//! randomness ([`RandomSource`]) are arguments; changes are emitted as [`Fact`]s, and facts
//! replayed in order rebuild the pools. Start reading at `pool.rs`.

mod activity;
mod available;
mod borrowers;
mod chunks;
mod clocks;
mod deadlines;
mod event;
mod fact;
mod heap;
mod holds;
mod idempotency_store;
mod ids;
mod incoming;
mod index;
mod indices;
mod key;
mod key_counts;
mod labels;
mod lease;
mod numbers;
mod policy;
mod pool;
mod pools;
mod prepared;
mod random;
mod reasons;
mod refusal;
mod replayer;
mod retired;
pub mod sabotage;
mod secret;
mod shared;
mod slot_texts;
mod slots;
mod staged;
mod step;
mod symbols;
mod wait_outcome;
mod wait_queue;

pub use activity::{HOLD_BUCKETS_US, PoolActivity, WAIT_BUCKETS_US};
pub use borrowers::Borrower;
pub use clocks::{NEVER_US, NextDue, Now, US_PER_MS, US_PER_S};
pub use event::Event;
pub use fact::{
    ChangedViews, Fact, FactSink, Grant, IdempotencyRecord, IdempotentResult, PackedValues,
};
pub use idempotency_store::{ANSWERS_MAX, IdempotencyKey, answers_max};
pub use ids::{
    BodyDigest, BodyHasher, Cursor, IdHash, IdHashKey, IdempotencyId, IdempotentCall, KeyId,
    LeaseId, TOKEN_MAX,
};
pub use incoming::{ImportOptions, StoredKey};
pub use key::{
    KeptAlive, KeptAliveMany, KeyPage, KeyQuarantined, KeyRef, KeyState, KeyView, ListOptions,
    NewKey, QuarantineOptions,
};
pub use key_counts::KeyCounts;
pub use labels::{NewLabels, PackedLabels, RecordedLabels};
pub use lease::{
    AcquireOptions, ForceReleased, Granted, LeaseView, ReleaseOptions, Released, WaitOptions,
};
pub use numbers::{BorrowerId, KeyNumber, Lsn, PoolId, WaiterId};
pub use policy::{OutOfRange, Policy, PolicyPatch, PoolName};
pub use pool::{HeldKeys, KEY_BYTES_MIN, Pool, RESTORED_HOLDER, RestoredHolds};
pub use pools::{IdsToCheck, PoolFilter, PoolListOptions, PoolPattern, Pools, SnapshotCursor};
pub use prepared::{KeysToAdd, PreparedKeys};
pub use random::RandomSource;
pub use refusal::{EndCause, NoKeyCause, Refusal};
pub use replayer::{Checkpointed, ReplayError, Replayer, StoredPool};
pub use retired::must_remember;
pub use secret::{Secret, VALUE_MAX};
pub use shared::{Counters, JournalPositions, Limits, SharedState, TOKEN_RESERVATION, WAITERS_MAX};
pub use staged::{AddKeys, KNOWN_MAX, KnownValues, RepeatedKeys, StageOutcome};
pub use step::StepContext;
pub use wait_outcome::{GrantedLease, WaitOutcome};

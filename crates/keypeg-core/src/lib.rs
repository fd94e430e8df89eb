//! The pools: what may happen to keys and leases, and nothing else.
//!
//! Pure: no clock, no I/O, no lock, no async, no serialisation. Time ([`Now`]) and chance
//! ([`Chance`]) are arguments; what happened comes out as [`Fact`]s, and facts in order give the
//! pools back. Start reading at `pool.rs`.

mod available;
mod borrowers;
mod chunks;
mod clocks;
mod deadlines;
mod event;
mod fact;
mod ids;
mod index;
mod key;
mod lease;
mod ledger;
mod line;
mod policy;
mod pool;
mod pools;
mod rebuild;
mod refusal;
mod replays;
mod retired;
pub mod sabotage;
mod slots;
mod symbols;

pub use borrowers::Borrower;
pub use clocks::{NEVER_US, Now, US_PER_MS, US_PER_S};
pub use event::Event;
pub use fact::{Answer, Fact, Grant, Said, Sink, Values};
pub use ids::{AnswerId, Cursor, Digest, IdKey, KeyId, LeaseId, TOKEN_MAX};
pub use key::{KeyPage, KeyRef, KeyState, KeyView, LeaseView, NewKey, Secret, VALUE_MAX, Verdict};
pub use ledger::{Counters, Handed, Ledger, Limits, TOKEN_BLOCK, WAITERS_MAX};
pub use policy::{
    KEY_LENGTH, KEY_PREFIX_MAX, LENGTH_MAX_MS, MAX_KEYS_MAX, OutOfRange, Policy, PolicyPatch,
    PoolName,
};
pub use pool::{Lent, Once, Pool, Step, Wish};
pub use pools::{Pools, Retelling};
pub use rebuild::{Carried, LoadedKey, Misfit, Rebuild};
pub use refusal::{Counts, EndCause, NoKeyCause, Refusal};
pub use replays::ANSWERS_MAX;

/// Where chance comes from: an argument, so that a seed can play it.
pub trait Chance {
    /// Draws a number below `bound`, each as likely; `bound` is at least 1.
    fn below(&mut self, bound: u32) -> u32;
    /// Fills `bytes` from the operating system's CSPRNG: what secrets are made of.
    fn fill(&mut self, bytes: &mut [u8]);
}

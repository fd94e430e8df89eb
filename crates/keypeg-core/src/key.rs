//! A key as a client knows it: its state, its view, and the results of calls about it.
//!
//! How a pool stores a million keys in little memory is the business of `slots.rs`.

use crate::ids::{Cursor, KeyId};
use crate::lease::LeaseView;
use crate::numbers::KeyNumber;
use crate::secret::Secret;

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Can be leased.
    Available,
    /// One holder has it until its lease ends.
    Leased,
    /// Not leased out until a time.
    Resting,
    /// Out of rotation until a call frees it.
    Quarantined,
}

/// How a request names one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// By its id.
    Id(KeyId),
    /// By its value, as the Django API does.
    Value(Secret),
}

/// A key that was just created, with its value. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// Its value.
    pub value: Secret,
    /// The time of creation.
    pub created_at_ms: u64,
    /// When it is purged without a keep-alive; `None` never.
    pub expires_at_ms: Option<u64>,
    /// Its label, if it has one.
    pub label: Option<Box<str>>,
}

/// A key as it is shown: everything but its value. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// Its id.
    pub id: KeyId,
    /// Its number, which names it in facts and is not shown.
    pub number: KeyNumber,
    /// Its state.
    pub state: KeyState,
    /// Its label, if it has one.
    pub label: Option<Box<str>>,
    /// The time of creation.
    pub created_at_ms: u64,
    /// When it is purged without a keep-alive; `None` never.
    pub expires_at_ms: Option<u64>,
    /// The end of its rest, if it rests.
    pub rests_until_ms: Option<u64>,
    /// Whether it is leased, and is quarantined when its lease ends.
    pub draining: bool,
    /// Why it rests, is quarantined or is draining, where a call gave a reason.
    pub reason: Option<Box<str>>,
    /// Whether it is purged unless it is kept alive: false for a key that no time ends.
    pub keepalive: bool,
    /// Its running lease, if any.
    pub lease: Option<LeaseView>,
}

impl KeyView {
    /// Returns for how long, in milliseconds, the view of a leased key stays as it is, unless a fact
    /// [changes](crate::ChangedViews) it; `None` for a key without a lease.
    pub fn stands_for_ms(&self) -> Option<u64> {
        let lease = self.lease.as_ref()?;
        let now_ms = lease.expires_at_ms.saturating_sub(lease.expires_in_ms);
        let key_ms = self.expires_at_ms.map_or(u64::MAX, |at| at.saturating_sub(now_ms));
        // Each time is rounded, so the difference of two is up to a millisecond too long.
        Some(lease.expires_in_ms.min(key_ms.saturating_sub(1)))
    }
}

/// How a call takes a key out of rotation; by default at once, without a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineOptions {
    /// Whether the lease of a leased key continues, so that the quarantine begins when it ends.
    pub when_free: bool,
    /// The reason, shown while the key is draining or quarantined.
    pub reason: Option<Box<str>>,
}

/// The outcome of a quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyQuarantined {
    /// The key.
    pub key: KeyView,
    /// The holder of the lease that ended, as its request named it.
    pub holder: Option<Box<str>>,
}

/// Which keys a page of a listing contains.
#[derive(Clone, Debug)]
pub struct ListOptions {
    /// The state of the keys; any state when `None`.
    pub state: Option<KeyState>,
    /// The label of the keys; any label and none when `None`.
    pub label: Option<Box<str>>,
    /// The most keys in the page.
    pub limit: usize,
    /// The start of the page; the first key of the pool when `None`.
    pub cursor: Option<Cursor>,
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys; may be empty when the page examined only keys in other states or with other
    /// labels.
    pub keys: Vec<KeyView>,
    /// The start of the next page; `None` at the end of the listing.
    pub next: Option<Cursor>,
}

/// The result of a keep-alive of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptAlive {
    /// The key's id.
    pub id: KeyId,
    /// When it is purged without another keep-alive, wall time in milliseconds; `None` never.
    pub expires_at_ms: Option<u64>,
}

/// The result of a keep-alive of several keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAliveMany {
    /// The number of distinct keys that were kept alive.
    pub kept: u64,
    /// The ids that name no key of the pool.
    pub missing: Vec<KeyId>,
}

//! A key as a client knows it: its value, its state, what is shown of it.
//!
//! How a pool keeps a million of them in little memory is `slots.rs`' business, not this file's.

use crate::ids::{Cursor, KeyId, LeaseId};
use std::fmt;

/// The longest value a key can have, in bytes.
pub const VALUE_MAX: usize = 4096;

/// A key's value. It has no `Display`, and `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes a value of 1 to [`VALUE_MAX`] bytes of UTF-8; `None` for any other length.
    pub fn new(value: &str) -> Option<Self> {
        (1..=VALUE_MAX).contains(&value.len()).then(|| Self(value.as_bytes().into()))
    }

    /// Takes bytes that a pool already holds.
    pub(crate) fn of_pool(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The value itself, to be put into a body that may carry it.
    pub fn reveal(&self) -> &str {
        std::str::from_utf8(&self.0).expect("invariant: values are UTF-8 when they enter")
    }

    /// The value's bytes, to be hashed or stored.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Free to be lent.
    Available,
    /// GrantedLease: one holder has it until its lease ends.
    Leased,
    /// Back, but not served until a time.
    Resting,
    /// Out of rotation until somebody puts it back.
    Quarantined,
}

/// How a request names one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// By its public handle.
    Id(KeyId),
    /// By its value, as the seed's face does.
    Value(Secret),
}

/// What a holder says of the key it gives back; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseOptions {
    /// How long the key rests, in milliseconds; as the policy said at its grant when left out.
    pub rest_ms: Option<u64>,
    /// Whether it is out of rotation until somebody puts it back, rather than for a time.
    pub quarantine: bool,
    /// Why: shown while the key rests or is out of rotation.
    pub reason: Option<Box<str>>,
}

/// A key just made, with its value. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// Its public handle.
    pub id: KeyId,
    /// Its value.
    pub value: Secret,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it is purged if nobody keeps it alive; `None` never.
    pub expires_at_ms: Option<u64>,
}

/// A key as it is shown: everything but its value. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// Its public handle.
    pub id: KeyId,
    /// Where it stands.
    pub state: KeyState,
    /// When it was made.
    pub created_at_ms: u64,
    /// When it is purged if nobody keeps it alive; `None` never.
    pub expires_at_ms: Option<u64>,
    /// Until when it rests, if it does.
    pub rests_until_ms: Option<u64>,
    /// Why it rests or is out of rotation, where that was said.
    pub reason: Option<Box<str>>,
    /// Its running lease, if any.
    pub lease: Option<LeaseView>,
}

/// Some keys of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPage {
    /// The keys; none at all where none of those looked at is of the state that is listed.
    pub keys: Vec<KeyView>,
    /// Where the listing goes on; `None` at its end.
    pub next: Option<Cursor>,
}

/// Which keys a page of a listing contains.
#[derive(Clone, Copy, Debug)]
pub struct ListOptions {
    /// The state the keys are in; any state when `None`.
    pub state: Option<KeyState>,
    /// The most keys in the page.
    pub limit: usize,
    /// The start of the page; the beginning of the pool when `None`.
    pub cursor: Option<Cursor>,
}

/// The result of a keep-alive of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptAlive {
    /// The key's id.
    pub id: KeyId,
    /// When the key is purged without another keep-alive, wall time in milliseconds; `None` never.
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

/// A running lease as it is shown. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The lease's handle: only its holder may see it.
    pub id: LeaseId,
    /// The key it lends.
    pub key_id: KeyId,
    /// Its fencing token.
    pub token: u64,
    /// Who said to hold it.
    pub holder: Option<Box<str>>,
    /// When it was granted.
    pub granted_at_ms: u64,
    /// When it ends.
    pub expires_at_ms: u64,
    /// How long it lasts from now, in milliseconds.
    pub expires_in_ms: u64,
    /// When its key is purged if nobody keeps it alive; `None` never.
    pub key_expires_at_ms: Option<u64>,
}

//! Events: what the subscribers of a pool receive.
//!
//! Unlike a [`Fact`](crate::Fact), an event names its key by the public id, contains no value, and
//! also reports ends by time, which leave no fact. Nothing is rebuilt from events. A pool without
//! subscribers creates none: it only checks whether it has subscribers.

use crate::ids::KeyId;
use crate::key::{KeyState, NewKey};

/// A change to keys of a pool that has subscribers. Instants are lease time in microseconds.
///
/// Events suffice to count the keys in each state: the event determines the new state, and it
/// contains the state before wherever more than one was possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// One call created keys, which are available.
    KeysCreated {
        /// Whether they were imported.
        imported: bool,
        /// The keys.
        keys: &'a [NewKey],
    },
    /// An available key was leased.
    Granted {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The holder, as the request named it.
        holder: Option<&'a str>,
        /// The label of the key, if it has one.
        label: Option<&'a str>,
        /// The end of the lease.
        until_us: u64,
    },
    /// A call gave a key a label, or removed it. The state of the key stays.
    Labelled {
        /// The key.
        key: KeyId,
        /// The label; `None` for no label.
        label: Option<&'a str>,
    },
    /// A lease was renewed.
    Renewed {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The new end of the lease.
        until_us: u64,
    },
    /// A call ended a lease.
    Released {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The end of the key's rest; 0 when it does not rest and is available.
        rest_until_us: u64,
        /// The reason of the rest, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A lease expired.
    Expired {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The end of the key's rest; 0 when it does not rest and is available.
        rest_until_us: u64,
    },
    /// A key was quarantined: by a call, or because it was draining and its lease ended.
    Quarantined {
        /// The key.
        key: KeyId,
        /// The state before.
        was: KeyState,
        /// The fencing token of the lease that this ended, if the key was leased.
        token: Option<u64>,
        /// The reason, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A leased key is quarantined when its lease ends. The state of the key stays.
    Draining {
        /// The key.
        key: KeyId,
        /// The fencing token of the lease.
        token: u64,
        /// The reason, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A draining key is not quarantined when its lease ends. The state of the key stays.
    DrainCancelled {
        /// The key.
        key: KeyId,
        /// The fencing token of the lease.
        token: u64,
    },
    /// A resting or quarantined key became available, by a call or by time.
    KeyFreed {
        /// The key.
        key: KeyId,
        /// The state before.
        was: KeyState,
    },
    /// A call deleted a key.
    Deleted {
        /// The key.
        key: KeyId,
        /// The state before.
        was: KeyState,
    },
    /// A key was purged.
    Purged {
        /// The key.
        key: KeyId,
        /// The state before.
        was: KeyState,
    },
}

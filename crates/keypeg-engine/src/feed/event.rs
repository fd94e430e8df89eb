//! Feed events as a ring stores them.
//!
//! An event has public key ids and wall times, so it can be sent without access to the pool. No
//! event contains the value of a key.

use crate::core::{Event, KeyId, KeyState, Now, Policy};
use std::sync::Arc;

/// The most keys in one event; a call that creates more yields several events.
const EVENT_KEYS_MAX: usize = 100;

/// An event of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEvent {
    /// The sequence number, which grows over all pools of the server.
    pub seq: u64,
    /// The wall time in milliseconds.
    pub at_ms: u64,
    /// What happened.
    pub kind: FeedEventKind,
}

/// The content of an event. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEventKind {
    /// New available keys.
    KeysCreated {
        /// Whether they were imported.
        imported: bool,
        /// The keys, at most 100.
        keys: Arc<[KeyId]>,
        /// When they are purged unless kept alive; `None` means never.
        expires_at_ms: Option<u64>,
    },
    /// A lease of an available key.
    Granted {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The holder's name, as the client gave it.
        holder: Option<Arc<str>>,
        /// When the lease expires.
        expires_at_ms: u64,
    },
    /// The extension of a lease.
    Renewed {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// When the lease expires now.
        expires_at_ms: u64,
    },
    /// The end of a lease; its key is available or rests.
    LeaseEnded {
        /// Whether it expired; else it was released.
        by_time: bool,
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// The end of the key's rest, if it rests.
        rests_until_ms: Option<u64>,
        /// The reason, if the client gave one.
        reason: Option<Arc<str>>,
    },
    /// The quarantine of a leased key.
    Quarantined {
        /// The key.
        key: KeyId,
        /// The fencing token of the lease that this ended.
        token: u64,
        /// The reason, if the client gave one.
        reason: Option<Arc<str>>,
    },
    /// A resting or quarantined key became available.
    KeyFreed {
        /// The key.
        key: KeyId,
        /// The key's state before.
        was: KeyState,
    },
    /// The deletion or purge of a key.
    KeyRemoved {
        /// Whether it was purged; else it was deleted by a request.
        by_time: bool,
        /// The key.
        key: KeyId,
        /// The key's state before.
        was: KeyState,
    },
    /// The pool's new policy.
    PolicyChanged(Box<Policy>),
    /// The deletion of the pool with all its keys. It is the pool's last event.
    PoolDeleted,
}

impl FeedEventKind {
    /// Converts an event; one with many keys becomes several.
    pub(super) fn each_of(event: &Event<'_>, now: Now, mut each: impl FnMut(Self)) {
        let rests = |until_us: u64| (until_us > 0).then(|| now.lease_to_wall_ms(until_us));
        each(match *event {
            Event::KeysCreated { imported, keys } => {
                for chunk in keys.chunks(EVENT_KEYS_MAX) {
                    each(Self::KeysCreated {
                        imported,
                        keys: chunk.iter().map(|key| key.id).collect(),
                        expires_at_ms: chunk[0].expires_at_ms,
                    });
                }
                return;
            }
            Event::Granted { key, token, holder, until_us } => Self::Granted {
                key,
                token,
                holder: holder.map(Arc::from),
                expires_at_ms: now.lease_to_wall_ms(until_us),
            },
            Event::Renewed { key, token, until_us } => {
                Self::Renewed { key, token, expires_at_ms: now.lease_to_wall_ms(until_us) }
            }
            Event::Released { key, token, rest_until_us, reason } => Self::LeaseEnded {
                by_time: false,
                key,
                token,
                rests_until_ms: rests(rest_until_us),
                reason: reason.map(Arc::from),
            },
            Event::Expired { key, token, rest_until_us } => {
                let rests_until_ms = rests(rest_until_us);
                Self::LeaseEnded { by_time: true, key, token, rests_until_ms, reason: None }
            }
            Event::Quarantined { key, token, reason } => {
                Self::Quarantined { key, token, reason: reason.map(Arc::from) }
            }
            Event::KeyFreed { key, was } => Self::KeyFreed { key, was },
            Event::Deleted { key, was } => Self::KeyRemoved { by_time: false, key, was },
            Event::Purged { key, was } => Self::KeyRemoved { by_time: true, key, was },
        });
    }

    /// Returns the heap memory of the event, in bytes.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::KeysCreated { keys, .. } => size_of_val::<[KeyId]>(keys),
            Self::Granted { holder: text, .. }
            | Self::LeaseEnded { reason: text, .. }
            | Self::Quarantined { reason: text, .. } => text.as_ref().map_or(0, |text| text.len()),
            Self::PolicyChanged(policy) => size_of::<Policy>() + policy.key_prefix.len(),
            Self::Renewed { .. }
            | Self::KeyFreed { .. }
            | Self::KeyRemoved { .. }
            | Self::PoolDeleted => 0,
        }
    }
}

/// Returns the memory that an event takes in a ring, in bytes.
pub(super) fn size_of_event(event: &FeedEvent) -> usize {
    size_of::<FeedEvent>() + event.kind.heap_bytes()
}

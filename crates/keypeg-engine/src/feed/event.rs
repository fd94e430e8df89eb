//! Events as they are kept in a ring: with the public ids of keys and in wall time, complete in
//! themselves, so that telling one needs no pool. No value of a key is in any of them.

use crate::core::{Event, KeyId, KeyState, Now, Policy};
use std::sync::Arc;

/// Keys that one event names at most; a call that makes more is told in several.
const NAMED_MAX: usize = 100;

/// An event as it is kept. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedEvent {
    /// Its number, which grows over the whole server.
    pub seq: u64,
    /// When it was.
    pub at_ms: u64,
    /// What happened.
    pub kind: FeedEventKind,
}

/// What an event reports. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEventKind {
    /// Keys came to be, available.
    KeysCreated {
        /// Whether they were brought in.
        imported: bool,
        /// The keys, at most a hundred.
        keys: Arc<[KeyId]>,
        /// When they are purged if nobody keeps them alive; `None` never.
        expires_at_ms: Option<u64>,
    },
    /// An available key was lent.
    Granted {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// Who said to hold it.
        holder: Option<Arc<str>>,
        /// When the lease ends.
        expires_at_ms: u64,
    },
    /// A lease was given more time.
    Renewed {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// When the lease ends now.
        expires_at_ms: u64,
    },
    /// A lease ended; its key is available, or rests.
    LeaseEnded {
        /// Whether time ended it.
        by_time: bool,
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// Until when the key rests, if it does.
        rests_until_ms: Option<u64>,
        /// Why it rests, where that was said.
        reason: Option<Arc<str>>,
    },
    /// A leased key was taken out of rotation.
    Quarantined {
        /// The key.
        key: KeyId,
        /// The token of the lease that this ended.
        token: u64,
        /// Why, where that was said.
        reason: Option<Arc<str>>,
    },
    /// A key that rested or was out of rotation is available again.
    KeyFreed {
        /// The key.
        key: KeyId,
        /// Where it was.
        was: KeyState,
    },
    /// A key was deleted by a call or purged by time.
    KeyRemoved {
        /// Whether time did it.
        by_time: bool,
        /// The key.
        key: KeyId,
        /// Where it was.
        was: KeyState,
    },
    /// The pool's policy was changed.
    PolicyChanged(Box<Policy>),
    /// The pool was removed with all its keys: nothing comes after this.
    PoolDeleted,
}

impl FeedEventKind {
    /// Takes an event; those of many keys are cut into parts.
    pub(super) fn of(event: &Event<'_>, now: Now, mut each: impl FnMut(Self)) {
        let rests = |until_us: u64| (until_us > 0).then(|| now.lease_to_wall_ms(until_us));
        each(match *event {
            Event::KeysCreated { imported, keys } => {
                for part in keys.chunks(NAMED_MAX) {
                    each(Self::KeysCreated {
                        imported,
                        keys: part.iter().map(|key| key.id).collect(),
                        expires_at_ms: part[0].expires_at_ms,
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

    /// Bytes that it takes beside its place in a ring.
    fn outside(&self) -> usize {
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

/// Bytes that it takes in a ring.
pub(super) fn bytes_of(told: &FeedEvent) -> usize {
    size_of::<FeedEvent>() + told.kind.outside()
}

//! Subscriptions to the events of a pool: the events as plain data, and the two traits that a store
//! implements to deliver them.
//!
//! An event has public key ids and wall times, so it can be sent without access to the pool. No
//! event contains the value of a key. Nothing here knows HTTP or an async runtime.

use keypeg_core::{KeyCounts, KeyId, KeyState, Policy, PoolName};
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A handle to a pool's events, from which any number of subscribers can be created.
pub trait Subscription: fmt::Debug + Send + Sync {
    /// Creates a subscriber. It starts after the event with the id `last` if the store still has
    /// all later events, else with [`FeedBatch::Resync`].
    fn subscribe(
        self: Arc<Self>,
        last: Option<&str>,
    ) -> Result<Box<dyn Subscriber>, TooManySubscribers>;
}

/// A reader of a pool's events, with its own position. Dropping it ends the subscription.
pub trait Subscriber: fmt::Debug + Send + Sync {
    /// Returns the name of the pool.
    fn pool(&self) -> &PoolName;

    /// Returns the id of the event with this number, for [`Subscription::subscribe`].
    fn event_id(&self, seq: u64) -> String;

    /// Polls for at most `max` further events. Returns `None` at the end: the pool was deleted or
    /// the server stops. A store delivers an event only once it is durable, and all events in their
    /// order or a resync in their place.
    fn poll_next(&mut self, context: &mut Context<'_>, max: usize) -> Poll<Option<FeedBatch>>;
}

/// The store's limit of subscribers is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySubscribers {
    /// The most subscribers at once.
    pub max: u64,
}

/// What a subscriber reads at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedBatch {
    /// The next events in their order, at least one.
    Events(Vec<FeedEvent>),
    /// The pool's counts after the event with the number `seq`, because events before it are
    /// missing. The next events are those after it.
    Resync {
        /// The number of the event.
        seq: u64,
        /// The time of the counts.
        at_ms: u64,
        /// The number of keys in each state.
        counts: KeyCounts,
    },
}

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
        /// The labels of the keys, in the same order; `None` where no key has one.
        labels: Option<Arc<[Option<Box<str>>]>>,
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
        /// The label of the key, if it has one.
        label: Option<Arc<str>>,
        /// When the lease expires.
        expires_at_ms: u64,
    },
    /// A key got a label, or lost it.
    Labelled {
        /// The key.
        key: KeyId,
        /// The label, if the key has one now.
        label: Option<Arc<str>>,
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
    /// The quarantine of a key.
    Quarantined {
        /// The key.
        key: KeyId,
        /// The key's state before.
        was: KeyState,
        /// The fencing token of the lease that this ended, if the key was leased.
        token: Option<u64>,
        /// The reason, if the client gave one.
        reason: Option<Arc<str>>,
    },
    /// A leased key is quarantined when its lease ends.
    Draining {
        /// The key.
        key: KeyId,
        /// The fencing token of the lease.
        token: u64,
        /// The reason, if the client gave one.
        reason: Option<Arc<str>>,
    },
    /// A draining key is not quarantined when its lease ends.
    DrainCancelled {
        /// The key.
        key: KeyId,
        /// The fencing token of the lease.
        token: u64,
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

//! The engine's API as data: the requests a client of the engine sends and the replies it gets.
//!
//! It knows nothing of HTTP, disks or clocks. All values are plain data, except
//! [`Reply::Subscription`], which carries a handle to a pool's live feed. Every engine answers the
//! same requests with the same replies.

mod kinds;

use crate::subscription::Subscription;
use keypeg_core::{
    BodyDigest, Borrower, Cursor, ImportOptions, KeyCounts, KeyId, KeyPage, KeyRef, KeyState,
    KeyView, KnownValues, LeaseId, LeaseView, NewKey, NewLabels, Policy, PolicyPatch, PoolActivity,
    PoolFilter, PoolName, QuarantineOptions, Refusal, ReleaseOptions, Secret,
};
pub use keypeg_fields::{GENERATE_MAX, PAGE_MAX, WAIT_MAX_MS};
use std::sync::Arc;

/// The party that sends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Any client of a server that has no access tokens configured.
    Anyone,
    /// The owner of a valid access token.
    Token(Arc<Caller>),
    /// The server itself, for example when it revokes a grant that no client received.
    Server,
}

impl Principal {
    /// Returns the namespace of this principal's Idempotency-Keys. A token that is renamed gets an
    /// empty namespace.
    pub fn name(&self) -> &str {
        match self {
            Self::Token(caller) => &caller.name,
            Self::Anyone | Self::Server => "",
        }
    }

    /// Returns the caller whose share of the store's time a request of this principal takes, where
    /// nothing else distinguishes its clients.
    pub fn caller_number(&self) -> CallerNumber {
        match self {
            Self::Token(caller) => CallerNumber(caller.borrower.id().0),
            Self::Anyone => CallerNumber::default(),
            Self::Server => CallerNumber(u64::MAX),
        }
    }

    /// Returns the borrower that this principal's leases count for; the anonymous one without a
    /// token.
    pub fn borrower(&self) -> Borrower {
        match self {
            Self::Token(caller) => caller.borrower,
            Self::Anyone | Self::Server => Borrower::default(),
        }
    }
}

/// The owner of an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    name: Box<str>,
    borrower: Borrower,
}

impl Caller {
    /// Creates the caller with this token name and this limit of concurrent leases. The name is
    /// its identity: another name is another caller.
    pub fn new(name: &str, leases_max: Option<u32>) -> Self {
        Self { name: name.into(), borrower: Borrower::new(name, leases_max) }
    }

    /// Returns the token's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the borrower that this caller's leases count for.
    pub fn borrower(&self) -> Borrower {
        self.borrower
    }
}

/// The number of a caller, for its share of a store's time: one for each access token, or for each
/// client network of a server without tokens. Two callers with the same number have one share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CallerNumber(pub u64);

/// One request to the engine.
#[derive(Clone, Debug)]
pub struct Request {
    /// The sender.
    pub by: Principal,
    /// The caller whose share of the store's time the request takes.
    pub caller: CallerNumber,
    /// Executes the call at most once: a repeated request with the same Idempotency-Key gets the
    /// first one's answer. It applies to [`Call::Generate`], [`Call::Import`] and
    /// [`Call::Acquire`]; a store ignores it for all other calls. Boxed, because few requests have
    /// it.
    pub idempotency: Option<Box<Idempotency>>,
    /// The operation.
    pub call: Call,
}

impl Request {
    /// Returns a request without an Idempotency-Key, on the account of its sender.
    pub fn new(by: Principal, call: Call) -> Self {
        Self { caller: by.caller_number(), by, idempotency: None, call }
    }
}

/// The Idempotency-Key of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The Idempotency-Key. Its namespace is the sender's, see [`Principal::name`].
    pub key: Box<str>,
    /// The digest that distinguishes this request from another one under the same key.
    pub body: BodyDigest,
    /// The network of the client's address, which the stored answer counts for if the sender has no
    /// token; 0 is unknown.
    pub network: u128,
}

impl Idempotency {
    /// Returns an Idempotency-Key of a client of an unknown network.
    pub fn new(key: &str, body: BodyDigest) -> Self {
        Self { key: key.into(), body, network: 0 }
    }
}

/// An operation of the engine. Durations are in milliseconds.
#[derive(Clone, Debug)]
pub enum Call {
    /// Returns one page of the pools, by name, as [`Reply::Pools`]. A page can be shorter than its
    /// limit although more pools follow.
    ListPools {
        /// The first name that the page may contain; `None` is the beginning.
        from: Option<PoolName>,
        /// The most pools to return, 1 to [`PAGE_MAX`].
        limit: usize,
        /// The pools to list; all pools when `None`.
        filter: Option<Arc<PoolFilter>>,
    },
    /// Creates a pool or changes its policy; the reply is [`Reply::Pool`].
    PutPool {
        /// The pool's name.
        pool: PoolName,
        /// The fields to change; a new pool starts from [`Policy::default`]. Boxed, because every
        /// request would have room for it.
        patch: Box<PolicyPatch>,
    },
    /// Like [`Call::PutPool`], if the pool exists or does not, as `exists` says. If it does not
    /// although it should, the call is refused as for an unknown pool. If it exists although it
    /// should not, nothing changes, and the reply shows the pool as not created.
    PutPoolIf {
        /// The pool's name.
        pool: PoolName,
        /// The fields to change; a new pool starts from [`Policy::default`]. Boxed, because every
        /// request would have room for it.
        patch: Box<PolicyPatch>,
        /// Whether the pool must exist.
        exists: bool,
    },
    /// Returns one pool with its counts, as [`Reply::Pool`].
    GetPool {
        /// The pool's name.
        pool: PoolName,
    },
    /// Deletes a pool with all its keys; the reply is [`Reply::Done`].
    DeletePool {
        /// The pool's name.
        pool: PoolName,
    },
    /// Creates keys with random values, all or none; the reply is [`Reply::Keys`].
    Generate {
        /// The pool.
        pool: PoolName,
        /// How many, 1 to [`GENERATE_MAX`].
        count: u32,
        /// The labels of the keys.
        labels: NewLabels,
    },
    /// Creates keys with given values, all or none; the reply is [`Reply::Keys`].
    Import {
        /// The pool.
        pool: PoolName,
        /// The values, at most [`GENERATE_MAX`].
        values: Vec<Secret>,
        /// Whether the keys need keep-alives, and whether retired values are allowed.
        options: ImportOptions,
        /// The labels of the keys.
        labels: NewLabels,
    },
    /// Leases a random available key; the reply is [`Reply::Granted`].
    Acquire {
        /// The pool.
        pool: PoolName,
        /// The lease's TTL; `None` takes the policy's.
        ttl_ms: Option<u64>,
        /// The holder's name, as the client gives it.
        holder: Option<Box<str>>,
        /// How long to wait in the wait queue when no key is available, at most [`WAIT_MAX_MS`].
        wait_ms: u64,
    },
    /// Ends a lease whose grant no client received; the reply is [`Reply::Done`]. The lane itself
    /// sends it, as [`Principal::Server`].
    RevokeUndelivered {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
    },
    /// Subscribes to the events of a pool; the reply is [`Reply::Subscription`].
    Subscribe {
        /// The pool.
        pool: PoolName,
    },
    /// Releases a lease; the reply is [`Reply::Released`].
    Release {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
        /// What becomes of the key, as its holder reports it.
        options: ReleaseOptions,
    },
    /// Extends a lease; the reply is [`Reply::Renewed`].
    Renew {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
        /// The TTL from now on; `None` takes the policy's.
        ttl_ms: Option<u64>,
    },
    /// Returns one key's value, as [`Reply::Revealed`].
    Reveal {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Makes a key available, no matter who holds it; the reply is [`Reply::KeyReleased`].
    ForceRelease {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Takes a key out of rotation; the reply is [`Reply::KeyQuarantined`].
    QuarantineKey {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
        /// When the quarantine begins, and why.
        options: QuarantineOptions,
    },
    /// Puts a quarantined key back, or cancels its draining; the reply is [`Reply::Key`].
    EndQuarantine {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Deletes a key in any state; the reply is [`Reply::Released`].
    DeleteKey {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Extends one key's life; the reply is [`Reply::KeptAlive`].
    KeepAlive {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Extends the life of the listed keys; the reply is [`Reply::KeptAliveMany`].
    KeepAliveMany {
        /// The pool.
        pool: PoolName,
        /// The keys, at most [`GENERATE_MAX`].
        keys: Vec<KeyId>,
    },
    /// Extends the life of all keys of a pool; the reply is [`Reply::KeptAliveMany`].
    KeepAliveAll {
        /// The pool.
        pool: PoolName,
    },
    /// Returns one page of keys without their values, as [`Reply::Page`].
    ListKeys {
        /// The pool.
        pool: PoolName,
        /// The state to filter by; `None` lists all keys.
        state: Option<KeyState>,
        /// The label to filter by; `None` lists all keys.
        label: Option<Box<str>>,
        /// The most keys to return, 1 to [`PAGE_MAX`].
        limit: usize,
        /// Where the page starts; `None` is the beginning of the listing.
        cursor: Option<Cursor>,
    },
    /// Returns one key without its value, as [`Reply::Key`].
    GetKey {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Gives a key a label, or removes it; the reply is [`Reply::Key`].
    SetLabel {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
        /// The label; an empty one is none.
        label: Option<Box<str>>,
    },
}

/// The engine's answer to a request. All it reports is durable. Instants are wall time in
/// milliseconds.
#[derive(Clone, Debug)]
pub enum Reply {
    /// One page of the pools, by name.
    Pools(PoolPage),
    /// One pool.
    Pool {
        /// The pool.
        pool: Box<PoolView>,
        /// Whether this call created it.
        created: bool,
    },
    /// The operation is complete.
    Done,
    /// A lease has ended, or a key was deleted with its lease.
    Released {
        /// The holder of the lease that ended, as its request named it.
        holder: Option<Box<str>>,
    },
    /// The created keys, in the order of the request.
    Keys(Vec<NewKey>),
    /// A new lease.
    Granted {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: Box<LeaseView>,
        /// The key's value.
        value: Secret,
        /// How long the request waited, in milliseconds, rounded down.
        waited_ms: u64,
        /// Whether the answer was sent before under the same Idempotency-Key. Such a grant is not
        /// revoked when no client receives it.
        redelivered: bool,
    },
    /// A lease with its new end.
    Renewed(Box<LeaseView>),
    /// A key's value.
    Revealed {
        /// The key.
        id: KeyId,
        /// The key's value.
        value: Secret,
    },
    /// The outcome of a force-release.
    KeyReleased {
        /// Whether the key's state changed: false when it was available already.
        released: bool,
        /// The holder of the lease that ended, as its request named it.
        holder: Option<Box<str>>,
    },
    /// The outcome of a quarantine.
    KeyQuarantined {
        /// The key.
        key: Box<KeyView>,
        /// The holder of the lease that ended, as its request named it.
        holder: Option<Box<str>>,
    },
    /// A key kept alive.
    KeptAlive {
        /// The key.
        id: KeyId,
        /// The key's new end; `None` means that it does not expire.
        expires_at_ms: Option<u64>,
    },
    /// Keys kept alive.
    KeptAliveMany {
        /// The number of distinct keys.
        kept: u64,
        /// The requested keys that do not exist.
        missing: Vec<KeyId>,
    },
    /// One page of a listing.
    Page(KeyPage),
    /// One key.
    Key(Box<KeyView>),
    /// A handle to a pool's feed.
    Subscription(Arc<dyn Subscription>),
    /// A refusal with its reason; nothing was changed.
    Refused(RequestError),
}

/// The reason for a refusal. In all cases nothing was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The pools refuse the request. After [`Refusal::Settling`] the client should retry in a
    /// second.
    Refused(Refusal),
    /// Several values of an import are known: [`Refusal::KeyExists`] with all that were found. A store
    /// may answer with the first one alone.
    KeysExist(Box<KnownValues>),
    /// A queue or limit of the engine is full; the client should retry in a second.
    Overloaded,
    /// The engine is stopping.
    ShuttingDown,
    /// The disk is full.
    StorageFull,
    /// This server does not own the shard of the pool: nothing was applied, and another server may
    /// answer.
    NotOwner,
    /// This server has lost the shard of the pool while it made the outcome durable: the request was
    /// applied or not. Its Idempotency-Key shows which.
    OutcomeUnknown,
}

/// A page of pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolPage {
    /// The pools, sorted by name.
    pub pools: Vec<PoolView>,
    /// Where the next page starts; `None` after the last page.
    pub next: Option<PoolName>,
}

/// A pool as clients see it. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// The pool's name.
    pub name: PoolName,
    /// The pool's policy.
    pub policy: Policy,
    /// The number of keys in each state.
    pub counts: KeyCounts,
    /// The number of requests in the wait queue.
    pub waiting: u64,
    /// What has happened in the pool since the start of the store. It is not durable.
    pub activity: PoolActivity,
    /// When the next lease expires or the next rest ends.
    pub next_hold_end_at_ms: Option<u64>,
    /// When the next key is purged, unless it is kept alive.
    pub next_purge_at_ms: Option<u64>,
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        let is_full = refusal == Refusal::StorageFull;
        Self::Refused(if is_full {
            RequestError::StorageFull
        } else {
            RequestError::Refused(refusal)
        })
    }
}

//! The seam: what can be asked of an engine, and what it answers, as data.
//!
//! Every engine answers the same requests in the same words. Nothing here knows of HTTP, of a
//! disk or of time.

use crate::feed::Subscription;
use keypeg_core::{
    BodyDigest, Borrower, Cursor, KeyCounts, KeyId, KeyPage, KeyRef, KeyState, KeyView, LeaseId,
    LeaseView, NewKey, Policy, PolicyPatch, PoolName, Refusal, ReleaseOptions, Secret,
};
use std::sync::Arc;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Whoever reached a server that has no access tokens configured.
    Anyone,
    /// Whoever showed an access token.
    Token(Arc<Caller>),
    /// The server itself: a grant nobody received is taken back in its name.
    Server,
}

impl Principal {
    /// Whose Idempotency-Keys are whose: a token that gets another name has new ones.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Token(caller) => &caller.name,
            Self::Anyone | Self::Server => "",
        }
    }

    /// In whose name keys are lent: nobody's without a token.
    pub(crate) fn borrower(&self) -> Borrower {
        match self {
            Self::Token(caller) => caller.borrower,
            Self::Anyone | Self::Server => Borrower::default(),
        }
    }
}

/// Who has an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    name: Box<str>,
    borrower: Borrower,
}

impl Caller {
    /// Whoever goes by that name, and how many leases it may have at once: another name is another
    /// caller.
    pub fn new(name: &str, leases_max: Option<u32>) -> Self {
        Self { name: name.into(), borrower: Borrower::new(name, leases_max) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// In whose name it is lent to.
    pub fn borrower(&self) -> Borrower {
        self.borrower
    }
}

/// One thing asked of the engine, by somebody.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub by: Principal,
    /// What.
    pub call: Call,
}

/// What can be asked. Lengths are in milliseconds.
#[derive(Clone, Debug)]
pub enum Call {
    /// All pools, by name: answered by [`Reply::Pools`].
    ListPools,
    /// Make a pool or change its policy: [`Reply::Pool`].
    PutPool {
        /// Its name.
        pool: PoolName,
        /// What to change; a new pool starts from the default policy.
        patch: PolicyPatch,
    },
    /// One pool with its counts: [`Reply::Pool`].
    GetPool {
        /// Its name.
        pool: PoolName,
    },
    /// Remove a pool with all its keys: [`Reply::Done`].
    DeletePool {
        /// Its name.
        pool: PoolName,
    },
    /// Make keys, all or none: [`Reply::Keys`].
    Generate {
        /// The pool.
        pool: PoolName,
        /// How many, 1 to [`GENERATE_MAX`].
        count: u32,
    },
    /// Bring values in, all or none: [`Reply::Keys`].
    Import {
        /// The pool.
        pool: PoolName,
        /// The values, at most [`GENERATE_MAX`].
        values: Vec<Secret>,
    },
    /// Lend a random free key: [`Reply::Granted`].
    Acquire {
        /// The pool.
        pool: PoolName,
        /// How long; the policy's length when left out.
        ttl_ms: Option<u64>,
        /// Who says to hold it.
        holder: Option<Box<str>>,
        /// How long to wait in line where none is free, at most [`WAIT_MAX_MS`].
        wait_ms: u64,
    },
    /// What is in it, once: asked again under the same Idempotency-Key it is answered as before.
    /// That is [`Call::Generate`], [`Call::Import`] or [`Call::Acquire`].
    Idempotent {
        /// The Idempotency-Key.
        key: Box<str>,
        /// Tells what is asked from what else could be.
        body: BodyDigest,
        /// What is asked.
        call: Box<Call>,
    },
    /// Take a grant back that nobody received: [`Reply::Done`].
    RevokeUndelivered {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
    },
    /// Be told what happens to a pool: [`Reply::Subscription`].
    Subscribe {
        /// The pool.
        pool: PoolName,
    },
    /// Leave the line: whoever asked with this call's call_id has gone. Never answered itself.
    CancelWait,
    /// Give a lease's key back: [`Reply::Done`].
    Release {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
        /// What its holder says of the key.
        verdict: ReleaseOptions,
    },
    /// Give a lease more time: [`Reply::Renewed`].
    Renew {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: LeaseId,
        /// How long from now; the policy's length when left out.
        ttl_ms: Option<u64>,
    },
    /// One key's value: [`Reply::Revealed`].
    Reveal {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Put a key back whoever holds it: [`Reply::KeyReleased`].
    ForceRelease {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Delete a key in any state: [`Reply::Done`].
    DeleteKey {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Keep one key alive: [`Reply::KeptAlive`].
    KeepAlive {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
    /// Keep many keys alive: [`Reply::KeptAliveMany`].
    KeepAliveMany {
        /// The pool.
        pool: PoolName,
        /// The keys, at most [`GENERATE_MAX`].
        keys: Vec<KeyId>,
    },
    /// Keep every key of a pool alive: [`Reply::KeptAliveMany`].
    KeepAliveAll {
        /// The pool.
        pool: PoolName,
    },
    /// Some keys without their values: [`Reply::Page`].
    ListKeys {
        /// The pool.
        pool: PoolName,
        /// Of which state; of all when left out.
        state: Option<KeyState>,
        /// How many at most, 1 to [`PAGE_MAX`].
        limit: usize,
        /// Where the listing goes on; it begins when left out.
        cursor: Option<Cursor>,
    },
    /// One key without its value: [`Reply::Key`].
    GetKey {
        /// The pool.
        pool: PoolName,
        /// The key.
        key: KeyRef,
    },
}

impl Call {
    /// Tells whether its answer can be long in coming, so that the engine must be told when nobody
    /// is left to take it.
    pub fn may_wait(&self) -> bool {
        matches!(self.itself(), Self::Acquire { wait_ms: 1.., .. })
    }

    /// What is asked, whether or not under an Idempotency-Key.
    pub(crate) fn itself(&self) -> &Self {
        if let Self::Idempotent { call, .. } = self { call } else { self }
    }

    /// Tells whether this asks for something new, which is refused first when room is short;
    /// giving back and keeping alive have room of their own.
    pub(crate) fn is_new_work(&self) -> bool {
        match self {
            Self::ListPools
            | Self::PutPool { .. }
            | Self::GetPool { .. }
            | Self::DeletePool { .. }
            | Self::Generate { .. }
            | Self::Import { .. }
            | Self::Acquire { .. }
            | Self::Idempotent { .. }
            | Self::Subscribe { .. }
            | Self::ListKeys { .. }
            | Self::GetKey { .. }
            | Self::Reveal { .. } => true,
            Self::CancelWait
            | Self::RevokeUndelivered { .. }
            | Self::Release { .. }
            | Self::Renew { .. }
            | Self::ForceRelease { .. }
            | Self::DeleteKey { .. }
            | Self::KeepAlive { .. }
            | Self::KeepAliveMany { .. }
            | Self::KeepAliveAll { .. } => false,
        }
    }
}

/// The most keys one call makes, imports or keeps alive.
pub const GENERATE_MAX: u32 = 10_000;

/// The longest wait for a key, in milliseconds.
pub const WAIT_MAX_MS: u64 = 300_000;

/// The most keys one page of a listing holds.
pub const PAGE_MAX: usize = 1_000;

/// What an engine answers. What it shows is durable. Instants are wall time in milliseconds.
#[derive(Clone, Debug)]
pub enum Reply {
    /// All pools, by name.
    Pools(Vec<PoolView>),
    /// One pool.
    Pool {
        /// The pool.
        pool: Box<PoolView>,
        /// Whether this call made it.
        made: bool,
    },
    /// It is done.
    Done,
    /// The keys made or brought in, in order.
    Keys(Vec<NewKey>),
    /// A key lent.
    Granted {
        /// The pool.
        pool: PoolName,
        /// The lease.
        lease: Box<LeaseView>,
        /// The key's value.
        value: Secret,
        /// How long it was waited for, in milliseconds; never more than that.
        waited_ms: u64,
        /// Whether it was told before, under the same Idempotency-Key: then it is not taken back
        /// when nobody receives it.
        again: bool,
    },
    /// A lease with its new end.
    Renewed(Box<LeaseView>),
    /// A key's value.
    Revealed {
        /// The key.
        id: KeyId,
        /// Its value.
        value: Secret,
    },
    /// Whether putting a key back changed anything.
    KeyReleased {
        /// False when it was free already.
        released: bool,
    },
    /// A key kept alive.
    KeptAlive {
        /// The key.
        id: KeyId,
        /// Its new end; `None` never.
        expires_at_ms: Option<u64>,
    },
    /// Keys kept alive.
    KeptAliveMany {
        /// How many distinct keys.
        kept: u64,
        /// Those that are not there.
        missing: Vec<KeyId>,
    },
    /// Some keys of a listing.
    Page(KeyPage),
    /// One key.
    Key(Box<KeyView>),
    /// What follows a pool.
    Subscription(Subscription),
    /// No, and why; nothing was changed.
    Refused(RequestError),
}

/// Why an engine says no. All of these mean: nothing was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The pools said so. [`Refusal::Settling`] asks to come again in a second.
    Refused(Refusal),
    /// More was asked than there is room for: come again in a second.
    Overloaded,
    /// The engine is stopping.
    ShuttingDown,
    /// The disk is full.
    StorageFull,
}

/// A pool as it is shown. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    /// Its name.
    pub name: PoolName,
    /// What it allows.
    pub policy: Policy,
    /// How many keys stand where.
    pub counts: KeyCounts,
    /// Requests that wait for a key.
    pub waiting: u64,
    /// When the next leased or resting key comes back by itself.
    pub next_hold_end_at_ms: Option<u64>,
    /// When the next key is purged if nobody keeps it alive.
    pub next_purge_at_ms: Option<u64>,
}

impl From<Refusal> for Reply {
    fn from(denied: Refusal) -> Self {
        Self::Refused(RequestError::Refused(denied))
    }
}

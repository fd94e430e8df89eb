//! Calls with the type of their answer: which call is answered by which variant of [`Reply`] stands
//! here only.
//!
//! A lane and a store know [`Call`] and [`Reply`] alone; the types are for the client of a store. A
//! reply of another variant is a defect of the store, and panics.

use crate::request::{Call, PoolPage, PoolView, Reply, RequestError};
use crate::subscription::Subscription;
use keypeg_core::{
    ForceReleased, ImportOptions, KeptAlive, KeptAliveMany, KeyId, KeyPage, KeyQuarantined, KeyRef,
    KeyView, LeaseId, LeaseView, ListOptions, NewKey, NewLabels, PolicyPatch, PoolListOptions,
    PoolName, QuarantineOptions, ReleaseOptions, Released, Secret,
};
use std::marker::PhantomData;
use std::sync::Arc;

/// A call whose answer is an `A`.
#[derive(Debug)]
pub struct TypedCall<A> {
    call: Call,
    answer: PhantomData<fn() -> A>,
}

impl<A: Answer> TypedCall<A> {
    fn new(call: Call) -> Self {
        Self { call, answer: PhantomData }
    }

    /// Returns the call, to be submitted.
    pub fn into_call(self) -> Call {
        self.call
    }
}

impl TypedCall<Vec<NewKey>> {
    /// Gives the new keys labels; by default they have none.
    #[must_use]
    pub fn with_labels(mut self, new: NewLabels) -> Self {
        if let Call::Generate { labels, .. } | Call::Import { labels, .. } = &mut self.call {
            *labels = new;
        }
        self
    }
}

/// The content of a reply that is not a refusal.
pub trait Answer: Sized {
    /// Takes the answer from a reply of its own variant; `None` for any other.
    fn from_variant(reply: Reply) -> Option<Self>;

    /// Takes the answer from the reply to its call.
    ///
    /// # Panics
    /// If the store answered another call.
    fn of(reply: Reply) -> Result<Self, RequestError> {
        if let Reply::Refused(refusal) = reply {
            return Err(refusal);
        }
        let answer = Self::from_variant(reply);
        Ok(answer.expect("invariant: a store answers each call with its own reply variant"))
    }
}

/// Implements [`Answer`] for a type by the pattern of its reply and the value of its fields.
macro_rules! answers {
    ($($answer:ty: $reply:pat => $value:expr;)*) => {
        $(impl Answer for $answer {
            fn from_variant(reply: Reply) -> Option<Self> {
                if let $reply = reply { Some($value) } else { None }
            }
        })*
    };
}

answers! {
    (): Reply::Done => ();
    Released: Reply::Released { holder } => Released { holder };
    PoolPage: Reply::Pools(page) => page;
    Box<PoolView>: Reply::Pool { pool, .. } => pool;
    PoolChange: Reply::Pool { pool, created } => PoolChange { pool, created };
    Vec<NewKey>: Reply::Keys(keys) => keys;
    LeaseGrant: Reply::Granted { pool, lease, value, waited_ms, redelivered } =>
        LeaseGrant { pool, lease, value, waited_ms, redelivered };
    Box<LeaseView>: Reply::Renewed(lease) => lease;
    Revealed: Reply::Revealed { id, value } => Revealed { id, value };
    ForceReleased: Reply::KeyReleased { released, holder } => ForceReleased { released, holder };
    KeyQuarantined: Reply::KeyQuarantined { key, holder } => KeyQuarantined { key: *key, holder };
    KeptAlive: Reply::KeptAlive { id, expires_at_ms } => KeptAlive { id, expires_at_ms };
    KeptAliveMany: Reply::KeptAliveMany { kept, missing } => KeptAliveMany { kept, missing };
    KeyPage: Reply::Page(page) => page;
    Box<KeyView>: Reply::Key(key) => key;
    Arc<dyn Subscription>: Reply::Subscription(subscription) => subscription;
}

/// The answer of [`Call::PutPool`] and [`Call::PutPoolIf`].
#[derive(Clone, Debug)]
pub struct PoolChange {
    /// The pool.
    pub pool: Box<PoolView>,
    /// Whether this call created it.
    pub created: bool,
}

/// The answer of [`Call::Acquire`]: see [`Reply::Granted`].
#[derive(Clone, Debug)]
pub struct LeaseGrant {
    /// The pool.
    pub pool: PoolName,
    /// The lease.
    pub lease: Box<LeaseView>,
    /// The key's value.
    pub value: Secret,
    /// How long the request waited, in milliseconds, rounded down.
    pub waited_ms: u64,
    /// Whether the answer was sent before under the same Idempotency-Key.
    pub redelivered: bool,
}

/// The answer of [`Call::Reveal`].
#[derive(Clone, Debug)]
pub struct Revealed {
    /// The key.
    pub id: KeyId,
    /// The key's value.
    pub value: Secret,
}

/// What an acquire requests; the default is the policy's TTL, no holder and no wait.
#[derive(Clone, Debug, Default)]
pub struct AcquireTerms {
    /// The lease's TTL in milliseconds; `None` takes the policy's.
    pub ttl_ms: Option<u64>,
    /// The holder's name, as the client gives it.
    pub holder: Option<Box<str>>,
    /// How long to wait for a key, in milliseconds.
    pub wait_ms: u64,
}

impl Call {
    /// Returns a [`Call::ListPools`].
    pub fn list_pools(options: PoolListOptions) -> TypedCall<PoolPage> {
        let PoolListOptions { from, limit, filter } = options;
        TypedCall::new(Self::ListPools { from, limit, filter })
    }

    /// Returns a [`Call::PutPool`].
    pub fn put_pool(pool: PoolName, patch: PolicyPatch) -> TypedCall<PoolChange> {
        TypedCall::new(Self::PutPool { pool, patch: Box::new(patch) })
    }

    /// Returns a [`Call::PutPoolIf`].
    pub fn put_pool_if(pool: PoolName, patch: PolicyPatch, exists: bool) -> TypedCall<PoolChange> {
        TypedCall::new(Self::PutPoolIf { pool, patch: Box::new(patch), exists })
    }

    /// Returns a [`Call::GetPool`].
    pub fn get_pool(pool: PoolName) -> TypedCall<Box<PoolView>> {
        TypedCall::new(Self::GetPool { pool })
    }

    /// Returns a [`Call::DeletePool`].
    pub fn delete_pool(pool: PoolName) -> TypedCall<()> {
        TypedCall::new(Self::DeletePool { pool })
    }

    /// Returns a [`Call::Generate`].
    pub fn generate(pool: PoolName, count: u32) -> TypedCall<Vec<NewKey>> {
        TypedCall::new(Self::Generate { pool, count, labels: NewLabels::None })
    }

    /// Returns a [`Call::Import`].
    pub fn import(
        pool: PoolName,
        values: Vec<Secret>,
        options: ImportOptions,
    ) -> TypedCall<Vec<NewKey>> {
        let labels = NewLabels::None;
        TypedCall::new(Self::Import { pool, values, options, labels })
    }

    /// Returns a [`Call::Acquire`].
    pub fn acquire(pool: PoolName, terms: AcquireTerms) -> TypedCall<LeaseGrant> {
        let AcquireTerms { ttl_ms, holder, wait_ms } = terms;
        TypedCall::new(Self::Acquire { pool, ttl_ms, holder, wait_ms })
    }

    /// Returns a [`Call::Subscribe`].
    pub fn subscribe(pool: PoolName) -> TypedCall<Arc<dyn Subscription>> {
        TypedCall::new(Self::Subscribe { pool })
    }

    /// Returns a [`Call::Release`].
    pub fn release(pool: PoolName, lease: LeaseId, options: ReleaseOptions) -> TypedCall<Released> {
        TypedCall::new(Self::Release { pool, lease, options })
    }

    /// Returns a [`Call::Renew`].
    pub fn renew(pool: PoolName, lease: LeaseId, ttl_ms: Option<u64>) -> TypedCall<Box<LeaseView>> {
        TypedCall::new(Self::Renew { pool, lease, ttl_ms })
    }

    /// Returns a [`Call::Reveal`].
    pub fn reveal(pool: PoolName, key: KeyRef) -> TypedCall<Revealed> {
        TypedCall::new(Self::Reveal { pool, key })
    }

    /// Returns a [`Call::ForceRelease`].
    pub fn force_release(pool: PoolName, key: KeyRef) -> TypedCall<ForceReleased> {
        TypedCall::new(Self::ForceRelease { pool, key })
    }

    /// Returns a [`Call::QuarantineKey`].
    pub fn quarantine_key(
        pool: PoolName,
        key: KeyRef,
        options: QuarantineOptions,
    ) -> TypedCall<KeyQuarantined> {
        TypedCall::new(Self::QuarantineKey { pool, key, options })
    }

    /// Returns a [`Call::EndQuarantine`].
    pub fn end_quarantine(pool: PoolName, key: KeyRef) -> TypedCall<Box<KeyView>> {
        TypedCall::new(Self::EndQuarantine { pool, key })
    }

    /// Returns a [`Call::DeleteKey`].
    pub fn delete_key(pool: PoolName, key: KeyRef) -> TypedCall<Released> {
        TypedCall::new(Self::DeleteKey { pool, key })
    }

    /// Returns a [`Call::KeepAlive`].
    pub fn keep_alive(pool: PoolName, key: KeyRef) -> TypedCall<KeptAlive> {
        TypedCall::new(Self::KeepAlive { pool, key })
    }

    /// Returns a [`Call::KeepAliveMany`].
    pub fn keep_alive_many(pool: PoolName, keys: Vec<KeyId>) -> TypedCall<KeptAliveMany> {
        TypedCall::new(Self::KeepAliveMany { pool, keys })
    }

    /// Returns a [`Call::KeepAliveAll`].
    pub fn keep_alive_all(pool: PoolName) -> TypedCall<KeptAliveMany> {
        TypedCall::new(Self::KeepAliveAll { pool })
    }

    /// Returns a [`Call::ListKeys`].
    pub fn list_keys(pool: PoolName, options: ListOptions) -> TypedCall<KeyPage> {
        let ListOptions { state, label, limit, cursor } = options;
        TypedCall::new(Self::ListKeys { pool, state, label, limit, cursor })
    }

    /// Returns a [`Call::SetLabel`].
    pub fn set_label(
        pool: PoolName,
        key: KeyRef,
        label: Option<Box<str>>,
    ) -> TypedCall<Box<KeyView>> {
        TypedCall::new(Self::SetLabel { pool, key, label })
    }

    /// Returns a [`Call::GetKey`].
    pub fn get_key(pool: PoolName, key: KeyRef) -> TypedCall<Box<KeyView>> {
        TypedCall::new(Self::GetKey { pool, key })
    }
}

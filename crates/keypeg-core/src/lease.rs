//! A lease as a client requests, receives and sees it.
//!
//! How a pool stores a running lease is the business of `holds.rs`.

use crate::borrowers::Borrower;
use crate::ids::{KeyId, LeaseId};
use crate::numbers::WaiterId;
use crate::policy::OutOfRange;
use crate::secret::Secret;
use keypeg_fields::{Field, REST};

/// The terms that an acquire requests.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcquireOptions<'a> {
    /// The duration of the lease; the policy's TTL when `None`.
    pub ttl_ms: Option<u64>,
    /// A name for the holder, which is only shown.
    pub holder: Option<&'a str>,
    /// The borrower that the lease counts for.
    pub borrower: Borrower,
}

/// How long an acquire may wait, and the number by which its outcome is reported.
#[derive(Clone, Copy, Debug)]
pub struct WaitOptions {
    /// The caller's number for the request.
    pub waiter_id: WaiterId,
    /// The longest wait in milliseconds; 0 means that the request does not wait.
    pub wait_ms: u64,
}

/// What a holder requests for the key when it releases a lease; by default nothing special.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReleaseOptions {
    /// How long the key rests, in milliseconds; as the policy said at the grant when `None`.
    pub rest_ms: Option<u64>,
    /// Whether the key is quarantined, until a call frees it, instead of resting for a time.
    pub quarantine: bool,
    /// The reason, shown while the key rests or is quarantined.
    pub reason: Option<Box<str>>,
}

impl ReleaseOptions {
    /// Returns an error if the rest is out of its range.
    pub fn check(&self) -> Result<(), OutOfRange> {
        match self.rest_ms {
            Some(ms) if !REST.allows(ms) => Err(OutOfRange { field: Field::Seconds(&REST) }),
            _ => Ok(()),
        }
    }
}

/// A lease that an acquire returns at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub lease: LeaseView,
    /// The key's value.
    pub value: Secret,
    /// Whether an earlier request with the same Idempotency-Key was granted this lease.
    pub redelivered: bool,
}

/// The outcome of a call that ends a lease by its id, or deletes a key with its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// The holder of the lease that ended, as its request named it.
    pub holder: Option<Box<str>>,
}

/// The outcome of a force-release.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForceReleased {
    /// Whether the key's state changed: false when it was available already.
    pub released: bool,
    /// The holder of the lease that ended, as its request named it.
    pub holder: Option<Box<str>>,
}

/// A running lease as it is shown. Instants are wall time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The lease's id: only its holder may see it.
    pub id: LeaseId,
    /// The leased key.
    pub key_id: KeyId,
    /// The fencing token.
    pub token: u64,
    /// The holder, as the request named it.
    pub holder: Option<Box<str>>,
    /// The label of the key, if it has one.
    pub label: Option<Box<str>>,
    /// The instant of the grant.
    pub granted_at_ms: u64,
    /// The end of the lease.
    pub expires_at_ms: u64,
    /// The time left, in milliseconds.
    pub expires_in_ms: u64,
    /// When the key is purged without a keep-alive; `None` never.
    pub key_expires_at_ms: Option<u64>,
}

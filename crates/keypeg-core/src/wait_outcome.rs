//! The outcome of a wait for a key, as the caller drains it after a step.

use crate::lease::LeaseView;
use crate::numbers::WaiterId;
use crate::policy::PoolName;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// How the wait of a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitOutcome {
    /// The waiting request.
    pub waiter_id: WaiterId,
    /// The granted lease, or why the request was refused.
    pub outcome: Result<GrantedLease, Refusal>,
}

/// A lease that was granted to a waiting request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedLease {
    /// The pool.
    pub pool: PoolName,
    /// The lease.
    pub lease: LeaseView,
    /// The key's value.
    pub value: Secret,
    /// The duration of the wait in milliseconds, rounded down.
    pub waited_ms: u64,
}

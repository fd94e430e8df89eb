//! The problems of a server that shares its pools with others.
//!
//! They say whether the request was applied: only then can a client send a change once more.

use super::Problem;
use keypeg_client::{Code, Outcome};

impl Problem {
    /// This server does not serve the shard of the pool. Nothing was applied.
    pub(in crate::http) fn not_owner() -> Self {
        let detail = "This server does not serve the pool any more, and another server forwarded \
                      the request here. Send it again.";
        Self::new(Code::NotOwner, detail).retry_after_ms(1_000)
    }

    /// The pools are in a store that several servers share.
    pub(in crate::http) fn backup_of_shared_pools() -> Self {
        let detail = "The pools are in a store that several servers share, which keeps every \
                      acknowledged change. Back up that store with its own tools.";
        Self::new(Code::BackupUnsupported, detail)
    }

    /// No server of the pool was found, or the body of the request is too large to be sent to
    /// another one after the first. Nothing was applied.
    pub(in crate::http) fn no_owner() -> Self {
        let detail = "No server serves the pool at the moment: another server takes it over, or \
                      cannot be reached. Try again later.";
        Self::new(Code::NoOwner, detail).retry_after_ms(1_000)
    }

    /// The server that handled the request lost the pool, or the connection to it broke: the request
    /// was applied or not.
    pub(in crate::http) fn owner_lost() -> Self {
        let detail = "The server of the pool was lost while it handled this request, which may be \
                      applied. Send it again with the same Idempotency-Key, or look at the state \
                      of the pool first.";
        let mut problem = Self::new(Code::OwnerLost, detail).retry_after_ms(1_000);
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }
}

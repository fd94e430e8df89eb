//! The problems of a server that shares its pools with others.
//!
//! They say whether the request was applied: only then can a client send a change once more.

use super::Problem;
use keypeg_client::{Code, Outcome};

impl Problem {
    /// This server does not serve the shard of the pool. Nothing was applied.
    pub(in crate::http) fn not_owner() -> Self {
        let detail = "No server serves the pool at the moment. Try again later.";
        Self::new(Code::ShuttingDown, detail).retry_after_ms(1_000)
    }

    /// The server that handled the request lost the pool meanwhile: the request was applied or not.
    pub(in crate::http) fn owner_lost() -> Self {
        let detail =
            "The server has lost the pool to another server while it handled this request.";
        let mut problem = Self::new(Code::ShuttingDown, detail).retry_after_ms(1_000);
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }
}

//! The problems of a server that shares its pools with others.
//!
//! They say whether the request was applied: only then can a client send a change once more.

use super::Problem;
use keypeg_client::{Code, Outcome};
use keypeg_store::MoveError;
use std::time::Duration;

impl Problem {
    /// This server does not serve the shard of the pool. Nothing was applied.
    pub(in crate::http) fn not_owner() -> Self {
        let detail = "This server does not serve the pool any more, and another server forwarded \
                      the request here. Send it again.";
        Self::new(Code::NotOwner, detail).retry_after_ms(1_000)
    }

    /// No server of the pool was found, or the body of the request is too large to be sent to
    /// another one after the first. Nothing was applied.
    pub(in crate::http) fn no_owner() -> Self {
        let detail = "No server serves the pool at the moment: another server takes it over, or \
                      cannot be reached. Try again later.";
        Self::new(Code::NoOwner, detail).retry_after_ms(1_000)
    }

    /// This server cannot connect to the server that has the pool, or that should take it over. Nothing
    /// was applied.
    pub(in crate::http) fn owner_unreachable(server: &str) -> Self {
        let detail = format!(
            "This server cannot reach the server {server}, which has the pool or takes it over: GET \
             /v1/cluster shows why. Try again later, or at another server."
        );
        Self::new(Code::NoOwner, detail).retry_after_ms(1_000)
    }

    /// The store has not answered for longer than requests wait for it.
    pub(in crate::http) fn store_silent(silent: Duration) -> Self {
        let detail = format!(
            "The store has not answered a heartbeat of this server for {} s. GET /v1/cluster and the \
             log of this server show why.",
            silent.as_secs()
        );
        Self::new(Code::NoOwner, detail).retry_after_ms(1_000)
    }

    /// Shards have no owner, for longer than requests wait for one.
    pub(in crate::http) fn shards_without_owner(shards: &[usize]) -> Self {
        let shards: Vec<_> = shards.iter().map(ToString::to_string).collect();
        let detail = format!(
            "This server knows of no server that serves the shards {}. GET /v1/cluster shows why.",
            shards.join(", ")
        );
        Self::new(Code::NoOwner, detail).retry_after_ms(1_000)
    }

    /// The server has all pools alone.
    pub(in crate::http) fn no_cluster() -> Self {
        let detail = "This server has all pools alone: it was started without --store, so there are \
                      no other servers and no shards.";
        Self::new(Code::NoCluster, detail)
    }

    /// A move did not begin. `live` are the names of the live servers.
    pub(in crate::http) fn not_moved(error: &MoveError, live: &[String]) -> Self {
        let detail = match error {
            MoveError::UnknownShard { last, .. } => {
                return Self::out_of_range("shard", &format!("0..{last}"));
            }
            MoveError::UnknownServer(_) => {
                let allowed = format!("the name of a live server: {}", live.join(", "));
                return Self::out_of_range("server", &allowed);
            }
            MoveError::NotOwner(_) => return Self::not_owner(),
            MoveError::NotReady { shard, server } => format!(
                "The server {server} has not read the log of shard {shard} to its end. Try again when \
                 GET /v1/cluster shows the shard among those that it follows."
            ),
            MoveError::Busy(shard) => {
                format!(
                    "The server moves shard {shard} at the moment. Try again when it has moved."
                )
            }
        };
        Self::new(Code::NotMoved, detail)
    }

    /// The new owner did not take the shard over in time.
    pub(in crate::http) fn move_unfinished(
        shard: usize,
        server: &str,
        owner: Option<&str>,
    ) -> Self {
        let owner = owner.map_or_else(|| "no server".into(), |owner| format!("the server {owner}"));
        let detail = format!(
            "The server {server} has not taken shard {shard} over in time: {owner} has it. See its log, \
             and GET /v1/cluster."
        );
        let mut problem = Self::new(Code::NotMoved, detail);
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }

    /// This server stops while the request waits at the server of its pool. That server removes it
    /// from the wait queue, but may have granted it a key before.
    pub(in crate::http) fn stopped_while_waiting() -> Self {
        Self::outcome_unknown(
            "This server is shutting down while the request waits at the server of the pool, and it \
             may be applied. Send it to another server with the same Idempotency-Key, or look at the \
             state of the pool first.",
        )
    }

    /// The server that handled the request lost the pool, or the connection to it broke: the request
    /// was applied or not.
    pub(in crate::http) fn owner_lost() -> Self {
        Self::outcome_unknown(
            "The server of the pool was lost while it handled this request, which may be applied. \
             Send it again with the same Idempotency-Key, or look at the state of the pool first.",
        )
    }

    fn outcome_unknown(detail: &'static str) -> Self {
        let mut problem = Self::new(Code::OwnerLost, detail).retry_after_ms(1_000);
        problem.0.outcome = Some(Outcome::Unknown);
        problem
    }
}

//! Whether a server that shares its pools can answer: the state of the store and of each shard.
//!
//! Pure. A server stays ready as long as the requests that it takes wait for an answer instead of
//! being refused: a takeover of seconds must not make a load balancer drop all servers at once.

use crate::http::error::Problem;
use crate::http::forward::SEARCH_TIME;
use crate::http::respond::{HandlerResult, json_response};
use hyper::StatusCode;
use keypeg_store::{ClusterStatus, ShardRole};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a turn waits for the store before its shard ends.
const STORE_SILENT_MAX: Duration = Duration::from_secs(30);

/// Answers a probe. `was_ready` is whether an earlier probe has found an owner for each shard.
pub(super) fn answer(status: &ClusterStatus, was_ready: &AtomicBool) -> HandlerResult {
    let silent = Duration::from_millis(status.store_silent_ms);
    if silent > STORE_SILENT_MAX {
        return Err(Problem::store_silent(silent));
    }
    let (mut here, mut elsewhere, mut unowned) = (Vec::new(), Vec::new(), Vec::new());
    let mut longest = Duration::ZERO;
    for (number, shard) in status.shards.iter().enumerate() {
        let list = match (&shard.owner, shard.role) {
            (Some(_), ShardRole::Owner) => &mut here,
            (Some(_), ShardRole::Following | ShardRole::Loading) => &mut elsewhere,
            (None, _) => {
                longest = longest.max(Duration::from_millis(shard.unowned_ms));
                &mut unowned
            }
        };
        list.push(number);
    }
    if unowned.is_empty() {
        was_ready.store(true, Ordering::Relaxed);
    } else if longest > SEARCH_TIME || !was_ready.load(Ordering::Relaxed) {
        return Err(Problem::shards_without_owner(&unowned));
    }
    let body = json!({
        "status": "ready",
        "shards_here": here,
        "shards_elsewhere": elsewhere,
        "shards_without_owner": unowned,
    });
    Ok(json_response(StatusCode::OK, &body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use keypeg_client::Code;
    use keypeg_store::ShardStatus;

    fn shard(role: ShardRole, owner: Option<&str>, unowned_ms: u64) -> ShardStatus {
        ShardStatus {
            role,
            owner: owner.map(str::to_owned),
            unowned_ms,
            preferred: None,
            is_pinned: false,
            position: 0,
            behind_frames: 0,
            behind_ms: 0,
            snapshot: 0,
            takeovers: 0,
            error: String::new(),
        }
    }

    fn status(store_silent_ms: u64, unowned_ms: Option<u64>) -> ClusterStatus {
        let last = match unowned_ms {
            None => shard(ShardRole::Following, Some("b"), 0),
            Some(ms) => shard(ShardRole::Following, None, ms),
        };
        let shards = vec![shard(ShardRole::Owner, Some("a"), 0), last];
        let (store, store_error) = (String::new(), String::new());
        ClusterStatus { store, store_silent_ms, store_error, servers: Vec::new(), shards }
    }

    #[test]
    fn a_server_is_ready_once_each_shard_has_an_owner_and_while_requests_wait_for_one() {
        let was_ready = AtomicBool::new(false);
        let code = |status| answer(&status, &was_ready).map_err(|problem| problem.code()).err();
        for (store_silent_ms, unowned_ms, expected) in [
            // At a start no request waits yet: the probe says when the first one is welcome.
            (0, Some(1), Some(Code::NoOwner)),
            (0, None, None),
            (0, Some(1), None),
            (0, Some(10_000), None),
            (0, Some(10_001), Some(Code::NoOwner)),
            (30_000, None, None),
            (30_001, None, Some(Code::NoOwner)),
            (0, None, None),
        ] {
            let found = code(status(store_silent_ms, unowned_ms));
            assert_eq!(found, expected, "{store_silent_ms} {unowned_ms:?}");
        }
    }

    /// A probe of a load balancer reads only the status; an operator reads where each shard is.
    #[tokio::test]
    async fn the_answer_lists_each_shard_by_where_it_is_served() {
        let shards = vec![
            shard(ShardRole::Owner, Some("a"), 0),
            shard(ShardRole::Following, Some("b"), 0),
            shard(ShardRole::Following, None, 10_000),
            shard(ShardRole::Loading, Some("c"), 0),
            shard(ShardRole::Owner, Some("a"), 0),
            shard(ShardRole::Loading, None, 1),
        ];
        let status = ClusterStatus { shards, ..status(0, None) };
        let body = answer(&status, &AtomicBool::new(true)).unwrap().into_body();
        let body = body.collect().await.unwrap().to_bytes();
        let expected = json!({
            "status": "ready",
            "shards_here": [0, 4],
            "shards_elsewhere": [1, 3],
            "shards_without_owner": [2, 5],
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expected);
    }

    #[test]
    fn the_shard_without_an_owner_for_the_longest_time_decides() {
        for unowned_ms in [[10_001, 1], [1, 10_001]] {
            let shards = unowned_ms.map(|ms| shard(ShardRole::Following, None, ms));
            let status = ClusterStatus { shards: shards.into(), ..status(0, None) };
            let refused = answer(&status, &AtomicBool::new(true)).unwrap_err();
            assert_eq!(refused.code(), Code::NoOwner, "{unowned_ms:?}");
        }
    }
}

//! The part of the document about the servers and shards of an installation.

use super::call::{Call, inline, referenced};
use super::examples;
use keypeg_client::Code;
use serde_json::{Value, json};

/// Returns the specific part of an operation on servers or shards; `None` for any other one.
pub(super) fn cluster(operation: &str) -> Option<Call> {
    Some(match operation {
        "showCluster" => Call::new(
            "What the server that gets the request knows: its own role in each shard, and what the \
             heartbeats of the other servers say. Only the log of a shard decides who owns it.",
            vec![referenced(200, "The servers and shards.", "Cluster", examples::cluster())],
            &[Code::NoCluster],
        ),
        "moveShard" => Call::new(
            "Any server takes the request, and forwards it to the owner. The answer comes when the \
             other server owns the shard, after about 3 s. The shard stays there until that server \
             stops. Leases go on, waiting acquires queue again, and requests wait meanwhile.",
            vec![referenced(
                200,
                "The shard has moved.",
                "ClusterShard",
                examples::shard(1, "owner"),
            )],
            &[Code::NoCluster, Code::NotMoved],
        )
        .with_required_body("MoveShardRequest", examples::shard_moves()),
        _ => return None,
    })
}

/// Returns the readiness probe; `status` has the member that every probe has.
pub(super) fn ready(status: &Value) -> Call {
    let numbers = |text: &str| json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "description": text });
    let mut members = status.clone();
    members["shards_here"] = numbers("The shards that this server serves.");
    members["shards_elsewhere"] = numbers("The shards that other live servers serve.");
    members["shards_without_owner"] = numbers("The shards that no live server serves now.");
    Call::new(
        "A server that shares its pools with others answers 200 once each shard has a live owner, and \
         503 when one has had none for more than 10 s, or the store has not answered for more than 30 \
         s: until then requests wait. Only such a server has the lists of shards.",
        vec![inline(200, "The server accepts requests.", &members, json!({ "status": "ready" }))],
        &[Code::ShuttingDown, Code::NoOwner],
    )
}

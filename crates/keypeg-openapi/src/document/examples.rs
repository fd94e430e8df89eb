//! Examples for the document. Each is parsed and serialised by its wire type, so the server can
//! write or read it. The reference shows the first example of a request by name, beside that of the
//! answer: the two belong together.

use keypeg_client::{
    Access, AcquireRequest, Cluster, ClusterShard, Code, GenerateRequest, Grant, History,
    KeepAliveRequest, KeptAlive, KeptAliveMany, Key, KeyPage, KeyReleased, KeyRequest, Lease,
    MoveShardRequest, NewKeys, Outcome, PolicyRequest, Pool, Pools, Problem, QuarantineRequest,
    ReleaseRequest, RenewRequest, RevealedKey, Verification, VerifyRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) const KEY_ID: &str = "3q2v7m0c9t41p8sdk5h6rj2unb";
pub(super) const LEASE_ID: &str = "5b81tmlg0pavb3d7n2oqk4c6hs";
pub(super) const VALUE: &str = "x5Tq0ZbW8mKd3RfYc1Lh";
pub(super) const AT: &str = "2026-11-22T21:29:00.000Z";
pub(super) const LATER: &str = "2026-11-22T21:34:00.000Z";
pub(super) const EVENT: &str = "id: 5f0c7e1a9b3d-2-1c\nevent: granted\n\
    data: {\"at\":\"2026-11-22T21:29:00.000Z\",\
    \"pool\":\"ci\",\"key_id\":\"3q2v7m0c9t41p8sdk5h6rj2unb\",\"holder\":\"job-7\",\
    \"fencing_token\":1763847000000123,\"expires_at\":\"2026-11-22T21:30:00.000Z\"}\n\n";
const LEASE_END: &str = "2026-11-22T21:30:00.000Z";
const TOKEN: u64 = 1_763_847_000_000_123;

fn through_type<T: Serialize + DeserializeOwned>(example: Value) -> Value {
    let typed: T =
        serde_json::from_value(example).expect("invariant: an example parses as its type");
    serde_json::to_value(typed).expect("invariant: wire types always serialise")
}

pub(super) fn pool() -> Value {
    through_type::<Pool>(json!({
        "pool": "ci", "lease_ttl_seconds": 60, "max_hold_seconds": null,
        "keepalive_ttl_seconds": 300, "keepalive_every_seconds": 120, "rest_seconds": 0,
        "key_length": 20, "key_prefix": "", "max_keys": null, "draining": false,
        "available": 2, "leased": 1, "resting": 0, "quarantined": 0, "total": 3, "waiting": 0,
        "next_return_at": LEASE_END, "next_purge_at": LATER,
    }))
}

pub(super) fn pools() -> Value {
    through_type::<Pools>(json!({ "pools": [pool()], "next_cursor": null }))
}

pub(super) fn history(pool: Option<&str>) -> Value {
    through_type::<History>(json!({
        "pool": pool, "pools": 1, "from_at": AT, "available": [null, 3, 2],
        "leased": [null, 1, 2], "resting": [null, 0, 0], "quarantined": [null, 0, 0],
        "waiting": [null, 0, 0], "grants": [null, 0, 2], "refusals": [null, 0, 0],
        "expiries": [null, 0, 1], "purges": [null, 0, 0], "waited_seconds": [null, 0.0, 0.25],
    }))
}

pub(super) fn access() -> Value {
    through_type::<Access>(json!({
        "token": "ci-runner", "scopes": ["read", "lend"], "pools": ["ci-*"], "expires_at": null,
    }))
}

pub(super) fn cluster() -> Value {
    let server = |name: &str, owns: &[u32], follows: &[u32]| {
        json!({
            "server": name, "address": format!("http://{name}.example:8000"), "live": true,
            "silent_seconds": 0.4, "owns": owns, "follows": follows,
            "access_tokens": true, "unreachable": null,
        })
    };
    through_type::<Cluster>(json!({
        "server": "keys-1", "store": "PostgreSQL 15.14, synchronous standbys s1",
        "store_silent_seconds": 0.2, "store_error": null,
        "servers": [server("keys-1", &[0], &[1]), server("keys-2", &[1], &[0])],
        "shards": [shard(0, "owner"), shard(1, "following")],
    }))
}

pub(super) fn shard(number: u32, role: &str) -> Value {
    through_type::<ClusterShard>(json!({
        "shard": number, "owner": format!("keys-{}", number + 1), "unowned_seconds": 0, "role": role,
        "preferred": format!("keys-{}", number + 1), "pinned": false, "position": 90_210,
        "behind_frames": 0, "behind_seconds": 0.2 * f64::from(number), "snapshot_position": 81_920,
        "takeovers": 1, "error": null,
    }))
}

pub(super) fn shard_moves() -> Vec<(&'static str, Value)> {
    vec![("a_server", through_type::<MoveShardRequest>(json!({ "server": "keys-2" })))]
}

pub(super) fn policies() -> Vec<(&'static str, Value)> {
    vec![
        ("defaults", through_type::<PolicyRequest>(json!({}))),
        (
            "generated keys",
            through_type::<PolicyRequest>(json!({
                "lease_ttl_seconds": 60, "keepalive_ttl_seconds": 300,
            })),
        ),
        (
            "imported accounts",
            through_type::<PolicyRequest>(json!({
                "lease_ttl_seconds": 600, "max_hold_seconds": 3600, "keepalive_ttl_seconds": null,
                "rest_seconds": 2.5,
            })),
        ),
    ]
}

pub(super) fn new_keys() -> Value {
    through_type::<NewKeys>(json!({
        "keys": [{
            "id": KEY_ID, "key": VALUE, "state": "available", "label": null, "created_at": AT,
            "expires_at": LATER,
        }],
    }))
}

pub(super) fn generates() -> Vec<(&'static str, Value)> {
    vec![
        ("generate", through_type::<GenerateRequest>(json!({ "count": 1 }))),
        ("import", through_type::<GenerateRequest>(json!({ "values": ["alpha-1", "alpha-2"] }))),
        (
            "import_without_keepalive",
            through_type::<GenerateRequest>(json!({ "values": ["alpha-3"], "keepalive": false })),
        ),
        (
            "import_with_labels",
            through_type::<GenerateRequest>(json!({
                "values": ["alpha-4", "alpha-5"], "labels": ["account 4", "account 5"],
            })),
        ),
    ]
}

pub(super) fn key_changes() -> Vec<(&'static str, Value)> {
    vec![
        ("label", through_type::<KeyRequest>(json!({ "label": "account 4" }))),
        ("no label", through_type::<KeyRequest>(json!({ "label": null }))),
    ]
}

pub(super) fn key() -> Value {
    through_type::<Key>(json!({
        "id": KEY_ID, "pool": "ci", "state": "leased", "label": "account 4",
        "created_at": AT, "expires_at": LATER,
        "rests_until": null, "draining": false, "reason": null, "keepalive": true,
        "lease": {
            "holder": "job-7", "fencing_token": TOKEN, "granted_at": AT, "expires_at": LEASE_END,
        },
    }))
}

pub(super) fn quarantined_key() -> Value {
    through_type::<Key>(json!({
        "id": KEY_ID, "pool": "ci", "state": "quarantined", "label": "account 4",
        "created_at": AT, "expires_at": LATER,
        "rests_until": null, "draining": false, "reason": "rotation", "keepalive": true,
        "lease": null,
    }))
}

pub(super) fn quarantines() -> Vec<(&'static str, Value)> {
    let drain = json!({ "when": "free", "reason": "rotation" });
    vec![
        ("at once", through_type::<QuarantineRequest>(json!({ "reason": "rotation" }))),
        ("when its lease ends", through_type::<QuarantineRequest>(drain)),
    ]
}

pub(super) fn page() -> Value {
    through_type::<KeyPage>(json!({ "keys": [key()], "next_cursor": null }))
}

pub(super) fn revealed() -> Value {
    through_type::<RevealedKey>(json!({ "id": KEY_ID, "key": VALUE }))
}

pub(super) fn verification() -> Value {
    through_type::<Verification>(json!({
        "active": true, "state": "leased", "key_id": KEY_ID, "label": "account 4",
        "lease": {
            "holder": "job-7", "fencing_token": TOKEN, "granted_at": AT, "expires_at": LEASE_END,
        },
    }))
}

pub(super) fn verifies() -> Vec<(&'static str, Value)> {
    vec![("a key", through_type::<VerifyRequest>(json!({ "key": VALUE })))]
}

pub(super) fn freed() -> Value {
    through_type::<KeyReleased>(json!({ "released": true }))
}

pub(super) fn kept() -> Value {
    through_type::<KeptAlive>(json!({ "id": KEY_ID, "expires_at": LATER }))
}

pub(super) fn kept_many() -> Value {
    through_type::<KeptAliveMany>(json!({ "kept": 1, "missing": ["00000000000000000000000000"] }))
}

pub(super) fn keep_alives() -> Vec<(&'static str, Value)> {
    let ids = json!({ "ids": [KEY_ID, "00000000000000000000000000"] });
    vec![
        ("some keys", through_type::<KeepAliveRequest>(ids)),
        ("the whole pool", through_type::<KeepAliveRequest>(json!({ "all": true }))),
    ]
}

pub(super) fn grant() -> Value {
    through_type::<Grant>(json!({
        "id": LEASE_ID, "pool": "ci", "key_id": KEY_ID, "key": VALUE, "fencing_token": TOKEN,
        "holder": "job-7", "label": "account 4", "granted_at": AT, "waited_seconds": 0,
        "expires_at": LEASE_END,
        "expires_in_seconds": 60, "key_expires_at": LATER,
    }))
}

pub(super) fn lease() -> Value {
    through_type::<Lease>(json!({
        "id": LEASE_ID, "pool": "ci", "key_id": KEY_ID, "fencing_token": TOKEN, "holder": "job-7",
        "label": "account 4", "granted_at": AT, "expires_at": LEASE_END, "expires_in_seconds": 60,
        "key_expires_at": LATER,
    }))
}

pub(super) fn acquires() -> Vec<(&'static str, Value)> {
    let waits = json!({ "ttl_seconds": 60, "wait_seconds": 0.5, "holder": "job-7" });
    vec![
        ("no wait", through_type::<AcquireRequest>(json!({}))),
        ("wait for a key", through_type::<AcquireRequest>(waits)),
    ]
}

pub(super) fn releases() -> Vec<(&'static str, Value)> {
    let rest = json!({ "rest_seconds": 30, "reason": "rate limited" });
    let quarantine = json!({ "quarantine": true, "reason": "401 from upstream" });
    vec![
        ("no fields", through_type::<ReleaseRequest>(json!({}))),
        ("with a rest", through_type::<ReleaseRequest>(rest)),
        ("into quarantine", through_type::<ReleaseRequest>(quarantine)),
    ]
}

pub(super) fn renews() -> Vec<(&'static str, Value)> {
    vec![("60 seconds", through_type::<RenewRequest>(json!({ "ttl_seconds": 60 })))]
}

pub(super) fn django_adds() -> Vec<(&'static str, Value)> {
    vec![("generated", json!({})), ("given value", json!({ "api_key": VALUE }))]
}

/// Returns a problem with this code, as an answer to a request that changes something.
pub(super) fn problem(code: Code) -> Value {
    let outcome = if code == Code::Internal { Outcome::Unknown } else { Outcome::NotApplied };
    let mut problem = json!({
        "type": format!("/problems/{}", code.as_str()), "title": code.title(),
        "status": code.status(), "code": code, "detail": format!("{}.", code.title()),
        "request_id": "5f0c7e1a9b3d-0-2a", "outcome": outcome,
    });
    let members = [
        (
            Code::NoKeyAvailable,
            json!({
                "cause": "all_leased",
                "available": 0, "leased": 3, "resting": 0, "quarantined": 0, "total": 3,
            }),
        ),
        (Code::Forbidden, json!({ "scope": "lend" })),
        (Code::Invalid, json!({ "field": "count", "allowed": "1..10000" })),
        (Code::LeaseEnded, json!({ "cause": "expired" })),
        (Code::KeyExists, json!({ "index": 0, "indices": [0, 7], "more": false })),
        (Code::MaxHoldReached, json!({ "expires_at": LEASE_END })),
        (Code::PoolFull, json!({ "max": 10_000 })),
        (Code::TooManyPools, json!({ "max": 10_000 })),
    ];
    for (_, extensions) in members.iter().filter(|(owner, _)| *owner == code) {
        for (member, value) in extensions.as_object().into_iter().flatten() {
            problem[member] = value.clone();
        }
    }
    through_type::<Problem>(problem)
}

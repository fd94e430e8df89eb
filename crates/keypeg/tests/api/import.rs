//! Importing values over HTTP: a call imports all values or none, and no value twice.

use crate::support::{Client, Server, eventually};
use serde_json::{Value, json};
use std::collections::HashSet;

const KEYS: &str = "POST /v1/pools/default/keys";

fn values(keys: &Value) -> Vec<&str> {
    let keys = keys["keys"].as_array().unwrap();
    keys.iter().map(|key| key["key"].as_str().unwrap()).collect()
}

/// Waits until a pool has this number of keys, because the others were purged.
fn wait_for_total(client: &mut Client, pool: &str, total: u64) {
    eventually("the keys are purged", || {
        let pool = client.ask(&format!("GET /v1/pools/{pool}")).is(200, &json!({}));
        (pool["total"] == total).then_some(())
    });
}

#[test]
fn values_are_imported_in_order_and_lent() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let long = "é".repeat(2_048);
    let values_sent = ["sk-1", "a b\u{0}\n\"✓", long.as_str()];
    let created = client.send(KEYS, &json!({ "values": values_sent })).is(
        201,
        &json!({ "keys": [{ "id": "*", "state": "available", "created_at": "*" }, "*", "*"] }),
    );
    assert_eq!(values(&created), values_sent);
    let mut lent = HashSet::new();
    for _ in values_sent {
        let grant = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "key": "*" }));
        lent.insert(grant["key"].as_str().unwrap().to_owned());
    }
    assert_eq!(lent, values_sent.map(String::from).into());
}

#[test]
fn an_existing_retired_or_repeated_value_is_refused_by_its_index_and_nothing_is_imported() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let created = client.send(KEYS, &json!({ "values": ["hunter2", "gone"] })).is(201, &json!({}));
    let deleted = created["keys"][1]["id"].as_str().unwrap();
    client.ask(&format!("DELETE /v1/pools/default/keys/{deleted}")).is(204, &Value::Null);
    for (values_sent, index) in [
        (json!(["hunter2"]), 0),
        (json!(["new", "other", "hunter2"]), 2),
        (json!(["new", "gone"]), 1),
        (json!(["new", "other", "new"]), 2),
    ] {
        let problem =
            client.send(KEYS, &json!({ "values": values_sent })).problem(409, "key_exists");
        assert_eq!(problem["index"], index, "{values_sent}");
        assert_eq!(problem["outcome"], "not_applied");
        assert!(!problem.to_string().contains("hunter2"), "a secret: {problem}");
        client.ask("GET /v1/pools/default").is(200, &json!({ "total": 1 }));
    }
    client.send(KEYS, &json!({ "values": ["new", "other"] })).is(201, &json!({}));
    client.ask("PUT /v1/pools/else").is(201, &json!({}));
    client.send("POST /v1/pools/else/keys", &json!({ "values": ["gone"] })).is(201, &json!({}));
}

/// A client that skips known values asked once for each of them.
#[test]
fn a_refused_import_names_its_known_values_by_their_indices() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let value = |n: usize| format!("value-{n}");
    let refused = |client: &mut Client, sent: Vec<String>| {
        let problem = client.send(KEYS, &json!({ "values": sent })).problem(409, "key_exists");
        assert_eq!(problem["index"], problem["indices"][0], "{problem}");
        problem
    };
    let known: Vec<_> = (0..3_000).filter(|n| n % 7 == 3).map(value).collect();
    client.send(KEYS, &json!({ "values": known })).is(201, &json!({}));
    let few = refused(client, [1, 3, 4, 10, 4].map(value).to_vec());
    assert_eq!((&few["indices"], &few["more"]), (&json!([1, 3, 4]), &json!(false)));
    let one = refused(client, [1, 3, 4].map(value).to_vec());
    assert_eq!((&one["indices"], &one["more"]), (&json!([1]), &json!(false)));
    assert!(one["detail"].as_str().unwrap().starts_with("values[1] is in the pool"), "{one}");

    // Many requests name all of them in the end, each a part in its order.
    let mut rest: Vec<usize> = (0..3_000).collect();
    let mut requests = 0;
    loop {
        requests += 1;
        let sent: Vec<_> = rest.iter().copied().map(value).collect();
        let answer = client.send(KEYS, &json!({ "values": sent }));
        if answer.status == 201 {
            break;
        }
        let problem = answer.problem(409, "key_exists");
        let indices = problem["indices"].as_array().unwrap();
        let indices: Vec<_> =
            indices.iter().map(|it| usize::try_from(it.as_u64().unwrap()).unwrap()).collect();
        assert!(indices.len() <= 1_000 && indices.is_sorted(), "{indices:?}");
        assert!(indices.iter().all(|index| rest[*index] % 7 == 3), "{indices:?}");
        let examined = if problem["more"] == true { indices[indices.len() - 1] } else { 2_999 };
        let known = (0..=examined).filter(|index| rest.get(*index).is_some_and(|n| n % 7 == 3));
        assert_eq!(known.count(), indices.len(), "none up to the last is missing");
        rest = (0..).zip(rest).filter(|(at, _)| !indices.contains(at)).map(|(_, n)| n).collect();
    }
    assert!(requests <= 14, "{requests} requests for {} known values", known.len());
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 3_000 }));
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{KEYS, Server, Value, json, values, wait_for_total};
    use crate::support::TempDir;

    #[test]
    fn the_largest_import_is_applied_and_survives_a_restart() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let client = &mut server.client();
        let values_sent: Vec<String> = (0..10_000).map(|n| format!("{n:0>800}")).collect();
        let created = client.send(KEYS, &json!({ "values": values_sent })).is(201, &json!({}));
        assert_eq!(values(&created), values_sent, "8 MB of values");
        client
            .send("PUT /v1/pools/small", &json!({ "max_keys": 2 }))
            .is(201, &json!({ "max_keys": 2 }));
        let small = json!({ "values": ["a", "b", "c"] });
        client.send("POST /v1/pools/small/keys", &small).problem(507, "pool_full");
        server.kill();
        let server = Server::on(&dir, &[]);
        let client = &mut server.client();
        client.ask("GET /v1/pools/default").is(200, &json!({ "total": 10_000 }));
        client.ask("GET /v1/pools/small").is(200, &json!({ "total": 0 }));
        let last = json!({ "values": ["new", values_sent[9_999]] });
        let problem = client.send(KEYS, &last).problem(409, "key_exists");
        assert_eq!(problem["index"], 1);
    }

    /// A generated value was imported again once its key was purged or deleted, with its old id. A
    /// client that still had the value shared it with the next holder.
    #[test]
    fn a_generated_value_is_refused_after_its_key_is_purged_or_deleted() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let client = &mut server.client();
        client
            .send("PUT /v1/pools/r", &json!({ "keepalive_ttl_seconds": 0.2 }))
            .is(201, &json!({}));
        let generated = client.ask("POST /v1/pools/r/keys").is(201, &json!({}));
        let purged = generated["keys"][0]["key"].clone();
        wait_for_total(client, "r", 0);
        let deleted = client.send(KEYS, &json!({ "count": 1 })).is(201, &json!({}));
        let (id, deleted) = (&deleted["keys"][0]["id"], deleted["keys"][0]["key"].clone());
        client
            .ask(&format!("DELETE /v1/pools/default/keys/{}", id.as_str().unwrap()))
            .is(204, &Value::Null);
        for _ in 0..2 {
            let client = &mut server.client();
            for (keys, value) in [("POST /v1/pools/r/keys", &purged), (KEYS, &deleted)] {
                let problem = client
                    .send(keys, &json!({ "values": ["new", value] }))
                    .problem(409, "key_exists");
                assert_eq!(problem["index"], 1);
            }
            // The Django API has its own words for it.
            let body = json!({ "api_key": deleted });
            client
                .send("POST /api/v1/random_api_key/", &body)
                .is(400, &json!({ "api_key": ["key with this api key already exists"] }));
            server.kill();
            server = Server::on(&dir, &[]);
        }
        // Another pool did not generate it.
        let client = &mut server.client();
        client.send("POST /v1/pools/r/keys", &json!({ "values": [deleted] })).is(201, &json!({}));
    }

    #[test]
    fn an_imported_key_without_keep_alive_has_no_deadline_after_a_restart() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let body = json!({ "values": ["account"], "keepalive": false });
        let created = server.client().send(KEYS, &body).is(201, &json!({}));
        let key = created["keys"][0]["id"].as_str().unwrap();
        server.kill();
        let server = Server::on(&dir, &[]);
        let shown = json!({ "expires_at": null, "keepalive": false });
        server.client().ask(&format!("GET /v1/pools/default/keys/{key}")).is(200, &shown);
    }
}

#[test]
fn a_retired_value_comes_back_where_the_request_allows_it() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let created = client.send(KEYS, &json!({ "values": ["account"] })).is(201, &json!({}));
    let key = format!("/v1/pools/default/keys/{}", created["keys"][0]["id"].as_str().unwrap());
    let lease = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "key": "account" }));
    client.ask(&format!("DELETE {key}")).is(204, &Value::Null);
    client.send(KEYS, &json!({ "values": ["account"] })).problem(409, "key_exists");
    let back = json!({ "values": ["account"], "allow_retired": true });
    let created_again = client.send(KEYS, &back).is(201, &json!({}));
    assert_eq!(created_again["keys"][0]["id"], created["keys"][0]["id"]);
    client.send(KEYS, &back).problem(409, "key_exists");
    let path = format!("/v1/pools/default/leases/{}", lease["id"].as_str().unwrap());
    client.ask(&format!("POST {path}/release")).problem(410, "lease_ended");
    let later = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "key": "account" }));
    assert!(later["fencing_token"].as_u64() > lease["fencing_token"].as_u64(), "tokens only grow");
}

#[test]
fn an_imported_key_without_keep_alive_has_no_deadline() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/r", &json!({ "keepalive_ttl_seconds": 0.2 })).is(201, &json!({}));
    let keys = "POST /v1/pools/r/keys";
    let body = json!({ "values": ["account", "other"], "keepalive": false });
    let created = client.send(keys, &body).is(201, &json!({}));
    assert_eq!(created["keys"][1]["expires_at"], Value::Null);
    client.ask("POST /v1/pools/r/keys").is(201, &json!({ "keys": [{ "expires_at": "*" }] }));
    wait_for_total(client, "r", 2);
    let key = format!("/v1/pools/r/keys/{}", created["keys"][0]["id"].as_str().unwrap());
    let shown = json!({ "state": "available", "expires_at": null, "keepalive": false });
    let show = format!("GET {key}");
    client.ask(&show).is(200, &shown);
    client.ask(&format!("POST {key}/keepalive")).is(200, &json!({ "expires_at": null }));
    client
        .send("POST /v1/pools/r/keepalive", &json!({ "all": true }))
        .is(200, &json!({ "kept": 2 }));
    client.ask(&show).is(200, &shown);
    let grant = client.ask("POST /v1/pools/r/leases").is(201, &json!({}));
    assert_eq!(grant["key_expires_at"], Value::Null);
    client.send(KEYS, &json!({ "values": ["a"], "keepalive": true })).is(201, &json!({}));
    client
        .ask("GET /v1/pools/default/keys")
        .is(200, &json!({ "keys": [{ "keepalive": true, "expires_at": "*" }] }));
}

//! Importing values over HTTP: a call imports all values or none, and no value twice.

use crate::support::{Server, TempDir};
use serde_json::{Value, json};
use std::collections::HashSet;

const KEYS: &str = "POST /v1/pools/default/keys";

fn values(keys: &Value) -> Vec<&str> {
    let keys = keys["keys"].as_array().unwrap();
    keys.iter().map(|key| key["key"].as_str().unwrap()).collect()
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

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{KEYS, Server, TempDir, json, values};

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
}

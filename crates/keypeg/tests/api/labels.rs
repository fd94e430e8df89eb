//! Labels over HTTP: given with new keys, changed later, shown wherever the key is, and filtered by.

use crate::support::Server;
use serde_json::{Value, json};

const KEYS: &str = "/v1/pools/default/keys";

#[test]
fn a_label_is_shown_wherever_its_key_is() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let body = json!({ "values": ["a", "b"], "labels": ["account 1", ""] });
    let added = client.send(&format!("POST {KEYS}"), &body).is(201, &json!({}));
    assert_eq!(
        (&added["keys"][0]["label"], &added["keys"][1]["label"]),
        (&json!("account 1"), &Value::Null)
    );
    let key = |place: usize| format!("{KEYS}/{}", added["keys"][place]["id"].as_str().unwrap());
    client.ask(&format!("GET {}", key(0))).is(200, &json!({ "label": "account 1" }));
    client.ask(&format!("GET {}", key(1))).is(200, &json!({ "label": null }));
    client.ask(&format!("DELETE {}", key(1))).is(204, &Value::Null);
    let grant =
        client.ask("POST /v1/pools/default/leases").is(201, &json!({ "label": "account 1" }));
    let changed = client.send(&format!("PATCH {}", key(0)), &json!({ "label": "ä <b>" }));
    changed.is(200, &json!({ "label": "ä <b>", "state": "leased" }));
    let renew = format!("POST /v1/pools/default/leases/{}/renew", grant["id"].as_str().unwrap());
    client.send(&renew, &json!({ "ttl_seconds": 1 })).is(200, &json!({ "label": "ä <b>" }));
    let verify = || json!({ "key": "a" });
    client
        .send("POST /v1/pools/default/verify", &verify())
        .is(200, &json!({ "active": true, "label": "ä <b>" }));
    for none in [Value::Null, json!("")] {
        client.send(&format!("PATCH {}", key(0)), &json!({ "label": "x" })).is(200, &json!({}));
        let removed = client.send(&format!("PATCH {}", key(0)), &json!({ "label": none }));
        removed.is(200, &json!({ "label": null }));
    }
    let verified = client.send("POST /v1/pools/default/verify", &verify()).is(200, &json!({}));
    assert_eq!(verified.get("label"), None, "absent where the key has none");
    let unknown = format!("PATCH {KEYS}/00000000000000000000000000");
    client.send(&unknown, &json!({ "label": "x" })).is(404, &json!({ "code": "unknown_key" }));
}

#[test]
fn a_repeated_request_with_labels_adds_its_keys_once() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let headers = [("Idempotency-Key", "once"), ("content-type", "application/json")];
    let mut add = |body: Value| {
        client.try_send(&format!("POST {KEYS}"), &headers, &body.to_string()).unwrap()
    };
    let body = json!({ "count": 2, "label": "team" });
    let first = add(body.clone()).is(201, &json!({}));
    assert_eq!(add(body).is(201, &json!({})), first);
    add(json!({ "count": 2, "label": "other" }))
        .is(422, &json!({ "code": "idempotency_mismatch" }));
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 2 }));
}

#[test]
fn keys_are_listed_by_their_label() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client
        .send(&format!("POST {KEYS}"), &json!({ "count": 3, "label": "team a" }))
        .is(201, &json!({}));
    client
        .send(&format!("POST {KEYS}"), &json!({ "count": 2, "label": "team b" }))
        .is(201, &json!({}));
    client.send(&format!("POST {KEYS}"), &json!({ "count": 1 })).is(201, &json!({}));
    for (label, count) in [("team%20a", 3), ("team%20b", 2), ("team", 0), ("", 6)] {
        let page = client.ask(&format!("GET {KEYS}?label={label}")).is(200, &json!({}));
        assert_eq!(page["keys"].as_array().unwrap().len(), count, "{label}");
        assert_eq!(page["next_cursor"], Value::Null);
    }
    let bad = client.ask(&format!("GET {KEYS}?label=a%00"));
    bad.is(422, &json!({ "code": "invalid", "field": "label", "allowed": "at most 128 printable characters" }));
}

#[test]
fn labels_that_do_not_fit_the_new_keys_are_refused() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for (body, field, allowed) in [
        (json!({ "count": 2, "labels": ["a"] }), "labels", "one label for each new key, 2 here"),
        (json!({ "labels": ["a", "b"] }), "labels", "one label for each new key, 1 here"),
        (
            json!({ "values": ["v"], "labels": ["a", "b"] }),
            "labels",
            "one label for each new key, 1 here",
        ),
        (json!({ "label": "a", "labels": ["b"] }), "label", "left out when labels is given"),
    ] {
        let problem = json!({ "code": "invalid", "field": field, "allowed": allowed });
        client.send(&format!("POST {KEYS}"), &body).is(422, &problem);
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

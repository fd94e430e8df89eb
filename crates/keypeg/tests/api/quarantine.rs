//! Quarantine by key id over HTTP: at once, or when the lease ends, and back.

use crate::support::Server;
use serde_json::{Value, json};

const KEYS: &str = "/v1/pools/default/keys";

#[test]
fn a_key_is_quarantined_and_put_back_by_its_id() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let added = client.ask(&format!("POST {KEYS}")).is(201, &json!({}));
    let key = format!("{KEYS}/{}", added["keys"][0]["id"].as_str().unwrap());
    let quarantine = format!("POST {key}/quarantine");
    let quarantined = json!({ "state": "quarantined", "reason": "401 ä", "draining": false });
    client.send(&quarantine, &json!({ "reason": "401 ä" })).is(200, &quarantined);
    client.ask(&quarantine).is(200, &quarantined);
    client.send(&quarantine, &json!({ "when": "free", "reason": null })).is(200, &quarantined);
    let pool = json!({ "quarantined": 1, "draining_keys": 0 });
    client.ask("GET /v1/pools/default").is(200, &pool);
    client
        .ask("POST /v1/pools/default/leases")
        .is(404, &json!({ "code": "no_key_available", "cause": "all_quarantined" }));
    let available = json!({ "state": "available", "reason": null, "draining": false });
    for _ in 0..2 {
        client.ask(&format!("DELETE {key}/quarantine")).is(200, &available);
    }
    client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
}

#[test]
fn a_leased_key_is_quarantined_at_once_or_when_its_lease_ends() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/default", &json!({ "max_hold_seconds": 600 })).is(200, &json!({}));
    let added = client.ask(&format!("POST {KEYS}")).is(201, &json!({}));
    let key = format!("{KEYS}/{}", added["keys"][0]["id"].as_str().unwrap());
    let acquire = "POST /v1/pools/default/leases";
    let grant = client.send(acquire, &json!({ "holder": "job 1" })).is(201, &json!({}));
    let lease = format!("{}/{}", &acquire[5..], grant["id"].as_str().unwrap());
    let draining = json!({ "state": "leased", "draining": true, "reason": "rotation" });
    let drain = json!({ "when": "free", "reason": "rotation" });
    let shown = client.send(&format!("POST {key}/quarantine"), &drain).is(200, &draining);
    assert_eq!(shown["lease"]["holder"], "job 1");
    client.ask("GET /v1/pools/default").is(200, &json!({ "leased": 1, "draining_keys": 1 }));
    let page = client.ask(&format!("GET {KEYS}?state=leased")).is(200, &json!({}));
    assert_eq!(page["keys"][0]["draining"], true);
    client.send(&format!("POST {lease}/renew"), &json!({})).is(200, &json!({}));
    let back = json!({ "state": "leased", "draining": false, "reason": null });
    client.ask(&format!("DELETE {key}/quarantine")).is(200, &back);
    client.send(&format!("POST {key}/quarantine"), &drain).is(200, &draining);
    let release = json!({ "rest_seconds": 5, "reason": "slow" });
    client.send(&format!("POST {lease}/release"), &release).is(204, &Value::Null);
    let quarantined = json!({ "state": "quarantined", "reason": "rotation", "lease": null });
    client.ask(&format!("GET {key}")).is(200, &quarantined);
    client.ask(&format!("DELETE {key}/quarantine")).is(200, &json!({ "state": "available" }));
    let grant = client.ask(acquire).is(201, &json!({}));
    let lease = format!("{}/{}", &acquire[5..], grant["id"].as_str().unwrap());
    let now = json!({ "when": "now", "reason": "leaked" });
    let quarantined = json!({ "state": "quarantined", "reason": "leaked", "lease": null });
    client.send(&format!("POST {key}/quarantine"), &now).is(200, &quarantined);
    client
        .ask(&format!("POST {lease}/release"))
        .is(410, &json!({ "code": "lease_ended", "cause": "released" }));
}

#[test]
fn a_wrong_quarantine_is_refused_with_the_field_and_what_is_allowed() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let added = client.ask(&format!("POST {KEYS}")).is(201, &json!({}));
    let key = format!("{KEYS}/{}", added["keys"][0]["id"].as_str().unwrap());
    for (body, field, allowed) in [
        (json!({ "when": "later" }), "when", "now or free"),
        (json!({ "when": "Now" }), "when", "now or free"),
        (json!({ "when": 1 }), "when", "now or free"),
        (json!({ "reason": "a\u{7}" }), "reason", "at most 256 printable characters"),
        (json!({ "reason": "x".repeat(257) }), "reason", "at most 256 printable characters"),
        (json!({ "quarantine": true }), "quarantine", "when, reason"),
    ] {
        let problem = json!({ "code": "invalid", "field": field, "allowed": allowed });
        client.send(&format!("POST {key}/quarantine"), &body).is(422, &problem);
    }
    let unknown = format!("{KEYS}/00000000000000000000000000/quarantine");
    for method in ["POST", "DELETE"] {
        let problem = json!({ "code": "unknown_key" });
        client.ask(&format!("{method} {unknown}")).is(404, &problem);
    }
    let nowhere = "POST /v1/pools/nowhere/keys/00000000000000000000000000/quarantine";
    client.ask(nowhere).is(404, &json!({ "code": "unknown_pool" }));
    client.ask(&format!("GET {key}")).is(200, &json!({ "state": "available" }));
    client.ask(&format!("GET {key}/quarantine")).is(405, &json!({ "code": "method_not_allowed" }));
}

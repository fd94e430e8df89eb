//! Rest and quarantine over HTTP: what a holder says of a key, and how it comes back.

use crate::support::{Answer, Client, Server, TempDir};
use serde_json::{Value, json};

const POOL: &str = "/v1/pools/default";

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Acquires and releases with `verdict`; gives the key's path.
fn given_back(client: &mut Client, verdict: &Value) -> String {
    let grant = client.ask(&format!("POST {POOL}/leases")).is(201, &json!({ "id": "*" }));
    let lease = format!("{POOL}/leases/{}", text(&grant["id"]));
    client.send(&format!("POST {lease}/release"), verdict).is(204, &Value::Null);
    client.ask(&format!("POST {lease}/release")).problem(410, "lease_ended");
    format!("{POOL}/keys/{}", text(&grant["key_id"]))
}

fn refused(client: &mut Client) -> Answer {
    client.ask(&format!("POST {POOL}/leases"))
}

#[test]
fn keys_rest_or_are_out_of_rotation_until_they_are_put_back_over_a_kill_too() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let client = &mut server.client();
    client.send(&format!("POST {POOL}/keys"), &json!({ "count": 1 })).is(201, &json!({}));
    let why = "429 ✗ too many".to_owned() + &"x".repeat(242);
    let rests = given_back(client, &json!({ "rest_seconds": 3_600, "reason": why }));
    let problem = refused(client);
    assert_eq!(problem.header("retry-after"), Some("3600"));
    let all = json!({ "cause": "all_resting", "resting": 1, "total": 1 });
    problem.is(404, &all);
    client.ask(&format!("POST {POOL}/keys")).is(201, &json!({}));
    let aside = given_back(client, &json!({ "quarantine": true, "reason": "401" }));
    assert_ne!(rests, aside);
    let problem = refused(client).is(404, &json!({ "cause": "none_free", "quarantined": 1 }));
    assert_eq!(problem["code"], "no_key_available");

    server.kill();
    let server = Server::on(&dir, &[]);
    let client = &mut server.client();
    let shown = client
        .ask(&format!("GET {rests}"))
        .is(200, &json!({ "state": "resting", "rests_until": "*", "reason": why, "lease": null }));
    let pool = client.ask(&format!("GET {POOL}")).is(200, &json!({ "resting": 1 }));
    assert_eq!(pool["next_return_at"], shown["rests_until"]);
    client.ask(&format!("GET {aside}")).is(
        200,
        &json!({ "state": "quarantined", "rests_until": null, "reason": "401", "lease": null }),
    );
    client.ask(&format!("DELETE {rests}")).is(204, &Value::Null);
    let problem = refused(client);
    assert_eq!(problem.header("retry-after"), None, "nothing comes back by itself");
    problem.is(404, &json!({ "cause": "all_quarantined", "quarantined": 1, "total": 1 }));
    for released in [true, false] {
        client.ask(&format!("POST {aside}/release")).is(200, &json!({ "released": released }));
    }
    client.ask(&format!("GET {aside}")).is(200, &json!({ "state": "available", "reason": null }));
}

#[test]
fn a_policy_lets_every_key_rest_and_a_release_overrides_it() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let policy = json!({ "rest_seconds": 604_800 });
    client.send(&format!("PUT {POOL}"), &policy).is(200, &policy);
    client.ask(&format!("POST {POOL}/keys")).is(201, &json!({}));
    let verdict = json!({ "rest_seconds": 0, "quarantine": false, "reason": "fine" });
    let key = given_back(client, &verdict);
    client.ask(&format!("GET {key}")).is(200, &json!({ "state": "available", "reason": null }));
    given_back(client, &Value::Null);
    client.ask(&format!("GET {key}")).is(200, &json!({ "state": "resting", "rests_until": "*" }));
}

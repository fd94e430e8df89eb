//! Rest and quarantine over HTTP: a release sets them, and time or a force-release ends them.

use crate::support::{Answer, Client, Server, TempDir};
use serde_json::{Value, json};

const POOL: &str = "/v1/pools/default";

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Acquires a key and releases it with `options`; returns the key's path.
fn acquire_and_release(client: &mut Client, options: &Value) -> String {
    let grant = client.ask(&format!("POST {POOL}/leases")).is(201, &json!({ "id": "*" }));
    let lease = format!("{POOL}/leases/{}", text(&grant["id"]));
    client.send(&format!("POST {lease}/release"), options).is(204, &Value::Null);
    client.ask(&format!("POST {lease}/release")).problem(410, "lease_ended");
    format!("{POOL}/keys/{}", text(&grant["key_id"]))
}

fn try_acquire(client: &mut Client) -> Answer {
    client.ask(&format!("POST {POOL}/leases"))
}

#[test]
fn a_release_overrides_the_rest_of_the_policy() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let policy = json!({ "rest_seconds": 604_800 });
    client.send(&format!("PUT {POOL}"), &policy).is(200, &policy);
    client.ask(&format!("POST {POOL}/keys")).is(201, &json!({}));
    let options = json!({ "rest_seconds": 0, "quarantine": false, "reason": "fine" });
    let key = acquire_and_release(client, &options);
    client.ask(&format!("GET {key}")).is(200, &json!({ "state": "available", "reason": null }));
    acquire_and_release(client, &Value::Null);
    client.ask(&format!("GET {key}")).is(200, &json!({ "state": "resting", "rests_until": "*" }));
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{POOL, Server, TempDir, Value, acquire_and_release, json, try_acquire};

    #[test]
    fn resting_and_quarantined_keys_stay_so_over_sigkill_until_a_force_release() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let client = &mut server.client();
        client.send(&format!("POST {POOL}/keys"), &json!({ "count": 1 })).is(201, &json!({}));
        let reason = "429 ✗ too many".to_owned() + &"x".repeat(242);
        let resting =
            acquire_and_release(client, &json!({ "rest_seconds": 3_600, "reason": reason }));
        let problem = try_acquire(client);
        assert_eq!(problem.header("retry-after"), Some("3600"));
        let all = json!({ "cause": "all_resting", "resting": 1, "total": 1 });
        problem.is(404, &all);
        client.ask(&format!("POST {POOL}/keys")).is(201, &json!({}));
        let quarantined =
            acquire_and_release(client, &json!({ "quarantine": true, "reason": "401" }));
        assert_ne!(resting, quarantined);
        let problem =
            try_acquire(client).is(404, &json!({ "cause": "none_free", "quarantined": 1 }));
        assert_eq!(problem["code"], "no_key_available");

        server.kill();
        let server = Server::on(&dir, &[]);
        let client = &mut server.client();
        let shown = client.ask(&format!("GET {resting}")).is(
            200,
            &json!({ "state": "resting", "rests_until": "*", "reason": reason, "lease": null }),
        );
        let pool = client.ask(&format!("GET {POOL}")).is(200, &json!({ "resting": 1 }));
        assert_eq!(pool["next_return_at"], shown["rests_until"]);
        client.ask(&format!("GET {quarantined}")).is(
            200,
            &json!({ "state": "quarantined", "rests_until": null, "reason": "401", "lease": null }),
        );
        client.ask(&format!("DELETE {resting}")).is(204, &Value::Null);
        let problem = try_acquire(client);
        assert_eq!(problem.header("retry-after"), None, "no key becomes available by time");
        problem.is(404, &json!({ "cause": "all_quarantined", "quarantined": 1, "total": 1 }));
        for released in [true, false] {
            client
                .ask(&format!("POST {quarantined}/release"))
                .is(200, &json!({ "released": released }));
        }
        client
            .ask(&format!("GET {quarantined}"))
            .is(200, &json!({ "state": "available", "reason": null }));
    }
}

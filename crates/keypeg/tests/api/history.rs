//! The history of pools: what it counts, who may read it, and what a request can ask for.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, eventually};
use serde_json::{Value, json};
use std::thread;

/// Returns the sum of a column; null counts as nothing.
fn sum(history: &Value, column: &str) -> u64 {
    history[column].as_array().unwrap().iter().filter_map(Value::as_u64).sum()
}

/// Reads a history until its last second has these numbers.
fn until(client: &mut Client, path: &str, what: &str, expected: &Value) -> Value {
    eventually(what, || {
        let history = client.ask(&format!("GET {path}")).is(200, &json!({}));
        let last = |column: &str| history[column].as_array().unwrap().last().cloned();
        let expected = expected.as_object().unwrap();
        expected.iter().all(|(name, value)| last(name).as_ref() == Some(value)).then_some(history)
    })
}

#[test]
fn a_history_counts_grants_refusals_expiries_purges_and_waits() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/ci", &json!({ "keepalive_ttl_seconds": null })).is(201, &json!({}));
    client.ask("GET /v1/pools/ci/history").is(200, &json!({ "pool": "ci" }));
    // The server has walked over the pool once, so what follows belongs to a second.
    until(client, "/v1/history", "both pools", &json!({ "available": 0, "waiting": 0 }));
    until(client, "/v1/pools/ci/history", "the pool", &json!({ "available": 0 }));
    client.send("POST /v1/pools/ci/keys", &json!({ "count": 1 })).is(201, &json!({}));
    let lease = client.ask("POST /v1/pools/ci/leases").text("id");
    client.ask("POST /v1/pools/ci/leases").problem(404, "no_key_available");
    let mut waiting = server.client();
    let acquire = thread::spawn(move || {
        waiting.send("POST /v1/pools/ci/leases", &json!({ "wait_seconds": 60, "ttl_seconds": 0.2 }))
    });
    until(client, "/v1/pools/ci/history", "the wait", &json!({ "waiting": 1, "leased": 1 }));
    assert_eq!(client.ask(&format!("POST /v1/pools/ci/leases/{lease}/release")).status, 204);
    let waited = acquire.join().unwrap().is(201, &json!({}))["waited_seconds"].as_f64().unwrap();
    for path in ["/v1/pools/ci/history", "/v1/history"] {
        // The second lease ends by time.
        let now = json!({ "available": 1, "leased": 0, "resting": 0, "waiting": 0 });
        let history = until(client, path, "the end of the lease", &now);
        assert_eq!(sum(&history, "grants"), 2, "{path}");
        assert_eq!(sum(&history, "refusals"), 1, "{path}");
        assert_eq!(sum(&history, "expiries"), 1, "{path}");
        let waits = history["waited_seconds"].as_array().unwrap().iter().filter_map(Value::as_f64);
        assert!((waits.sum::<f64>() - waited).abs() < 0.01, "{path}: {waited}");
    }
    assert_eq!(client.ask("POST /v1/pools/ci/leases").status, 201);
    // A wait that ends without a key is one refusal.
    let refused = client.send("POST /v1/pools/ci/leases", &json!({ "wait_seconds": 0.05 }));
    refused.problem(404, "no_key_available");
    client.send("PUT /v1/pools/short", &json!({ "keepalive_ttl_seconds": 0.01 }));
    client.ask("POST /v1/pools/short/keys").is(201, &json!({}));
    eventually("the purge", || {
        let history = client.ask("GET /v1/history").json();
        (sum(&history, "purges") == 1 && sum(&history, "refusals") == 2).then_some(())
    });
}

#[test]
fn a_history_has_as_many_seconds_as_the_request_asks_for() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for path in ["/v1/history", "/v1/pools/default/history"] {
        eventually("two seconds", || {
            let history = client.ask(&format!("GET {path}")).json();
            (history["grants"].as_array().unwrap().len() >= 2).then_some(())
        });
        let two = client.ask(&format!("GET {path}?seconds=2")).is(200, &json!({}));
        let columns: Vec<_> =
            two.as_object().unwrap().values().filter_map(Value::as_array).collect();
        assert_eq!(columns.len(), 10, "{path}");
        assert!(columns.iter().all(|column| column.len() == 2), "{path}: {two}");
        for bad in ["0", "901", "-1", "1.5", "", "x", "99999999999999999999"] {
            let answer = client.ask(&format!("GET {path}?seconds={bad}")).problem(422, "invalid");
            assert_eq!(answer["field"], "seconds", "{path} {bad}");
            assert_eq!(answer["allowed"], "1..900", "{path} {bad}");
        }
        for bad in ["limit=1", "seconds=1&seconds=2"] {
            client.ask(&format!("GET {path}?{bad}")).problem(422, "invalid");
        }
        client.ask(&format!("HEAD {path}")).is(200, &Value::Null);
        client.ask(&format!("POST {path}")).problem(405, "method_not_allowed");
    }
    client.ask("GET /v1/pools/nope/history").problem(404, "unknown_pool");
    client.ask("GET /v1/pools/nope/history?seconds=0").problem(404, "unknown_pool");
    client.ask("GET /v1/pools/NOPE/history").problem(404, "unknown_pool");
}

#[test]
fn a_token_reads_the_history_of_its_own_pools_alone() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let team = tokens.add("team", "team-*", &["read"], &[]);
    let lender = tokens.add("lender", "*", &["lend"], &[]);
    let [flag, file] = tokens.args();
    let server = Server::in_memory(&[&flag, &file]);
    let client = &mut server.client();
    for pool in ["team-a", "other"] {
        client.with(&admin, &format!("PUT /v1/pools/{pool}")).is(201, &json!({}));
        client.with(&admin, &format!("POST /v1/pools/{pool}/keys")).is(201, &json!({}));
    }
    let available = |history: &Value| history["available"].as_array().unwrap().last().cloned();
    eventually("the keys", || {
        let all = client.with(&admin, "GET /v1/history").is(200, &json!({}));
        let own = client.with(&team, "GET /v1/history").is(200, &json!({}));
        let is_there = available(&all) == Some(json!(2)) && available(&own) == Some(json!(1));
        (is_there && own["pools"] == 1).then_some(())
    });
    client.with(&team, "GET /v1/pools/team-a/history").is(200, &json!({ "pools": 1 }));
    client.with(&team, "GET /v1/pools/other/history").problem(403, "forbidden");
    client.with(&team, "GET /v1/pools/nope/history").problem(403, "forbidden");
    client.with(&lender, "GET /v1/history").problem(403, "forbidden");
    client.ask("GET /v1/history").problem(401, "unauthorized");
}

#[test]
fn a_client_learns_what_its_token_allows() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let team = tokens.add("team", "team-*", &["read", "force"], &[]);
    let [flag, file] = tokens.args();
    let server = Server::in_memory(&[&flag, &file]);
    let client = &mut server.client();
    let all = ["read", "lend", "keys", "force", "reveal", "verify", "metrics", "admin"];
    let allowed = json!({ "token": "admin", "scopes": all, "pools": ["*"] });
    client.with(&admin, "GET /v1/access").is(200, &allowed);
    let allowed = json!({ "token": "team", "scopes": ["read", "force"], "pools": ["team-*"] });
    client.with(&team, "GET /v1/access").is(200, &allowed);
    client.ask("GET /v1/access").problem(401, "unauthorized");
    let allowed = json!({ "token": null, "scopes": all, "pools": ["*"], "expires_at": null });
    Server::in_memory(&[]).client().ask("GET /v1/access").is(200, &allowed);
}

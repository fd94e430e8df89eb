//! `Idempotency-Key` over HTTP: a repeated request gets the stored answer, equal in all but the
//! fields that count seconds, and is not applied twice.

use crate::support::{Answer, Client, Server, TempDir, eventually};
use serde_json::{Value, json};

const KEYS: &str = "/v1/pools/default/keys";
const LEASES: &str = "/v1/pools/default/leases";

fn post(client: &mut Client, path: &str, key: &str, body: &str) -> Answer {
    let headers = [("Idempotency-Key", key), ("content-type", "application/json")];
    client.try_send(&format!("POST {path}"), &headers, body).unwrap()
}

/// Returns status and body without the fields that a redelivered answer computes again.
fn stable_part(answer: &Answer) -> Value {
    let mut body: Value = serde_json::from_str(&answer.body).unwrap();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("expires_in_seconds");
        fields.remove("waited_seconds");
    }
    json!([answer.status, body])
}

#[test]
fn a_key_belongs_to_its_route_its_pool_and_its_body() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("PUT /v1/pools/ci", &json!({})).is(201, &json!({}));
    post(client, KEYS, "k", "{\"count\":2}").is(201, &json!({}));
    post(client, "/v1/pools/ci/keys", "k", "{\"count\":2}").is(201, &json!({}));
    post(client, LEASES, "k", "").is(201, &json!({}));
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 2, "leased": 1 }));
    for body in ["{\"count\":3}", "", "{\"values\":[\"v\"]}"] {
        let problem = post(client, KEYS, "k", body).problem(422, "idempotency_mismatch");
        assert_eq!(problem["outcome"], "not_applied");
    }
    post(client, LEASES, "k", "{\"ttl_seconds\":5}").problem(422, "idempotency_mismatch");
    // An invalid request is refused as invalid, whatever its key.
    post(client, KEYS, "k", "{\"count\":0}").problem(422, "invalid");
    post(client, "/v1/pools/nope/keys", "k", "{\"count\":2}").problem(404, "unknown_pool");
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 2, "leased": 1 }));
}

#[test]
fn a_key_is_1_to_128_visible_characters_in_one_header() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let (longest, too_long) = ("k".repeat(128), "k".repeat(129));
    for good in ["k", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", &longest, "!~"] {
        post(client, KEYS, good, "").is(201, &json!({}));
    }
    for path in [KEYS, LEASES] {
        for bad in ["", &too_long, "a b", "ä", "a\tb"] {
            let problem = post(client, path, bad, "").problem(422, "invalid");
            assert_eq!(problem["field"], "Idempotency-Key", "{bad:?}");
        }
        let twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")];
        let answer = client.try_send(&format!("POST {path}"), &twice, "").unwrap();
        assert_eq!(answer.problem(422, "invalid")["field"], "Idempotency-Key");
    }
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 4, "leased": 0 }));
}

#[test]
fn a_repeated_request_replaces_the_one_that_still_waits() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let waiting = |count: u64| {
        let client = &mut server.client();
        eventually("the number of waiters", || {
            let pool = client.ask("GET /v1/pools/default").json();
            (pool["waiting"] == count).then_some(())
        });
    };
    let send = |key: &str| {
        let mut client = server.client();
        let head = format!("POST {LEASES} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=300\r\n");
        client.write(format!("{head}Idempotency-Key: {key}\r\n\r\n").as_bytes()).unwrap();
        client
    };
    let mut first = send("k");
    waiting(1);
    let mut second = send("other");
    waiting(2);
    let mut repeat = send("k");
    let replaced = first.read(false).unwrap();
    replaced.problem(409, "taken_over");
    waiting(2);
    client.ask(&format!("POST {KEYS}")).is(201, &json!({}));
    let grant = repeat.read(false).unwrap().is(201, &json!({}));
    assert!(grant["waited_seconds"].as_f64().unwrap() < 60.0, "{grant}");
    client.ask(&format!("POST {KEYS}")).is(201, &json!({}));
    second.read(false).unwrap().is(201, &json!({}));
    post(client, LEASES, "k", "").is(201, &json!({ "id": grant["id"], "waited_seconds": 0 }));
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{KEYS, LEASES, Server, TempDir, Value, json, post, stable_part};

    #[test]
    fn a_repeated_request_gets_the_same_answer_also_after_a_restart() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        let mut client = server.client();
        let generated = stable_part(&post(&mut client, KEYS, "generate", "{\"count\":3}"));
        let imported =
            stable_part(&post(&mut client, KEYS, "import", "{\"values\":[\"one\",\"two\"]}"));
        let body = "{\"ttl_seconds\":60,\"holder\":\"job-7\"}";
        let granted = stable_part(&post(&mut client, LEASES, "acquire", body));
        for start in 0..3 {
            if start > 0 {
                server.kill();
                server = Server::on(&dir, &[]);
                client = server.client();
            }
            let client = &mut client;
            assert_eq!(
                stable_part(&post(client, KEYS, "generate", " { \"count\" : 3 } ")),
                generated
            );
            assert_eq!(
                stable_part(&post(client, KEYS, "import", "{\"values\":[\"one\",\"two\"]}")),
                imported
            );
            let other_order = "{\"holder\":\"job-7\", \"ttl_seconds\":60}";
            assert_eq!(stable_part(&post(client, LEASES, "acquire", other_order)), granted);
            client.ask("GET /v1/pools/default").is(200, &json!({ "total": 5, "leased": 1 }));
        }
        let client = &mut client;
        let lease = granted[1]["id"].as_str().unwrap();
        client.ask(&format!("POST {LEASES}/{lease}/release")).is(204, &Value::Null);
        post(client, LEASES, "acquire", body).problem(410, "lease_ended");
        let key = generated[1]["keys"][1]["id"].as_str().unwrap();
        client.ask(&format!("DELETE {KEYS}/{key}")).is(204, &Value::Null);
        post(client, KEYS, "generate", "{\"count\":3}").problem(410, "keys_gone");
    }
}

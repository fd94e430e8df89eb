//! Verifying keys: what is active, what an answer shows, and what it hides.

use crate::support::tokens::Tokens;
use crate::support::{Answer, Client, Server, TempDir, eventually};
use serde_json::{Value, json};

const VERIFY: &str = "POST /v1/pools/ci/verify";
const AUTHORIZE: &str = "GET /v1/pools/ci/verify";
const INACTIVE: &str = r#"{"active":false}"#;

/// Returns a client of a server whose pool `ci` has one key, with the key's value and id.
fn with_key(server: &Server, policy: &Value) -> (Client, String, String) {
    let mut client = server.client();
    client.send("PUT /v1/pools/ci", policy).is(201, &json!({}));
    let added = client.send("POST /v1/pools/ci/keys", &json!({ "count": 1 }));
    let key = &added.is(201, &json!({}))["keys"][0];
    let text = |name: &str| key[name].as_str().unwrap().to_owned();
    let (value, id) = (text("key"), text("id"));
    (client, value, id)
}

/// Returns the whole body of the answer about a value.
fn verify(client: &mut Client, request: &str, value: &str) -> String {
    let answer = client.send(request, &json!({ "key": value }));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.body.contains(value) && answer.header("cache-control") == Some("no-store"));
    answer.body
}

fn authorize(client: &mut Client, request: &str, value: &str) -> Answer {
    client.try_send(request, &[("x-api-key", value)], "").unwrap()
}

#[test]
fn a_key_is_active_from_its_grant_to_the_end_of_its_lease() {
    let server = Server::in_memory(&[]);
    let (mut client, value, id) = with_key(&server, &json!({ "rest_seconds": 600 }));
    assert_eq!(verify(&mut client, VERIFY, &value), INACTIVE, "an available key");
    let holder = json!({ "holder": "job 7" });
    let lease = client.send("POST /v1/pools/ci/leases", &holder).is(201, &json!({}));
    let shown: Value = serde_json::from_str(&verify(&mut client, VERIFY, &value)).unwrap();
    let (token, end) = (&lease["fencing_token"], lease["expires_at"].as_str().unwrap());
    let expected = json!({
        "active": true, "state": "leased", "key_id": id,
        "lease": {
            "holder": "job 7", "fencing_token": token, "granted_at": lease["granted_at"],
            "expires_at": end,
        },
    });
    assert_eq!(shown, expected);
    let answer = authorize(&mut client, AUTHORIZE, &value);
    assert_eq!((answer.status, &*answer.body), (204, ""));
    for (name, shown) in [
        ("keypeg-state", "leased"),
        ("keypeg-key-id", &*id),
        ("keypeg-holder", "job%207"),
        ("keypeg-fencing-token", &token.to_string()),
        ("keypeg-expires-at", end),
    ] {
        assert_eq!(answer.header(name), Some(shown), "{name}");
    }
    let lease = lease["id"].as_str().unwrap();
    client.ask(&format!("POST /v1/pools/ci/leases/{lease}/release")).is(204, &Value::Null);
    assert_eq!(verify(&mut client, VERIFY, &value), INACTIVE, "a resting key");
    authorize(&mut client, AUTHORIZE, &value).problem(403, "key_not_active");
}

/// Each core keeps the answers for leased keys. None may outlive the change of its key: a gateway
/// would admit a holder whose lease has ended.
#[test]
fn a_kept_answer_ends_with_the_change_of_its_key_on_every_core() {
    let server = Server::in_memory(&[]);
    let mut client = server.client();
    let policy = json!({ "lease_ttl_seconds": 3600, "rest_seconds": 0 });
    client.send("PUT /v1/pools/ci", &policy);
    // Several connections, which the server spreads over its cores.
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    for (line, body, is_active) in [
        ("POST /v1/pools/ci/leases/<lease>/release", json!({}), false),
        ("POST /v1/pools/ci/leases/<lease>/release", json!({ "rest_seconds": 60 }), false),
        ("POST /v1/pools/ci/leases/<lease>/release", json!({ "quarantine": true }), false),
        ("POST /v1/pools/ci/keys/<key>/release", json!({}), false),
        ("POST /v1/pools/ci/keys/<key>/quarantine", json!({}), false),
        ("DELETE /v1/pools/ci/keys/<key>", Value::Null, false),
        ("DELETE /v1/pools/ci", Value::Null, false),
        ("POST /v1/pools/ci/leases/<lease>/renew", json!({ "ttl_seconds": 600 }), true),
        ("PATCH /v1/pools/ci/keys/<key>", json!({ "label": "team-a" }), true),
        ("PUT /v1/pools/ci", json!({ "rest_seconds": 1 }), true),
    ] {
        client.send("PUT /v1/pools/ci", &policy);
        let added = client.send("POST /v1/pools/ci/keys", &json!({ "count": 1 }));
        let key = added.is(201, &json!({}))["keys"][0].clone();
        let lease = client.send("POST /v1/pools/ci/leases", &json!({ "ttl_seconds": 300 }));
        let lease = lease.is(201, &json!({ "key": key["key"] }));
        let value = key["key"].as_str().unwrap();
        let mut before = Vec::new();
        for client in &mut clients {
            // The first two answers come from the engine, the others are kept.
            let answers: Vec<_> = (0..4).map(|_| shown(client, value)).collect();
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
            before.push(answers[0].clone());
        }
        let id = key["id"].as_str().unwrap();
        let line = line.replace("<lease>", lease["id"].as_str().unwrap()).replace("<key>", id);
        let changed =
            client.try_send(&line, &[("content-type", "application/json")], &body.to_string());
        let changed = changed.unwrap();
        assert!((200..300).contains(&changed.status), "{line}: {changed:?}");
        for (client, before) in clients.iter_mut().zip(before) {
            let after = shown(client, value);
            assert_eq!(after.0.starts_with(r#"{"active":true"#), is_active, "{line}: {after:?}");
            assert_eq!(after.1 == 204, is_active, "{line}: {after:?}");
            let is_shown = !line.starts_with("PUT");
            assert_eq!(after == before, is_active && !is_shown, "{line}: {after:?}");
        }
        client.ask("DELETE /v1/pools/ci");
    }
}

/// Returns the body of one form of verification, and status and headers of the other, in their order.
fn shown(client: &mut Client, value: &str) -> (String, u16, Vec<(String, String)>) {
    let body = client.send(VERIFY, &json!({ "key": value })).body;
    let Answer { status, mut headers, .. } = authorize(client, AUTHORIZE, value);
    for (name, value) in &mut headers {
        if ["date", "x-request-id"].contains(&&**name) {
            value.clear();
        }
    }
    (body, status, headers)
}

#[test]
fn a_kept_answer_ends_with_the_lease_and_with_the_key() {
    let server = Server::in_memory(&[]);
    for (pool, policy) in [
        ("lease", json!({ "lease_ttl_seconds": 0.3 })),
        ("key", json!({ "lease_ttl_seconds": 60, "keepalive_ttl_seconds": 0.3 })),
    ] {
        let mut client = server.client();
        let path = format!("/v1/pools/{pool}");
        client.send(&format!("PUT {path}"), &policy).is(201, &json!({}));
        let added = client.send(&format!("POST {path}/keys"), &json!({ "count": 1 }));
        let added = added.is(201, &json!({}));
        let value = added["keys"][0]["key"].as_str().unwrap();
        let lease = client.send(&format!("POST {path}/leases"), &json!({})).is(201, &json!({}));
        let end = if pool == "lease" { &lease["expires_at"] } else { &lease["key_expires_at"] };
        let end: jiff::Timestamp = end.as_str().unwrap().parse().unwrap();
        let request = format!("POST {path}/verify");
        let mut active = 0;
        loop {
            let before = jiff::Timestamp::now();
            let body = verify(&mut client, &request, value);
            if body == INACTIVE {
                break;
            }
            // Both times have whole milliseconds.
            assert!(before < end + jiff::SignedDuration::from_millis(1), "{before}, ended {end}");
            active += 1;
        }
        assert!(active > 3 && jiff::Timestamp::now() >= end, "{active} before {end}");
    }
}

/// One answer for all of them, so that it does not show which values exist or existed.
#[test]
fn an_unknown_a_deleted_a_purged_and_a_free_key_get_the_same_answer() {
    let server = Server::in_memory(&[]);
    let (mut client, free, _) = with_key(&server, &json!({}));
    let added = client.send("POST /v1/pools/ci/keys", &json!({ "values": ["an account"] }));
    let deleted = added.is(201, &json!({}))["keys"][0]["id"].as_str().unwrap().to_owned();
    client.ask(&format!("DELETE /v1/pools/ci/keys/{deleted}")).is(204, &Value::Null);
    client.send("PUT /v1/pools/short", &json!({ "keepalive_ttl_seconds": 0.01 }));
    client.send("POST /v1/pools/short/keys", &json!({ "values": ["a purged one"] }));
    eventually("purged", || {
        let pool = client.ask("GET /v1/pools/short").is(200, &json!({}));
        (pool["total"] == 0).then_some(())
    });
    let mut refusals = Vec::new();
    for (pool, value) in
        [("ci", "never a key"), ("ci", "an account"), ("short", "a purged one"), ("ci", &*free)]
    {
        let body = verify(&mut client, &format!("POST /v1/pools/{pool}/verify"), value);
        assert_eq!(body, INACTIVE, "{value}");
        let answer = authorize(&mut client, &format!("GET /v1/pools/{pool}/verify"), value);
        let mut problem = answer.problem(403, "key_not_active");
        problem.as_object_mut().unwrap().remove("request_id");
        refusals.push(problem);
    }
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
}

#[test]
fn a_key_whose_lease_has_just_expired_is_not_active() {
    let server = Server::in_memory(&[]);
    let (mut client, value, _) = with_key(&server, &json!({ "lease_ttl_seconds": 0.2 }));
    let lease = client.send("POST /v1/pools/ci/leases", &json!({})).is(201, &json!({}));
    let end: jiff::Timestamp = lease["expires_at"].as_str().unwrap().parse().unwrap();
    eventually("inactive", || (verify(&mut client, VERIFY, &value) == INACTIVE).then_some(()));
    let now = jiff::Timestamp::now();
    assert!(now >= end, "inactive before {end}, at {now}");
}

#[test]
fn other_states_are_active_where_the_request_says_so() {
    let server = Server::in_memory(&[]);
    let (mut client, value, id) = with_key(&server, &json!({}));
    for (states, active) in [
        ("available", true),
        ("leased,available", true),
        ("available%2Cleased", true),
        ("resting,quarantined,leased", false),
    ] {
        let body = verify(&mut client, &format!("{VERIFY}?states={states}"), &value);
        let expected = json!({ "active": true, "state": "available", "key_id": id });
        let expected = if active { expected } else { json!({ "active": false }) };
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected, "{states}");
        let answer = authorize(&mut client, &format!("{AUTHORIZE}?states={states}"), &value);
        assert_eq!(answer.status, if active { 204 } else { 403 }, "{states}");
        assert_eq!(answer.header("keypeg-state"), active.then_some("available"));
        assert_eq!(answer.header("keypeg-fencing-token"), None);
    }
    for states in ["", "Leased", "leased,", "leased;available", "all"] {
        let request = format!("{VERIFY}?states={states}");
        let problem = client.send(&request, &json!({ "key": value })).problem(422, "invalid");
        assert_eq!(problem["field"], "states", "{states}");
        let request = format!("{AUTHORIZE}?states={states}");
        authorize(&mut client, &request, &value).problem(422, "invalid");
    }
}

#[test]
fn an_invalid_verification_names_what_is_wrong() {
    let server = Server::in_memory(&[]);
    let (mut client, value, _) = with_key(&server, &json!({}));
    let long = "x".repeat(4097);
    for body in [
        json!({}),
        json!({ "key": null }),
        json!({ "key": "" }),
        json!({ "key": long }),
        json!({ "key": 7 }),
    ] {
        let problem = client.send(VERIFY, &body).problem(422, "invalid");
        assert_eq!(
            (&problem["field"], &problem["allowed"]),
            (&json!("key"), &json!("a string of 1..4096 bytes"))
        );
    }
    client.send(VERIFY, &json!({ "key": "x", "value": "x" })).problem(422, "invalid");
    client.send("POST /v1/pools/none/verify", &json!({ "key": "x" })).problem(404, "unknown_pool");
    client.send("POST /v1/pools/none/verify", &json!({})).problem(404, "unknown_pool");
    let answer = client.ask(AUTHORIZE);
    assert_eq!(answer.header("www-authenticate"), Some("ApiKey header=\"X-Api-Key\""));
    answer.problem(401, "key_required");
    authorize(&mut client, "GET /v1/pools/none/verify", "x").problem(404, "unknown_pool");
    // The service behind the gateway may read the second key.
    client.send("POST /v1/pools/ci/leases", &json!({})).is(201, &json!({}));
    let twice = [("x-api-key", &*value), ("x-api-key", "a")];
    client.try_send(AUTHORIZE, &twice, "").unwrap().problem(403, "key_not_active");
    for odd in ["", &long, "\u{7f}"] {
        let answer = authorize(&mut client, AUTHORIZE, odd);
        assert!([400, 403].contains(&answer.status), "{answer:?}");
    }
}

/// A gateway needs no other right: its token cannot acquire or reveal a key.
#[test]
fn the_scope_verify_allows_to_verify_and_nothing_else() {
    let tokens = Tokens::new();
    let gateway = tokens.add("gateway", "ci", &["verify"], &[]);
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let dir = TempDir::new();
    let audit = dir.path().join("audit");
    let [option, file] = tokens.args();
    let server = Server::in_memory(&[&option, &file, "--audit", audit.to_str().unwrap()]);
    let mut client = server.client();
    client.with(&admin, "PUT /v1/pools/ci").is(201, &json!({}));
    let added = client.with(&admin, "POST /v1/pools/ci/keys").is(201, &json!({}));
    let value = added["keys"][0]["key"].as_str().unwrap().to_owned();
    client.with(&admin, "POST /v1/pools/ci/leases").is(201, &json!({}));
    let bearer = format!("Bearer {gateway}");
    let headers = [("authorization", &*bearer), ("x-api-key", &value)];
    client.try_send(AUTHORIZE, &headers, "").unwrap().is(204, &Value::Null);
    client.with(&gateway, "POST /v1/pools/ci/leases").problem(403, "forbidden");
    let lines = std::fs::read_to_string(&audit).unwrap();
    assert!(!lines.contains("authorize") && !lines.contains(&value), "{lines}");
}

/// Returns the bytes of a request that verifies a value that no key has.
fn guess_request(guess: u32) -> String {
    let body = json!({ "key": format!("guess {guess}") }).to_string();
    format!(
        "{VERIFY} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn an_address_that_guesses_keys_has_to_wait() {
    let server = Server::in_memory(&[]);
    let (mut client, value, _) = with_key(&server, &json!({}));
    client.send("POST /v1/pools/ci/leases", &json!({})).is(201, &json!({}));
    // The burst is 1000, and 100 a second come back. One guess after the other can be slower than
    // that on a busy machine.
    let limited = (0..1_000).find_map(|batch| {
        let requests: Vec<_> = (0..100).map(|guess| guess_request(100 * batch + guess)).collect();
        client.write(requests.concat().as_bytes()).unwrap();
        let answers: Vec<_> = (0..100).map(|_| client.read(false).unwrap()).collect();
        answers.into_iter().find(|answer| answer.status != 200)
    });
    let limited = limited.expect("guesses are limited");
    assert!(limited.header("retry-after").is_some(), "{limited:?}");
    limited.problem(429, "rate_limited");
    let active = || client.send(VERIFY, &json!({ "key": value })).status == 200;
    let mut active = active;
    eventually("the limit recovers", || active().then_some(()));
}

//! Time over HTTP: leases expire and keys are purged without a request, and never early.
//!
//! No test asserts that something happened soon, and none sleeps for a TTL: the tests poll the
//! server until it reports the change, and then check the least time that the client's clock may
//! show.

use crate::support::{Client, Server, eventually, now};
use serde_json::{Value, json};
use std::time::Duration;

fn unix_ms(instant: &Value) -> u64 {
    serde_json::from_value::<keypeg_client::UnixMs>(instant.clone()).unwrap().0
}

#[test]
fn a_lease_expires_without_a_request_and_not_early() {
    let server = Server::in_memory(&["--lease-ttl", "300ms"]);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let acquired_at = now();
    let first = client.ask("POST /v1/pools/default/leases").is(
        201,
        &json!({
            "expires_in_seconds": 0.3,
        }),
    );
    let second = eventually("the key is available again", || {
        let answer = client.ask("POST /v1/pools/default/leases");
        (answer.status == 201).then(|| answer.json())
    });
    assert!(acquired_at.elapsed() >= Duration::from_millis(300));
    let (granted, again) = (unix_ms(&first["granted_at"]), unix_ms(&second["granted_at"]));
    assert!(again - granted >= 300, "{again} - {granted}");
    assert_eq!(unix_ms(&first["expires_at"]) - granted, 300);
    assert!(second["fencing_token"].as_u64() > first["fencing_token"].as_u64());
    let stale = first["id"].as_str().unwrap();
    let release = format!("POST /v1/pools/default/leases/{stale}/release");
    let ended = client.ask(&release).problem(410, "lease_ended");
    assert!(["superseded", "expired"].contains(&ended["cause"].as_str().unwrap()), "{ended}");
}

#[test]
fn a_key_without_keep_alives_is_purged_on_every_route_and_not_early() {
    let server = Server::in_memory(&["--keepalive-ttl", "1s"]);
    let client = &mut server.client();
    // The key is created after this instant, so when it is purged its TTL has passed on this clock.
    let start = now();
    let keys = client.ask("POST /v1/pools/default/keys").is(201, &json!({ "keys": ["*"] }));
    let key = &keys["keys"][0];
    assert_eq!(unix_ms(&key["expires_at"]) - unix_ms(&key["created_at"]), 1_000);
    let (id, value) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    let path = format!("/v1/pools/default/keys/{id}");
    eventually("the key is purged", || {
        (client.ask(&format!("GET {path}")).status == 404).then_some(())
    });
    assert!(start.elapsed() >= Duration::from_secs(1));
    for request in ["GET", "DELETE"].map(|method| format!("{method} {path}")) {
        client.ask(&request).problem(404, "unknown_key");
    }
    for call in ["keepalive", "release"] {
        client.ask(&format!("POST {path}/{call}")).problem(404, "unknown_key");
    }
    client.send("POST /v1/pools/default/keepalive", &json!({ "ids": [id] })).is(
        200,
        &json!({
            "kept": 0, "missing": [id],
        }),
    );
    client.ask("POST /v1/pools/default/leases").problem(404, "no_key_available");
    for method in ["PUT", "DELETE", "PATCH"] {
        client
            .ask(&format!("{method} /api/v1/random_api_key/?api_key={value}"))
            .is(400, &json!({}));
    }
    for request in [format!("GET /keys/{id}"), format!("PUT /keepalive/{id}")] {
        client.ask(&request).is(404, &json!({}));
    }
    eventually("the key is no longer counted", || {
        (client.ask("GET /v1/pools/default").json()["total"] == 0).then_some(())
    });
}

/// Keeps one of two keys alive until the other is purged; returns `None` when this machine was too
/// slow for the test to prove anything.
fn outlive(client: &mut Client, ttl: Duration) -> Option<()> {
    let mut kept_at = now();
    let keys = client.send("POST /v1/pools/default/keys", &json!({ "count": 2 })).json();
    let [kept, other] = [0, 1].map(|index| keys["keys"][index]["id"].as_str().unwrap().to_owned());
    loop {
        let sent_at = now();
        let answer = client.ask(&format!("POST /v1/pools/default/keys/{kept}/keepalive"));
        if answer.status == 404 && kept_at.elapsed() >= ttl {
            return None;
        }
        answer.is(200, &json!({ "id": kept, "expires_at": "*" }));
        kept_at = sent_at;
        if client.ask(&format!("GET /v1/pools/default/keys/{other}")).status == 404 {
            return Some(());
        }
    }
}

#[test]
fn a_key_that_is_kept_alive_outlives_one_that_is_not() {
    let server = Server::in_memory(&["--keepalive-ttl", "400ms"]);
    let client = &mut server.client();
    eventually("a key outlives another", || outlive(client, Duration::from_millis(400)));
}

//! Time over the wire: leases end and keys are purged by themselves, and never early.
//!
//! Nothing here asserts that something was soon, and no length is slept through: the server is
//! asked until it says so, and what the clients' clock then shows is the least it may be.

use crate::support::{Client, Server, eventually, now};
use serde_json::{Value, json};
use std::time::Duration;

fn unix_ms(instant: &Value) -> u64 {
    serde_json::from_value::<keypeg_client::UnixMs>(instant.clone()).unwrap().0
}

#[test]
fn a_lease_comes_back_by_itself_and_not_before_its_time() {
    let server = Server::in_memory(&["--lease-ttl", "300ms"]);
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let before = now();
    let first = client.ask("POST /v1/pools/default/leases").is(
        201,
        &json!({
            "expires_in_seconds": 0.3,
        }),
    );
    let second = eventually("the key comes back", || {
        let answer = client.ask("POST /v1/pools/default/leases");
        (answer.status == 201).then(|| answer.json())
    });
    assert!(before.elapsed() >= Duration::from_millis(300));
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
fn a_key_that_nobody_keeps_alive_is_gone_in_every_route_and_not_before_its_time() {
    let server = Server::in_memory(&["--keepalive-ttl", "1s"]);
    let client = &mut server.client();
    // The key is born after this, so whenever it is seen gone, its time is over on this clock too.
    let before = now();
    let keys = client.ask("POST /v1/pools/default/keys").is(201, &json!({ "keys": ["*"] }));
    let key = &keys["keys"][0];
    assert_eq!(unix_ms(&key["expires_at"]) - unix_ms(&key["created_at"]), 1_000);
    let (id, value) = (key["id"].as_str().unwrap(), key["key"].as_str().unwrap());
    let path = format!("/v1/pools/default/keys/{id}");
    eventually("the key is purged", || {
        (client.ask(&format!("GET {path}")).status == 404).then_some(())
    });
    assert!(before.elapsed() >= Duration::from_secs(1));
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
    eventually("it is counted no more", || {
        (client.ask("GET /v1/pools/default").json()["total"] == 0).then_some(())
    });
}

/// Keeps one of two keys alive until the other is gone; `None` when this machine was too slow for
/// that to say anything.
fn outlive(client: &mut Client, ttl: Duration) -> Option<()> {
    let mut asked = now();
    let keys = client.send("POST /v1/pools/default/keys", &json!({ "count": 2 })).json();
    let [kept, left] = [0, 1].map(|at| keys["keys"][at]["id"].as_str().unwrap().to_owned());
    loop {
        let asking = now();
        let answer = client.ask(&format!("POST /v1/pools/default/keys/{kept}/keepalive"));
        if answer.status == 404 && asked.elapsed() >= ttl {
            return None;
        }
        answer.is(200, &json!({ "id": kept, "expires_at": "*" }));
        asked = asking;
        if client.ask(&format!("GET /v1/pools/default/keys/{left}")).status == 404 {
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

//! Restarts: every acknowledged change survives SIGTERM and SIGKILL.

use crate::support::{Server, TempDir, eventually, now};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn keys_leases_holders_and_fencing_tokens_survive_sigkill() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    assert!(
        server.ready().contains("0 keys in 1 pool, 0 leases active (created "),
        "{}",
        server.ready()
    );
    let client = &mut server.client();
    client.send("PUT /v1/pools/ci", &json!({ "max_hold_seconds": 600 })).is(201, &json!({}));
    let keys = client.send("POST /v1/pools/ci/keys", &json!({ "count": 3 })).json();
    let acquire = "POST /v1/pools/ci/leases";
    let held = client.send(acquire, &json!({ "holder": "job-7" })).json();
    let released = client.ask(acquire).json();
    let release = |lease: &Value| {
        format!("POST /v1/pools/ci/leases/{}/release", lease["id"].as_str().unwrap())
    };
    client.ask(&release(&released)).is(204, &Value::Null);
    let deleted = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["id"] != held["key_id"] && key["id"] != released["key_id"]);
    let deleted = format!("/v1/pools/ci/keys/{}", deleted.unwrap()["id"].as_str().unwrap());
    client.ask(&format!("DELETE {deleted}")).is(204, &Value::Null);

    server.kill();
    let server = Server::on(&dir, &[]);
    assert!(
        server.ready().contains("2 keys in 2 pools, 1 lease active (recovered from "),
        "{}",
        server.ready()
    );
    let client = &mut server.client();
    client.ask("GET /v1/pools/ci").is(
        200,
        &json!({
            "max_hold_seconds": 600, "available": 1, "leased": 1, "total": 2,
        }),
    );
    client.ask(&format!("GET /v1/pools/ci/keys/{}", held["key_id"].as_str().unwrap())).is(200, &json!({
        "state": "leased", "lease": { "holder": "job-7", "fencing_token": held["fencing_token"] },
    }));
    client.ask(&format!("GET {deleted}")).problem(404, "unknown_key");
    let ended = client.ask(&release(&released)).problem(410, "lease_ended");
    assert!(ended.get("cause").is_none_or(|cause| cause == "released"), "{ended}");
    let regranted = client.ask(acquire).is(
        201,
        &json!({
            "key_id": released["key_id"], "key": released["key"],
        }),
    );
    for earlier in [&held, &released] {
        assert!(regranted["fencing_token"].as_u64() > earlier["fencing_token"].as_u64());
    }
    let renew = format!("POST /v1/pools/ci/leases/{}/renew", held["id"].as_str().unwrap());
    client.ask(&renew).is(200, &json!({ "holder": "job-7", "key_id": held["key_id"] }));
    client.ask(&release(&held)).is(204, &Value::Null);
}

/// Regression: each start paired the lease clock after the replay with the boot time before it, so
/// every lease that outlived the next start ended early by the duration of the replay.
#[test]
fn restarts_do_not_shorten_a_lease() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &["--lease-ttl", "2s"]);
    server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let acquired_at = now();
    server.client().ask("POST /v1/pools/default/leases").is(201, &json!({}));
    for _ in 0..6 {
        server.kill();
        server = Server::on(&dir, &[]);
    }
    let client = &mut server.client();
    eventually("the key is available again", || {
        (client.ask("POST /v1/pools/default/leases").status == 201).then_some(())
    });
    assert!(acquired_at.elapsed() >= Duration::from_secs(2), "after {:?}", acquired_at.elapsed());
}

#[test]
fn sigterm_ends_the_server_cleanly_and_loses_nothing() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let client = &mut server.client();
    let key = client.ask("POST /v1/pools/default/keys").json()["keys"][0].clone();
    let first = client.ask("POST /v1/pools/default/leases").json();
    assert_eq!(server.terminate().code(), Some(0));
    assert!(client.is_closed());
    let mut server = Server::on(&dir, &[]);
    let client = &mut server.client();
    let path = format!("/v1/pools/default/keys/{}", key["id"].as_str().unwrap());
    client.ask(&format!("GET {path}")).is(200, &json!({ "state": "leased" }));
    client.ask(&format!("POST {path}/release")).is(200, &json!({ "released": true }));
    let second = client.ask("POST /v1/pools/default/leases").is(201, &json!({ "key": key["key"] }));
    assert!(second["fencing_token"].as_u64() > first["fencing_token"].as_u64());
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn a_request_that_began_before_sigterm_is_answered() {
    let mut server = Server::in_memory(&[]);
    let mut client = server.client();
    // The 100 (Continue) shows that the server has read the head.
    let head = "POST /v1/pools/default/keys HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
                Content-Type: application/json\r\nContent-Length: 11\r\n\r\n";
    assert_eq!(client.raw(head.as_bytes()).unwrap().status, 100);
    let mut other = server.client();
    other.ask("GET /livez").is(200, &json!({}));
    let addr = server.addr();
    let stopping = std::thread::spawn(move || (server.terminate(), server));
    eventually("new connections are refused", || std::net::TcpStream::connect(addr).err());
    assert!(other.is_closed());
    client.write(b"{\"count\":2}").unwrap();
    let answer = client.read(false).unwrap();
    assert_eq!(answer.header("connection"), Some("close"));
    answer.is(201, &json!({ "keys": ["*", "*"] }));
    assert_eq!(stopping.join().unwrap().0.code(), Some(0));
}

#[test]
fn flags_do_not_change_a_stored_policy() {
    let dir = TempDir::new();
    let policy = json!({ "lease_ttl_seconds": 7, "keepalive_ttl_seconds": 300 });
    let mut server = Server::on(&dir, &["--lease-ttl", "7s"]);
    server.client().ask("GET /v1/pools/default").is(200, &policy);
    server.kill();
    let server = Server::on(&dir, &["--lease-ttl", "9s", "--keepalive-ttl", "1s"]);
    server.client().ask("GET /v1/pools/default").is(200, &policy);
}

#[test]
fn a_server_in_memory_keeps_nothing() {
    let mut server = Server::in_memory(&[]);
    assert!(server.ready().ends_with("(in memory only)"), "{}", server.ready());
    server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
    assert_eq!(server.terminate().code(), Some(0));
    let server = Server::in_memory(&[]);
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

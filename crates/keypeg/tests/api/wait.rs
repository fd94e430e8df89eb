//! Waiting for a key over HTTP: order, timeouts, and what removes a waiter from the wait queue.

use crate::support::{Client, Server, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{Shutdown, TcpStream};

const POOL: &str = "/v1/pools/default";

fn start_acquire(client: &mut Client, body: &Value) {
    let body = body.to_string();
    let head = "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let length = body.len();
    let text = format!("POST {POOL}/leases {head}\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write(text.as_bytes()).unwrap();
}

fn until_waiting(client: &mut Client, count: u64) {
    eventually("the number of waiters", || {
        let pool = client.ask(&format!("GET {POOL}")).json();
        (pool["waiting"] == count).then_some(())
    });
}

fn generate(client: &mut Client, count: u64) {
    client.send(&format!("POST {POOL}/keys"), &json!({ "count": count })).is(201, &json!({}));
}

#[test]
fn waiters_get_keys_in_the_order_of_arrival() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let mut waiting: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for (index, waiter) in waiting.iter_mut().enumerate() {
        start_acquire(waiter, &json!({ "wait_seconds": 300, "holder": index.to_string() }));
        until_waiting(client, index as u64 + 1);
    }
    let newcomer = client.ask(&format!("POST {POOL}/leases"));
    newcomer.problem(404, "no_key_available");
    for (index, waiter) in waiting.iter_mut().enumerate() {
        generate(client, 1);
        let grant = waiter.read(false).unwrap().is(201, &json!({ "holder": index.to_string() }));
        assert!(grant["waited_seconds"].as_f64().unwrap() < 60.0, "{grant}");
    }
    client.ask(&format!("GET {POOL}")).is(200, &json!({ "waiting": 0, "leased": 5 }));
}

#[test]
fn a_wait_without_a_key_ends_with_404_and_its_cause() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let request = format!("POST {POOL}/leases");
    let problem = client.send(&request, &json!({ "wait_seconds": 0.05 }));
    problem.is(404, &json!({ "code": "no_key_available", "cause": "pool_empty" }));
    generate(client, 1);
    let grant = client.send(&request, &json!({ "wait_seconds": 300 }));
    assert_eq!(grant.header("preference-applied"), None);
    grant.is(201, &json!({ "waited_seconds": 0 }));
    let json_type = ("content-type", "application/json");
    for (prefer, body, applied) in [
        ("wait=0", "", Some("wait=0")),
        ("respond-async, WAIT=1", "", Some("wait=1")),
        ("wait=300", "{\"wait_seconds\":0.01}", None),
        ("wait=soon", "", None),
        ("wait=-1", "", None),
    ] {
        let answer = client.try_send(&request, &[("Prefer", prefer), json_type], body).unwrap();
        assert_eq!(answer.header("preference-applied"), applied, "{prefer}");
        answer.is(404, &json!({ "cause": "all_leased", "outcome": "not_applied" }));
    }
}

#[test]
fn a_client_that_disconnects_leaves_the_wait_queue_and_loses_no_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let text =
        format!("POST {POOL}/leases HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=300\r\n\r\n");
    for half_close in [false, true] {
        let mut waiter = TcpStream::connect(server.addr()).unwrap();
        waiter.write_all(text.as_bytes()).unwrap();
        until_waiting(client, 1);
        if half_close {
            waiter.shutdown(Shutdown::Write).unwrap();
        } else {
            drop(waiter);
        }
        until_waiting(client, 0);
    }
    generate(client, 1);
    client.ask(&format!("GET {POOL}")).is(200, &json!({ "available": 1, "leased": 0 }));
}

#[test]
fn waiters_are_answered_when_their_pool_is_deleted_or_the_server_stops() {
    let mut server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.ask("PUT /v1/pools/ci").is(201, &json!({}));
    let waiter = &mut server.client();
    let text = "POST /v1/pools/ci/leases HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=300\r\n\r\n";
    waiter.write(text.as_bytes()).unwrap();
    eventually("it waits", || {
        (client.ask("GET /v1/pools/ci").json()["waiting"] == 1).then_some(())
    });
    client.ask("DELETE /v1/pools/ci").is(204, &Value::Null);
    waiter.read(false).unwrap().problem(404, "unknown_pool");

    start_acquire(waiter, &json!({ "wait_seconds": 300 }));
    until_waiting(client, 1);
    assert_eq!(server.terminate().code(), Some(0));
    let problem = waiter.read(false).unwrap();
    assert!(problem.header("retry-after").is_some(), "{problem:?}");
    problem.problem(503, "shutting_down");
}

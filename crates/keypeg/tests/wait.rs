//! Waiting for a key over HTTP.

use crate::support::{Client, Server, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::net::{Shutdown, TcpStream};

const POOL: &str = "/v1/pools/default";

fn acquire(client: &mut Client, body: &Value) {
    let body = body.to_string();
    let head = "HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let length = body.len();
    let text = format!("POST {POOL}/leases {head}\r\nContent-Length: {length}\r\n\r\n{body}");
    client.write(text.as_bytes()).unwrap();
}

fn until_so_many_wait(client: &mut Client, count: u64) {
    eventually("so many wait", || {
        let pool = client.ask(&format!("GET {POOL}")).json();
        (pool["waiting"] == count).then_some(())
    });
}

fn generate(client: &mut Client, count: u64) {
    client.send(&format!("POST {POOL}/keys"), &json!({ "count": count })).is(201, &json!({}));
}

#[test]
fn who_waits_gets_a_key_in_the_order_of_coming() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let mut waiting: Vec<Client> = (0..5).map(|_| server.client()).collect();
    for (at, waiter) in waiting.iter_mut().enumerate() {
        acquire(waiter, &json!({ "wait_seconds": 300, "holder": at.to_string() }));
        until_so_many_wait(client, at as u64 + 1);
    }
    let newcomer = client.ask(&format!("POST {POOL}/leases"));
    newcomer.problem(404, "no_key_available");
    for (at, waiter) in waiting.iter_mut().enumerate() {
        generate(client, 1);
        let grant = waiter.read(false).unwrap().is(201, &json!({ "holder": at.to_string() }));
        assert!(grant["waited_seconds"].as_f64().unwrap() < 60.0, "{grant}");
    }
    client.ask(&format!("GET {POOL}")).is(200, &json!({ "waiting": 0, "leased": 5 }));
}

#[test]
fn a_wait_that_is_over_is_a_404_with_its_cause() {
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
fn a_caller_that_hangs_up_leaves_the_line_and_no_key_is_lost() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let text =
        format!("POST {POOL}/leases HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=300\r\n\r\n");
    for half in [false, true] {
        let mut gone = TcpStream::connect(server.addr()).unwrap();
        gone.write_all(text.as_bytes()).unwrap();
        until_so_many_wait(client, 1);
        if half {
            gone.shutdown(Shutdown::Write).unwrap();
        } else {
            drop(gone);
        }
        until_so_many_wait(client, 0);
    }
    generate(client, 1);
    client.ask(&format!("GET {POOL}")).is(200, &json!({ "available": 1, "leased": 0 }));
}

#[test]
fn whoever_waits_for_a_pool_that_goes_or_a_server_that_stops_is_told() {
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

    acquire(waiter, &json!({ "wait_seconds": 300 }));
    until_so_many_wait(client, 1);
    assert_eq!(server.terminate().code(), Some(0));
    let problem = waiter.read(false).unwrap();
    assert!(problem.header("retry-after").is_some(), "{problem:?}");
    problem.problem(503, "shutting_down");
}

//! Clients that close their sending side with the request, as nc, socat and health scripts do: each
//! request that has begun is answered, on the fast path and by hyper. Only a request in a wait queue
//! is abandoned.
//!
//! Regression: such a client got its answer by chance, and a change was applied or not.

use super::{Answer, Connection, PoolNames, Servers, Via, request};
use crate::support::{Server, eventually};
use rustix::net::{SendFlags, send};
use serde_json::json;
use std::net::Shutdown;

const ACQUIRE: &str = "POST /v1/pools/<pool>/leases";
const WAITING: &str = r#"{"wait_seconds":300}"#;

/// Sends a request together with the end of the client's sending side; returns all answers.
fn send_and_close(server: &Server, via: Via, bytes: &[u8]) -> Vec<Answer> {
    let mut connection = Connection::on(server.addr(), via);
    let stream = connection.0.get_ref();
    // One segment, so that the server sees the end as soon as it sees the request.
    assert_eq!(send(stream, bytes, SendFlags::MORE).unwrap(), bytes.len());
    stream.shutdown(Shutdown::Write).unwrap();
    connection.rest()
}

fn create_pool(server: &Server, name: &str) -> PoolNames {
    let policy = json!({ "max_hold_seconds": 600 });
    PoolNames::create(&mut server.client(), name, &policy)
}

#[test]
fn every_call_of_a_half_closed_client_is_answered() {
    let servers = Servers::new(&[]);
    for (index, (line, headers, body, status)) in [
        (ACQUIRE, "", "", "201"),
        (ACQUIRE, "", WAITING, "201"),
        (ACQUIRE, "Prefer: wait=300\r\n", "", "201"),
        (ACQUIRE, "Idempotency-Key: a\r\n", WAITING, "201"),
        ("POST /v1/pools/<pool>/leases/<lease>/renew", "", r#"{"ttl_seconds":60}"#, "200"),
        ("POST /v1/pools/<pool>/leases/<lease>/release", "", "", "204"),
        ("POST /v1/pools/<pool>/leases/<ended>/release", "", "", "410"),
        ("POST /v1/pools/<pool>/keys/<key>/keepalive", "", "{}", "200"),
        ("POST /v1/pools/<pool>/keys", "", r#"{"count":3}"#, "201"),
        ("DELETE /v1/pools/<pool>/keys/<key>", "", "", "204"),
        ("PUT /v1/pools/<pool>", "", r#"{"rest_seconds":1}"#, "200"),
        ("GET /v1/pools/<pool>", "", "", "200"),
        ("GET /v1/pools/<pool>/keys", "", "", "200"),
        ("GET /livez", "", "", "200"),
        ("GET /metrics", "", "", "200"),
        ("GET /nope", "", "", "404"),
    ]
    .into_iter()
    .enumerate()
    {
        for round in 0..5 {
            servers.assert_same(line, |via, server| {
                let names = create_pool(server, &format!("h{index}-{round}"));
                let bytes = via.bytes(&names.fill(&request(line, headers, body)));
                let answers = send_and_close(server, via, &bytes);
                let statuses: Vec<_> =
                    answers.iter().map(|it| it.status[9..12].to_owned()).collect();
                assert_eq!(statuses, [status], "{via:?} {line}: {answers:?}");
                statuses
            });
        }
    }
}

/// A caller that closes its sending side after a release has it applied.
#[test]
fn pipelined_calls_of_a_half_closed_client_are_all_answered() {
    let servers = Servers::new(&[]);
    servers.assert_same("pipelined", |via, server| {
        let names = create_pool(server, "ci");
        let renew = request("POST /v1/pools/<pool>/leases/<lease>/renew", "", "");
        let release = request("POST /v1/pools/<pool>/leases/<lease>/release", "", "{}");
        let all = [request(ACQUIRE, "", ""), renew, release, request("GET /v1/pools", "", "")];
        let bytes: Vec<_> = all.iter().flat_map(|one| via.bytes(&names.fill(one))).collect();
        let answers = send_and_close(server, via, &bytes);
        let statuses: Vec<_> = answers.iter().map(|it| it.status[9..12].to_owned()).collect();
        assert_eq!(statuses, ["201", "200", "204", "200"], "{via:?}: {answers:?}");
        let pool = server.client().ask("GET /v1/pools/ci").json();
        assert_eq!((&pool["available"], &pool["leased"]), (&json!(1), &json!(1)));
    });
}

#[test]
fn a_half_closed_client_in_the_wait_queue_is_abandoned_at_once() {
    let servers = Servers::start(&[]);
    servers.assert_same("waits", |via, server| {
        let client = &mut server.client();
        client.send("PUT /v1/pools/empty", &json!({})).is(201, &json!({}));
        let acquire = ACQUIRE.replace("<pool>", "empty");
        let headers = ["", "Prefer: wait=300\r\n"];
        for (headers, body) in [(headers[0], WAITING), (headers[1], "")] {
            let bytes = via.bytes(&request(&acquire, headers, body));
            assert_eq!(send_and_close(server, via, &bytes), [], "{via:?}");
            let is_empty = || {
                let pool = server.client().ask("GET /v1/pools/empty").json();
                (pool["waiting"] == 0).then_some(())
            };
            eventually("the waiter has left the queue", is_empty);
        }
        // A key that is added later goes to the next caller.
        client.ask("POST /v1/pools/empty/keys").is(201, &json!({}));
        client.ask("POST /v1/pools/empty/leases").is(201, &json!({}));
    });
}

#[test]
fn an_incomplete_body_of_a_half_closed_client_is_refused() {
    let servers = Servers::new(&[]);
    servers.assert_same("half a body", |via, server| {
        let names = create_pool(server, "ci");
        let bytes = via.bytes(&names.fill(&request(ACQUIRE, "", "{    }")));
        let answers = send_and_close(server, via, &bytes[..bytes.len() - 2]);
        let statuses: Vec<_> = answers.iter().map(|it| it.status[9..12].to_owned()).collect();
        assert_eq!(statuses, ["400"], "{via:?}: {answers:?}");
    });
}

/// A stream has no end: it ends with the client's sending side, and frees its place.
#[test]
fn a_half_closed_client_gets_the_beginning_of_an_event_stream() {
    let server = Server::in_memory(&[]);
    let mut connection = Connection::new(server.addr());
    connection.send(&request("GET /v1/pools/default/events", "", ""));
    connection.0.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut connection.0, &mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("event: resync"), "{text}");
    eventually("the stream is closed", || {
        let metrics = server.client().ask("GET /metrics").body;
        metrics.contains("\nkeypeg_followers 0\n").then_some(())
    });
}

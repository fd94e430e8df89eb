//! A request reaches the server of its pool, whichever server gets it, and is applied once.

use super::double::{Installation, SECRET};
use crate::support::{Answer, Client, TempDir, eventually, small_socket_from};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::time::Duration;

const NOTHING: Value = Value::Null;
const P1: &str = "/v1/pools/p1";

/// Two servers, and a pool with keys on shard 1 of the first.
fn installation(keys: u32) -> Installation {
    let servers = Installation::start(&[&[], &[]]);
    with_pool(&servers, keys);
    servers
}

fn with_pool(servers: &Installation, keys: u32) {
    let mut owner = servers.client(0);
    owner.send(&format!("PUT {P1}"), &json!({})).is(201, &json!({ "pool": "p1" }));
    if keys > 0 {
        let generate = json!({ "count": keys });
        owner.send(&format!("POST {P1}/keys"), &generate).is(201, &json!({}));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn acquire(answer: Answer) -> String {
    answer.is(201, &json!({ "key": "*" }))["id"].as_str().unwrap().to_owned()
}

#[test]
fn every_server_answers_every_call_on_a_pool() {
    let servers = installation(2);
    let mut other = servers.client(1);
    other.ask("GET /v1/pools/p1").is(200, &json!({ "pool": "p1", "total": 2 }));
    let head = other.ask("HEAD /v1/pools/p1");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert!(head.header("content-length").is_some(), "{head:?}");
    let lease = acquire(other.send(&format!("POST {P1}/leases"), &json!({ "ttl_seconds": 9 })));
    servers.client(0).ask("GET /v1/pools/p1").is(200, &json!({ "leased": 1 }));
    other
        .send(&format!("POST {P1}/leases/{lease}/renew"), &NOTHING)
        .is(200, &json!({ "id": lease }));
    other.send(&format!("POST {P1}/leases/{lease}/release"), &NOTHING).is(204, &NOTHING);
    other.send(&format!("POST {P1}/leases/{lease}/release"), &NOTHING).problem(410, "lease_ended");
    other
        .send(&format!("POST {P1}/keepalive"), &json!({ "all": true }))
        .is(200, &json!({ "kept": 2 }));
    let keys = other.ask(&format!("GET {P1}/keys")).is(200, &json!({}));
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2, "{keys}");
    other.ask("GET /v1/pools/none1").problem(404, "unknown_pool");
    other.send(&format!("POST {P1}/keys"), &json!({ "count": 0 })).problem(422, "invalid");
    other.send("PUT /v1/pools/new3", &json!({})).is(201, &json!({ "pool": "new3" }));
    let created = other.send("POST /v1/pools/new3/keys", &json!({ "values": ["v"] }));
    assert_eq!(created.status, 201, "{created:?}");
    other.ask("DELETE /v1/pools/new3").is(204, &NOTHING);
}

#[test]
fn the_older_apis_are_forwarded_like_the_default_pool() {
    let servers = installation(0);
    let mut other = servers.client(1);
    let key = other.ask("POST /api/v1/random_api_key/").is(201, &json!({ "api_key": "*" }));
    let key = key["api_key"].as_str().unwrap().to_owned();
    other.ask("GET /api/v1/random_api_key/").is(200, &json!({ "api_key": key }));
    other.ask("GET /api/v1/random_api_key/").is(404, &json!({ "message": "*" }));
    other.ask(&format!("PUT /api/v1/random_api_key/?api_key={key}")).is(200, &json!({}));
    let id = other.ask("GET /keys").is(200, &json!({ "key": key }))["keyId"].clone();
    other
        .ask(&format!("GET /keys/{}", id.as_str().unwrap()))
        .is(200, &json!({ "isBlocked": true }));
    servers.client(0).ask("GET /v1/pools/default").is(200, &json!({ "leased": 1 }));
}

/// An import that does not fit into a socket's buffers.
#[test]
fn a_large_body_is_streamed_to_the_server_of_the_pool() {
    let servers = installation(0);
    let values: Vec<_> = (0..8_000).map(|index| format!("{index:064}")).collect();
    let mut other = servers.client(1);
    let import = json!({ "values": values });
    let created = other.send(&format!("POST {P1}/keys"), &import);
    assert_eq!(created.status, 201, "{:?}", created.headers);
    other.ask(&format!("GET {P1}")).is(200, &json!({ "total": 8_000 }));
    let mut chunked = format!("POST {P1}/keys HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n").replace("host: a", "host: localhost");
    chunked.push_str("b\r\n{\"count\":3}\r\n0\r\n\r\n");
    other.write(chunked.as_bytes()).unwrap();
    let first = other.line().unwrap();
    assert_eq!((first.as_str(), other.line().as_deref()), ("HTTP/1.1 100 Continue", Some("")));
    let answer = other.read(false).unwrap();
    assert_eq!(answer.json()["keys"].as_array().unwrap().len(), 3);
}

/// Each request of a client is first tried where its server believes the pool to be.
#[test]
fn a_server_that_believes_wrongly_looks_again_and_sends_the_request_elsewhere() {
    let servers = Installation::start(&[&[], &[], &[]]);
    with_pool(&servers, 9);
    for (server, believed) in [(1, 2), (1, 1), (2, 1), (2, 2)] {
        let mut client = servers.client(server);
        // The other path than that of frequent calls, and that path.
        servers.believe(server, 1, believed);
        let before = servers.looks();
        client.ask(&format!("GET {P1}/keys?limit=1")).is(200, &json!({}));
        assert!(servers.looks() > before, "{server} {believed}");
        servers.believe(server, 1, believed);
        let mut client = servers.client(server);
        acquire(client.send(&format!("POST {P1}/leases"), &json!({ "holder": "b" })));
        servers.believe(server, 1, believed);
        let body = r#"{"holder":"c"}"#;
        let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
        let path = format!("POST {P1}/leases");
        let first = acquire(client.try_send(&path, &headers, body).unwrap());
        let second = acquire(servers.client(0).try_send(&path, &headers, body).unwrap());
        assert_eq!(first, second, "one answer under one Idempotency-Key");
    }
    // Four without a key and one under it.
    servers.client(0).ask(&format!("GET {P1}")).is(200, &json!({ "leased": 5 }));
}

#[test]
fn a_forwarded_request_is_never_forwarded_again() {
    let servers = installation(1);
    let secret = hex(&SECRET);
    let path = format!("POST {P1}/leases");
    let forwarded = |secret: &str| {
        servers.client(1).try_send(&path, &[("keypeg-forwarded", secret)], "").unwrap()
    };
    let refused = forwarded(&secret);
    assert_eq!(refused.header("keypeg-refused"), Some("not_owner"));
    let problem = refused.problem(421, "not_owner");
    assert_eq!(problem["outcome"], "not_applied");
    // A client that does not know the secret is an ordinary one.
    for wrong in ["", "00", "zz", &hex(&[8; 32]), &secret[..62], &format!("{secret}00")] {
        let answer = forwarded(wrong);
        assert_eq!(answer.header("keypeg-refused"), None, "{wrong}");
        let lease = acquire(answer);
        let release = format!("POST {P1}/leases/{lease}/release");
        servers.client(1).ask(&release).is(204, &NOTHING);
    }
}

#[test]
fn the_owner_logs_a_forwarded_change_once_with_the_address_of_its_client() {
    let dir = TempDir::new();
    let paths = [0, 1].map(|index| dir.path().join(format!("audit-{index}")));
    let [first, second] = paths.each_ref().map(|path| path.to_str().unwrap());
    let servers = Installation::start(&[&["--audit", first], &["--audit", second]]);
    with_pool(&servers, 1);
    let headers = [
        ("content-type", "application/json"),
        ("keypeg-client", "10.9.8.7"),
        ("x-request-id", "0-0-0"),
        ("keypeg-waited-ms", "1"),
    ];
    let mut client = Client::from(servers.addr(1), [127, 0, 0, 5].into());
    let answer = client.try_send(&format!("POST {P1}/leases"), &headers, "{}").unwrap();
    let id = answer.header("x-request-id").unwrap().to_owned();
    acquire(answer);
    client.send(&format!("POST {P1}/leases/x/release"), &NOTHING);
    drop((client, servers));
    let [first, second] = paths.map(|path| std::fs::read_to_string(path).unwrap());
    let lines: Vec<Value> = first.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_request: Vec<_> = lines.iter().filter(|line| line["request_id"] == *id).collect();
    assert_eq!(of_request.len(), 1, "{first}");
    assert_eq!(of_request[0]["address"], "127.0.0.5", "{first}");
    assert_eq!(of_request[0]["outcome"], "applied");
    assert_eq!(second, "", "the server that forwards writes no line");
}

#[test]
fn events_are_passed_on_as_they_occur_and_end_with_their_client() {
    let servers = installation(1);
    let mut events = servers.client(1);
    events
        .write(format!("GET {P1}/events HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .unwrap();
    let mut until = |wanted: &str| {
        while !events.line().expect("the stream goes on").contains(wanted) {}
    };
    until("event: resync");
    let lease = acquire(servers.client(1).send(&format!("POST {P1}/leases"), &json!({})));
    until("event: granted");
    servers.client(0).ask(&format!("POST {P1}/leases/{lease}/release"));
    until("event: released");
    events.stream().shutdown(Shutdown::Write).unwrap();
    assert!(events.rest().ends_with("0\r\n\r\n"), "a complete response");
}

#[test]
fn a_waiter_whose_pool_moves_waits_on_at_the_new_server() {
    let servers = installation(1);
    let path = format!("POST {P1}/leases");
    let mut lease = acquire(servers.client(0).send(&path, &json!({})));
    for owner in [1, 0] {
        // One waits at the server of the pool, and one at the other.
        let mut waiting = [0, 1].map(|server| servers.client(server));
        let body = r#"{"wait_seconds":30}"#;
        for client in &mut waiting {
            let length = body.len();
            let head = format!(
                "{path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {length}\r\n\r\n{body}"
            );
            client.write(head.as_bytes()).unwrap();
        }
        let mut client = servers.client(0);
        let mut until = |waiting: u64| {
            while client.ask(&format!("GET {P1}")).is(200, &json!({}))["waiting"] != waiting {}
        };
        until(2);
        servers.move_shard(1, owner);
        until(2);
        let [one, mut two] = waiting;
        // A client that leaves makes its request leave the wait queue.
        one.stream().shutdown(Shutdown::Both).unwrap();
        drop(one);
        until(1);
        let release = format!("POST {P1}/leases/{lease}/release");
        servers.client(1).ask(&release).is(204, &NOTHING);
        lease = acquire(two.read(false).unwrap());
    }
}

/// Sends the head and a part of the body, of `length` bytes, as JSON.
fn begin(servers: &Installation, server: usize, path: &str, length: usize, part: &str) -> Client {
    let mut client = servers.client(server);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{part}"
    );
    client.write(head.as_bytes()).unwrap();
    client
}

/// Begins a request that waits for a key of the pool at the first server.
fn wait_for_key(servers: &Installation, server: usize) -> Client {
    let body = r#"{"wait_seconds":30}"#;
    begin(servers, server, &format!("{P1}/leases"), body.len(), body)
}

/// Waits until the pool has this number of waiters.
fn until_waiting(owner: &mut Client, waiting: u64) {
    eventually("the wait queue", || {
        let pool = owner.ask(&format!("GET {P1}")).is(200, &json!({}));
        (pool["waiting"] == waiting).then_some(())
    });
}

/// The client's connection ended without an answer.
#[test]
fn a_waiter_at_another_server_gets_an_answer_when_its_own_server_stops() {
    let mut servers = installation(1);
    acquire(servers.client(0).send(&format!("POST {P1}/leases"), &json!({})));
    let mut waiter = wait_for_key(&servers, 1);
    let mut owner = servers.client(0);
    until_waiting(&mut owner, 1);
    servers.stop(1);
    let answer = waiter.read(false).unwrap();
    assert_eq!(answer.header("retry-after"), Some("1"));
    let problem = answer.problem(503, "owner_lost");
    assert_eq!(problem["outcome"], "unknown");
    assert!(problem["detail"].as_str().unwrap().contains("shutting down"), "{problem}");
    until_waiting(&mut owner, 0);
}

/// A server that answers when the sending side of the connection has been closed, as one that grants a
/// key at the same moment, or that still handles a request that does not wait.
#[test]
fn an_answer_that_comes_while_the_forwarding_server_stops_reaches_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut servers = Installation::start_with(&[&[], &[]], &[addr]);
    with_pool(&servers, 1);
    servers.believe(1, 1, 2);
    let mut client = begin(&servers, 1, &format!("{P1}/leases"), 2, "{}");
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    servers.stop(1);
    let mut request = String::new();
    stream.read_to_string(&mut request).unwrap();
    assert!(request.starts_with(&format!("POST {P1}/leases ")), "{request}");
    assert!(request.contains("{}"), "the whole body: {request}");
    stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 7\r\n\r\ngranted").unwrap();
    let answer = client.read(false).unwrap();
    assert_eq!((answer.status, &*answer.body), (201, "granted"));
}

/// The server that stops reads the rest of the body and sends it on.
#[test]
fn a_request_whose_body_is_still_arriving_is_applied_elsewhere_while_its_server_stops() {
    let mut servers = installation(1);
    acquire(servers.client(0).send(&format!("POST {P1}/leases"), &json!({})));
    let mut owner = servers.client(0);
    // Each forwarded request looks twice in a second whether its server stops, so the last waiter gets
    // its answer when the request between them has looked.
    let before = wait_for_key(&servers, 1);
    let body = r#"{"count":2}"#;
    let (part, rest) = body.split_at(4);
    let mut generate = begin(&servers, 1, &format!("{P1}/keys"), body.len(), part);
    let after = wait_for_key(&servers, 1);
    until_waiting(&mut owner, 2);
    servers.stop(1);
    for mut waiter in [before, after] {
        waiter.read(false).unwrap().problem(503, "owner_lost");
    }
    generate.write(rest.as_bytes()).unwrap();
    generate.read(false).unwrap().is(201, &json!({}));
    owner.ask(&format!("GET {P1}")).is(200, &json!({ "total": 3 }));
}

/// A server that reads a request and closes the connection.
#[test]
fn a_change_whose_server_is_lost_has_an_unknown_outcome_and_a_read_is_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let servers = Installation::start_with(&[&[], &[]], &[addr]);
    with_pool(&servers, 1);
    let lost = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut bytes = [0; 4 << 10];
                let len = stream.read(&mut bytes).unwrap();
                seen.extend_from_slice(&bytes[..len]);
            }
        }
    });
    servers.believe(1, 1, 2);
    let mut client = servers.client(1);
    let problem = client.send(&format!("POST {P1}/leases"), &NOTHING).problem(503, "owner_lost");
    assert_eq!(problem["outcome"], "unknown");
    client.ask(&format!("GET {P1}")).is(200, &json!({ "leased": 0 }));
    lost.join().unwrap();
    // The listener has gone: the request has surely not been applied.
    servers.believe(1, 1, 2);
    acquire(client.send(&format!("POST {P1}/leases"), &NOTHING));
}

/// It was called lost, and its outcome unknown.
#[test]
fn a_body_that_is_malformed_is_refused_as_such_by_the_server_that_forwards() {
    let servers = installation(1);
    let request = format!(
        "POST {P1}/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\n{{ \r\nno size\r\n"
    );
    for server in [0, 1] {
        let problem = servers.client(server).raw(request.as_bytes()).unwrap();
        problem.problem(400, "malformed");
    }
    servers.client(1).ask(&format!("GET {P1}")).is(200, &json!({ "leased": 0 }));
}

#[test]
fn a_client_that_half_closes_after_a_release_has_it_applied_elsewhere() {
    let servers = installation(1);
    let lease = acquire(servers.client(0).send(&format!("POST {P1}/leases"), &json!({})));
    let mut stream = std::net::TcpStream::connect(servers.addr(1)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let request = format!("POST {P1}/leases/{lease}/release HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    servers.client(1).ask(&format!("GET {P1}")).is(200, &json!({ "available": 1 }));
}

#[test]
fn the_history_of_all_pools_is_the_sum_of_all_servers() {
    let servers = Installation::start(&[&[], &[], &[]]);
    let mut client = servers.client(0);
    for (pool, keys) in [("p1", 3), ("p2", 4)] {
        client.send(&format!("PUT /v1/pools/{pool}"), &json!({})).is(201, &json!({}));
        let path = format!("POST /v1/pools/{pool}/keys");
        client.send(&path, &json!({ "count": keys })).is(201, &json!({}));
    }
    servers.move_shard(2, 1);
    for server in [0, 1, 2] {
        let mut client = servers.client(server);
        eventually("the sum", || {
            let history = client.ask("GET /v1/history?seconds=3").is(200, &json!({}));
            let available = history["available"].as_array().unwrap();
            (available.last() == Some(&json!(7))).then_some(())
        });
        client.ask("GET /v1/history?seconds=0").problem(422, "invalid");
        assert_eq!(client.ask("HEAD /v1/history").status, 200);
        client.ask("GET /v1/pools/p2/history").is(200, &json!({ "pool": "p2" }));
    }
}

/// Regression: hyper flushes the part of a forwarded answer that has arrived, and the server took that for
/// the whole answer. The unread answers of one caller had no bound.
#[test]
fn unread_answers_from_another_server_count_against_the_share_of_their_caller() {
    let limits = ["--memory", "64MiB", "--write-rate", "0", "--write-timeout", "1h"];
    let servers = Installation::start(&[&[], &limits]);
    with_pool(&servers, 1_000);
    let list = format!("GET {P1}/keys?limit=1000");
    let mut unread = Vec::new();
    let refused = loop {
        assert!(unread.len() < 60, "unread answers have no bound");
        let mut stream = small_socket_from(servers.addr(1), Ipv4Addr::LOCALHOST);
        write!(stream, "{list} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        unread.push(stream);
        let answer = servers.client(1).ask(&list);
        if answer.status != 200 {
            break answer;
        }
    };
    refused.problem(429, "rate_limited");
    drop(unread);
    eventually("the room is free again", || {
        (servers.client(1).ask(&list).status == 200).then_some(())
    });
}

#[test]
fn a_list_has_the_pools_of_all_servers_in_the_order_of_their_names() {
    let servers = Installation::start(&[&[], &[], &[]]);
    let mut client = servers.client(0);
    for number in 0..12 {
        client.send(&format!("PUT /v1/pools/x{number:02}"), &json!({})).is(201, &json!({}));
    }
    servers.move_shard(1, 1);
    servers.move_shard(2, 2);
    for server in 0..3 {
        let mut client = servers.client(server);
        let (mut names, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = client.ask(&format!("GET /v1/pools?limit=5{cursor}")).is(200, &json!({}));
            let pools = page["pools"].as_array().unwrap();
            names.extend(pools.iter().map(|pool| pool["pool"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let mut expected: Vec<_> = (0..12).map(|number| format!("x{number:02}")).collect();
        expected.insert(0, "default".into());
        assert_eq!(names, expected, "{server}");
        client.ask("GET /v1/pools?limit=0").problem(422, "invalid");
        assert_eq!(client.ask("HEAD /v1/pools").status, 200);
    }
}

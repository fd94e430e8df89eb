//! Clients that do not read their answers, or read them slowly: what the server keeps for them is
//! bounded, in all and for each caller, and it ends.
//!
//! Once such clients took all memory of the server: 3 000 unread pages of keys killed it.

use crate::support::{Answer, Client, Server, eventually, now, pause, small_socket_from};
use rustix::net::sockopt::set_socket_send_buffer_size;
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

const LIST: &str = "/v1/pools/default/keys?limit=1000";
/// Another address than the default one of a client.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// What an unlimited wait would exceed.
const PATIENCE: Duration = Duration::from_mins(1);

/// A server with a full page of keys.
fn with_keys(args: &[&str]) -> Server {
    let server = Server::in_memory(args);
    let keys = json!({ "count": 1_000 });
    server.client().send("POST /v1/pools/default/keys", &keys).is(201, &json!({}));
    server
}

/// Connects a client for which the kernel keeps few bytes, and sends requests for it.
fn unread(server: &Server, source: Ipv4Addr, requests: &str) -> TcpStream {
    let mut stream = small_socket_from(server.addr(), source);
    stream.write_all(requests.as_bytes()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = Client::from(server.addr(), Ipv4Addr::new(127, 0, 0, 9)).ask("GET /metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
}

#[test]
fn unread_answers_of_one_caller_leave_room_for_the_others() {
    // 8 MiB are for answers, and a page takes nearly 300 KiB.
    let args = ["--memory", "64MiB", "--write-rate", "0", "--write-timeout", "1h"];
    let server = with_keys(&args);
    let list = |source| Client::from(server.addr(), source).ask(&format!("GET {LIST}"));
    let mut unread_answers = Vec::new();
    let refused: Answer = eventually("the caller has its share", || {
        // More than enough; the core that has them may get no processor for a while.
        if unread_answers.len() < 100 {
            unread_answers.push(unread(&server, Ipv4Addr::LOCALHOST, &get(LIST)));
        }
        let answer = list(Ipv4Addr::LOCALHOST);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.header("retry-after"), Some("1"));
    let problem = refused.problem(429, "rate_limited");
    assert!(problem["detail"].as_str().unwrap().contains("your address"), "{problem}");
    assert!(unread_answers.len() > 5, "{} unread answers", unread_answers.len());
    // Small answers, changes, and another caller's page are not refused.
    let mut same = server.client();
    same.ask("GET /v1/pools/default/keys?limit=2").is(200, &json!({}));
    same.ask("POST /v1/pools/default/leases").is(201, &json!({}));
    assert_eq!(same.ask("GET /metrics").status, 200);
    assert_eq!(list(OTHER).status, 200);
    drop(unread_answers);
    eventually("the room is free again", || {
        (list(Ipv4Addr::LOCALHOST).status == 200).then_some(())
    });
}

/// Regression: a scrape could exceed the share of its caller, and a scrape of many pools is large.
#[test]
fn unread_scrapes_of_one_caller_have_a_share_too() {
    // A scrape of 300 pools takes nearly 1 MB.
    let args = ["--memory", "64MiB", "--write-rate", "0", "--write-timeout", "1h"];
    let server = with_keys(&args);
    let mut client = server.client();
    for pool in 0..300 {
        client.send(&format!("PUT /v1/pools/scraped-{pool}"), &json!({})).is(201, &json!({}));
    }
    let scrape = |source| Client::from(server.addr(), source).ask("GET /metrics");
    let mut unread_answers = Vec::new();
    let refused: Answer = eventually("the caller has its share", || {
        unread_answers.push(unread(&server, Ipv4Addr::LOCALHOST, &get("/metrics")));
        assert!(unread_answers.len() < 50, "unread scrapes have no bound");
        let answer = scrape(Ipv4Addr::LOCALHOST);
        (answer.status != 200).then_some(answer)
    });
    refused.problem(429, "rate_limited");
    // Two or more are under way, without the pools it is small, and another caller has its share.
    assert!(unread_answers.len() >= 2, "{} unread scrapes", unread_answers.len());
    assert_eq!(client.ask("GET /livez").status, 200);
    assert_eq!(scrape(OTHER).status, 200);
    assert_eq!(Client::from(server.addr(), OTHER).ask(&format!("GET {LIST}")).status, 200);
    drop(unread_answers);
    eventually("the room is free again", || {
        (scrape(Ipv4Addr::LOCALHOST).status == 200).then_some(())
    });
}

/// Reads 2 000 bytes every 50 ms: an answer of 300 KB once lasted as long as the client wanted.
#[test]
fn a_client_that_reads_slower_than_the_lowest_rate_is_disconnected() {
    let server = with_keys(&["--write-timeout", "500ms", "--write-rate", "1024"]);
    let mut slow = unread(&server, Ipv4Addr::LOCALHOST, &get(LIST));
    let (start, mut bytes, mut len) = (now(), [0; 2_000], 0);
    let end = loop {
        match slow.read(&mut bytes) {
            Ok(0) => break None,
            Ok(read) => len += read,
            // A stop of this process interrupts the read.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Some(error.kind()),
        }
        pause(Duration::from_millis(50));
        assert!(start.elapsed() < PATIENCE, "{len} bytes");
    };
    // A reset: the kernel would keep what is not read for minutes.
    assert_eq!(end, Some(ErrorKind::ConnectionReset), "{len} bytes");
    let mut fast = server.client();
    assert_eq!(fast.ask(&format!("GET {LIST}")).json()["keys"].as_array().unwrap().len(), 1_000);
}

/// Answers without a body are small: the server collected the answers to all requests that it had
/// read, and the kernel megabytes for each connection.
#[test]
fn pipelined_requests_are_not_answered_while_the_client_does_not_read() {
    const PIPELINED: usize = 100_000;
    let server = Server::in_memory(&["--write-rate", "0", "--write-timeout", "1h"]);
    for request in ["HEAD /livez", "OPTIONS /livez", "GET /livez", "POST /v1/pools/no/leases"] {
        let one = format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let mut client = unread(&server, Ipv4Addr::LOCALHOST, "");
        client.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
        // The server stops to read; the client's own kernel takes some of it.
        let _ = client.write_all(one.repeat(PIPELINED).as_bytes());
        let metrics = server.client().ask("GET /metrics").body;
        let count = |line: &str| line.rsplit_once(' ').map_or(0, |(_, n)| n.parse().unwrap());
        let counts = metrics.lines().filter(|line| line.starts_with("keypeg_http_requests_total"));
        let answered: usize = counts.map(count).sum();
        assert!(answered < 2_000, "{request}: {answered} answers that nothing reads");
    }
}

/// The answer to a list of unknown ids repeats them: it had no bound, because a keep-alive is a
/// change.
#[test]
fn unread_answers_to_lists_of_ids_have_the_same_share() {
    let args = ["--memory", "64MiB", "--write-rate", "0", "--write-timeout", "1h"];
    let server = Server::in_memory(&args);
    let ids: Vec<_> = (0..9_000).map(|n| format!("{n:0>90}")).collect();
    let body = json!({ "ids": ids });
    let list = format!(
        "POST /v1/pools/default/keepalive HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
         application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.to_string().len()
    );
    let mut unread_answers = Vec::new();
    eventually("the caller has its share", || {
        unread_answers.push(unread(&server, Ipv4Addr::LOCALHOST, &list));
        assert!(unread_answers.len() < 100, "unread answers have no bound");
        let answer = server.client().send("POST /v1/pools/default/keepalive", &body);
        (answer.status == 429).then_some(())
    });
    // A list whose answer is small is not refused, nor one of another caller.
    let few = json!({ "ids": ids[..20] });
    let same = server.client().send("POST /v1/pools/default/keepalive", &few);
    assert_eq!(same.status, 200);
    let other = Client::from(server.addr(), OTHER).send("POST /v1/pools/default/keepalive", &body);
    assert_eq!(other.status, 200);
}

/// The server went on to read what such a client sends: 16 MiB for each connection.
#[test]
fn a_client_that_is_too_slow_gets_no_more_of_its_requests_read() {
    let server = with_keys(&["--write-timeout", "300ms"]);
    for request in [get(LIST), "HEAD /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".into()] {
        let mut client = unread(&server, Ipv4Addr::LOCALHOST, &request);
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        set_socket_send_buffer_size(&client, 64 << 10).unwrap();
        let bytes = request.repeat(1_000);
        let (mut sent, started) = (0, now());
        while let Ok(len) = client.write(bytes.as_bytes()) {
            sent += len;
            assert!(started.elapsed() < PATIENCE, "the server reads on: {sent} bytes");
        }
        assert!(sent < 4 << 20, "{request}: {sent} bytes were read");
    }
}

#[test]
fn event_streams_have_shares() {
    let server = Server::in_memory(&["--memory", "64MiB"]);
    let open = |source| {
        let mut client = Client::from(server.addr(), source);
        client.write(get("/v1/pools/default/events").as_bytes()).unwrap();
        client
    };
    let follow = |source| open(source).read(true).unwrap();
    // 32 places.
    let mut streams: Vec<_> = (0..16).map(|_| open(Ipv4Addr::LOCALHOST)).collect();
    eventually("16 streams", || (metric(&server, "keypeg_followers") == 16).then_some(()));
    let refused = open(Ipv4Addr::LOCALHOST).read(false).unwrap();
    assert_eq!(refused.header("retry-after"), Some("1"));
    let problem = refused.problem(429, "rate_limited");
    assert!(problem["detail"].as_str().unwrap().contains("share of the 32"), "{problem}");
    streams.extend((0..8).map(|_| open(OTHER)));
    eventually("24 streams", || (metric(&server, "keypeg_followers") == 24).then_some(()));
    open(OTHER).read(false).unwrap().problem(429, "rate_limited");
    streams.extend((3..11).map(|n| open(Ipv4Addr::new(127, 0, 0, n))));
    eventually("32 streams", || (metric(&server, "keypeg_followers") == 32).then_some(()));
    let full = open(Ipv4Addr::new(127, 0, 0, 99)).read(false).unwrap();
    full.problem(503, "overloaded");
    drop(streams);
    eventually("no stream", || (metric(&server, "keypeg_followers") == 0).then_some(()));
    assert_eq!(follow(Ipv4Addr::LOCALHOST).status, 200);
}

/// Reads 100 bytes every 50 ms: each is progress, and the stream kept its place.
#[test]
fn a_stream_that_is_read_byte_by_byte_ends_and_its_place_is_free() {
    let server = with_keys(&["--write-timeout", "500ms"]);
    let path = "/v1/pools/default/events";
    let mut slow = unread(&server, Ipv4Addr::LOCALHOST, &get(path));
    eventually("a subscriber", || (metric(&server, "keypeg_followers") == 1).then_some(()));
    let mut client = server.client();
    let start = now();
    let mut bytes = [0; 100];
    while metric(&server, "keypeg_followers") == 1 {
        let holder = json!({ "holder": "h".repeat(128) });
        for _ in 0..20 {
            let lease = client.send("POST /v1/pools/default/leases", &holder).text("id");
            client.ask(&format!("POST /v1/pools/default/leases/{lease}/release"));
        }
        let _ = slow.read(&mut bytes);
        pause(Duration::from_millis(20));
        assert!(start.elapsed() < Duration::from_mins(1), "the stream keeps its place");
    }
}

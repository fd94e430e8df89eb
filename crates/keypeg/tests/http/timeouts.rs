//! Each time limit of a connection, set to a short time: an operator can change it, and it ends what
//! it is for and nothing else. The times that the clients measure have generous bounds.

use crate::support::late::unless_late;
use crate::support::{Client, Server, eventually, has_read, now, pause, small_socket_from};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// A limit that is reached soon.
const SHORT: &str = "300ms";
/// A limit that no test reaches.
const LONG: &str = "1h";
/// What an unlimited wait would exceed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Starts a server whose only short limit is this one.
fn with_short(limit: &str) -> Server {
    let mut args = Vec::new();
    for name in ["--idle-timeout", "--head-timeout", "--body-timeout", "--write-timeout"] {
        args.extend([name, if name == limit { SHORT } else { LONG }]);
    }
    Server::in_memory(&args)
}

/// Requests that end on the fast path, and by hyper.
const FAST: &str = "POST /v1/pools/nope/leases HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HYPER: &str = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Returns whether the server closes the connection, having sent nothing, after the limit, which has
/// begun after `start`.
fn closes(client: &mut Client, start: Instant) -> bool {
    let closed = client.is_closed();
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(200) && time < PATIENCE, "{time:?}");
    closed
}

#[test]
fn an_idle_connection_is_closed_after_its_limit() {
    let server = with_short("--idle-timeout");
    for request in [FAST, HYPER] {
        let client = &mut server.client();
        let start = now();
        client.raw(request.as_bytes()).unwrap();
        assert!(closes(client, start), "{request}");
    }
}

/// Between requests only the limit of an idle connection applies, whichever path answers.
#[test]
fn an_idle_connection_outlives_the_limits_of_requests() {
    for limit in ["--head-timeout", "--body-timeout", "--write-timeout"] {
        let server = with_short(limit);
        let mut clients = [FAST, HYPER].map(|request| (server.client(), request));
        for round in 0..3 {
            for (client, request) in &mut clients {
                let answer = client.raw(request.as_bytes());
                assert!(answer.is_ok(), "{limit}, round {round}: {request}");
            }
            // Longer than the limit.
            pause(Duration::from_millis(500));
        }
    }
}

#[test]
fn an_incomplete_head_is_closed_after_its_limit() {
    let server = with_short("--head-timeout");
    for first in ["", FAST, HYPER] {
        for head in ["POST /v1/pools/default/leases HTTP/1.1\r\nHos", "GET /li"] {
            let client = &mut server.client();
            if !first.is_empty() {
                client.raw(first.as_bytes()).unwrap();
                // Longer than the limit: it does not apply to an idle connection.
                pause(Duration::from_millis(500));
            }
            let start = now();
            client.write(head.as_bytes()).unwrap();
            assert!(closes(client, start), "{first} {head}");
        }
    }
}

#[test]
fn an_incomplete_body_is_refused_after_its_limit() {
    let server = with_short("--body-timeout");
    for path in ["leases", "keys"] {
        for length in ["Content-Length: 9\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n9\r\n{}"] {
            let client = &mut server.client();
            let head = format!("POST /v1/pools/default/{path} HTTP/1.1\r\nHost: localhost\r\n");
            let start = now();
            let answer = client.raw(format!("{head}{length}").as_bytes()).unwrap();
            assert!(start.elapsed() < PATIENCE);
            assert_eq!(answer.header("connection"), Some("close"));
            let problem = answer.problem(408, "timeout");
            assert_eq!(problem["detail"], "The body did not arrive within 0.3 s.");
        }
    }
}

#[test]
fn a_client_that_reads_nothing_is_disconnected_after_its_limit() {
    let server = with_short("--write-timeout");
    let keys = json!({ "count": 10_000 });
    server.client().send("POST /v1/pools/default/keys", &keys).is(201, &json!({}));
    let acquire = "POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let list = "GET /v1/pools/default/keys?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for request in [acquire.repeat(8_000), list.repeat(200)] {
        let mut stream = small_socket_from(server.addr(), Ipv4Addr::LOCALHOST);
        let mut writer = stream.try_clone().unwrap();
        // The server stops to read: this write ends when the connection does.
        let writing = std::thread::spawn(move || writer.write_all(request.as_bytes()).is_ok());
        eventually("the connection is closed", || {
            let metrics = server.client().ask("GET /metrics").body;
            metrics.contains("\nkeypeg_http_connections 1\n").then_some(())
        });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let _ = writing.join().unwrap();
    }
}

/// Regression: half a head delayed a stop by 10 s, when container runtimes kill the process.
/// A stop took three seconds: one for the rest of the head, two to discard what else arrives.
#[test]
fn half_a_head_does_not_delay_a_stop() {
    for first in ["", FAST, HYPER] {
        for head in ["POST /v1/pools/default/leases HTTP/1.1\r\nHos", "GET /li"] {
            unless_late(Duration::from_millis(200), || stops_at_once(first, head));
        }
    }
}

fn stops_at_once(first: &str, head: &str) {
    let mut server = Server::in_memory(&["--head-timeout", LONG, "--idle-timeout", LONG]);
    let client = &mut server.client();
    if !first.is_empty() {
        client.raw(first.as_bytes()).unwrap();
    }
    client.write(head.as_bytes()).unwrap();
    eventually("the server has read it", || has_read(client.stream()).then_some(()));
    let start = now();
    kill_process(server.pid(), Signal::TERM).unwrap();
    let ended = eventually("the server ends", || server.ended());
    assert_eq!(ended.code(), Some(0), "{first} {head}");
    let time = start.elapsed();
    assert!(time < Duration::from_millis(1_500), "{first} {head}: {time:?}");
    assert!(client.is_closed(), "{first} {head}");
}

#[test]
fn a_time_limit_has_bounds() {
    for (flag, value) in
        [("--idle-timeout", "99ms"), ("--body-timeout", "25h"), ("--head-timeout", "5")]
    {
        let mut command = crate::support::keypeg(&["--ephemeral", flag, value]);
        let (code, stderr) = crate::support::exit_of(&mut command);
        assert_ne!(code, 0);
        assert!(stderr.contains("must be 100ms to 24h with a unit"), "{flag} {value}: {stderr}");
    }
}

/// A body may take long, but not by sending nearly nothing: a stalled upload keeps its memory.
#[test]
fn a_body_that_arrives_too_slowly_is_refused_long_before_its_limit() {
    let server = with_short("none");
    let head = "POST /v1/pools/default/keys HTTP/1.1\r\nHost: localhost\r\n";
    let start = now();
    // A fast start is no credit for a later standstill: each 5 s count by themselves.
    let clients = [1, 100_000].map(|len| {
        let mut client = server.client();
        let body = " ".repeat(len);
        client.write(format!("{head}Content-Length: 1000000\r\n\r\n{body}").as_bytes()).unwrap();
        client
    });
    for mut client in clients {
        let problem = client.read(false).unwrap().problem(408, "timeout");
        assert!(start.elapsed() < PATIENCE);
        let detail = "The body arrived too slowly: send at least 5120 bytes in 5 s.";
        assert_eq!(problem["detail"], detail);
    }
}

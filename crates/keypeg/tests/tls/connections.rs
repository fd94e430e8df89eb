//! Connections with TLS: versions, the handshake and its bounds, plain HTTP, slow clients, a stop.

use crate::support::certificates::{Authority, TlsClient, VALID};
use crate::support::{Server, TempDir, eventually, keypeg, now, socket_from};
use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// The longest time to wait for an end before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

fn server(authority: &Authority, args: &[&str]) -> Server {
    let tls = authority.args(&authority.server(VALID));
    let tls = tls.iter().map(String::as_str);
    Server::in_memory(&args.iter().copied().chain(tls).collect::<Vec<_>>())
}

fn metric(client: &mut TlsClient, name: &str) -> Option<String> {
    let metrics = client.ask("GET /metrics").body;
    let line = metrics.lines().find(|line| line.starts_with(name))?;
    line.rsplit_once(' ').map(|(_, value)| value.to_owned())
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    assert!(server.ready().contains(" ready on https://127.0.0.1:"), "{}", server.ready());
    for (version, expected) in
        [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)]
    {
        let config = authority.client(&[version], None);
        let mut client = TlsClient::connect(server.addr(), config).unwrap();
        assert_eq!(client.tls().protocol_version(), Some(expected));
        let keys = r#"{"count": 2}"#;
        let made = client.try_send("POST /v1/pools/default/keys", &[], keys).unwrap();
        made.is(201, &json!({}));
        for _ in 0..2 {
            client.ask("POST /v1/pools/default/leases").is(201, &json!({ "key": "*" }));
        }
    }
    // A ClientHello of TLS 1.1: the version is in the third record field and in the body.
    let mut old = TcpStream::connect(server.addr()).unwrap();
    old.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = vec![3, 2];
    hello.extend([0; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut record = vec![22, 3, 1, 0, u8::try_from(hello.len() + 4).unwrap()];
    record.extend([1, 0, 0, u8::try_from(hello.len()).unwrap()]);
    old.write_all(&[record, hello].concat()).unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).unwrap();
    assert_eq!((answer[0], answer.len()), (21, 7), "an alert alone: {answer:?}");
}

#[test]
fn a_client_that_resumes_its_session_is_served() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    for version in [&TLS12, &TLS13] {
        let config = std::sync::Arc::new(authority.client(&[version], None));
        for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let mut client = TlsClient::connect_shared(server.addr(), &config).unwrap();
            client.ask("GET /readyz").is(200, &json!({}));
            assert_eq!(client.tls().handshake_kind(), Some(expected));
        }
    }
}

/// A browser or a script with http:// in its address got a TLS alert, which it showed as garbage.
#[test]
fn plain_http_gets_an_answer_that_names_https() {
    let authority = Authority::new();
    let server = server(&authority, &[]);
    let problem = server.client().ask("GET /v1/pools").problem(400, "malformed");
    assert!(problem["detail"].as_str().unwrap().contains("begins with https://"), "{problem}");
    for other in [&b"\0\0\0"[..], b"ssh", b"\x80\x2e\x01"] {
        let mut client = server.client();
        client.write(other).unwrap();
        assert!(client.is_closed(), "{other:?}");
    }
    let mut client = TlsClient::connect(server.addr(), authority.client(&[&TLS13], None)).unwrap();
    let failed = "keypeg_tls_handshakes_total{result=\"failed\"}";
    assert_eq!(metric(&mut client, failed).as_deref(), Some("4"));
}

/// A handshake that never ends would keep its place and its memory.
#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let authority = Authority::new();
    let server = server(&authority, &["--head-timeout", "300ms"]);
    let hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for part in [&hello[..0], &hello[..1], &hello[..5], &hello[..]] {
        let start = now();
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(part).unwrap();
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(ended.is_ok() || ended.is_err_and(|it| it.kind() == ErrorKind::ConnectionReset));
        assert!(start.elapsed() >= Duration::from_millis(300), "{part:?}");
    }
    let mut client = TlsClient::connect(server.addr(), authority.client(&[&TLS13], None)).unwrap();
    let timed_out = "keypeg_tls_handshakes_total{result=\"timed_out\"}";
    assert_eq!(metric(&mut client, timed_out).as_deref(), Some("4"));
    assert_eq!(metric(&mut client, "keypeg_http_connections ").as_deref(), Some("1"));
}

/// Clients of one network that never finish their handshakes take its share and no more: a client
/// of another network is served meanwhile.
#[test]
fn unfinished_handshakes_leave_room_for_others() {
    let authority = Authority::new();
    // 64 MiB has places for 128 connections, of which 32 may be in their handshakes.
    let server = server(&authority, &["--memory", "64MiB", "--head-timeout", "1h"]);
    let unfinished: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(server.addr()).unwrap();
            stream.write_all(&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).unwrap();
            stream
        })
        .collect();
    let config = std::sync::Arc::new(authority.client(&[&TLS13], None));
    let other = socket_from(server.addr(), Ipv4Addr::new(127, 0, 0, 2));
    let mut client = TlsClient::over(other, &config).unwrap();
    client.ask("GET /readyz").is(200, &json!({}));
    drop(unfinished);
}

/// Without the bound, a network could make the server compute any number of handshakes at once.
#[test]
fn a_client_waits_for_its_turn_while_its_network_has_its_share_of_handshakes() {
    let authority = Authority::new();
    // 64 MiB has places for 128 connections, of which 32 may be in their handshakes.
    let server = server(&authority, &["--memory", "64MiB", "--head-timeout", "1h"]);
    let config = std::sync::Arc::new(authority.client(&[&TLS13], None));
    let other = socket_from(server.addr(), Ipv4Addr::new(127, 0, 0, 2));
    let mut other = TlsClient::over(other, &config).unwrap();
    let unfinished: Vec<_> = (0..60)
        .map(|_| {
            let mut stream = TcpStream::connect(server.addr()).unwrap();
            stream.write_all(&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).unwrap();
            stream
        })
        .collect();
    // The first clients may be faster than those before them.
    let waiting = (0..50).find_map(|_| {
        let (addr, config) = (server.addr(), std::sync::Arc::clone(&config));
        let connect = move || TlsClient::connect_shared(addr, &config);
        let client = std::thread::spawn(connect);
        // Long enough that a client which need not wait is served meanwhile, also on a busy machine.
        let waits = (0..3_000).all(|_| {
            other.ask("GET /readyz").is(200, &json!({}));
            !client.is_finished()
        });
        waits.then_some(client)
    });
    let waiting = waiting.expect("a client that waits");
    drop(unfinished);
    waiting.join().unwrap().unwrap().ask("GET /readyz").is(200, &json!({}));
}

/// TLS keeps a part of a response that the socket did not accept. Such a client once had no limit.
#[test]
fn a_client_that_reads_nothing_is_disconnected() {
    let authority = Authority::new();
    let server = server(&authority, &["--write-timeout", "300ms"]);
    let config = std::sync::Arc::new(authority.client(&[&TLS13], None));
    let mut setup = TlsClient::connect_shared(server.addr(), &config).unwrap();
    let keys = r#"{"count": 10000}"#;
    setup.try_send("POST /v1/pools/default/keys", &[], keys).unwrap().is(201, &json!({}));
    drop(setup);
    let mut stuck = TlsClient::connect_shared(server.addr(), &config).unwrap();
    let request = "GET /v1/pools/default/keys?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stuck.write(request.repeat(20).as_bytes()).unwrap();
    let mut client = TlsClient::connect_shared(server.addr(), &config).unwrap();
    eventually("the connection is closed", || {
        (metric(&mut client, "keypeg_http_connections ").as_deref() == Some("1")).then_some(())
    });
}

#[test]
fn a_waiting_call_ends_with_its_client_and_a_stop_ends_all() {
    let (authority, dir) = (Authority::new(), TempDir::new());
    let tls = authority.args(&authority.server(VALID));
    let log = dir.path().join("log");
    let mut server = Server::logged(keypeg(&["--ephemeral"]).args(tls), &log);
    let config = std::sync::Arc::new(authority.client(&[&TLS13], None));
    let mut client = TlsClient::connect_shared(server.addr(), &config).unwrap();
    let mut waiting = TlsClient::connect_shared(server.addr(), &config).unwrap();
    let wait = r#"{"wait_seconds": 60}"#;
    let text = format!(
        "POST /v1/pools/default/leases HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{wait}",
        wait.len()
    );
    let waiters = |client: &mut TlsClient, count: &str| {
        eventually("the number of waiters", || {
            (metric(client, "keypeg_waiting ").as_deref() == Some(count)).then_some(())
        });
    };
    waiting.write(text.as_bytes()).unwrap();
    waiters(&mut client, "1");
    drop(waiting);
    waiters(&mut client, "0");
    let mut waiting = TlsClient::connect_shared(server.addr(), &config).unwrap();
    waiting.write(text.as_bytes()).unwrap();
    waiters(&mut client, "1");
    // A connection in its handshake delays no stop.
    let half = TcpStream::connect(server.addr()).unwrap();
    (&half).write_all(&[22, 3, 1]).unwrap();
    assert_eq!(server.terminate().code(), Some(0));
    let answer = String::from_utf8(waiting.rest().unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(client.rest().is_ok_and(|rest| rest.is_empty()), "closed with a close_notify");
}

//! How connections on the fast path end: clients that disconnect, are slow or do not read, and
//! servers that stop. No key is lost, no answer is truncated, and no connection stays open without
//! limit.

use super::{CLOSING_REQUEST, Connection, PATIENCE, Servers, Via, request};
use crate::support::{Client, Server, eventually, has_read, now, pause, small_socket_from};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const ACQUIRE: &str = "POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn leased(client: &mut Client) -> u64 {
    client.ask("GET /v1/pools/default").json()["leased"].as_u64().unwrap()
}

/// A client may close or reset its connection at any time: its keys are available again when their
/// leases expire at the latest.
#[test]
fn a_client_that_disconnects_at_any_time_keeps_no_key_beyond_its_lease() {
    let servers = Servers::new(&["--lease-ttl", "500ms"]);
    servers.assert_same("disconnects", |via, server| {
        for round in 0..60_usize {
            let mut connection = Connection::on(server.addr(), via);
            let bytes = via.bytes(ACQUIRE.as_bytes()).repeat(1 + round % 7);
            // Some close in the middle of a request.
            let cut = if round % 2 == 1 { 0 } else { round % 3 };
            connection.send(&bytes[..bytes.len() - cut]);
            match round % 4 {
                0 => {}
                1 => drop(connection.read_answer()),
                2 => pause(Duration::from_micros(round as u64 * 20)),
                _ => {
                    // Closing with an unread answer resets the connection.
                    let _ = connection.0.get_ref().peek(&mut [0]);
                }
            }
        }
        let none_leased = || (leased(&mut server.client()) == 0).then_some(());
        eventually("all keys are available", none_leased);
        server.client().ask("GET /v1/pools/default").is(200, &json!({ "available": 1000 }));
    });
}

/// Opens a connection with a small receive buffer, so that unread answers soon block the server's
/// writes.
fn with_small_buffer(addr: SocketAddr, via: Via) -> Connection {
    let stream = small_socket_from(addr, Ipv4Addr::LOCALHOST);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connection = Connection(BufReader::new(stream));
    if !via.first_request().is_empty() {
        connection.send(via.first_request().as_bytes());
        connection.read_answer().unwrap().unwrap();
    }
    connection
}

#[test]
fn a_client_that_reads_nothing_delays_no_other_and_keeps_no_key() {
    let servers = Servers::start(&["--lease-ttl", "500ms"]);
    servers.assert_same("reads nothing", |via, server| {
        let client = &mut server.client();
        client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
        let mut stuck = with_small_buffer(server.addr(), via);
        stuck.send(&via.bytes(ACQUIRE.as_bytes()).repeat(8_000));
        for _ in 0..20 {
            let mut connection = Connection::on(server.addr(), via);
            connection.send(&[&via.bytes(ACQUIRE.as_bytes()), CLOSING_REQUEST.as_bytes()].concat());
            assert_eq!(connection.rest().len(), 2, "{via:?}");
        }
        drop(stuck);
        eventually("all keys are available", || (leased(&mut server.client()) == 0).then_some(()));
    });
}

/// An answer that was partly written when the client disconnects does not keep its key either.
#[test]
fn a_client_that_disconnects_in_the_middle_of_an_answer_keeps_no_key() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
    let mut stuck = with_small_buffer(server.addr(), Via::FastPath);
    stuck.send(&ACQUIRE.as_bytes().repeat(8_000));
    let (mut before, mut unchanged) = (0, 0);
    eventually("no more leases", || {
        pause(Duration::from_millis(100));
        let now = leased(client);
        unchanged = if now == before && now > 0 { unchanged + 1 } else { 0 };
        before = now;
        // No event shows that the server is stuck. A busy machine may not have run it for a while.
        (unchanged == 10).then_some(())
    });
    assert!(before < 8_000, "all were answered: the receive buffer is not small");
    drop(stuck);
    eventually("the last key is available", || (leased(client) == before - 1).then_some(()));
}

/// A slow client: its actions on a connection and the checks of the result.
type SlowClient = fn(SocketAddr, Via, &str);

/// Sends one byte a second; returns the time from `start` after which the server closed the
/// connection.
fn send_slowly(connection: &mut Connection, bytes: &[u8], start: Instant) -> Duration {
    let stream = connection.0.get_ref().try_clone().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for byte in bytes {
        let _ = (&stream).write_all(&[*byte]);
        match (&stream).read(&mut [0]) {
            // A stop of this process interrupts the read.
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => {}
            Ok(0) | Err(_) => return start.elapsed(),
            Ok(_) => panic!("an answer to an incomplete head"),
        }
        assert!(start.elapsed() < PATIENCE, "the head has no time limit");
    }
    panic!("the server accepted the whole head");
}

/// A head must end within 10 s of its first byte, on the fast path and in hyper.
fn a_head_never_ends(addr: SocketAddr, via: Via, _: &str) {
    let mut start = now();
    let mut connection = Connection::on(addr, via);
    if via == Via::FastPathSecond {
        // The time limit of a later head begins with its first byte.
        pause(Duration::from_secs(4));
        start = now();
    }
    let duration = send_slowly(&mut connection, ACQUIRE.as_bytes(), start);
    assert!((9..40).contains(&duration.as_secs()), "{via:?}: {duration:?}");
}

fn nothing_is_sent(addr: SocketAddr, via: Via, _: &str) {
    if via.first_request().is_empty() {
        let (start, mut connection) = (now(), Connection::new(addr));
        assert_eq!(connection.rest(), [], "{via:?}");
        assert!((9..40).contains(&start.elapsed().as_secs()), "{via:?}: {:?}", start.elapsed());
    }
}

fn a_body_never_ends(addr: SocketAddr, via: Via, _: &str) {
    let head = request("POST /v1/pools/default/leases", "", "{}");
    let mut connection = Connection::on(addr, via);
    connection.send(&via.bytes(&head[..head.len() - 1]));
    let answer = connection.read_answer().unwrap().unwrap();
    assert!(answer.status.contains(" 408 "), "{via:?}: {answer:?}");
    assert_eq!(connection.rest(), [], "{via:?}");
}

/// Regression: a line end behind a request, which old clients send, counted as the start of a head,
/// so that the client had only the time limit of a head until its next request.
fn a_line_end_does_not_begin_a_request(addr: SocketAddr, via: Via, keep: &str) {
    let mut connection = Connection::on(addr, via);
    let bytes = via.bytes(keep.as_bytes());
    connection.send(&[&bytes, &b"\r\n"[..]].concat());
    assert!(connection.read_answer().unwrap().is_some());
    pause(Duration::from_secs(12));
    connection.send(&bytes);
    let status = connection.read_answer().unwrap().map(|answer| answer.status);
    assert!(status.as_ref().is_some_and(|text| text.contains(" 200 ")), "{via:?}: {status:?}");
}

/// Regression: the time limit of the first head also applied to later ones, so that the server
/// closed the connection of a client that always had sent a part of its next head.
fn each_head_has_its_own_time_limit(addr: SocketAddr, via: Via, keep: &str) {
    let mut connection = Connection::on(addr, via);
    let bytes = via.bytes(keep.as_bytes());
    let (head, tail) = bytes.split_at(30);
    connection.send(head);
    for round in 0..13 {
        connection.send(&[tail, head].concat());
        let answer = connection.read_answer().ok().flatten();
        assert!(answer.is_some(), "{via:?} in round {round}");
        pause(Duration::from_secs(1));
    }
}

/// Regression: the time limit of a pipelined head must begin when the requests before it are
/// answered. It began with the first of them, and the server closed this connection.
fn a_head_behind_unread_answers_has_its_full_time(addr: SocketAddr, via: Via, _: &str) {
    const PIPELINED: usize = 10_000;
    let mut connection = with_small_buffer(addr, via);
    let line = format!("POST /v1/pools/default/leases/{}/release", "0".repeat(26));
    let one = via.bytes(&request(&line, "", ""));
    connection.send(&[&one.repeat(PIPELINED), &one[..50]].concat());
    pause(Duration::from_secs(11));
    set_socket_recv_buffer_size(connection.0.get_ref(), 1 << 20).unwrap();
    for index in 0..PIPELINED {
        assert!(connection.read_answer().unwrap().is_some(), "{via:?}: {index}");
    }
    pause(Duration::from_secs(1));
    connection.send(&one[50..]);
    let status = connection.read_answer().ok().flatten().map(|answer| answer.status);
    assert!(status.as_ref().is_some_and(|text| text.contains(" 410 ")), "{via:?}: {status:?}");
}

/// All slow clients run at once on one server, because they spend their time waiting.
#[test]
fn slow_clients_are_closed_at_their_time_limit_and_not_before() {
    // One of them reads nothing for longer than the lowest rate of reading allows.
    let server = Server::in_memory(&["--write-rate", "0"]);
    let keys = server.client().send("POST /v1/pools/default/keys", &json!({ "count": 50 })).json();
    let key = keys["keys"][0]["id"].as_str().unwrap();
    let line = format!("POST /v1/pools/default/keys/{key}/keepalive");
    let keep = String::from_utf8(request(&line, "", "")).unwrap();
    let all: [SlowClient; 6] = [
        a_head_never_ends,
        nothing_is_sent,
        a_body_never_ends,
        a_line_end_does_not_begin_a_request,
        each_head_has_its_own_time_limit,
        a_head_behind_unread_answers_has_its_full_time,
    ];
    std::thread::scope(|scope| {
        for via in Via::ALL {
            for client in all {
                let (addr, keep) = (server.addr(), &keep);
                scope.spawn(move || client(addr, via, keep));
            }
        }
    });
}

/// The server closes idle connections, answers requests that have begun in full, and ends.
#[test]
fn a_server_that_stops_answers_requests_that_have_begun() {
    for sent in [0, 20, 200, usize::MAX] {
        let servers = Servers::new(&[]);
        let mut servers = servers.servers;
        for (via, server) in &mut servers {
            let bytes = via.bytes(&request("POST /v1/pools/default/leases", "", "{  }"));
            let sent = sent.min(bytes.len());
            let mut connection = Connection::on(server.addr(), *via);
            connection.send(&bytes[..sent]);
            if sent == bytes.len() {
                assert!(connection.read_answer().unwrap().is_some());
            }
            let stream = connection.0.get_ref().try_clone().unwrap();
            if sent > 0 {
                eventually("the server has read it", || has_read(&stream).then_some(()));
            }
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut answers = Vec::new();
            if sent > 0 && sent < bytes.len() {
                let is_stopping = || TcpStream::connect(server.addr()).err().map(drop);
                eventually("the server stops", is_stopping);
                connection.send(&bytes[sent..]);
                answers = connection.rest();
                if *via == Via::HyperSecond && sent == 20 && answers.is_empty() {
                    // hyper treats a connection as idle until the next head is complete.
                    let ended = eventually("the server ends", || server.ended());
                    assert_eq!(ended.code(), Some(0), "{via:?} {sent}");
                    continue;
                }
                let [only] = &answers[..] else { panic!("{via:?} {sent}: {answers:?}") };
                assert!(only.status.contains(" 201 "), "{via:?} {sent}: {answers:?}");
                assert!(
                    only.headers.contains(&("connection".into(), "close".into())),
                    "{answers:?}"
                );
            } else {
                answers.extend(connection.rest());
                assert_eq!(answers, [], "{via:?} {sent}");
            }
            let ended = eventually("the server ends", || server.ended());
            assert_eq!(ended.code(), Some(0), "{via:?} {sent}");
        }
    }
}

/// A server stops while requests are pipelined: every answer that arrives is complete, the last one
/// has `Connection: close`, and the server begins none of the remaining requests. Hyper ends a
/// connection without that header if it has answered all that it has read, as it ends any idle
/// connection. A stop rarely meets it then, so the test allows it once.
#[test]
fn a_server_that_stops_truncates_no_answer() {
    const PIPELINED: usize = 2_000;
    let (mut close_counts, mut silent_counts) = ([0; Via::ALL.len()], [0; Via::ALL.len()]);
    // At least four rounds, until a stop has met each kind of connection between two answers.
    for round in 0..40 {
        if round >= 4 && close_counts.iter().all(|count| *count > 0) {
            break;
        }
        let wait = round % 4;
        for (index, (via, mut server)) in Servers::new(&[]).servers.into_iter().enumerate() {
            let one = via.bytes(&request("POST /v1/pools/default/leases", "", "{}"));
            let mut connection = Connection::on(server.addr(), via);
            connection.send(&one);
            assert!(connection.read_answer().unwrap().is_some());
            connection.send(&one.repeat(PIPELINED));
            pause(Duration::from_millis(wait * 5));
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut bytes = Vec::new();
            let _ = connection.0.read_to_end(&mut bytes);
            // The server would wait for a client that keeps its connection open.
            drop(connection);
            let text = String::from_utf8(bytes).unwrap();
            let answers = text.matches("HTTP/1.1 ").count();
            let whole = text.matches('}').count();
            assert!(text.is_empty() || text.ends_with('}'), "{via:?}: {text}");
            assert!(whole >= answers, "{via:?}: {whole} of {answers}");
            let closes = text.matches("connection: close\r\n").count();
            assert!(closes <= 1, "{via:?}: {answers}, {closes}");
            let is_silent = closes == 0 && ![0, PIPELINED].contains(&answers);
            silent_counts[index] += usize::from(is_silent);
            let is_hyper = matches!(via, Via::HyperSecond | Via::HyperByHeader);
            assert!(
                silent_counts[index] <= usize::from(is_hyper),
                "{via:?}: {answers}, {silent_counts:?}"
            );
            close_counts[index] += closes;
            assert_eq!(eventually("the server ends", || server.ended()).code(), Some(0));
        }
    }
    assert!(close_counts.iter().all(|count| *count > 0), "{close_counts:?}");
}

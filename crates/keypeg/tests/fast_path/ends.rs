//! How connections with hot calls end: clients that leave, that are slow, that do not read; a
//! server that stops. No key is lost by it, no answer is cut, and nothing goes on for ever.

use super::{CLOSING_REQUEST, Connection, PATIENCE, Servers, Via, request};
use crate::support::{Client, Server, eventually, now, pause};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SendFlags, SocketType, connect, send, socket};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

const ACQUIRE: &str = "POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn leased(client: &mut Client) -> u64 {
    client.ask("GET /v1/pools/default").json()["leased"].as_u64().unwrap()
}

/// Sends a request whose last byte and the client's end come together.
fn send_and_leave(connection: &mut Connection, bytes: &[u8]) {
    let stream = connection.0.get_ref();
    assert_eq!(send(stream, bytes, SendFlags::MORE).unwrap(), bytes.len());
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Whoever closes his end with his request is gone, as over there: what he would have been lent is
/// lent to others at once, and he is told nothing of it.
#[test]
fn who_leaves_with_his_request_takes_no_key_along() {
    let servers = Servers::new(&[]);
    servers.assert_same("left", |via, server| {
        let client = &mut server.client();
        let before = leased(client);
        let mut told = 0;
        for _ in 0..20 {
            let mut connection = Connection::on(server.addr(), via);
            send_and_leave(&mut connection, &via.bytes(ACQUIRE.as_bytes()));
            told += connection.rest().len();
        }
        let opening = if via == Via::FastPathSecond { 20 } else { 0 };
        let taken_back = || (leased(&mut server.client()) == before + opening).then_some(());
        eventually("all are taken back", taken_back);
        assert_eq!(told, 0, "{via:?}");
    });
}

/// Whoever closes, or resets, whenever he likes: his keys come back, after their lease at the latest.
#[test]
fn who_leaves_at_any_time_keeps_no_key_beyond_its_lease() {
    let servers = Servers::new(&["--lease-ttl", "500ms"]);
    servers.assert_same("left", |via, server| {
        for round in 0..60_usize {
            let mut connection = Connection::on(server.addr(), via);
            let bytes = via.bytes(ACQUIRE.as_bytes()).repeat(1 + round % 7);
            // Some leave in the middle of a request.
            let cut = if round % 2 == 1 { 0 } else { round % 3 };
            connection.send(&bytes[..bytes.len() - cut]);
            match round % 4 {
                0 => {}
                1 => drop(connection.read_answer()),
                2 => pause(Duration::from_micros(round as u64 * 20)),
                _ => {
                    // Closing with an answer unread resets.
                    let _ = connection.0.get_ref().peek(&mut [0]);
                }
            }
        }
        let back = || (leased(&mut server.client()) == 0).then_some(());
        eventually("all are back", back);
        server.client().ask("GET /v1/pools/default").is(200, &json!({ "available": 1000 }));
    });
}

/// A connection on which few bytes fit that nobody reads, so that answers soon wait to be written.
fn narrow(addr: SocketAddr, via: Via) -> Connection {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_recv_buffer_size(&socket, 4 << 10).unwrap();
    connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connection = Connection(BufReader::new(stream));
    if !via.first_request().is_empty() {
        connection.send(via.first_request().as_bytes());
        connection.read_answer().unwrap().unwrap();
    }
    connection
}

#[test]
fn who_reads_nothing_holds_nobody_up_and_keeps_nothing() {
    let servers = Servers::start(&["--lease-ttl", "500ms"]);
    servers.assert_same("unread", |via, server| {
        let client = &mut server.client();
        client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
        let mut stuck = narrow(server.addr(), via);
        stuck.send(&via.bytes(ACQUIRE.as_bytes()).repeat(8_000));
        for _ in 0..20 {
            let mut connection = Connection::on(server.addr(), via);
            connection.send(&[&via.bytes(ACQUIRE.as_bytes()), CLOSING_REQUEST.as_bytes()].concat());
            assert_eq!(connection.rest().len(), 2, "{via:?}");
        }
        drop(stuck);
        eventually("all are back", || (leased(&mut server.client()) == 0).then_some(()));
    });
}

/// Nor does the one answer that he was in the middle of, when he goes, keep its key.
#[test]
fn who_goes_in_the_middle_of_an_answer_takes_no_key_along() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
    let mut stuck = narrow(server.addr(), Via::FastPath);
    stuck.send(&ACQUIRE.as_bytes().repeat(8_000));
    let mut before = 0;
    eventually("stuck", || {
        pause(Duration::from_millis(100));
        let now = leased(client);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(())
    });
    assert!(before < 8_000, "all were answered: the connection is not narrow");
    drop(stuck);
    eventually("the last is back", || (leased(client) == before - 1).then_some(()));
}

/// What a slow client does on its connection, and what must come of it.
type Slow = fn(SocketAddr, Via, &str);

/// Sends a byte of this a second, and tells when the server closed.
fn drip(connection: &mut Connection, bytes: &[u8]) -> Duration {
    let begun = now();
    let stream = connection.0.get_ref().try_clone().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    for byte in bytes {
        let _ = (&stream).write_all(&[*byte]);
        match (&stream).read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return begun.elapsed(),
            Ok(_) => panic!("an answer to half a head"),
        }
        assert!(begun.elapsed() < PATIENCE, "a head that goes on for ever");
    }
    panic!("a whole head was dripped");
}

/// A head has its 10 s from its first byte, whoever waits for it.
fn a_head_never_ends(addr: SocketAddr, via: Via, _: &str) {
    let mut connection = Connection::on(addr, via);
    if via == Via::FastPathSecond {
        // Its own time begins when it does.
        pause(Duration::from_secs(4));
    }
    let took = drip(&mut connection, ACQUIRE.as_bytes());
    assert!((9..40).contains(&took.as_secs()), "{via:?}: {took:?}");
}

fn nothing_is_sent(addr: SocketAddr, via: Via, _: &str) {
    if via.first_request().is_empty() {
        let (begun, mut connection) = (now(), Connection::new(addr));
        assert_eq!(connection.rest(), [], "{via:?}");
        assert!((9..40).contains(&begun.elapsed().as_secs()), "{via:?}: {:?}", begun.elapsed());
    }
}

fn a_body_never_ends(addr: SocketAddr, via: Via, _: &str) {
    let head = request("POST /v1/pools/default/leases", "", "{}");
    let mut connection = Connection::on(addr, via);
    connection.send(&via.bytes(&head[..head.len() - 1]));
    let told = connection.read_answer().unwrap().unwrap();
    assert!(told.status.contains(" 408 "), "{via:?}: {told:?}");
    assert_eq!(connection.rest(), [], "{via:?}");
}

/// A line end behind a request, which old clients send, is no head that was begun: such a connection
/// was once given no more than a head's time to ask again.
fn a_line_end_is_no_request(addr: SocketAddr, via: Via, keep: &str) {
    let mut connection = Connection::on(addr, via);
    let bytes = via.bytes(keep.as_bytes());
    connection.send(&[&bytes, &b"\r\n"[..]].concat());
    assert!(connection.read_answer().unwrap().is_some());
    pause(Duration::from_secs(12));
    connection.send(&bytes);
    let told = connection.read_answer().unwrap().map(|told| told.status);
    assert!(told.as_ref().is_some_and(|told| told.contains(" 200 ")), "{via:?}: {told:?}");
}

/// Each head has its own time: a client that is always in the middle of its next one was once cut
/// off, since the time of the first ran on.
fn always_in_the_middle(addr: SocketAddr, via: Via, keep: &str) {
    let mut connection = Connection::on(addr, via);
    let bytes = via.bytes(keep.as_bytes());
    let (begin, end) = bytes.split_at(30);
    connection.send(begin);
    for round in 0..13 {
        connection.send(&[end, begin].concat());
        let told = connection.read_answer().ok().flatten();
        assert!(told.is_some(), "{via:?} in round {round}");
        pause(Duration::from_secs(1));
    }
}

/// The time of a head that came behind others begins when they are answered: it was once counted
/// from the first of them, and this connection closed.
fn a_head_behind_answers_that_nobody_read(addr: SocketAddr, via: Via, _: &str) {
    const AHEAD: usize = 10_000;
    let mut connection = narrow(addr, via);
    let line = format!("POST /v1/pools/default/leases/{}/release", "0".repeat(26));
    let one = via.bytes(&request(&line, "", ""));
    connection.send(&[&one.repeat(AHEAD), &one[..50]].concat());
    pause(Duration::from_secs(11));
    set_socket_recv_buffer_size(connection.0.get_ref(), 1 << 20).unwrap();
    for at in 0..AHEAD {
        assert!(connection.read_answer().unwrap().is_some(), "{via:?}: {at}");
    }
    pause(Duration::from_secs(1));
    connection.send(&one[50..]);
    let told = connection.read_answer().ok().flatten().map(|told| told.status);
    assert!(told.as_ref().is_some_and(|told| told.contains(" 410 ")), "{via:?}: {told:?}");
}

/// All at once, on one server: what is waited for is time.
#[test]
fn slow_clients_have_their_time_and_no_more() {
    let server = Server::in_memory(&[]);
    let keys = server.client().send("POST /v1/pools/default/keys", &json!({ "count": 50 })).json();
    let key = keys["keys"][0]["id"].as_str().unwrap();
    let line = format!("POST /v1/pools/default/keys/{key}/keepalive");
    let keep = String::from_utf8(request(&line, "", "")).unwrap();
    let all: [Slow; 6] = [
        a_head_never_ends,
        nothing_is_sent,
        a_body_never_ends,
        a_line_end_is_no_request,
        always_in_the_middle,
        a_head_behind_answers_that_nobody_read,
    ];
    std::thread::scope(|scope| {
        for via in Via::ALL {
            for play in all {
                let (addr, keep) = (server.addr(), &keep);
                scope.spawn(move || play(addr, via, keep));
            }
        }
    });
}

/// Idle connections are closed, what has begun is answered in whole, and the process ends.
#[test]
fn a_server_that_stops_answers_what_was_begun() {
    for begun in [0, 20, 200, usize::MAX] {
        let servers = Servers::new(&[]);
        let mut servers = servers.servers;
        for (via, server) in &mut servers {
            let bytes = via.bytes(&request("POST /v1/pools/default/leases", "", "{  }"));
            let begun = begun.min(bytes.len());
            let mut connection = Connection::on(server.addr(), *via);
            connection.send(&bytes[..begun]);
            if begun == bytes.len() {
                assert!(connection.read_answer().unwrap().is_some());
            }
            // Nobody is told when it was read.
            pause(Duration::from_millis(20));
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut told = Vec::new();
            if begun > 0 && begun < bytes.len() {
                pause(Duration::from_millis(200));
                connection.send(&bytes[begun..]);
                told = connection.rest();
                if *via == Via::HyperSecond && begun == 20 && told.is_empty() {
                    // hyper takes a connection between two requests for idle until a head is whole.
                    let ended = eventually("it ends", || server.ended());
                    assert_eq!(ended.code(), Some(0), "{via:?} {begun}");
                    continue;
                }
                let [only] = &told[..] else { panic!("{via:?} {begun}: {told:?}") };
                assert!(only.status.contains(" 201 "), "{via:?} {begun}: {told:?}");
                assert!(only.headers.contains(&("connection".into(), "close".into())), "{told:?}");
            } else {
                told.extend(connection.rest());
                assert_eq!(told, [], "{via:?} {begun}");
            }
            let ended = eventually("it ends", || server.ended());
            assert_eq!(ended.code(), Some(0), "{via:?} {begun}");
        }
    }
}

/// However many requests are under via when it stops: each answer that came is whole, the last says
/// that it is, and what was sent ahead is not begun any more.
#[test]
fn a_server_that_stops_cuts_no_answer() {
    const AHEAD: usize = 2_000;
    let mut told = [0; Via::ALL.len()];
    for wait in 0..4 {
        for (at, (via, mut server)) in Servers::new(&[]).servers.into_iter().enumerate() {
            let one = via.bytes(&request("POST /v1/pools/default/leases", "", "{}"));
            let mut connection = Connection::on(server.addr(), via);
            connection.send(&one);
            assert!(connection.read_answer().unwrap().is_some());
            connection.send(&one.repeat(AHEAD));
            pause(Duration::from_millis(wait * 5));
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut bytes = Vec::new();
            let _ = connection.0.read_to_end(&mut bytes);
            // Whoever goes on holding on to it would be waited for.
            drop(connection);
            let text = String::from_utf8(bytes).unwrap();
            let answers = text.matches("HTTP/1.1 ").count();
            let whole = text.matches('}').count();
            assert!(text.is_empty() || text.ends_with('}'), "{via:?}: {text}");
            assert!(whole >= answers, "{via:?}: {whole} of {answers}");
            let closes = text.matches("connection: close\r\n").count();
            assert!(closes <= 1, "{via:?}: {answers}, {closes}");
            assert!([0, AHEAD].contains(&answers) || closes == 1, "{via:?}: {answers}, {closes}");
            told[at] += closes;
            assert_eq!(eventually("it ends", || server.ended()).code(), Some(0));
        }
    }
    assert!(told.iter().all(|told| *told > 0), "{told:?}");
}

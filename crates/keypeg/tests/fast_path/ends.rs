//! How connections with hot calls end: clients that leave, that are slow, that do not read; a
//! server that stops. No key is lost by it, no answer is cut, and nothing goes on for ever.

use super::{LAST, PATIENCE, Sides, Way, Wire, request};
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
fn send_and_leave(wire: &mut Wire, bytes: &[u8]) {
    let stream = wire.0.get_ref();
    assert_eq!(send(stream, bytes, SendFlags::MORE).unwrap(), bytes.len());
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Whoever closes his end with his request is gone, as over there: what he would have been lent is
/// lent to others at once, and he is told nothing of it.
#[test]
fn who_leaves_with_his_request_takes_no_key_along() {
    let sides = Sides::new(&[]);
    sides.same("left", |way, server| {
        let client = &mut server.client();
        let before = leased(client);
        let mut told = 0;
        for _ in 0..20 {
            let mut wire = Wire::on(server.addr(), way);
            send_and_leave(&mut wire, &way.bytes(ACQUIRE.as_bytes()));
            told += wire.rest().len();
        }
        let opening = if way == Way::Behind { 20 } else { 0 };
        let taken_back = || (leased(&mut server.client()) == before + opening).then_some(());
        eventually("all are taken back", taken_back);
        assert_eq!(told, 0, "{way:?}");
    });
}

/// Whoever closes, or resets, whenever he likes: his keys come back, after their lease at the latest.
#[test]
fn who_leaves_at_any_time_keeps_no_key_beyond_its_lease() {
    let sides = Sides::new(&["--lease-ttl", "500ms"]);
    sides.same("left", |way, server| {
        for round in 0..60_usize {
            let mut wire = Wire::on(server.addr(), way);
            let bytes = way.bytes(ACQUIRE.as_bytes()).repeat(1 + round % 7);
            // Some leave in the middle of a request.
            let cut = if round % 2 == 1 { 0 } else { round % 3 };
            wire.send(&bytes[..bytes.len() - cut]);
            match round % 4 {
                0 => {}
                1 => drop(wire.told()),
                2 => pause(Duration::from_micros(round as u64 * 20)),
                _ => {
                    // Closing with an answer unread resets.
                    let _ = wire.0.get_ref().peek(&mut [0]);
                }
            }
        }
        let back = || (leased(&mut server.client()) == 0).then_some(());
        eventually("all are back", back);
        server.client().ask("GET /v1/pools/default").is(200, &json!({ "available": 1000 }));
    });
}

/// A connection on which few bytes fit that nobody reads, so that answers soon wait to be written.
fn narrow(addr: SocketAddr, way: Way) -> Wire {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    set_socket_recv_buffer_size(&socket, 4 << 10).unwrap();
    connect(&socket, &addr).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut wire = Wire(BufReader::new(stream));
    if !way.before().is_empty() {
        wire.send(way.before().as_bytes());
        wire.told().unwrap().unwrap();
    }
    wire
}

#[test]
fn who_reads_nothing_holds_nobody_up_and_keeps_nothing() {
    let sides = Sides::start(&["--lease-ttl", "500ms"]);
    sides.same("unread", |way, server| {
        let client = &mut server.client();
        client.send("POST /v1/pools/default/keys", &json!({ "count": 10_000 }));
        let mut stuck = narrow(server.addr(), way);
        stuck.send(&way.bytes(ACQUIRE.as_bytes()).repeat(8_000));
        for _ in 0..20 {
            let mut wire = Wire::on(server.addr(), way);
            wire.send(&[&way.bytes(ACQUIRE.as_bytes()), LAST.as_bytes()].concat());
            assert_eq!(wire.rest().len(), 2, "{way:?}");
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
    let mut stuck = narrow(server.addr(), Way::Quick);
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
type Slow = fn(SocketAddr, Way, &str);

/// Sends a byte of this a second, and tells when the server closed.
fn drip(wire: &mut Wire, bytes: &[u8]) -> Duration {
    let begun = now();
    let stream = wire.0.get_ref().try_clone().unwrap();
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
fn a_head_never_ends(addr: SocketAddr, way: Way, _: &str) {
    let mut wire = Wire::on(addr, way);
    if way == Way::Behind {
        // Its own time begins when it does.
        pause(Duration::from_secs(4));
    }
    let took = drip(&mut wire, ACQUIRE.as_bytes());
    assert!((9..40).contains(&took.as_secs()), "{way:?}: {took:?}");
}

fn nothing_is_sent(addr: SocketAddr, way: Way, _: &str) {
    if way.before().is_empty() {
        let (begun, mut wire) = (now(), Wire::new(addr));
        assert_eq!(wire.rest(), [], "{way:?}");
        assert!((9..40).contains(&begun.elapsed().as_secs()), "{way:?}: {:?}", begun.elapsed());
    }
}

fn a_body_never_ends(addr: SocketAddr, way: Way, _: &str) {
    let head = request("POST /v1/pools/default/leases", "", "{}");
    let mut wire = Wire::on(addr, way);
    wire.send(&way.bytes(&head[..head.len() - 1]));
    let told = wire.told().unwrap().unwrap();
    assert!(told.status.contains(" 408 "), "{way:?}: {told:?}");
    assert_eq!(wire.rest(), [], "{way:?}");
}

/// A line end behind a request, which old clients send, is no head that was begun: such a connection
/// was once given no more than a head's time to ask again.
fn a_line_end_is_no_request(addr: SocketAddr, way: Way, keep: &str) {
    let mut wire = Wire::on(addr, way);
    let bytes = way.bytes(keep.as_bytes());
    wire.send(&[&bytes, &b"\r\n"[..]].concat());
    assert!(wire.told().unwrap().is_some());
    pause(Duration::from_secs(12));
    wire.send(&bytes);
    let told = wire.told().unwrap().map(|told| told.status);
    assert!(told.as_ref().is_some_and(|told| told.contains(" 200 ")), "{way:?}: {told:?}");
}

/// Each head has its own time: a client that is always in the middle of its next one was once cut
/// off, since the time of the first ran on.
fn always_in_the_middle(addr: SocketAddr, way: Way, keep: &str) {
    let mut wire = Wire::on(addr, way);
    let bytes = way.bytes(keep.as_bytes());
    let (begin, end) = bytes.split_at(30);
    wire.send(begin);
    for round in 0..13 {
        wire.send(&[end, begin].concat());
        let told = wire.told().ok().flatten();
        assert!(told.is_some(), "{way:?} in round {round}");
        pause(Duration::from_secs(1));
    }
}

/// The time of a head that came behind others begins when they are answered: it was once counted
/// from the first of them, and this connection closed.
fn a_head_behind_answers_that_nobody_read(addr: SocketAddr, way: Way, _: &str) {
    const AHEAD: usize = 10_000;
    let mut wire = narrow(addr, way);
    let line = format!("POST /v1/pools/default/leases/{}/release", "0".repeat(26));
    let one = way.bytes(&request(&line, "", ""));
    wire.send(&[&one.repeat(AHEAD), &one[..50]].concat());
    pause(Duration::from_secs(11));
    set_socket_recv_buffer_size(wire.0.get_ref(), 1 << 20).unwrap();
    for at in 0..AHEAD {
        assert!(wire.told().unwrap().is_some(), "{way:?}: {at}");
    }
    pause(Duration::from_secs(1));
    wire.send(&one[50..]);
    let told = wire.told().ok().flatten().map(|told| told.status);
    assert!(told.as_ref().is_some_and(|told| told.contains(" 410 ")), "{way:?}: {told:?}");
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
        for way in Way::ALL {
            for play in all {
                let (addr, keep) = (server.addr(), &keep);
                scope.spawn(move || play(addr, way, keep));
            }
        }
    });
}

/// Idle connections are closed, what has begun is answered in whole, and the process ends.
#[test]
fn a_server_that_stops_answers_what_was_begun() {
    for begun in [0, 20, 200, usize::MAX] {
        let sides = Sides::new(&[]);
        let mut sides = sides.sides;
        for (way, server) in &mut sides {
            let bytes = way.bytes(&request("POST /v1/pools/default/leases", "", "{  }"));
            let begun = begun.min(bytes.len());
            let mut wire = Wire::on(server.addr(), *way);
            wire.send(&bytes[..begun]);
            if begun == bytes.len() {
                assert!(wire.told().unwrap().is_some());
            }
            // Nobody is told when it was read.
            pause(Duration::from_millis(20));
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut told = Vec::new();
            if begun > 0 && begun < bytes.len() {
                pause(Duration::from_millis(200));
                wire.send(&bytes[begun..]);
                told = wire.rest();
                if *way == Way::Long && begun == 20 && told.is_empty() {
                    // hyper takes a connection between two requests for idle until a head is whole.
                    let ended = eventually("it ends", || server.ended());
                    assert_eq!(ended.code(), Some(0), "{way:?} {begun}");
                    continue;
                }
                let [only] = &told[..] else { panic!("{way:?} {begun}: {told:?}") };
                assert!(only.status.contains(" 201 "), "{way:?} {begun}: {told:?}");
                assert!(only.headers.contains(&("connection".into(), "close".into())), "{told:?}");
            } else {
                told.extend(wire.rest());
                assert_eq!(told, [], "{way:?} {begun}");
            }
            let ended = eventually("it ends", || server.ended());
            assert_eq!(ended.code(), Some(0), "{way:?} {begun}");
        }
    }
}

/// However many requests are under way when it stops: each answer that came is whole, the last says
/// that it is, and what was sent ahead is not begun any more.
#[test]
fn a_server_that_stops_cuts_no_answer() {
    const AHEAD: usize = 2_000;
    let mut told = [0; Way::ALL.len()];
    for wait in 0..4 {
        for (at, (way, mut server)) in Sides::new(&[]).sides.into_iter().enumerate() {
            let one = way.bytes(&request("POST /v1/pools/default/leases", "", "{}"));
            let mut wire = Wire::on(server.addr(), way);
            wire.send(&one);
            assert!(wire.told().unwrap().is_some());
            wire.send(&one.repeat(AHEAD));
            pause(Duration::from_millis(wait * 5));
            kill_process(server.pid(), Signal::TERM).unwrap();
            let mut bytes = Vec::new();
            let _ = wire.0.read_to_end(&mut bytes);
            // Whoever goes on holding on to it would be waited for.
            drop(wire);
            let text = String::from_utf8(bytes).unwrap();
            let answers = text.matches("HTTP/1.1 ").count();
            let whole = text.matches('}').count();
            assert!(text.is_empty() || text.ends_with('}'), "{way:?}: {text}");
            assert!(whole >= answers, "{way:?}: {whole} of {answers}");
            let closes = text.matches("connection: close\r\n").count();
            assert!(closes <= 1, "{way:?}: {answers}, {closes}");
            assert!([0, AHEAD].contains(&answers) || closes == 1, "{way:?}: {answers}, {closes}");
            told[at] += closes;
            assert_eq!(eventually("it ends", || server.ended()).code(), Some(0));
        }
    }
    assert!(told.iter().all(|told| *told > 0), "{told:?}");
}

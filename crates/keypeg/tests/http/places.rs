//! Places of connections: when they run short, silent and idle connections make room, and those that
//! are in use stay, however many connections a client opens.

use crate::support::{Client, Server, TempDir, cores, eventually, keypeg_under, skipped};
use serde_json::json;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;

const POOL: &str = "/v1/pools/default";
/// Returns the number of connections of a server with 400 descriptors.
fn connections() -> usize {
    400 - 64 - 4 * cores()
}

/// Returns the number of connections at which their places run short.
fn short() -> usize {
    connections() - connections() / 8
}

/// Starts a server with few places; `None` where this is not possible.
fn server(test: &str, dir: &TempDir) -> Option<Server> {
    if Command::new("prlimit").arg("--version").output().is_err() {
        skipped(test, "no prlimit");
        return None;
    }
    let mut command = keypeg_under(&["prlimit", "--nofile=400:400", "--"], &["--ephemeral"]);
    Some(Server::logged(&mut command, &dir.path().join("log")))
}

fn metric(client: &mut Client, name: &str) -> usize {
    let text = client.ask("GET /metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// 10 000 silent connections once filled the server: it closed those of other clients at once.
#[test]
fn silent_connections_make_room_and_those_in_use_stay() {
    let dir = TempDir::new();
    let Some(server) = server("silent_connections_make_room", &dir) else { return };
    let [fast, waiting, by_hyper] = &mut [(); 3].map(|()| server.client());
    fast.ask(&format!("POST {POOL}/leases")).problem(404, "no_key_available");
    let head = format!("POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300\r\n");
    waiting.write(format!("{head}\r\n").as_bytes()).unwrap();
    by_hyper.write(format!("{head}idempotency-key: a\r\n\r\n").as_bytes()).unwrap();
    eventually("both wait", || {
        (fast.ask(&format!("GET {POOL}")).json()["waiting"] == 2).then_some(())
    });
    let mut silent = Vec::new();
    for n in 0..2 * connections() {
        silent.push(TcpStream::connect(server.addr()).unwrap());
        if n % 50 == 0 {
            // A connection that begins a request and does not end it is silent too.
            let mut slow = server.client();
            slow.write(b"POST /v1/pools/default/leases HTTP/1.1\r\nhost").unwrap();
            assert_eq!(server.client().ask("GET /livez").status, 200, "a new client is served");
            assert_eq!(fast.ask("GET /livez").status, 200);
        }
    }
    // The last ones may still be in the queue of the listener.
    eventually("the silent ones gave way", || {
        let displaced = metric(fast, "keypeg_http_connections_displaced_total");
        (displaced >= connections()).then_some(())
    });
    assert_eq!(metric(fast, "keypeg_http_connections_refused_total"), 0);
    eventually("the rest is free", || {
        (metric(fast, "keypeg_http_connections") <= short() + 1).then_some(())
    });
    fast.send(&format!("POST {POOL}/keys"), &json!({ "count": 2 })).is(201, &json!({}));
    for client in [waiting, by_hyper] {
        assert_eq!(client.read(false).unwrap().status, 201, "it waited all the time");
    }
}

#[test]
fn a_caller_whose_connections_are_all_in_use_leaves_places_for_others_and_time_stands_still() {
    let dir = TempDir::new();
    let Some(server) = server("a_caller_whose_connections_are_all_in_use", &dir) else { return };
    let mut watcher = Client::from(server.addr(), Ipv4Addr::new(127, 0, 0, 2));
    let head = format!("POST {POOL}/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300\r\n");
    let mut waiting = Vec::new();
    let refused = eventually("its share is taken", || {
        let mut client = server.client();
        client.write(format!("{head}\r\n").as_bytes()).unwrap();
        waiting.push(client);
        let refused = metric(&mut watcher, "keypeg_http_connections_refused_total");
        (refused > 0).then_some(refused)
    });
    assert!(waiting.len() < connections(), "{}", waiting.len());
    let mut other = Client::from(server.addr(), Ipv4Addr::new(127, 0, 0, 3));
    assert_eq!(other.ask("GET /livez").status, 200);
    // The client of a refused connection may have wanted to keep a key alive.
    eventually("the engine knows", || {
        other.send(&format!("PUT {POOL}"), &json!({}));
        (metric(&mut watcher, "keypeg_refused_keepalives_total") >= refused).then_some(())
    });
}

/// Heads without an end once took 185 kB of each connection, without any bound together.
#[test]
fn large_heads_share_a_bound_and_small_requests_go_on() {
    let server = Server::in_memory(&["--memory", "64MiB"]);
    let endless = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}", "a".repeat(60_000));
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = Client::from(server.addr(), Ipv4Addr::new(127, 0, 0, 2));
        let _ = client.write(endless.as_bytes());
        clients.push(client);
    }
    let mut other = server.client();
    assert_eq!(other.ask("GET /livez").status, 200);
    let large =
        format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "a".repeat(60_000));
    assert_eq!(other.raw(large.as_bytes()).unwrap().status, 200, "its share is free");
    eventually("some are refused", || {
        let refused = metric(&mut other, "keypeg_refusals_total{code=\"overloaded\"}");
        (refused > 0).then_some(())
    });
    let last = clients.last_mut().unwrap().read(false).unwrap();
    assert_eq!(last.header("retry-after"), Some("1"));
    last.problem(503, "overloaded");
    drop(clients);
}

//! A server with one HTTP thread, which runs turns of the engine itself: what that thread does not do,
//! so that other requests are not delayed.

use crate::support::volume::run;
use crate::support::{Client, Server, TempDir, keypeg_under, pause, skipped};
use serde_json::json;
use std::io::ErrorKind;
use std::time::Duration;

const POOL: &str = "/v1/pools/default";
const ONE_THREAD: [&str; 2] = ["--http-threads", "1"];

/// Each sync takes 0.2 s more.
const SLOW_SYNCS: [&str; 9] = [
    "strace",
    "-D",
    "-f",
    "-q",
    "-o",
    "/dev/null",
    "-e",
    "trace=fdatasync",
    "--inject=fdatasync:delay_enter=200000",
];

/// Returns whether nothing has come for this client.
fn is_unanswered(client: &Client) -> bool {
    let stream = client.stream();
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn while_the_disk_is_slow_a_request_that_needs_no_disk_does_not_wait_for_it() {
    let test = "while_the_disk_is_slow_a_request_that_needs_no_disk_does_not_wait_for_it";
    if let Err(why) = run("strace", &["-V"]) {
        return skipped(test, &why);
    }
    let dir = TempDir::new();
    let mut command = keypeg_under(&SLOW_SYNCS, &ONE_THREAD);
    command.arg("--data").arg(dir.path().join("data"));
    let server = Server::logged(&mut command, &dir.path().join("log"));
    let (mut changes, mut reads) = (server.client(), server.client());
    reads.ask("GET /livez");
    let head =
        "POST /v1/pools/default/keys HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let body = json!({"count": 1}).to_string();
    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    // The first slow syncs are on the HTTP thread, which then leaves turns to the thread of the engine.
    let is_answered_first = (0..30).any(|_| {
        changes.write(request.as_bytes()).unwrap();
        // The turn has begun.
        pause(Duration::from_millis(50));
        assert_eq!(reads.ask("GET /livez").status, 200);
        let is_first = is_unanswered(&changes);
        assert_eq!(changes.read(false).unwrap().status, 201);
        is_first
    });
    assert!(is_answered_first, "each read has waited for the disk");
}

#[test]
fn short_calls_go_on_while_the_engines_thread_adds_many_keys() {
    let server = Server::in_memory(&ONE_THREAD);
    let (mut bulk, mut client) = (server.client(), server.client());
    client.send(&format!("POST {POOL}/keys"), &json!({"count": 1})).is(201, &json!({}));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..5 {
                let added = bulk.send(&format!("POST {POOL}/keys"), &json!({"count": 10_000}));
                assert_eq!(added.status, 201);
            }
        });
        for _ in 0..200 {
            let lease = client.send(&format!("POST {POOL}/leases"), &json!({})).is(201, &json!({}));
            let id = lease["id"].as_str().unwrap();
            client.ask(&format!("POST {POOL}/leases/{id}/release")).is(204, &json!(null));
        }
    });
    let pool = client.ask(&format!("GET {POOL}")).json();
    assert_eq!(pool["available"], 50_001, "{pool}");
}

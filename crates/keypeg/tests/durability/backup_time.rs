//! The metric with the time of the last complete backup.

use crate::support::{Client, Server, TempDir, eventually};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{SystemTime, UNIX_EPOCH};

const NAME: &str = "keypeg_backup_last_success_timestamp_seconds ";

#[expect(clippy::disallowed_methods, reason = "the metric is a time of the system")]
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn last_backup(client: &mut Client) -> u64 {
    let text = client.ask("GET /metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(NAME));
    value.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

#[test]
fn a_complete_backup_sets_the_time_and_one_whose_client_leaves_does_not() {
    let dir = TempDir::new();
    let server = Server::on(&dir, &[]);
    let client = &mut server.client();
    // More than the buffers of a connection take.
    client.send("PUT /v1/pools/bulk", &json!({ "key_length": 128 })).is(201, &json!({}));
    let many = json!({ "count": 10_000 });
    for _ in 0..5 {
        eventually("the keys are accepted", || {
            (client.send("POST /v1/pools/bulk/keys", &many).status == 201).then_some(())
        });
    }
    assert_eq!(last_backup(client), 0);
    // The server accepts the next backup when it has ended the one before.
    let leave_half_way = || {
        eventually("the one before has ended", || {
            let mut stream = TcpStream::connect(server.addr()).unwrap();
            stream.write_all(b"GET /v1/backup HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            let mut begin = [0; 100];
            stream.read_exact(&mut begin).unwrap();
            begin.starts_with(b"HTTP/1.1 200").then_some(())
        });
    };
    let complete = || {
        eventually("the one before has ended", || {
            let mut stream = TcpStream::connect(server.addr()).unwrap();
            let head = b"GET /v1/backup HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
            stream.write_all(head).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer.starts_with(b"HTTP/1.1 200").then_some(answer.len())
        })
    };
    leave_half_way();
    leave_half_way();
    assert_eq!(last_backup(client), 0, "the client of the first one has left");
    assert_eq!(client.ask("HEAD /v1/backup").status, 200);
    assert_eq!(last_backup(client), 0, "no backup was sent");
    let began_s = now_s();
    assert!(complete() > 4 << 20);
    let first = last_backup(client);
    assert!((began_s..=now_s()).contains(&first), "{first}");
    // A time that a later backup sets is a later second.
    eventually("the next second", || (now_s() > first).then_some(()));
    leave_half_way();
    leave_half_way();
    assert_eq!(last_backup(client), first, "the client of the first one has left");
}

#[test]
fn a_server_in_memory_has_no_time_of_a_backup() {
    let server = Server::in_memory(&[]);
    assert!(!server.client().ask("GET /metrics").body.contains(NAME));
}

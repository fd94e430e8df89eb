//! The metric with the time of the last complete backup.

use crate::support::{Client, Server, TempDir, eventually};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

const NAME: &str = "keypeg_backup_last_success_timestamp_seconds ";

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
    let leave_half_way = || {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        stream.write_all(b"GET /v1/backup HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
    };
    leave_half_way();
    // The server accepts the next backup when it has ended the one before.
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
    assert_eq!(last_backup(client), 0, "its client has left");
    assert_eq!(client.ask("HEAD /v1/backup").status, 200);
    assert_eq!(last_backup(client), 0, "no backup was sent");
    assert!(complete() > 4 << 20);
    let first = last_backup(client);
    assert!(first > 1_700_000_000, "{first}");
    leave_half_way();
    assert_eq!(last_backup(client), first);
}

#[test]
fn a_server_in_memory_has_no_time_of_a_backup() {
    let server = Server::in_memory(&[]);
    assert!(!server.client().ask("GET /metrics").body.contains(NAME));
}

//! File descriptors: clients that open all connections leave those that the journal needs.

use crate::support::{Server, TempDir, eventually, keypeg_under, skipped};
use serde_json::json;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

/// Regression: clients took every descriptor, so the next segment failed and the server ended. Later it
/// ended with 16 HTTP threads, whose descriptors no connection had to leave.
#[test]
fn clients_cannot_take_the_descriptors_that_the_journal_needs() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("clients_cannot_take_the_descriptors_that_the_journal_needs", "no prlimit");
    }
    for (limit, threads) in [(128, 1), (128, 2), (160, 16)] {
        let dir = TempDir::new();
        let limit = format!("--nofile={limit}:{limit}");
        let threads = format!("--http-threads={threads}");
        let mut command = keypeg_under(&["prlimit", &limit, "--"], &[&threads, "--data"]);
        let log = dir.path().join("log");
        let server = Server::logged(command.arg(dir.path().join("data")), &log);
        clients_open_all_connections(server, &log);
    }
}

fn clients_open_all_connections(mut server: Server, log: &Path) {
    let client = &mut server.client();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let idle: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
    // More than one segment, so that the server has to open another.
    let many = json!({ "count": 10_000 });
    client.send("PUT /v1/pools/bulk", &json!({ "key_length": 128 })).is(201, &json!({}));
    for _ in 0..16 {
        client.send("POST /v1/pools/bulk/keys", &many).is(201, &json!({}));
    }
    assert_eq!(client.ask("GET /livez").status, 200);
    drop(idle);
    eventually("a new connection is served", || {
        let answer = server.client().try_send("GET /livez", &[], "").ok()?;
        (answer.status == 200).then_some(())
    });
    assert_eq!(server.ended(), None);
    assert_eq!(server.terminate().code(), Some(0), "{}", std::fs::read_to_string(log).unwrap());
    assert!(!std::fs::read_to_string(log).unwrap().contains("panicked"));
}

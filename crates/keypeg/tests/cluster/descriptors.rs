//! File descriptors of a server that forwards requests: the connections to the other servers take
//! none that the server needs for itself.

use crate::support::{Client, Server, TempDir, eventually, keypeg, keypeg_under, skipped};
use serde_json::json;
use std::process::Command;

/// The limit of the server that forwards, and what it must not use of it.
const LIMIT: usize = 300;
const SPARE: usize = 30;

fn with_store(mut command: Command, dir: &TempDir, name: &str) -> Server {
    let store = format!("file://{}", dir.path().join("store").display());
    let args = [
        "--advertise=http://127.0.0.1:0",
        "--shards=2",
        "--http-threads=2",
        "--memory=256MiB",
        "--server-name",
    ];
    command.args(args).arg(name).env("KEYPEG_STORE", store);
    Server::logged(&mut command, &dir.path().join(name))
}

/// Each connection of a client took two descriptors more for the connection to the server of its pool,
/// which no limit left: clients that wait took all, and the server ended at its next file.
#[test]
fn requests_that_are_forwarded_take_no_descriptors_that_the_server_needs() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skipped("requests_that_are_forwarded_take_no_descriptors", "no prlimit");
    }
    let dir = TempDir::new();
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let owner = with_store(keypeg(&[]), &dir, "owner");
    let at_owner = &mut owner.client();
    eventually("all shards are served", || {
        (at_owner.ask("GET /readyz").status == 200).then_some(())
    });
    // The shards stay here when the other server has started.
    for shard in 0..2 {
        let path = format!("POST /v1/cluster/shards/{shard}/move");
        at_owner.send(&path, &json!({ "server": "owner" })).is(200, &json!({}));
    }
    at_owner.send("PUT /v1/pools/ci", &json!({})).is(201, &json!({}));
    let limit = format!("--nofile={LIMIT}:{LIMIT}");
    let ops = ["--ops-listen", "127.0.0.1:0"];
    let mut other = with_store(keypeg_under(&["prlimit", &limit, "--"], &ops), &dir, "other");
    eventually("a forwarded request", || {
        (other.client().ask("GET /v1/pools/ci").status == 200).then_some(())
    });
    let (_, ops) = other.ready().split_once("operations on http://").unwrap();
    let ops = &mut Client::new(ops.trim().parse().unwrap());
    let log = || std::fs::read_to_string(dir.path().join("other")).unwrap();
    let mut waiting = Vec::new();
    eventually("no place is left", || {
        // A connection whose request has not been admitted yet gives its place to a new one.
        for _ in 0..10 {
            let mut client = other.client();
            let head = "POST /v1/pools/ci/leases HTTP/1.1\r\nhost: localhost\r\nprefer: wait=300";
            let _ = client.write(format!("{head}\r\n\r\n").as_bytes());
            waiting.push(client);
        }
        let metrics = ops.ask("GET /metrics?pools=0").body;
        let is_full = !metrics.contains("keypeg_http_connections_refused_total 0");
        (is_full || log().contains("Too many open files")).then_some(())
    });
    eventually("the requests wait", || {
        let pool = at_owner.ask("GET /v1/pools/ci").json();
        (pool["waiting"].as_u64() > Some(30)).then_some(())
    });
    let open = std::fs::read_dir(format!("/proc/{}/fd", other.pid().as_raw_nonzero())).unwrap();
    let open = open.count();
    assert!(open > LIMIT / 3 && open < LIMIT - SPARE, "{open} files are open");
    assert!(!log().contains("Too many open files"), "{}", log());
    assert_eq!(ops.ask("GET /readyz").status, 200);
    drop(waiting);
    eventually("a new request is forwarded", || {
        let answer = other.client().try_send("GET /v1/pools/ci", &[], "").ok()?;
        (answer.status == 200).then_some(())
    });
    assert_eq!(other.ended(), None);
}

//! One server becomes several on a store, and these become one again: by backups, while clients
//! change the pools.

use crate::support::{Client, Server, TempDir, binary, eventually, exit_of, keypeg};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

const POOLS: u64 = 8;

/// Runs a command of the program that must succeed.
#[track_caller]
fn run(args: &[&str]) {
    let output = Command::new(binary()).args(args).env_clear().output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The policy, and each key with its value, label and quarantine, of all pools.
type Rows = BTreeMap<String, (Value, BTreeMap<String, Value>)>;

fn rows(client: &mut Client) -> Rows {
    let list = eventually("all shards have an owner", || {
        let answer = client.ask("GET /v1/pools?limit=100");
        (answer.status == 200).then_some(answer)
    });
    let mut rows = Rows::new();
    for pool in list.json()["pools"].as_array().unwrap() {
        let (name, mut keys) = (pool["pool"].as_str().unwrap(), BTreeMap::new());
        let page = client.ask(&format!("GET /v1/pools/{name}/keys?limit=1000")).json();
        for key in page["keys"].as_array().unwrap() {
            let id = key["id"].as_str().unwrap();
            let shown = client.ask(&format!("POST /v1/pools/{name}/keys/{id}/reveal"));
            let is_quarantined = key["state"] == "quarantined";
            let row = json!([shown.json()["key"], key["label"], key["created_at"], is_quarantined]);
            keys.insert(id.to_owned(), row);
        }
        let policy = json!([pool["lease_ttl_seconds"], pool["key_length"], pool["total"]]);
        rows.insert(name.to_owned(), (policy, keys));
    }
    rows
}

/// Creates pools that land in several shards.
fn fill(client: &mut Client) {
    for number in 0..POOLS {
        let policy = json!({ "lease_ttl_seconds": 600 + number, "keepalive_ttl_seconds": null });
        client.send(&format!("PUT /v1/pools/p{number}"), &policy).is(201, &json!({}));
        let keys = format!("POST /v1/pools/p{number}/keys");
        client.send(&keys, &json!({ "count": 3, "label": "made" })).is(201, &json!({}));
        client.send(&keys, &json!({ "values": [format!("own-{number}")] })).is(201, &json!({}));
        let lease = client.ask(&format!("POST /v1/pools/p{number}/leases")).text("id");
        let end = format!("POST /v1/pools/p{number}/leases/{lease}/release");
        client.send(&end, &json!({ "quarantine": true })).is(204, &Value::Null);
    }
}

/// A server on a store.
fn shared(store: &str) -> Server {
    Server::given(&["--store", store, "--advertise", "http://127.0.0.1:0"], &[])
}

fn back_up(server: &Server, file: &Path) {
    run(&["backup", text(file), "--server", &format!("http://{}", server.addr())]);
}

/// Acquires and releases keys of all pools until `has_ended`; returns the greatest token of each pool.
fn grants(server: &Server, has_ended: &AtomicBool) -> BTreeMap<u64, u64> {
    let (mut client, mut tokens) = (server.client(), BTreeMap::new());
    for number in (0..POOLS).cycle() {
        if has_ended.load(Ordering::Relaxed) {
            break;
        }
        let lease = client.ask(&format!("POST /v1/pools/p{number}/leases")).is(201, &json!({}));
        let token = lease["fencing_token"].as_u64().unwrap();
        assert!(tokens.insert(number, token).is_none_or(|before| before < token), "{token}");
        let id = lease["id"].as_str().unwrap();
        client.ask(&format!("POST /v1/pools/p{number}/leases/{id}/release")).is(204, &Value::Null);
    }
    tokens
}

fn ids(rows: &Rows) -> Vec<&String> {
    rows.values().flat_map(|(_, keys)| keys.keys()).collect()
}

#[test]
fn one_server_becomes_several_and_several_become_one_while_keys_are_granted() {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    let [one, many, again] = ["one", "many", "again"].map(|name| path(&format!("{name}.backup")));
    let stores = ["four", "seven"].map(|name| {
        std::fs::create_dir(path(name)).unwrap();
        format!("file://{}", text(&path(name)))
    });
    let server = Server::on(&dir, &[]);
    fill(&mut server.client());
    let expected = rows(&mut server.client());
    back_up(&server, &one);
    drop(server);
    run(&["restore", text(&one), "--store", &stores[0], "--shards", "4", "--hold", "0s"]);

    let (first, second) = (shared(&stores[0]), shared(&stores[0]));
    assert_eq!(rows(&mut second.client()), expected);
    let has_ended = AtomicBool::new(false);
    let tokens = std::thread::scope(|scope| {
        let granting = scope.spawn(|| grants(&second, &has_ended));
        back_up(&first, &many);
        has_ended.store(true, Ordering::Relaxed);
        granting.join().unwrap()
    });
    drop((first, second));
    let (back, other) = (path("back"), &stores[1]);
    run(&["restore", text(&many), "--data", text(&back), "--hold", "0s"]);
    run(&["restore", text(&many), "--store", other, "--shards", "7", "--hold", "0s"]);

    let server = Server::given(&["--data", text(&back)], &[]);
    let client = &mut server.client();
    assert_eq!(rows(client), expected);
    for (number, before) in tokens {
        let lease = client.ask(&format!("POST /v1/pools/p{number}/leases")).is(201, &json!({}));
        assert!(lease["fencing_token"].as_u64().unwrap() > before, "pool {number}");
    }
    drop(server);

    // New pools in shards that have pools of other shards: no two keys have one id.
    let server = shared(other);
    let client = &mut server.client();
    assert_eq!(rows(client), expected);
    for number in 0..20 {
        client.ask(&format!("PUT /v1/pools/new{number}")).is(201, &json!({}));
        client.ask(&format!("POST /v1/pools/new{number}/keys")).is(201, &json!({}));
    }
    let expected = rows(client);
    let all = ids(&expected);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    back_up(&server, &again);
    drop(server);
    let last = path("last");
    run(&["restore", text(&again), "--data", text(&last), "--hold", "0s"]);
    let server = Server::given(&["--data", text(&last)], &[]);
    assert_eq!(rows(&mut server.client()), expected);
    server.client().ask("PUT /v1/pools/p99").is(201, &json!({}));
}

#[test]
fn a_start_with_existing_refuses_what_a_failed_restore_has_left() {
    let (dir, store) = (TempDir::new(), TempDir::new());
    let file = dir.path().join("a.backup");
    let server = Server::on(&dir, &[]);
    fill(&mut server.client());
    back_up(&server, &file);
    // A file in place of the directory for the snapshots of a shard.
    let shard = store.path().join("shards/00001");
    std::fs::create_dir_all(&shard).unwrap();
    std::fs::write(shard.join("parts"), "").unwrap();
    let url = format!("file://{}", text(store.path()));
    let mut restore = Command::new(binary());
    restore.args(["restore", text(&file), "--shards", "4", "--store", &url]).env_clear();
    let output = restore.output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
    let mut start = keypeg(&["--listen", "127.0.0.1:0", "--advertise", "http://127.0.0.1:0"]);
    let (code, said) = exit_of(start.args(["--store", &url, "--existing"]));
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("the store has no installation"), "{said}");
}

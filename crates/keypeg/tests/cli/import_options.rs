//! `keypeg import`: the warning about a keep-alive time, and the options that decide about it.

use crate::support::{Server, TempDir, binary};
use serde_json::{Value, json};
use std::process::{Command, Output};

fn import(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("import").args(args).env_clear();
    command.env("KEYPEG_SERVER", format!("http://{}", server.addr())).output().unwrap()
}

fn check_unwarned(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("warning"), "{stderr}");
}

/// Accounts that exist elsewhere were purged after five minutes, and nothing had said so.
#[test]
fn import_warns_of_the_purge_and_names_the_way_out() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let dir = TempDir::new();
    let file = dir.path().join("values");
    std::fs::write(&file, "alpha\nbeta\n").unwrap();
    let path = file.to_str().unwrap();
    client.send("PUT /v1/pools/ci", &json!({ "keepalive_ttl_seconds": 60 })).is(201, &json!({}));
    let output = import(&server, &[path, "--pool", "ci"]);
    assert_eq!(output.status.code(), Some(0));
    let pool = client.ask("GET /v1/pools/ci").is(200, &json!({ "total": 2 }));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let deadline = pool["next_purge_at"].as_str().unwrap();
    for says in [
        "warning: the server will purge 2 keys of the pool \"ci\"",
        deadline,
        "\"keypeg keepalive --all --pool ci\"",
        "keepalive_ttl_seconds",
        "--no-keepalive",
    ] {
        assert!(stderr.contains(says), "{says}: {stderr}");
    }
    assert!(!stderr.contains("alpha"), "no value is repeated");

    let output = import(&server, &[path, "--no-keepalive"]);
    check_unwarned(&output);
    client.ask("GET /v1/pools/default").is(200, &json!({ "total": 2, "next_purge_at": null }));
    client
        .send("PUT /v1/pools/ever", &json!({ "keepalive_ttl_seconds": null }))
        .is(201, &json!({}));
    let output = import(&server, &[path, "--pool", "ever"]);
    check_unwarned(&output);
}

#[test]
fn import_brings_retired_values_back_where_the_option_says_so() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    let dir = TempDir::new();
    let file = dir.path().join("values");
    std::fs::write(&file, "alpha\n").unwrap();
    let path = file.to_str().unwrap();
    let pool = client.ask("POST /v1/pools/default/keys").is(201, &json!({ "keys": ["*"] }));
    let generated = pool["keys"][0].clone();
    let key = format!("DELETE /v1/pools/default/keys/{}", generated["id"].as_str().unwrap());
    client.ask(&key).is(204, &Value::Null);
    std::fs::write(&file, generated["key"].as_str().unwrap()).unwrap();
    assert_eq!(import(&server, &[path, "--no-keepalive"]).status.code(), Some(65));
    let output = import(&server, &[path, "--no-keepalive", "--allow-retired"]);
    check_unwarned(&output);
    client
        .ask("GET /v1/pools/default/keys")
        .is(200, &json!({ "keys": [{ "id": generated["id"], "keepalive": false }] }));
}

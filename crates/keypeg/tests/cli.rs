//! The command line: what is refused before anything is served, and with which exit code.

use crate::support::{Server, TempDir, exit_of, keypeg};
use serde_json::json;

fn check(args: &[&str], env: &[(&str, &str)], exit: i32, says: &str) {
    let (code, said) = exit_of(keypeg(args).envs(env.iter().copied()));
    assert_eq!(code, exit, "{args:?} {env:?}: {said}");
    assert!(said.contains(says), "{args:?} {env:?}: {said}");
}

#[test]
fn mistakes_are_told_with_the_exit_codes_of_sysexits() {
    check(&["--lease-ttl", "soon"], &[], 64, "500ms");
    check(&["--nope"], &[], 64, "--nope");
    check(&[], &[("KEYPEG_LEASE_TTL", "8d")], 64, "ms, s, m or h");
    check(&[], &[("KEYPEG_LISTEN", "here")], 64, "--listen");
    check(&["--listen", "0.0.0.0:0"], &[], 78, "--insecure-listen");
    check(&["--ephemeral"], &[("KEYPEG_LISTEN", "[::]:0")], 78, "--insecure-listen");
    check(&["--ephemeral"], &[("KEYPEG_LOG", "a=b=c")], 78, "KEYPEG_LOG");
}

#[test]
fn a_variable_that_is_set_but_empty_is_an_error() {
    for variable in [
        "KEYPEG_LISTEN",
        "KEYPEG_DATA",
        "KEYPEG_EPHEMERAL",
        "KEYPEG_EXISTING",
        "KEYPEG_LEASE_TTL",
        "KEYPEG_KEEPALIVE_TTL",
        "KEYPEG_INSECURE_LISTEN",
    ] {
        check(&[], &[(variable, "")], 64, variable);
    }
}

#[test]
fn an_address_in_use_is_told() {
    let server = Server::in_memory(&[]);
    let addr = server.addr().to_string();
    check(&["--ephemeral", "--listen", &addr], &[], 69, "in use");
}

#[test]
fn a_directory_in_use_is_told() {
    let dir = TempDir::new();
    let _server = Server::on(&dir, &[]);
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    check(&["--data", data, "--listen", "127.0.0.1:0"], &[], 75, "in use");
}

#[test]
fn a_directory_that_cannot_be_made_is_told() {
    let dir = TempDir::new();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("data");
    check(&["--data", below.to_str().unwrap(), "--listen", "127.0.0.1:0"], &[], 74, "data");
}

#[test]
fn flags_set_the_default_pools_policy() {
    let server = Server::in_memory(&["--lease-ttl", "90s", "--keepalive-ttl", "1h"]);
    server.client().ask("GET /v1/pools/default").is(
        200,
        &json!({
            "lease_ttl_seconds": 90, "keepalive_ttl_seconds": 3600,
        }),
    );
}

#[test]
fn a_directory_that_must_be_there_is_not_made() {
    let dir = TempDir::new();
    let data = dir.path().join("data");
    let args = ["--data", data.to_str().unwrap(), "--existing"];
    check(&args, &[], 66, "holds no data");
    assert!(!data.exists());
    std::fs::create_dir(&data).unwrap();
    check(&args, &[], 66, "holds no data");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
}

//! Jobs that share imported accounts by `exec --wait`, the use for which `exec` was made.

use super::{prepare, server, url};
use crate::support::{Server, TempDir};
use serde_json::json;
use std::process::{Command, Stdio};

/// Takes a lock file of its account with `O_EXCL` while it works, and leaves it behind if killed.
const JOB: &str = "set -C; : > \"$DIR/$ACCOUNT\" || exit 99; sleep 0.2; rm \"$DIR/$ACCOUNT\"";

fn jobs(server: &Server, dir: &TempDir, count: usize) -> Vec<Option<i32>> {
    let started: Vec<_> = (0..count)
        .map(|_| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_keypeg"));
            command
                .args(["exec", "--pool", "accounts", "--wait", "20m", "--env", "ACCOUNT", "-q"])
                .args(["--", "/bin/sh", "-c", JOB])
                .env_clear()
                .env("KEYPEG_SERVER", url(server))
                .env("DIR", dir.path())
                .stdin(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    started.into_iter().map(|mut job| job.wait().unwrap().code()).collect()
}

#[test]
fn twenty_jobs_share_five_accounts_and_never_meet_on_one() {
    let server = server(&[], 60.0);
    let dir = TempDir::new();
    let policy = json!({ "max_hold_seconds": 3600, "keepalive_ttl_seconds": null });
    server.client().send("PUT /v1/pools/accounts", &policy).is(201, &json!({}));
    let values = json!({ "values": ["a-1", "a-2", "a-3", "a-4", "a-5"] });
    server.client().send("POST /v1/pools/accounts/keys", &values).is(201, &json!({}));
    assert_eq!(jobs(&server, &dir, 20), [Some(0); 20]);
    let counts = json!({ "available": 5, "leased": 0, "waiting": 0 });
    server.client().ask("GET /v1/pools/accounts").is(200, &counts);
}

/// The maximum hold ends a lease at a known time: by then no process of the command may run, also
/// if it ignores SIGTERM. The next holder proves it with the lock file.
#[test]
fn a_command_is_gone_before_the_next_holder_gets_its_key() {
    let server = Server::in_memory(&[]);
    prepare(&server, 60.0);
    let policy = json!({ "lease_ttl_seconds": 1, "max_hold_seconds": 1 });
    server.client().send("PUT /v1/pools/ci", &policy).is(200, &json!({}));
    let dir = TempDir::new();
    // The process writes as long as it runs.
    let stubborn =
        "trap '' TERM; (trap '' TERM; while :; do date +%s%N > \"$DIR/last\"; done) & wait";
    let exec = |script: &str, wait: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keypeg"));
        command
            .args(["exec", "--pool", "ci", "-q"])
            .args(wait)
            .args(["--", "/bin/sh", "-c", script])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("KEYPEG_SERVER", url(&server))
            .env("DIR", dir.path())
            .stdin(Stdio::null());
        command
    };
    let mut first = exec(stubborn, &[]).spawn().unwrap();
    crate::support::eventually("the first runs", || dir.path().join("last").exists().then_some(()));
    // The file must not change any more.
    let next = "a=$(cat \"$DIR/last\"); sleep 0.3; [ \"$a\" = \"$(cat \"$DIR/last\")\" ]";
    let next = exec(next, &["--wait", "1m"]).status().unwrap();
    assert_eq!(next.code(), Some(0));
    assert_eq!(first.wait().unwrap().code(), Some(75));
}

//! Jobs that share imported accounts by `exec --wait`, the use for which `exec` was made.

use super::{prepare, server, url};
use crate::support::late::unless_late;
use crate::support::{Server, TempDir, binary, eventually};
use serde_json::json;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Takes a lock file of its account with `O_EXCL` while it works, and leaves it behind if killed.
const JOB: &str = "set -C; : > \"$DIR/$ACCOUNT\" || exit 99; sleep 0.2; rm \"$DIR/$ACCOUNT\"";

fn jobs(server: &Server, dir: &TempDir, count: usize) -> Vec<Option<i32>> {
    let started: Vec<_> = (0..count)
        .map(|_| {
            let mut command = Command::new(binary());
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
/// if it ignores SIGTERM. The command writes the time as long as it runs; the last line must be
/// earlier than the next grant of the key.
///
/// exec has half a second for the last step, and then the watchdog acts.
#[test]
fn a_command_is_gone_before_the_next_holder_gets_its_key() {
    unless_late(Duration::from_millis(50), is_gone_before_the_next_holder);
}

fn is_gone_before_the_next_holder() {
    let server = Server::in_memory(&[]);
    prepare(&server, 60.0);
    let policy = json!({ "lease_ttl_seconds": 8, "max_hold_seconds": 8 });
    server.client().send("PUT /v1/pools/ci", &policy).is(200, &json!({}));
    let dir = TempDir::new();
    let file = dir.path().join("times");
    let stubborn =
        "trap '' TERM; (while :; do date -u +%Y-%m-%dT%H:%M:%S.%3NZ >> \"$TIMES\"; done) & wait";
    let mut first = Command::new(binary());
    first
        .args(["exec", "--pool", "ci", "-q", "--", "/bin/sh", "-c", stubborn])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("KEYPEG_SERVER", url(&server))
        .env("TIMES", &file)
        .stdin(Stdio::null());
    let mut first = first.spawn().unwrap();
    eventually("the command runs", || file.exists().then_some(()));
    let next = json!({ "wait_seconds": 60 });
    let next = server.client().send("POST /v1/pools/ci/leases", &next).json();
    assert_eq!(first.wait().unwrap().code(), Some(75));
    let times = std::fs::read_to_string(&file).unwrap();
    let last = times.lines().rfind(|line| line.ends_with('Z')).unwrap();
    let granted_at = next["granted_at"].as_str().unwrap();
    assert!(last < granted_at, "it ran at {last}, and the key was lent at {granted_at}");
}

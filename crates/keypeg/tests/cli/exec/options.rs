//! The options of `exec`, and what its exit code says about the lease.

use super::{Kind, LATE, Run, key, prepare, server, url};
use crate::support::late::unless_late;
use crate::support::proxy::{Fault, Proxy};
use crate::support::{Server, TempDir, binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};

fn exec(url: &str, args: &[&str], script: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(["exec", "--pool", "ci"]).args(args).args(["--", "/bin/sh", "-c", script]);
    command.env_clear().env("KEYPEG_SERVER", url).stdin(Stdio::null());
    command
}

#[track_caller]
fn check(mut command: Command, code: i32, says: &str) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
    output
}

fn unblock(server: &Server) {
    let id = key(server)["id"].clone();
    let release = format!("POST /v1/pools/ci/keys/{}/release", id.as_str().unwrap());
    assert_eq!(server.client().ask(&release).status, 200);
}

#[test]
fn an_exit_code_can_rest_or_quarantine_the_key() {
    let server = server(&[], 60.0);
    let options = ["--rest-on", "29=1h", "--rest-on", "30=0s", "--quarantine-on", "41"];
    for (code, state, reason) in [
        (0, "available", Value::Null),
        (29, "resting", json!("exit code 29 of the command")),
        (30, "available", Value::Null),
        (41, "quarantined", json!("exit code 41 of the command")),
        (42, "available", Value::Null),
    ] {
        check(exec(&url(&server), &options, &format!("exit {code}")), code, "");
        let key = key(&server);
        assert_eq!((&key["state"], &key["reason"]), (&json!(state), &reason), "{code}");
        unblock(&server);
    }
    check(exec(&url(&server), &["--quarantine-on", "137"], "kill -9 $$"), 137, "");
    assert_eq!(key(&server)["state"], "quarantined");
    let twice = ["--rest-on", "1=1s", "--quarantine-on", "1"];
    check(exec(&url(&server), &twice, ""), 64, "exit code 1 is given twice");
    check(exec(&url(&server), &["--rest-on", "1"], ""), 64, "such as 29=1m");
    check(exec(&url(&server), &["--quarantine-on", "256"], ""), 64, "256");
}

#[test]
fn the_environment_has_the_key_under_the_given_name_and_the_lease_on_request() {
    let server = server(&[], 60.0);
    let script = "env | sort | grep -E '^(KEYPEG|ACCOUNT)' | cut -d= -f1";
    for (args, expected) in [
        (&[][..], "KEYPEG_FENCING_TOKEN\nKEYPEG_KEY\nKEYPEG_KEY_ID\nKEYPEG_SERVER\n"),
        (&["--env", "ACCOUNT"], "ACCOUNT\nKEYPEG_FENCING_TOKEN\nKEYPEG_KEY_ID\nKEYPEG_SERVER\n"),
        (
            &["--pass-lease-id"],
            "KEYPEG_FENCING_TOKEN\nKEYPEG_KEY\nKEYPEG_KEY_ID\nKEYPEG_LEASE_ID\nKEYPEG_SERVER\n",
        ),
    ] {
        let mut command = exec(&url(&server), &[&["--quiet"], args].concat(), script);
        // What an exec around this one has set.
        command.env("KEYPEG_LEASE_ID", "outer").env("KEYPEG_KEY", "outer");
        let output = check(command, 0, "");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "--quiet");
    }
    check(exec(&url(&server), &["--env", "1A"], ""), 64, "letters, digits and _");
    check(exec(&url(&server), &["--env", "KEYPEG_KEY_ID"], ""), 64, "another meaning");
}

#[test]
fn a_value_that_no_variable_can_have_is_refused_with_the_id_of_its_key() {
    let server = server(&[], 60.0);
    let delete = format!("DELETE /v1/pools/ci/keys/{}", key(&server)["id"].as_str().unwrap());
    assert_eq!(server.client().ask(&delete).status, 204);
    let import = json!({ "values": ["a\0b"] });
    server.client().send("POST /v1/pools/ci/keys", &import).is(201, &json!({}));
    let next_step = format!("\"keypeg quarantine {}\"", key(&server)["id"].as_str().unwrap());
    check(exec(&url(&server), &[], ""), 65, &next_step);
    assert_eq!(key(&server)["state"], "available");
}

#[test]
fn a_command_whose_lease_was_lost_before_its_release_ends_with_75() {
    let server = server(&[], 3600.0);
    let proxy = Proxy::to(server.addr());
    // exec learns of the loss by its release only.
    proxy.fail("/events", Fault::StallAnswer, usize::MAX);
    proxy.fail("/renew", Fault::StallRequest, usize::MAX);
    let dir = TempDir::new();
    let file = dir.path().join("go");
    let script = format!("echo ready; until [ -e {} ]; do sleep 0.02; done", file.display());
    let mut command = exec(&proxy.url(), &[], &script);
    let process = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    eventually("leased", || (key(&server)["state"] == "leased").then_some(()));
    unblock(&server);
    std::fs::write(&file, "").unwrap();
    let output = process.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("the lease had ended before the command ended with 0"), "{stderr}");
}

#[test]
fn a_release_whose_answer_is_lost_is_repeated_and_is_no_loss() {
    let server = server(&[], 3600.0);
    for fault in [Fault::Cut, Fault::Half, Fault::StallRequest] {
        let proxy = Proxy::to(server.addr());
        proxy.fail("/release", fault, 1);
        let command = exec(&proxy.url(), &[], "exit 5");
        if fault == Fault::StallRequest {
            // The server never answers: the lease is left to its end.
            check(command, 5, "its lease will expire");
            unblock(&server);
        } else {
            check(command, 5, "");
        }
        assert_eq!(key(&server)["state"], "available", "{fault:?}");
    }
}

/// A wait begins also while the pool cannot be read. If it still cannot after the grant, no command
/// runs, and no other client has to wait for the end of the lease.
#[test]
fn a_key_whose_pool_cannot_be_read_is_released() {
    let server = server(&[], 3600.0);
    let proxy = Proxy::to(server.addr());
    proxy.fail("GET /v1/pools/ci HTTP", Fault::Cut, usize::MAX);
    let output = check(exec(&proxy.url(), &["--wait=10m"], "echo it runs"), 69, "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!((proxy.requests("/leases HTTP"), proxy.requests("/release HTTP")), (1, 1));
    assert_eq!(key(&server)["state"], "available");
}

/// Events and renewals show a deletion too: here neither arrives.
#[test]
fn a_keep_alive_of_a_deleted_key_ends_the_command() {
    let server = server(&[], 3600.0);
    let policy = json!({ "keepalive_ttl_seconds": 15 });
    server.client().send("PUT /v1/pools/ci", &policy).is(200, &json!({}));
    let proxy = Proxy::to(server.addr());
    proxy.fail("/events", Fault::StallAnswer, usize::MAX);
    proxy.fail("/renew", Fault::StallRequest, usize::MAX);
    let mut run = Run::start(Kind::Plain, &proxy.url(), "").unwrap();
    let id = key(&server)["id"].clone();
    server.client().ask(&format!("DELETE /v1/pools/ci/keys/{}", id.as_str().unwrap()));
    run.ends(75, "its key was deleted");
}

#[test]
fn without_grace_a_command_is_killed_at_once() {
    let server = server(&[], 3600.0);
    let script = "trap 'exit 0' TERM; trap > /dev/null; while :; do sleep 0.02; done";
    let mut command = exec(&url(&server), &["--grace", "0s"], script);
    let mut process = command.spawn().unwrap();
    eventually("leased", || (key(&server)["state"] == "leased").then_some(()));
    unblock(&server);
    assert_eq!(process.wait().unwrap().code(), Some(75));
}

#[test]
fn a_command_that_reaches_the_maximum_hold_learns_how_to_allow_more() {
    unless_late(LATE, || {
        let server = server(&[], 2.0);
        let policy = json!({ "max_hold_seconds": null });
        server.client().send("PUT /v1/pools/ci", &policy).is(200, &json!({}));
        let step = "\"keypeg pool set ci --max-hold DURATION\" allows more";
        let end = format!("it reached the maximum hold of its pool: {step}");
        let output = check(exec(&url(&server), &[], "exec sleep 1000"), 75, &end);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let start = format!("lasts 2s at most; a command that runs longer is ended: {step}");
        assert!(stderr.contains(&start), "{stderr}");
    });
}

/// The lead before the end is a second, of which the last quarter is for SIGKILL.
#[test]
fn a_command_has_time_to_clean_up_before_its_lease_ends() {
    unless_late(LATE, || {
        let server = server(&[], 4.0);
        let policy = json!({ "max_hold_seconds": null });
        server.client().send("PUT /v1/pools/ci", &policy).is(200, &json!({}));
        // The shell alone counts: a process that it started now would get SIGTERM too.
        let script =
            "end() { n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done; echo clean; exit; }
                      trap end TERM; while :; do sleep 0.02; done";
        let output = check(exec(&url(&server), &[], script), 75, "ending the command");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "clean\n");
    });
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::*;

    #[test]
    fn a_waiting_exec_and_a_waiting_acquire_survive_a_restart_of_the_server() {
        let dir = TempDir::new();
        let mut server = Server::on(&dir, &[]);
        prepare(&server, 3600.0);
        let proxy = Proxy::to(server.addr());
        let held = server.client().send("POST /v1/pools/ci/leases", &json!({})).json();
        let mut waiting = exec(&proxy.url(), &["--wait", "10m"], "exit 7").spawn().unwrap();
        let mut acquire = Command::new(binary());
        acquire.args(["acquire", "--pool", "ci", "--wait=10m", "--output", "json"]);
        acquire.env_clear().env("KEYPEG_SERVER", proxy.url()).stdout(Stdio::piped());
        let acquire = acquire.spawn().unwrap();
        let both_wait = |server: &Server| {
            eventually("both wait", || {
                (server.client().ask("GET /v1/pools/ci").json()["waiting"] == 2).then_some(())
            });
        };
        both_wait(&server);
        proxy.remove_server();
        server.kill();
        let server = Server::on(&dir, &[]);
        proxy.replace_server(server.addr());
        both_wait(&server);
        let release = format!("POST /v1/pools/ci/leases/{}/release", held["id"].as_str().unwrap());
        server.client().ask(&release).is(204, &Value::Null);
        // Either may be first. exec releases its key by itself; the key of acquire is unblocked.
        let acquire = std::thread::spawn(move || acquire.wait_with_output().unwrap());
        let code = eventually("exec ends", || {
            if acquire.is_finished() && key(&server)["state"] == "leased" {
                unblock(&server);
            }
            waiting.try_wait().unwrap()
        });
        // exec may lose its lease to the line above, between its grant and its end.
        assert!([Some(7), Some(75)].contains(&code.code()), "{code}");
        let output = acquire.join().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let grant: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_ne!(grant["key"], Value::Null);
    }
}

#[test]
fn a_wait_that_ends_says_why() {
    let mut server = server(&[], 3600.0);
    server.client().send("POST /v1/pools/ci/leases", &json!({}));
    let all_leased = check(exec(&url(&server), &["--wait=3s"], ""), 75, "no_key_available");
    assert!(String::from_utf8_lossy(&all_leased.stderr).contains("within 3s"));
    let url = url(&server);
    server.kill();
    check(exec(&url, &["--wait=300ms"], ""), 69, "cannot be reached: ");
    check(exec(&url, &[], ""), 69, "cannot be reached: ");
}

#[test]
fn a_signal_ends_a_wait() {
    let server = server(&[], 3600.0);
    server.client().send("POST /v1/pools/ci/leases", &json!({}));
    let mut waiting = exec(&url(&server), &["--wait", "1h"], "").spawn().unwrap();
    let waits = |number: u64| {
        eventually("the queue", || {
            (server.client().ask("GET /v1/pools/ci").json()["waiting"] == number).then_some(())
        });
    };
    waits(1);
    kill_process(Pid::from_child(&waiting), Signal::TERM).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(128 + 15));
    waits(0);
}

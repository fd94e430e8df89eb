//! The commands that call a server, as a shell sees them: their output and exit codes, and how
//! `exec` treats the command it runs.

use super::tool::{assert_counts, check, json_of, tool, utf8};
use crate::support::late::unless_late;
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary, eventually, now};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs::{Permissions, set_permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn each_command_makes_its_call_and_prints_the_answer() {
    let server = Server::in_memory(&[]);
    server.client().send("PUT /v1/pools/ci", &json!({ "max_hold_seconds": 600 }));
    let ci = ["--pool", "ci"];
    let generated = json_of(&server, &["generate", "-n", "2", "--pool", "ci"]);
    assert_eq!(generated["keys"].as_array().unwrap().len(), 2);
    let acquire = ["acquire", "--pool", "ci", "--ttl", "5s", "--holder", "job-7"];
    let grant = json_of(&server, &acquire);
    let (lease, key) = (grant["id"].as_str().unwrap(), grant["key_id"].as_str().unwrap());
    assert_eq!(grant["holder"], "job-7");
    let shown = json_of(&server, &["show", key, "--pool", "ci"]);
    assert_eq!(shown["state"], "leased");
    let renewed = json_of(&server, &["renew", lease, "--ttl", "50s", "--pool", "ci"]);
    assert_eq!(renewed["expires_in_seconds"], 50);
    check(tool(&server, &["release", lease, "--pool", "ci"]), 0, "");
    check(tool(&server, &["release", lease, "--pool", "ci"]), 66, "(lease_ended)");
    assert_eq!(json_of(&server, &["unblock", key, "--pool", "ci"]), json!({ "released": false }));
    for (how, state) in [(&["--quarantine"][..], "quarantined"), (&["--rest", "1h"], "resting")] {
        let grant = json_of(&server, &["acquire", "--pool", "ci"]);
        let (lease, lent) = (grant["id"].as_str().unwrap(), grant["key_id"].as_str().unwrap());
        let release = ["release", lease, "--pool", "ci", "--reason", "401"];
        check(tool(&server, &[&release[..], how].concat()), 0, "");
        let shown = json_of(&server, &["show", lent, "--pool", "ci"]);
        assert_eq!((&shown["state"], &shown["reason"]), (&json!(state), &json!("401")));
        assert_eq!(
            json_of(&server, &["unblock", lent, "--pool", "ci"]),
            json!({ "released": true })
        );
    }
    let kept = json_of(&server, &["keepalive", key, "--pool", "ci"]);
    assert_eq!(kept, json!({ "kept": 1, "missing": [] }));
    assert_eq!(json_of(&server, &["keepalive", "--all", "--pool", "ci"])["kept"], 2);
    check(tool(&server, &["delete", key, "--pool", "ci"]), 0, "");
    check(tool(&server, &["keepalive", key, "--pool", "ci"]), 66, "1 of 1 named keys do not exist");
    assert_eq!(json_of(&server, &[&["show"][..], &ci].concat())["total"], 1);
    assert_eq!(json_of(&server, &["pools"]).as_array().unwrap().len(), 2);
    let first = json_of(&server, &["pools", "--limit", "1"]);
    assert_eq!((first.as_array().unwrap().len(), &first[0]["pool"]), (1, &json!("ci")));
    let table = utf8(&check(tool(&server, &["pools"]), 0, "").stdout);
    assert_eq!(
        table,
        "POOL     AVAILABLE  LEASED  RESTING  QUARANTINED  TOTAL  WAITING  DRAINING\n\
         ci       1          0       0        0            1      0        false\n\
         default  0          0       0        0            0      0        false\n"
    );
}

#[test]
fn failures_have_the_exit_codes_of_sysexits() {
    let mut server = Server::in_memory(&[]);
    check(tool(&server, &["acquire"]), 75, "The pool has no keys.");
    check(tool(&server, &["show", "x"]), 66, "(unknown_key)");
    check(tool(&server, &["show", "--pool", "nope"]), 66, "(unknown_pool)");
    check(tool(&server, &["show", "../x"]), 64, "invalid name");
    check(tool(&server, &["acquire", "--ttl", "2h"]), 65, "(invalid)");
    check(tool(&server, &["acquire", "--ttl", "soon"]), 64, "500ms");
    check(tool(&server, &["generate", "-n", "0"]), 64, "10000");
    check(tool(&server, &["keepalive"]), 64, "KEYS");
    check(tool(&server, &["keepalive", "x", "--all"]), 64, "--all");
    check(tool(&server, &["pools", "--server", "ftp://localhost"]), 64, "https://HOST:PORT");
    let mut empty = tool(&server, &["pools"]);
    empty.env("KEYPEG_SERVER", "");
    check(empty, 64, "KEYPEG_SERVER");
    server.kill();
    check(tool(&server, &["pools"]), 69, "refused");
}

/// An access token comes from a file or a variable, the file first, and is never printed.
#[test]
fn a_command_sends_its_token_and_never_prints_it() {
    let tokens = Tokens::new();
    let [right, other] = ["right", "other"].map(|name| tokens.add(name, "*", &["read"], &[]));
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let dir = TempDir::new();
    let file = dir.path().join("token");
    let named = ["pools", "--token-file", file.to_str().unwrap()];
    let write_file = |text: &str, mode: u32| {
        std::fs::write(&file, text).unwrap();
        set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    };
    check(tool(&server, &["pools"]), 77, "(unauthorized)");
    for text in [right.clone(), format!("{right}\n"), format!("  {right}\r\n\n")] {
        write_file(&text, 0o600);
        let output = check(tool(&server, &named), 0, "");
        assert_eq!(utf8(&output.stderr), "", "{text:?}");
        let mut by_variable = tool(&server, &["pools"]);
        by_variable.env("KEYPEG_TOKEN_FILE", &file);
        check(by_variable, 0, "");
    }
    let mut variable = tool(&server, &["pools"]);
    variable.env("KEYPEG_TOKEN", &right);
    check(variable, 0, "");
    let mut both = tool(&server, &named);
    both.env("KEYPEG_TOKEN", "kpt_wrong");
    check(both, 0, "");
    write_file("kpt_wrong", 0o600);
    let mut both = tool(&server, &named);
    both.env("KEYPEG_TOKEN", &right);
    let output = check(both, 77, "(unauthorized)");
    assert!(!utf8(&output.stderr).contains("kpt_"), "a token is never printed");
    for (text, says) in [
        ("", "must contain one access token and nothing else"),
        (" \n", "must contain one access token and nothing else"),
        (&*format!("{right}\n{other}\n"), "visible characters"),
        (&"x".repeat(5_000), "must contain one access token and nothing else"),
    ] {
        write_file(text, 0o600);
        let output = check(tool(&server, &named), 64, says);
        assert!(!utf8(&output.stderr).contains(&right), "a token is never printed");
    }
    write_file(&right, 0o640);
    assert_eq!(utf8(&check(tool(&server, &named), 0, "").stderr), "");
    write_file(&right, 0o644);
    check(tool(&server, &named), 0, "every user of this machine can read this access token");
    std::fs::remove_file(&file).unwrap();
    check(tool(&server, &named), 66, "cannot read the access token file");
}

#[test]
fn list_prints_the_keys_of_all_pages_or_those_in_one_state() {
    let server = Server::in_memory(&[]);
    assert_eq!(json_of(&server, &["list"]), json!({ "keys": [] }));
    json_of(&server, &["generate", "-n", "2500"]);
    let grant = json_of(&server, &["acquire", "--holder", "job-7"]);
    let listed = json_of(&server, &["list"]);
    let keys = listed["keys"].as_array().unwrap();
    let ids: HashSet<_> = keys.iter().map(|key| key["id"].as_str().unwrap()).collect();
    assert_eq!((keys.len(), ids.len()), (2_500, 2_500));
    let leased = json_of(&server, &["list", "--state", "leased"])["keys"].clone();
    assert_eq!(leased.as_array().unwrap().len(), 1);
    assert_eq!(leased[0]["id"], grant["key_id"]);
    assert_eq!(leased[0].get("key"), None, "no value");
    let table = utf8(&check(tool(&server, &["list", "--state", "leased"]), 0, "").stdout);
    let (head, row) = table.trim_end().split_once('\n').unwrap();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let columns = "ID STATE LABEL LEASE.EXPIRES_AT LEASE.HOLDER RESTS_UNTIL EXPIRES_AT DRAINING \
                   REASON";
    assert_eq!(words(head), words(columns));
    assert_eq!(words(row)[..2], [grant["key_id"].as_str().unwrap(), "leased"]);
    assert_eq!(words(row)[2..6], ["-", grant["expires_at"].as_str().unwrap(), "job-7", "-"]);
    assert_eq!(words(row)[7..], ["false", "-"]);
    check(tool(&server, &["list", "--state", "blocked"]), 64, "quarantined");
    check(tool(&server, &["list", "--pool", "nope"]), 66, "(unknown_pool)");
}

#[test]
fn import_adds_one_value_per_line() {
    let server = Server::in_memory(&[]);
    let dir = TempDir::new();
    let file = dir.path().join("values");
    let file = file.to_str().unwrap();
    std::fs::write(file, "alpha\r\n\nbe ta\nγ\n").unwrap();
    let imported = json_of(&server, &["import", file, "--show-keys", "--no-keepalive"]);
    let values: Vec<_> =
        imported["keys"].as_array().unwrap().iter().map(|key| &key["key"]).collect();
    assert_eq!(values, ["alpha", "be ta", "γ"]);
    let mut command = tool(&server, &["import", "-", "--output", "json", "--show-keys"]);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all(b"delta").unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let imported: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(imported["keys"][0]["key"], "delta");
    assert_counts(&server, "default", &json!({ "total": 4 }));
}

#[test]
fn an_invalid_file_is_reported_with_its_line_and_changes_nothing() {
    let server = Server::in_memory(&[]);
    let dir = TempDir::new();
    let file = dir.path().join("values");
    let path = file.to_str().unwrap();
    check(tool(&server, &["import", path]), 66, path);
    for (text, says) in [
        (&b"one\ntwo\n\nsecret-1\nthree\nsecret-1\n"[..], "values:6: the same value as in line 4"),
        (b"one\n\xff\n", "values: line 2 is not UTF-8: save the file as UTF-8"),
        (b"\xff\xfeo\0n\0e\0", "values: the file is UTF-16: save it as UTF-8"),
        (&[&b"one\n"[..], &[b'x'; 4_097]].concat(), "values:2: the value has more than 4096 bytes"),
        (b"\n\r\n", "values contains no values"),
        (b"# accounts\nsecret-1\n", "values:1: the line begins with #: add --skip-comments"),
        (b"secret-1\nsecret-2 \n", "values:2: the value begins or ends with a blank"),
        (b"secret-1\n\x1a", "values:2: the value contains the invisible character U+001A"),
        (b"secret-1\n\0\n", "values:2: the value contains the invisible character U+0000"),
        ("secret-1\u{200b}\n".as_bytes(), "values:1: the value contains the invisible"),
        (b"secret-1\rsecret-2\r", "save the file with LF or CRLF"),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = check(tool(&server, &["import", path]), 65, says);
        assert_eq!(utf8(&output.stdout), "");
        assert!(!utf8(&output.stderr).contains("secret"), "no value is repeated");
    }
    assert_counts(&server, "default", &json!({ "total": 0 }));
}

/// A large file takes several calls, so a later call can fail after earlier ones are applied.
#[test]
fn import_reports_the_imported_lines_when_a_later_call_fails() {
    let server = Server::in_memory(&[]);
    let dir = TempDir::new();
    let file = dir.path().join("values");
    let path = file.to_str().unwrap();
    // An empty line, so that line numbers and value indices differ.
    let mut lines: Vec<_> = (0..25_000).map(|index| format!("v-{index}")).collect();
    lines.insert(5, String::new());
    std::fs::write(&file, lines.join("\n")).unwrap();
    let existing = json!({ "values": ["v-20003"] });
    server.client().send("POST /v1/pools/default/keys", &existing).is(201, &json!({}));
    let import = ["import", path, "--output", "json", "--show-keys"];
    let output = check(tool(&server, &import), 65, "values:20005: the value is in the pool");
    assert!(!utf8(&output.stderr).contains("values["), "{}", utf8(&output.stderr));
    let stderr = utf8(&output.stderr);
    assert!(stderr.contains("Lines 20002 to 25001 were not imported"), "{stderr}");
    assert!(stderr.contains("The 20000 values before line 20002 were imported."), "{stderr}");
    let imported: Value = serde_json::from_slice(&output.stdout).unwrap();
    let imported = imported["keys"].as_array().unwrap();
    assert_eq!((imported.len(), &imported[19_999]["key"]), (20_000, &json!("v-19999")));
    assert_counts(&server, "default", &json!({ "total": 20_001 }));
}

#[test]
fn exec_acquires_a_key_returns_the_exit_code_and_releases_the_key() {
    let server = Server::in_memory(&[]);
    let generated = json_of(&server, &["generate", "--show-keys"])["keys"][0].clone();
    let script = "echo $KEYPEG_KEY $KEYPEG_KEY_ID $KEYPEG_FENCING_TOKEN; exit 3";
    let output =
        check(tool(&server, &["exec", "--", "/bin/sh", "-c", script]), 3, "lasts 1m at most");
    let words = utf8(&output.stdout);
    let words: Vec<_> = words.split_whitespace().collect();
    assert_eq!(words[..2], [generated["key"].as_str().unwrap(), generated["id"].as_str().unwrap()]);
    assert!(words[2].parse::<u64>().unwrap() > 0);
    assert_counts(&server, "default", &json!({ "available": 1 }));
    check(tool(&server, &["exec", "--", "/bin/sh", "-c", "kill -9 $$"]), 128 + 9, "");
    check(tool(&server, &["exec", "--", "/no/such/program"]), 127, "/no/such/program");
    let not_executable = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    check(tool(&server, &["exec", "--", not_executable]), 126, not_executable);
    check(tool(&server, &["exec"]), 64, "CMD");
    assert_counts(&server, "default", &json!({ "available": 1 }));
}

#[test]
fn exec_renews_the_lease_and_keeps_the_key_alive() {
    // A renewal has half a lease, and a keep-alive half a second more.
    unless_late(Duration::from_millis(50), renews_and_keeps_alive);
}

fn renews_and_keeps_alive() {
    let server = Server::in_memory(&[]);
    let policy = json!({
        "lease_ttl_seconds": 1.5, "max_hold_seconds": 600, "keepalive_ttl_seconds": 2,
    });
    server.client().send("PUT /v1/pools/ci", &policy).is(201, &json!({}));
    json_of(&server, &["generate", "--pool", "ci"]);
    let started = now();
    check(
        tool(&server, &["exec", "--pool", "ci", "--", "/bin/sleep", "4"]),
        0,
        "lasts 10m at most",
    );
    assert!(started.elapsed() >= Duration::from_secs(4));
    assert_counts(&server, "ci", &json!({ "available": 1, "total": 1 }));
}

#[test]
fn exec_forwards_signals() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate"]);
    let script = "trap 'exit 7' TERM; trap 'echo again' USR1; echo ready; \
                  while :; do /bin/sleep 0.05; done";
    let mut command = tool(&server, &["exec", "--", "/bin/sh", "-c", script]);
    let mut process =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = Pid::from_child(&process);
    kill_process(pid, Signal::USR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "again");
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(7));
    assert_counts(&server, "default", &json!({ "available": 1 }));
}

/// Before the command runs, a signal ends `exec` itself, even when the server does not answer.
#[test]
fn exec_can_be_ended_while_it_waits_for_the_server() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let mut command = Command::new(binary());
    let mut process = command.args(["exec", "--server", &server, "--", "x"]).spawn().unwrap();
    let _connection = silent.accept().unwrap();
    kill_process(Pid::from_child(&process), Signal::INT).unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(128 + 2));
}

#[test]
fn exec_ends_a_command_with_its_lease_even_if_it_ignores_sigterm() {
    let server = Server::in_memory(&["--lease-ttl", "300ms"]);
    json_of(&server, &["generate"]);
    let polite = ["exec", "--", "/bin/sleep", "100"];
    check(tool(&server, &polite), 75, "the lease has ended");
    // The end is known beforehand, so the grace does not extend it beyond the lease.
    let script = "trap '' TERM; while :; do /bin/sleep 1; done";
    let stubborn = ["exec", "--wait", "--grace", "1h", "--", "/bin/sh", "-c", script];
    check(tool(&server, &stubborn), 75, "the lease has ended");
}

#[test]
fn exec_ends_a_command_whose_key_is_deleted() {
    let server = Server::in_memory(&[]);
    let policy = json!({ "keepalive_ttl_seconds": 30 });
    server.client().send("PUT /v1/pools/ci", &policy).is(201, &json!({}));
    let key = json_of(&server, &["generate", "--pool", "ci"])["keys"][0]["id"].clone();
    let delete = format!("DELETE /v1/pools/ci/keys/{}", key.as_str().unwrap());
    let command = ["exec", "--pool", "ci", "--", "/bin/sleep", "100"];
    let process = tool(&server, &command).stderr(Stdio::piped()).spawn().unwrap();
    eventually("leased", || {
        let leased = server.client().ask("GET /v1/pools/ci").json()["leased"] == 1;
        leased.then_some(())
    });
    server.client().ask(&delete).is(204, &Value::Null);
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", utf8(&output.stderr));
}

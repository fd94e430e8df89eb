//! `keypeg events`: each event is one line, a stream that is cut goes on, and a gap is named.

use super::tool::{check, json_of, tool, utf8};
use crate::support::proxy::{Fault, Proxy};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, eventually};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Stdio};

/// A command that prints events.
struct Following {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Following {
    fn start(server: &str, args: &[&str]) -> Self {
        let mut command = std::process::Command::new(crate::support::binary());
        command.arg("events").args(args).env_clear().env("KEYPEG_SERVER", server);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    fn next(&mut self) -> String {
        self.lines.next().expect("a further line").unwrap()
    }

    fn event(&mut self) -> Value {
        serde_json::from_str(&self.next()).unwrap()
    }

    /// Waits for the end; returns the exit code and stderr.
    fn end(self) -> (Option<i32>, String) {
        let output = self.process.wait_with_output().unwrap();
        (output.status.code(), utf8(&output.stderr))
    }
}

#[test]
fn each_event_is_one_line_until_the_limit_or_the_end_of_the_pool() {
    let server = Server::in_memory(&[]);
    let url = format!("http://{}", server.addr());
    json_of(&server, &["pool", "create", "ci"]);
    let mut table = Following::start(&url, &["-p", "ci", "--limit", "3"]);
    assert!(table.next().contains("resync       events before this line may be missing"));
    let mut all = Following::start(&url, &["-p", "ci", "-o", "json", "--follow"]);
    assert_eq!(all.event()["event"], "resync");
    json_of(&server, &["generate", "-p", "ci"]);
    let grant = json_of(&server, &["acquire", "-p", "ci", "--holder", "job 7"]);
    let key = grant["key_id"].as_str().unwrap();
    assert!(table.next().contains("  generated    count=1"));
    let granted = table.next();
    assert!(granted.contains(&format!("  granted      {key}  ")), "{granted}");
    assert!(granted.contains("holder=job 7"), "{granted}");
    assert_eq!(table.end(), (Some(0), String::new()));
    assert_eq!(all.event()["event"], "generated");
    let granted = all.event();
    assert_eq!((&granted["event"], &granted["holder"]), (&json!("granted"), &json!("job 7")));
    assert!(granted["event_id"].is_string(), "{granted}");
    check(tool(&server, &["pool", "delete", "ci", "--yes"]), 0, "");
    // The deletion of the pool is the last event, also with --follow.
    assert_eq!(all.event()["event"], "dropped");
    assert_eq!(all.end(), (Some(0), String::new()));
}

#[test]
fn a_stream_that_is_cut_goes_on_after_the_last_event() {
    let server = Server::in_memory(&[]);
    let proxy = Proxy::to(server.addr());
    // The server keeps the events of a pool while a client follows it.
    let mut other = Following::start(&format!("http://{}", server.addr()), &["--limit", "3"]);
    assert!(other.next().contains("resync"));
    let mut follow = Following::start(&proxy.url(), &["--follow", "-o", "json", "--limit", "3"]);
    assert_eq!(follow.event()["event"], "resync");
    json_of(&server, &["generate"]);
    let generated = follow.event();
    assert_eq!(generated["event"], "generated");
    // The next two connections fail too.
    proxy.fail("/events", Fault::Cut, 2);
    proxy.cut_all();
    json_of(&server, &["acquire"]);
    assert_eq!(follow.event()["event"], "granted", "no event is lost, and none comes twice");
    let (code, stderr) = follow.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(stderr.matches("connecting again").count(), 1, "{stderr}");
}

#[test]
fn after_a_restart_a_resync_names_the_gap() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let proxy = Proxy::to(server.addr());
    let mut plain = Following::start(&proxy.url(), &[]);
    let mut follow = Following::start(&proxy.url(), &["--follow", "--limit", "2"]);
    let first = follow.next();
    assert!(first.contains("available=0"), "{first}");
    assert!(plain.next().contains("resync"));
    proxy.remove_server();
    server.terminate();
    let (code, stderr) = plain.end();
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("--follow connects again") || stderr.contains("cannot be reached"));
    let server = Server::on(&dir, &[]);
    json_of(&server, &["generate"]);
    proxy.replace_server(server.addr());
    let second = follow.next();
    assert!(
        second.contains("events before this line may be missing; the counts are now"),
        "{second}"
    );
    assert!(second.contains("available=1"), "{second}");
    assert_eq!(follow.end().0, Some(0));
}

#[test]
fn what_another_connection_cannot_change_ends_the_command() {
    let server = Server::in_memory(&[]);
    let unknown = ["events", "--follow", "--pool", "nope"];
    check(tool(&server, &unknown), 66, "(unknown_pool)");
    check(tool(&server, &["events", "--limit", "0"]), 64, "--limit");
    // The reader has what it wanted.
    let mut process = tool(&server, &["events", "--follow"]);
    let mut process = process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("resync"), "{line}");
    json_of(&server, &["generate"]);
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), utf8(&output.stderr)), (Some(0), String::new()));
}

/// A stream of a revoked token once ended with the advice to connect again, which the server refuses.
#[test]
fn the_end_of_a_stream_names_a_token_that_was_revoked() {
    let tokens = Tokens::new();
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let revoked = tokens.add("revoked", "*", &["read"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let url = format!("http://{}", server.addr());
    std::fs::write(tokens.path().with_file_name("token"), revoked.as_bytes()).unwrap();
    let file = tokens.path().with_file_name("token");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let mut events = Following::start(&url, &["--token-file", file.to_str().unwrap()]);
    assert!(events.next().contains("resync"));
    tokens.revoke("revoked");
    eventually("revoked", || {
        (server.client().with(&revoked, "GET /version").status == 401).then_some(())
    });
    server.client().with(&admin, "POST /v1/pools/default/keys").is(201, &json!({}));
    let (code, said) = events.end();
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("token") && !said.contains("--follow"), "{said}");
}

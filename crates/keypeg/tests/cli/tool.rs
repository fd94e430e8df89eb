//! Commands of the client as a shell runs them, for the tests of this folder.

use crate::support::{Server, binary};
use serde_json::Value;
use std::process::{Command, Output};

pub(super) fn tool(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_clear().env("KEYPEG_SERVER", format!("http://{}", server.addr()));
    command
}

pub(super) fn utf8(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

/// Runs the command to its end; asserts its exit code and a part of its stderr.
#[track_caller]
pub(super) fn check(mut command: Command, exit: i32, says: &str) -> Output {
    let output = command.output().unwrap();
    let stderr = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{command:?}: {stderr}");
    assert!(stderr.contains(says), "{command:?}: {stderr}");
    output
}

#[track_caller]
pub(super) fn json_of(server: &Server, args: &[&str]) -> Value {
    let output = check(tool(server, &[args, &["--output", "json"]].concat()), 0, "");
    assert_eq!(utf8(&output.stderr), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

pub(super) fn assert_counts(server: &Server, pool: &str, expected: &Value) {
    server.client().ask(&format!("GET /v1/pools/{pool}")).is(200, expected);
}

//! `keypeg health`: exit 0 if the server accepts requests, and 1 for every other state of a server.

use super::tool::{check, tool, utf8};
use crate::support::{Server, binary};
use std::net::TcpListener;
use std::process::Command;

#[test]
fn a_server_that_accepts_requests_is_healthy() {
    let server = Server::in_memory(&[]);
    let output = check(tool(&server, &["health"]), 0, "");
    assert_eq!((utf8(&output.stdout), utf8(&output.stderr)), (String::new(), String::new()));
}

#[test]
fn a_server_with_tokens_needs_none_for_a_health_check() {
    let tokens = crate::support::tokens::Tokens::new();
    tokens.add("all", "*", &["admin"], &[]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    check(tool(&server, &["health"]), 0, "");
}

#[test]
fn a_server_that_cannot_be_reached_or_does_not_answer_is_unhealthy() {
    let health = |url: &str, more: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["health", "--server", url]).args(more).env_clear();
        command
    };
    // Connections to it wait in the backlog.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    check(health(&url, &["--timeout", "200ms"]), 1, "no answer from http://127.0.0.1:");
    drop(silent);
    check(health(&url, &[]), 1, "start it with \"keypeg serve\"");
    // What supervisors take for a broken check rather than for a broken server.
    check(health("nonsense://", &[]), 64, "");
    check(health(&url, &["--timeout", "0s"]), 64, "500ms");
}

#[test]
fn a_server_behind_a_path_that_is_not_a_keypeg_is_unhealthy() {
    let server = Server::in_memory(&[]);
    let mut command = tool(&server, &["health"]);
    command.env("KEYPEG_SERVER", format!("http://{}/nope", server.addr()));
    check(command, 1, "");
}

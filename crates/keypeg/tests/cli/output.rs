//! What happens to results that cannot be written, and how tables show texts.
//!
//! A grant whose output failed was lost until its lease expired, an import did not say what it had
//! imported, and a listing into `head` failed.

use super::tool::{assert_counts, check, json_of, tool, utf8};
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary};
use serde_json::json;
use std::io::Read;
use std::process::{Command, Stdio};

/// Runs the command by a shell that redirects its stdout.
fn redirected(server: &Server, args: &[&str], redirection: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    let script = format!("exec \"$@\" {redirection}");
    shell.args(["-c", &script, "sh"]).arg(binary()).args(args).env_clear();
    shell.env("KEYPEG_SERVER", format!("http://{}", server.addr()));
    shell
}

#[test]
fn a_key_that_cannot_be_printed_is_released() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate"]);
    for output in ["table", "json"] {
        let acquire = ["acquire", "--output", output];
        let says = "the key was released";
        check(redirected(&server, &acquire, ">/dev/full"), 74, says);
        assert_counts(&server, "default", &json!({ "leased": 0 }));
        check(redirected(&server, &acquire, ">&-"), 74, "stdout is closed");
        assert_counts(&server, "default", &json!({ "leased": 0 }));
    }
    // A redirection on purpose is not an error.
    check(redirected(&server, &["acquire"], ">/dev/null"), 0, "");
    assert_counts(&server, "default", &json!({ "leased": 1 }));
}

/// Programs that start others without their streams open `/dev/null` once, for reading and writing,
/// and give it to all three. The command took that for a closed stdout.
#[test]
fn null_devices_in_place_of_all_streams_are_not_a_closed_stdout() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate", "-n", "3"]);
    let dir = TempDir::new();
    let file = dir.path().join("tokens");
    let shared = ["0<>/dev/null 1>&0 2>&0", "0<>/dev/null 1>&0", "1<>/dev/null 2>&1"];
    for (name, streams) in ["a", "b", "c"].into_iter().zip(shared) {
        let file = file.to_str().unwrap();
        let new =
            ["token", "new", "--name", name, "--pool", "*", "--scope", "read", "--tokens", file];
        for args in [&["acquire"][..], &["generate", "--show-keys"], &new, &["list"], &["pools"]] {
            // The message of a failure may be lost with the streams.
            check(redirected(&server, args, streams), 0, "");
        }
    }
    assert_counts(&server, "default", &json!({ "leased": 3 }));
    // What the standard library opens for a closed stdout differs from a null device on stdin.
    for closed in [">&-", "0<>/dev/null >&-"] {
        check(redirected(&server, &["acquire"], closed), 74, "stdout is closed");
        assert_counts(&server, "default", &json!({ "leased": 3 }));
    }
}

#[test]
fn an_import_or_a_generate_whose_output_fails_says_what_it_did() {
    let server = Server::in_memory(&[]);
    let dir = TempDir::new();
    let file = dir.path().join("values");
    let lines: Vec<_> = (0..25_000).map(|n| format!("v-{n}\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    let import = ["import", file.to_str().unwrap(), "--output", "json"];
    let says = "was imported completely, 25000 keys, but the output is not complete";
    check(redirected(&server, &import, ">/dev/full"), 74, says);
    assert_counts(&server, "default", &json!({ "total": 25_000 }));
    check(redirected(&server, &["generate", "-n", "3"], ">/dev/full"), 74, "3 keys generated, but");
    assert_counts(&server, "default", &json!({ "total": 25_003 }));
    for change in [&["generate", "--show-keys"][..], &["import", "x", "--show-keys"]] {
        check(redirected(&server, change, ">&-"), 74, "nothing was changed");
    }
    assert_counts(&server, "default", &json!({ "total": 25_003 }));
}

#[test]
fn a_reader_that_ends_early_is_not_an_error() {
    let server = Server::in_memory(&[]);
    json_of(&server, &["generate", "-n", "5000"]);
    for args in [&["list"][..], &["list", "--output", "json"], &["pools"], &["show"]] {
        let mut command = tool(&server, args);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The reader is gone before the command writes, or while it does.
        drop(process.stdout.take());
        let mut stderr = String::new();
        process.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((process.wait().unwrap().code(), &*stderr), (Some(0), ""), "{args:?}");
    }
}

/// The token is printed once: an entry whose token was not printed would be of no use.
#[test]
fn a_token_that_cannot_be_printed_is_not_added() {
    let (server, tokens, dir) = (Server::in_memory(&[]), Tokens::new(), TempDir::new());
    tokens.add("a", "*", &["read"], &[]);
    let before = std::fs::read_to_string(tokens.path()).unwrap();
    let new = dir.path().join("new");
    let args = ["token", "new", "--name", "b", "--pool", "*", "--scope", "read", "--tokens"];
    for redirection in [">/dev/full", ">&-"] {
        for file in [&tokens.path(), &new] {
            let args = [&args[..], &[file.to_str().unwrap()]].concat();
            check(redirected(&server, &args, redirection), 74, "the token was not added");
        }
        assert_eq!(std::fs::read_to_string(tokens.path()).unwrap(), before);
        assert!(!new.exists());
    }
}

#[test]
fn a_table_shows_characters_that_it_cannot_print_and_says_so() {
    let server = Server::in_memory(&[]);
    let value = "a\tb\nc\u{1b}[2J\u{200b} ";
    let client = &mut server.client();
    client.send("POST /v1/pools/default/keys", &json!({ "values": [value] })).is(201, &json!({}));
    let says = "--output json prints each text as it is";
    let table = utf8(&check(tool(&server, &["acquire"]), 0, says).stdout);
    assert!(table.contains(r"a\tb\nc\u{1b}[2J\u{200b}\u{20}"), "{table}");
    client
        .send("POST /v1/pools/default/keys", &json!({ "values": ["plain \\n"] }))
        .is(201, &json!({}));
    let table = check(tool(&server, &["acquire"]), 0, "");
    assert!(utf8(&table.stdout).contains("plain \\n"), "{}", utf8(&table.stdout));
    assert_eq!(utf8(&table.stderr), "");
}

//! `keypeg token list` and `token revoke`: what an operator sees of a token file, and that a revoked
//! token is refused by a running server.

use crate::support::tokens::Tokens;
use crate::support::{Server, binary, eventually};
use serde_json::{Value, json};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

fn token(args: &[&str], tokens: &Tokens) -> Output {
    let mut command = Command::new(binary());
    command.arg("token").args(args).env_clear().env("KEYPEG_TOKENS", tokens.path());
    command.output().unwrap()
}

#[track_caller]
fn refused(output: &Output, exit: i32, says: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{stderr}");
    assert!(stderr.contains(says), "{says}: {stderr}");
}

#[test]
fn a_list_has_the_rights_of_each_token_and_no_hash() {
    let tokens = Tokens::new();
    tokens.add("ci", "ci-*", &["lend", "read"], &["--max-leases", "5"]);
    tokens.add("old", "*", &["admin"], &["--expires-at", "2020-01-01"]);
    tokens.add("proxy", "api", &["verify"], &["--certificate", "proxy.example"]);
    let output = token(&["list", "--output", "json"], &tokens);
    refused(&output, 0, "");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |name: &str, state: &str, pools: &str, scopes: &str| {
        json!({
            "name": name, "state": state, "pools": pools, "scopes": scopes, "expires_at": null,
            "requests_per_second": null, "max_leases": null, "tokens": 1, "certificates": null,
        })
    };
    let mut rows = [
        row("ci", "valid", "ci-*", "lend, read"),
        row("old", "expired", "*", "admin"),
        row("proxy", "valid", "api", "verify"),
    ];
    rows[0]["max_leases"] = json!(5);
    rows[1]["expires_at"] = json!("2020-01-01T00:00:00.000Z");
    (rows[2]["tokens"], rows[2]["certificates"]) = (json!(0), json!("proxy.example"));
    assert_eq!(listed, json!({ "tokens": rows }));
    let names = token(&["list", "--field", "name"], &tokens);
    assert_eq!(String::from_utf8_lossy(&names.stdout), "ci\nold\nproxy\n");
}

#[test]
fn a_revoked_token_is_refused_by_a_running_server_and_the_others_stay() {
    let tokens = Tokens::new();
    let [lost, kept] = ["lost", "kept"].map(|name| tokens.add(name, "*", &["read"], &[]));
    let commented = format!("# The tokens of the team.\n{}", tokens.text());
    tokens.replace(&commented);
    std::fs::set_permissions(tokens.path(), PermissionsExt::from_mode(0o640)).unwrap();
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let status = |token: &str| server.client().with(token, "GET /v1/pools").status;
    assert_eq!((status(&lost), status(&kept)), (200, 200));
    refused(&token(&["revoke", "lost"], &tokens), 0, "revoked \"lost\"");
    eventually("the server has read the file", || (status(&lost) == 401).then_some(()));
    assert_eq!(status(&kept), 200);
    let mode = std::fs::metadata(tokens.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "the mode of the file stays");
    assert!(tokens.text().starts_with("# The tokens of the team.\n"), "{}", tokens.text());
    assert!(!tokens.text().contains("lost"));
    // A new one can be added at once.
    let again = tokens.add("lost", "*", &["read"], &[]);
    eventually("the server has read the file", || (status(&again) == 200).then_some(()));
}

#[test]
fn a_token_with_a_relative_end_is_accepted_until_then() {
    let tokens = Tokens::new();
    let day = |days: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        time.to_string()
    };
    let before = day(30);
    let valid = tokens.add("valid", "*", &["read"], &["--expires-at", "30d"]);
    let after = day(30);
    // Its end has passed when its command has ended, or soon after that.
    let short = tokens.add("short", "*", &["read"], &["--expires-at", "1ms"]);
    let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
    let status = |token: &str| server.client().with(token, "GET /v1/pools").status;
    assert_eq!(status(&valid), 200);
    eventually("the end of the short one", || (status(&short) == 401).then_some(()));
    let listed = token(&["list", "--output", "json"], &tokens);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let row = |name: &str| {
        let rows = listed["tokens"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap()
    };
    assert_eq!(
        (&row("valid")["state"], &row("short")["state"]),
        (&json!("valid"), &json!("expired"))
    );
    let end = row("valid")["expires_at"].as_str().unwrap();
    assert!(before[..19] <= end[..19] && end[..19] <= after[..19], "{before} {end} {after}");
}

/// Without any entry a file is invalid, and a server goes on with the tokens that it had: the last
/// token would stay valid although its entry is gone.
#[test]
fn a_mistake_revokes_nothing_and_names_the_next_step() {
    let tokens = Tokens::new();
    refused(&token(&["revoke", "a"], &tokens), 66, "check --tokens");
    refused(&token(&["list"], &tokens), 66, "\"keypeg token new\"");
    tokens.add("a", "*", &["read"], &[]);
    let before = tokens.text();
    refused(&token(&["revoke", "a"], &tokens), 78, "add another token first, or stop the server");
    tokens.add("b", "*", &["read"], &[]);
    let both = tokens.text();
    assert!(both.starts_with(&before));
    refused(&token(&["revoke", "c"], &tokens), 66, "it has a, b");
    let link = Tokens::new();
    symlink(tokens.path(), link.path()).unwrap();
    refused(&token(&["revoke", "a"], &link), 73, "name the file itself");
    let new = ["new", "--name", "c", "--pool", "*", "--scope", "read", "--tokens"];
    let link_path = link.path();
    let on_link = [&new[..], &[link_path.to_str().unwrap()]].concat();
    refused(&token(&on_link, &link), 73, "name the file itself");
    tokens.replace(&format!("{both}\nname = 7\n"));
    refused(&token(&["revoke", "a"], &tokens), 78, "name");
    tokens.replace(&both);
    std::fs::set_permissions(tokens.path(), PermissionsExt::from_mode(0o666)).unwrap();
    refused(&token(&["list"], &tokens), 78, "write");
    assert_eq!(tokens.text(), both);
}

/// Two commands at the same time must not lose an entry: one appends to the file, one replaces it.
#[test]
fn tokens_that_are_added_while_others_are_revoked_stay() {
    let tokens = Tokens::new();
    tokens.add("first", "*", &["read"], &[]);
    for round in 0..4 {
        let old = format!("old-{round}");
        tokens.add(&old, "*", &["read"], &[]);
        std::thread::scope(|scope| {
            scope.spawn(|| refused(&token(&["revoke", &old], &tokens), 0, "revoked"));
            scope.spawn(|| tokens.add(&format!("new-{round}"), "*", &["read"], &[]));
        });
    }
    let names = token(&["list", "--field", "name"], &tokens);
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    assert_eq!(names, "first\nnew-0\nnew-1\nnew-2\nnew-3\n");
}

/// A full disk once left half an entry in the file. From then on no command could revoke a token.
/// The limit of a file's size is a full disk here.
#[test]
fn a_token_that_the_disk_has_no_space_for_leaves_the_file_as_it_was() {
    let tokens = Tokens::new();
    tokens.add("leaked", "*", &["read"], &[]);
    tokens.add("kept", "*", &["read"], &[]);
    let padded = format!("#{}\n{}", "x".repeat(4_050 - tokens.text().len()), tokens.text());
    tokens.replace(&padded);
    let limited = |blocks: u32, file: &Path| {
        let script = format!("ulimit -f {blocks} && exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(binary()).env_clear();
        command.args(["token", "new", "--name", "new", "--pool", "*", "--scope", "read"]);
        command.arg("--tokens").arg(file).output().unwrap()
    };
    // In blocks of 512 bytes: the entry begins below the limit and ends beyond it.
    let output = limited(8, &tokens.path());
    refused(&output, 73, "File too large (os error 27); nothing was changed: free space there");
    assert!(output.stdout.is_empty(), "no token: {output:?}");
    assert_eq!(tokens.text(), padded);
    refused(&token(&["revoke", "leaked"], &tokens), 0, "revoked \"leaked\"");
    let new = tokens.path().with_file_name("new.toml");
    refused(&limited(0, &new), 73, "nothing was changed");
    assert!(!new.exists(), "an empty file would be an invalid token file");
}

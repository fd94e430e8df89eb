//! Token files: which permissions the server accepts, and where `keypeg token new` writes one.

use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary, eventually, exit_of, exit_within, keypeg, skipped};
use rustix::process::{Signal, getuid, kill_process};
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

fn chmod(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn refused(path: &Path, exit: i32, says: &str) {
    let mut command = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0", "--tokens"]);
    let (code, _, said) = exit_within(command.arg(path));
    assert_eq!(code, Some(exit), "{said}");
    assert!(said.contains(says), "{said}");
}

/// A user who can write the file, or replace it, has every permission.
#[test]
fn a_file_that_others_can_write_is_refused() {
    let tokens = Tokens::new();
    tokens.add("ci", "*", &["read"], &[]);
    let (path, dir) = (tokens.path(), TempDir::new());
    for mode in [0o620, 0o602, 0o666] {
        chmod(&path, mode);
        refused(&path, 78, "other users can write this file: run chmod 0600");
    }
    chmod(&path, 0o600);
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    for directory in [path.parent().unwrap(), dir.path()] {
        chmod(directory, 0o777);
        refused(&link, 78, "other users can replace this file");
        // Sticky, like /tmp: no user can replace another's file.
        chmod(directory, 0o1777);
    }
    drop(Server::in_memory(&["--tokens", link.to_str().unwrap()]));
    refused(dir.path(), 78, "not a regular file");
    refused(&dir.path().join("none"), 66, "none");
}

/// The directory between belonged to the operator, but every user could rename it, and put a
/// directory with an own token file in its place.
#[test]
fn every_directory_above_the_file_is_checked() {
    let (tokens, outer) = (Tokens::new(), TempDir::new());
    tokens.add("ci", "*", &["read"], &[]);
    let between = outer.path().join("between");
    let inner = between.join("inner");
    std::fs::create_dir_all(&inner).unwrap();
    let path = inner.join("tokens.toml");
    std::fs::copy(tokens.path(), &path).unwrap();
    chmod(&path, 0o600);
    for directory in [outer.path(), &between] {
        chmod(directory, 0o777);
        refused(&path, 78, "other users can replace this file, since they can write to");
        chmod(directory, 0o1777);
        drop(Server::in_memory(&["--tokens", path.to_str().unwrap()]));
        chmod(directory, 0o755);
    }
    if !getuid().is_root() {
        skipped("every_directory_above_the_file_is_checked", "needs to be root");
        return;
    }
    for (owned, says) in [
        (outer.path(), "belongs to the user 65534: remove it, or run chown -h 0 on it"),
        (&*between, "belongs to the user 65534: run keypeg as that user, run chown 0"),
        (&*path, "it belongs to the user 65534, who can change it: run chown 0 on it"),
    ] {
        chown(owned, Some(65_534), None).unwrap();
        refused(&path, 78, says);
        chown(owned, Some(0), None).unwrap();
    }
    // In a sticky directory, the owner of an entry can replace it.
    chmod(outer.path(), 0o1777);
    chown(&between, Some(65_534), None).unwrap();
    refused(&path, 78, "between belongs to the user 65534");
}

/// A file that another user may write is as good as one that user has written.
#[test]
fn the_configuration_is_checked_as_the_token_file_is() {
    let outer = TempDir::new();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let config = inner.join("keypeg.toml");
    std::fs::write(&config, "ephemeral = true\n").unwrap();
    let in_config = ["--config", config.to_str().unwrap()];
    let ends = |args: &[&str], says: &str| {
        let (code, _, said) = exit_within(keypeg(args).args(["--listen", "127.0.0.1:0"]));
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(says), "{said}");
    };
    drop(Server::given(&in_config, &[]));
    chmod(outer.path(), 0o777);
    ends(&in_config, "other users can replace this file");
    chmod(outer.path(), 0o755);
    chmod(&config, 0o666);
    ends(&in_config, "other users can write this file: run chmod 0600 on it; check --config");
    drop(Server::given(&["--config", "/dev/null", "--ephemeral"], &[]));
    // An audit log in a shared volume is better than none.
    chmod(outer.path(), 0o777);
    let (audit, log) = (inner.join("audit"), outer.path().join("log"));
    // Ended in order, so that its log is complete.
    Server::logged(keypeg(&["--ephemeral", "--audit"]).arg(&audit), &log).terminate();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("WARN") && said.contains("other users can replace this file"), "{said}");
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::*;

    #[test]
    fn the_data_directory_is_checked_as_the_token_file_is() {
        let outer = TempDir::new();
        let data = outer.path().join("inner/data");
        std::fs::create_dir(outer.path().join("inner")).unwrap();
        drop(Server::given(&["--data", data.to_str().unwrap()], &[]));
        chmod(outer.path(), 0o777);
        let mut serve = keypeg(&["--listen", "127.0.0.1:0", "--data"]);
        let (code, _, said) = exit_within(serve.arg(&data));
        assert_eq!(code, Some(78), "{said}");
        let says = "other users can replace this directory, since they can write to";
        assert!(said.contains(says), "{said}");
    }
}

/// `printf %s "$TOKEN" | sha256sum` with a variable that is not set: `Authorization: Bearer` and
/// nothing more was a valid token.
#[test]
fn the_hash_of_no_token_is_refused() {
    let tokens = Tokens::new();
    tokens.add("ci", "*", &["read"], &[]);
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let line = |line: &str| {
        if line.starts_with("sha256") {
            format!("sha256 = \"{empty}\"\n")
        } else {
            format!("{line}\n")
        }
    };
    tokens.replace(&tokens.text().lines().map(line).collect::<String>());
    chmod(&tokens.path(), 0o600);
    refused(&tokens.path(), 78, "its sha256 is the hash of an empty text");
}

/// A file that the command refuses to keep is not left behind either.
#[test]
fn a_file_is_not_created_where_others_could_replace_it() {
    let dir = TempDir::new();
    chmod(dir.path(), 0o777);
    let path = dir.path().join("tokens.toml");
    let args = ["token", "new", "--name", "ci", "--pool", "*", "--scope", "read", "--tokens"];
    let (code, said) = exit_of(Command::new(binary()).args(args).arg(&path).env_clear());
    assert_eq!(code, 78, "{said}");
    assert!(said.contains("other users can replace this file") && !path.exists(), "{said}");
    // A file that existed before stays.
    std::fs::write(&path, "").unwrap();
    let (code, _) = exit_of(Command::new(binary()).args(args).arg(&path).env_clear());
    assert!(code == 78 && path.exists());
}

/// A running server keeps the tokens it has, and logs a warning.
#[test]
fn a_reload_of_a_file_that_others_can_write_changes_nothing() {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let before = tokens.add("before", "*", &["read", "metrics"], &[]);
    let log = dir.path().join("log");
    let server = Server::logged(keypeg(&["--ephemeral"]).args(tokens.args()), &log);
    let said = || std::fs::read_to_string(&log).unwrap();
    chmod(&tokens.path(), 0o620);
    let after = tokens.add_unchecked("after", &["admin"]);
    kill_process(server.pid(), Signal::HUP).unwrap();
    eventually("a warning", || said().contains("other users can write this file").then_some(()));
    assert_eq!(server.client().with(&after, "GET /v1/pools").status, 401);
    assert_eq!(server.client().with(&before, "GET /v1/pools").status, 200);
    let metrics = server.client().with(&before, "GET /metrics").body;
    assert!(metrics.contains("\nkeypeg_tokens_broken 1\n"), "{metrics}");
    chmod(&tokens.path(), 0o600);
    eventually("the new token is valid", || {
        (server.client().with(&after, "GET /v1/pools").status == 200).then_some(())
    });
}

/// A reader of the file learns names and hashes but no token: the server logs a warning once, and
/// serves.
#[test]
fn a_file_that_all_users_can_read_is_logged_once() {
    let (tokens, dir) = (Tokens::new(), TempDir::new());
    let token = tokens.add("ci", "*", &["read"], &[]);
    let log = dir.path().join("log");
    chmod(&tokens.path(), 0o640);
    let server = Server::logged(keypeg(&["--ephemeral"]).args(tokens.args()), &log);
    let warnings = || {
        let said = std::fs::read_to_string(&log).unwrap();
        said.matches("every user of this machine can read the names").count()
    };
    let reload = || {
        let reloads =
            || std::fs::read_to_string(&log).unwrap().matches("reloaded the access tokens").count();
        let before = reloads();
        kill_process(server.pid(), Signal::HUP).unwrap();
        eventually("a reload", || (reloads() > before).then_some(()));
    };
    reload();
    assert_eq!(warnings(), 0, "group access is allowed");
    chmod(&tokens.path(), 0o644);
    reload();
    assert_eq!(warnings(), 1);
    reload();
    assert_eq!(warnings(), 1, "once");
    assert_eq!(server.client().with(&token, "GET /v1/pools").status, 200);
}

/// The messages of the library that reads TOML reached the operator: "invalid type: map, expected a
/// string" for a timestamp without quotes.
#[test]
fn mistakes_in_a_token_file_are_reported_in_plain_words() {
    let tokens = Tokens::new();
    tokens.add("ci", "*", &["read"], &[]);
    let (path, valid) = (tokens.path(), std::fs::read_to_string(tokens.path()).unwrap());
    let last = |line: &str| format!("{}\n{line}\n", valid.trim_end());
    for (text, says) in [
        (last("expires_at = 2027-01-01T00:00:00"), "has no time zone: add Z for UTC"),
        (last("expires_at = 30"), "expires_at: must be a timestamp"),
        (last("expire_at = 1"), "unknown field `expire_at`: write `expires_at` if you mean that"),
        (last("max_leases = \"5\""), "max_leases: must be a whole number above 0, without quotes"),
        (valid.replace("[[token]]", "[[tokens]]"), "line 1: unknown field `tokens`"),
        (valid.replace("[[token]]", ""), "is not in an entry: write [[token]] above it"),
        (valid.replace("\"*\"", "*"), "is not valid TOML"),
        (valid.replace("[\"*\"]", "7"), "pools: must be a list of names in quotes"),
    ] {
        std::fs::write(&path, &text).unwrap();
        chmod(&path, 0o600);
        refused(&path, 78, says);
    }
    for text in [
        format!("\u{feff}{valid}"),
        valid.replace('\n', "\r\n"),
        valid.replace("[\"*\"]", "\"*\"").replace("[\"read\"]", "\"read\""),
        last("expires_at = 2999-01-01T00:00:00Z"),
        last("expires_at = 2999-01-01"),
    ] {
        std::fs::write(&path, &text).unwrap();
        drop(Server::in_memory(&["--tokens", path.to_str().unwrap()]));
    }
    let utf16: Vec<u8> = valid.encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&path, utf16).unwrap();
    refused(&path, 78, "the file is UTF-16: save it as UTF-8");
}

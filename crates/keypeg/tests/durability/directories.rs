//! Directories and files as the system's permissions see them: what Keypeg did not create keeps its
//! mode, what it creates is for its owner alone, and a check changes nothing.
//!
//! The server set the mode of every data directory to 0700, `check` did so too, and both failed on
//! a volume whose root belongs to another user.

use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary, exit_within, keypeg, keypeg_under, skipped};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A user and a group without permissions.
const OTHER_USER: u32 = 65_534;

fn chmod(path: &Path, mode: u32) {
    set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

/// Returns mode, modification and change times of the directory and its files.
fn state(dir: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, i64, i64)> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let state = |path: PathBuf| {
        let found = std::fs::metadata(&path).unwrap();
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        (path, (found.mode(), times.0, times.1, times.2, times.3))
    };
    entries.chain([dir.to_owned()]).map(state).collect()
}

fn check(data: &Path) -> Command {
    let mut command = Command::new(binary());
    command.arg("check").arg("--data").arg(data).env_clear();
    command
}

/// Whether this test can run commands as another user; says so if it cannot.
fn can_change_user(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skipped(test, "needs root, to run commands as another user");
    }
    is_root
}

#[track_caller]
fn ends(command: &mut Command, exit: i32, says: &str) {
    let (code, _, said) = exit_within(command);
    assert_eq!(code, Some(exit), "{said}");
    assert!(said.contains(says), "{said}");
}

fn stop(mut server: Server) {
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn an_existing_directory_keeps_its_mode_and_a_new_one_is_private() {
    for set in [0o755, 0o750, 0o770, 0o1777, 0o2700] {
        let dir = TempDir::new();
        let (data, log) = (dir.path().join("data"), dir.path().join("log"));
        std::fs::create_dir(&data).unwrap();
        chmod(&data, set);
        for _ in 0..2 {
            stop(Server::logged(keypeg(&["--data"]).arg(&data), &log));
            ends(&mut check(&data), 0, "");
            assert_eq!(mode(&data), set, "{set:o}");
        }
        let said = std::fs::read_to_string(&log).unwrap();
        let warning = match set {
            0o770 => Some("run chmod g-w"),
            0o1777 => Some("use a directory below it as --data"),
            _ => None,
        };
        assert_eq!(said.contains("WARN"), warning.is_some(), "{set:o}: {said}");
        assert!(said.contains(warning.unwrap_or_default()), "{set:o}: {said}");
    }
}

#[test]
fn a_directory_in_which_others_can_replace_the_files_is_refused() {
    let dir = TempDir::new();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut serve = keypeg(&["--listen", "127.0.0.1:0", "--data"]);
    serve.arg(&data);
    for set in [0o777, 0o707, 0o2777] {
        chmod(&data, set);
        ends(&mut serve, 78, "run chmod 0700");
        assert_eq!((mode(&data), std::fs::read_dir(&data).unwrap().count()), (set, 0));
    }
}

/// A user who can create files in the directory could have written it before the first start.
#[test]
fn a_file_of_another_user_in_a_shared_directory_is_refused() {
    if !can_change_user("a_file_of_another_user_in_a_shared_directory_is_refused") {
        return;
    }
    let dir = TempDir::new();
    stop(Server::on(&dir, &[]));
    let data = dir.path().join("data");
    chmod(&data, 0o1777);
    chown(data.join("meta"), Some(OTHER_USER), None).unwrap();
    let mut serve = keypeg(&["--listen", "127.0.0.1:0", "--data"]);
    ends(serve.arg(&data), 78, "belongs to the user 65534");
}

#[test]
fn a_file_that_others_can_read_is_reported() {
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    stop(Server::on(&dir, &[]));
    chmod(&data.join("keyset"), 0o644);
    let said = || {
        stop(Server::logged(keypeg(&["--data"]).arg(&data), &log));
        std::fs::read_to_string(&log).unwrap()
    };
    assert!(!said().contains("WARN"), "no other user can enter the directory");
    chmod(&data, 0o755);
    assert!(said().contains("keyset (mode 0644)"), "{}", said());
    assert_eq!(mode(&data.join("keyset")), 0o644);
}

/// With a umask of 0777 every file would have no permissions at all, with 0 all of them.
#[test]
fn created_files_are_for_their_owner_alone_whatever_the_umask() {
    for umask in ["0777", "0"] {
        let dir = TempDir::new();
        let path = |name: &str| dir.path().join(name);
        let script = format!("umask {umask}; exec \"$@\"");
        let words = ["/bin/sh", "-c", &script, "sh"];
        let mut token = Command::new(words[0]);
        let new = ["token", "new", "--name", "a", "--pool", "*", "--scope", "admin", "--tokens"];
        token.args(&words[1..]).arg(binary()).args(new).arg(path("tokens"));
        ends(&mut token, 0, "");
        let mut serve = keypeg_under(&words, &[]);
        serve.arg("--data").arg(path("data")).arg("--audit").arg(path("audit"));
        stop(Server::logged(serve.arg("--tokens").arg(path("tokens")), &path("log")));
        let files: Vec<_> =
            std::fs::read_dir(path("data")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 5, "{files:?}");
        for file in files.iter().chain([&path("tokens"), &path("audit")]) {
            assert_eq!(mode(file), 0o600, "umask {umask}: {}", file.display());
        }
        assert_eq!(mode(&path("data")), 0o700, "umask {umask}");
    }
}

#[test]
fn a_check_needs_only_permission_to_read_and_changes_nothing() {
    let name = "a_check_needs_only_permission_to_read_and_changes_nothing";
    if !can_change_user(name) {
        return;
    }
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let keys = json!({ "values": ["a", "b"] });
    server.client().send("POST /v1/pools/default/keys", &keys).is(201, &json!({}));
    server.kill();
    let data = dir.path().join("data");
    for entry in std::fs::read_dir(&data).unwrap() {
        chmod(&entry.unwrap().path(), 0o444);
    }
    chmod(&data, 0o555);
    let before = state(&data);
    let (code, out, said) = exit_within(check(&data).uid(OTHER_USER).gid(OTHER_USER));
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("2 keys in 1 pool"), "{out}");
    assert_eq!(state(&data), before);
    chmod(&data, 0o700);
    ends(check(&data).uid(OTHER_USER).gid(OTHER_USER), 77, "Permission denied");
}

#[test]
fn a_check_works_on_a_read_only_file_system() {
    let name = "a_check_works_on_a_read_only_file_system";
    let dir = TempDir::new();
    stop(Server::on(&dir, &[]));
    let data = dir.path().join("data");
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 99; \
                  touch \"$1/x\" 2>/dev/null && exit 98; exec \"$2\" check --data \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "--", "/bin/sh", "-c", script, "sh"]).arg(&data).arg(binary());
    if !Path::new("/usr/bin/unshare").exists() {
        return skipped(name, "no unshare");
    }
    let (code, out, said) = exit_within(&mut command);
    if code == Some(99) || said.contains("unshare") {
        return skipped(name, &said);
    }
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("is intact"), "{out}");
}

/// The root of a volume belongs to root, and the server may write to it as a member of its group.
#[test]
fn a_volume_of_root_that_the_group_can_write_is_used_as_it_is() {
    let name = "a_volume_of_root_that_the_group_can_write_is_used_as_it_is";
    if !can_change_user(name) {
        return;
    }
    let dir = TempDir::new();
    let (data, log) = (dir.path().join("data"), dir.path().join("log"));
    std::fs::create_dir(&data).unwrap();
    chown(&data, None, Some(OTHER_USER)).unwrap();
    chmod(&data, 0o2770);
    for _ in 0..2 {
        let mut serve = keypeg(&["--data"]);
        let server = Server::logged(serve.arg(&data).uid(OTHER_USER).gid(OTHER_USER), &log);
        server.client().ask("GET /readyz").is(200, &json!({}));
        stop(server);
    }
    assert_eq!(mode(&data), 0o2770);
    assert_eq!(std::fs::read_to_string(&log).unwrap().matches("WARN").count(), 0);
}

/// A missing permission has the exit code 77, whatever the file is for.
#[test]
fn a_missing_permission_has_its_own_exit_code() {
    if !can_change_user("a_missing_permission_has_its_own_exit_code") {
        return;
    }
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    tokens.add("a", "*", &["admin"], &[]);
    std::fs::write(path("file"), "").unwrap();
    chmod(Path::new(&path("file")), 0o600);
    stop(Server::on(&dir, &[]));
    let (file, data) = (path("file"), path("data"));
    let token_file = tokens.path().to_str().unwrap().to_owned();
    let (below, new) = (format!("{data}/below"), path("new"));
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let token = ["token", "new", "--name", "b", "--pool", "*", "--scope", "read", "--tokens"];
    for (args, says) in [
        (&["serve", "--config", &file][..], "cannot read the configuration file"),
        (&[&serve[..], &["--data", &data]].concat(), "run the command as the owner"),
        (&[&serve[..], &["--data", &below]].concat(), "run the command as the owner"),
        (&[&serve[..], &["--data", &below, "--existing"]].concat(), "Permission denied"),
        (&[&serve[..], &["--data", &new]].concat(), "Permission denied"),
        (&[&serve[..], &["--ephemeral", "--tokens", &token_file]].concat(), "Permission denied"),
        (&[&serve[..], &["--ephemeral", "--audit", &file]].concat(), "cannot open the audit log"),
        (&[&serve[..], &["--ephemeral", "--audit", &new]].concat(), "cannot open the audit log"),
        (&["check", "--data", &data], "Permission denied"),
        (&["check", "--data", &below], "Permission denied"),
        (&[&token[..], &[&token_file]].concat(), "cannot add the token"),
        (&[&token[..], &[&new]].concat(), "cannot add the token"),
        #[cfg(feature = "cli")]
        (&["import", &file], "Permission denied"),
        #[cfg(feature = "cli")]
        (&["pools", "--token-file", &file], "cannot read the access token file"),
    ] {
        let mut command = Command::new(binary());
        let (code, _, said) =
            exit_within(command.args(args).env_clear().uid(OTHER_USER).gid(OTHER_USER));
        assert_eq!(code, Some(77), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

/// Root's commands on the directory of a server that runs as another user once left files of root in
/// it, and the server did not start.
#[test]
fn what_root_writes_into_a_directory_belongs_to_the_user_of_the_server() {
    let name = "what_root_writes_into_a_directory_belongs_to_the_user_of_the_server";
    if !can_change_user(name) {
        return;
    }
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    let keypeg_command = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(args).env_clear().current_dir(dir.path());
        command
    };
    for key in ["seal.key", "new.key"] {
        ends(&mut keypeg_command(&["seal", "new", key]), 0, "");
        // As the packages do: the server may read it, and cannot change it.
        chown(path(key), None, Some(OTHER_USER)).unwrap();
        chmod(&path(key), 0o640);
    }
    let serve = |data: &str, key: &str| {
        let mut serve = keypeg(&["--data", path(data).to_str().unwrap()]);
        serve.args(["--seal-key", path(key).to_str().unwrap()]).uid(OTHER_USER).gid(OTHER_USER);
        Server::logged(&mut serve, &path("log"))
    };
    let owners = |data: &str| {
        let files = std::fs::read_dir(path(data)).unwrap();
        let owner = |file: std::fs::Metadata| (file.uid(), file.gid(), file.mode() & 0o777);
        files.map(|file| owner(file.unwrap().metadata().unwrap())).collect::<BTreeSet<_>>()
    };
    let is_theirs = BTreeSet::from([(OTHER_USER, OTHER_USER, 0o600)]);
    let directory = |data: &str| {
        std::fs::create_dir(path(data)).unwrap();
        chown(path(data), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    };
    directory("data");
    stop(serve("data", "seal.key"));
    let rotate = ["seal", "rotate", "--data", "data", "--seal-key", "seal.key"];
    ends(keypeg_command(&rotate).args(["--new-seal-key", "new.key"]), 0, "");
    assert_eq!(owners("data"), is_theirs);
    stop(serve("data", "new.key"));
    #[cfg(feature = "cli")]
    {
        directory("restored");
        let server = serve("data", "new.key");
        let url = format!("http://{}", server.addr());
        ends(keypeg_command(&["backup", "a.backup"]).env("KEYPEG_SERVER", url), 0, "");
        let restore = ["restore", "a.backup", "--data", "restored", "--seal-key", "new.key"];
        ends(&mut keypeg_command(&restore), 0, "");
        assert_eq!(owners("restored"), is_theirs);
        stop(serve("restored", "new.key"));
        stop(server);
    }
}

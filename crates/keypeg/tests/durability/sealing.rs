//! Sealed data directories, as an operator uses them: no value in any file, refusals that change no
//! byte, rotation at SIGHUP and under SIGKILL, and the sealing of a directory that was not sealed.
//!
//! `KEYPEG_ROTATION_ROUNDS` sets the number of rotations under SIGKILL.

use crate::support::history::{SeededRandom, env_number};
use crate::support::{
    Server, TempDir, binary, eventually, exit_of, exit_within, keypeg, keypeg_under, pause,
};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Creates a seal key; returns its file.
fn new_key(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    let (code, stdout, stderr) =
        exit_within(Command::new(binary()).args(["seal", "new"]).arg(&path));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("with the seal key"), "{stdout}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    path
}

/// Returns the command of a server on the directory with a seal key.
fn sealed(dir: &TempDir, key: &Path, more: &[&str]) -> Command {
    let mut command = keypeg(more);
    command.arg("--data").arg(dir.path().join("data")).arg("--seal-key").arg(key);
    command
}

fn start(dir: &TempDir, key: &Path, more: &[&str]) -> Server {
    Server::logged(&mut sealed(dir, key, more), &dir.path().join("log"))
}

/// Returns the files of the data directory.
fn files(dir: &TempDir) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(&dir.path().join("data"))
}

/// Returns the files below a directory. A running server may rename one meanwhile: it is found under one
/// of its names, or is not complete yet.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
            continue;
        }
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            bytes => drop(found.insert(path, bytes.unwrap())),
        }
    }
    found
}

/// Returns how many of the values stand in any file of the directory. Most of a segment is zeros,
/// and most other places are excluded by their first two bytes.
fn hits(dir: &TempDir, values: &[String]) -> usize {
    const BLOCK: usize = 4_096;
    let pair = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut begins = vec![false; 1 << 16];
    for value in values {
        begins[pair(value.as_bytes())] = true;
    }
    let mut found = BTreeSet::new();
    for bytes in files(dir).values() {
        for block in (0..bytes.len()).step_by(BLOCK) {
            let end = bytes.len().min(block + BLOCK);
            if bytes[block..end] == [0; BLOCK][..end - block] {
                continue;
            }
            let places = block..end.min(bytes.len() - 1);
            for at in places.filter(|at| begins[pair(&bytes[*at..])]) {
                let has = |value: &&String| bytes[at..].starts_with(value.as_bytes());
                found.extend(values.iter().filter(has));
            }
        }
    }
    found.len()
}

/// Generates and imports keys; returns their values.
fn add_keys(server: &Server) -> Vec<String> {
    let client = &mut server.client();
    let imported = ["sk-live-0123456789", "hunter2-hunter2", &"long".repeat(900)];
    let mut values: Vec<String> = imported.map(str::to_owned).into();
    client.send("POST /v1/pools/default/keys", &json!({ "values": imported })).is(201, &json!({}));
    let generated = client.send("POST /v1/pools/default/keys", &json!({ "count": 20 })).json();
    let keys = generated["keys"].as_array().unwrap();
    values.extend(keys.iter().map(|key| key["key"].as_str().unwrap().to_owned()));
    values
}

/// Returns the options of `keypeg check` on the directory.
fn check(dir: &TempDir, key: Option<&Path>) -> (Option<i32>, String, String) {
    let mut command = Command::new(binary());
    command.args(["check", "--data"]).arg(dir.path().join("data"));
    exit_within(command.args(key.map(|_| "--seal-key")).args(key))
}

fn key_count(server: &Server) -> u64 {
    server.client().ask("GET /v1/pools/default").json()["total"].as_u64().unwrap()
}

/// Returns the values of the first 100 keys.
fn reveal_all(server: &Server) -> BTreeSet<String> {
    let client = &mut server.client();
    let page = client.ask("GET /v1/pools/default/keys?limit=100").json();
    let reveal = |listed: &serde_json::Value| {
        let id = listed["id"].as_str().unwrap();
        let shown = client.ask(&format!("POST /v1/pools/default/keys/{id}/reveal")).json();
        shown["key"].as_str().unwrap().to_owned()
    };
    page["keys"].as_array().unwrap().iter().map(reveal).collect()
}

fn log(dir: &TempDir) -> String {
    std::fs::read_to_string(dir.path().join("log")).unwrap()
}

#[test]
fn no_value_is_in_the_directory_of_a_sealed_server_and_the_wrong_key_changes_no_byte() {
    let dir = TempDir::new();
    let (key, other) = (new_key(&dir, "key"), new_key(&dir, "other"));
    let mut server = start(&dir, &key, &[]);
    let values = add_keys(&server);
    server.kill();
    let mut server = start(&dir, &key, &[]);
    assert_eq!(key_count(&server), 23);
    assert!(server.terminate().success());
    assert_eq!(hits(&dir, &values), 0);
    let before = files(&dir);
    let (code, stderr) = exit_of(&mut sealed(&dir, &other, &[]));
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    let data = dir.path().join("data");
    let (code, stderr) = exit_of(keypeg(&[]).arg("--data").arg(&data));
    assert!(code == 78 && stderr.contains("with --seal-key"), "{code}: {stderr}");
    let (code, stdout, stderr) = check(&dir, Some(&key));
    assert!(code == Some(0) && stdout.contains("is intact: 23 keys"), "{stdout}{stderr}");
    for (key, says) in [(None, "with --seal-key"), (Some(&*other), "is sealed with the key")] {
        let (code, _, stderr) = check(&dir, key);
        assert!(code == Some(78) && stderr.contains(says), "{code:?}: {stderr}");
    }
    assert!(files(&dir) == before, "a refused start or a check changed a byte");
}

#[test]
fn a_directory_that_is_not_sealed_is_sealed_by_the_start_that_has_the_option() {
    let dir = TempDir::new();
    let key = new_key(&dir, "key");
    let mut server = Server::on(&dir, &[]);
    let values = add_keys(&server);
    // Long enough for the slowest machine.
    let policy = json!({ "lease_ttl_seconds": 3_600, "max_hold_seconds": 3_600 });
    server.client().send("PUT /v1/pools/default", &policy).is(200, &json!({}));
    let held = server.client().ask("POST /v1/pools/default/leases").json();
    server.kill();
    assert_eq!(hits(&dir, &values), values.len(), "the search finds values");
    let before = files(&dir);
    let (code, stderr) = exit_of(&mut sealed(&dir, &key, &[]));
    assert!(code == 78 && stderr.contains("add --seal-existing"), "{code}: {stderr}");
    assert!(files(&dir) == before, "the refused start changed a byte");
    let mut server = start(&dir, &key, &["--seal-existing"]);
    assert_eq!(hits(&dir, &values), 0, "sealed before the server listens");
    assert_eq!(key_count(&server), 23);
    let key_of_lease = format!("GET /v1/pools/default/keys/{}", held["key_id"].as_str().unwrap());
    let lease = json!({ "fencing_token": held["fencing_token"] });
    server.client().ask(&key_of_lease).is(200, &json!({ "state": "leased", "lease": lease }));
    server.kill();
    let server = start(&dir, &key, &["--seal-existing"]);
    assert_eq!(key_count(&server), 23);
}

#[test]
fn a_key_file_that_others_can_read_or_that_has_no_key_is_refused() {
    let dir = TempDir::new();
    let key = new_key(&dir, "key");
    let set_mode =
        |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    for (mode, says) in [(0o604, "can read this key"), (0o620, "can write this file")] {
        set_mode(mode);
        let (code, stderr) = exit_of(&mut sealed(&dir, &key, &[]));
        assert!(code == 78 && stderr.contains(says), "{mode:o}: {code}: {stderr}");
    }
    set_mode(0o600);
    let text = std::fs::read_to_string(&key).unwrap();
    let secret = text.lines().last().unwrap().to_owned();
    std::fs::write(&key, &text[..text.len() - 3]).unwrap();
    let (code, stderr) = exit_of(&mut sealed(&dir, &key, &[]));
    assert!(code == 78 && stderr.contains("line 2 is not a key"), "{code}: {stderr}");
    assert!(!stderr.contains(&secret[..8]), "{stderr}");
    let (code, stderr) = exit_of(&mut sealed(&dir, &dir.path().join("none"), &[]));
    assert!(code == 66 && stderr.contains("keypeg seal new"), "{code}: {stderr}");
    let (code, stderr) = exit_of(&mut keypeg(&["--seal-existing", "--ephemeral"]));
    assert!(code == 78 && stderr.contains("without --seal-key"), "{code}: {stderr}");
    let (code, _, stderr) = exit_within(Command::new(binary()).args(["seal", "new"]).arg(&key));
    assert!(code == Some(73) && stderr.contains("no key is overwritten"), "{code:?}: {stderr}");
    assert!(!dir.path().join("data").exists());
}

/// Writes the keys of these files into the first one, by a rename.
fn write_keys(dir: &TempDir, into: &Path, of: &[&str]) {
    let new = dir.path().join("keys.new");
    let text: String = of.iter().flat_map(|key| [key, "\n"]).collect();
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, into).unwrap();
}

#[test]
fn sighup_seals_with_the_first_key_and_refuses_a_file_without_the_one_before() {
    let dir = TempDir::new();
    let (key, new) = (new_key(&dir, "key"), new_key(&dir, "new"));
    let [old_text, new_text] = [&key, &new].map(|path| std::fs::read_to_string(path).unwrap());
    let mut server = start(&dir, &key, &[]);
    let values = add_keys(&server);
    let hang_up = |server: &Server| kill_process(server.pid(), Signal::HUP).unwrap();
    let before = files(&dir).remove(&dir.path().join("data/meta"));
    write_keys(&dir, &key, &[&new_text]);
    hang_up(&server);
    eventually("a refused file", || log(&dir).contains("after the new one").then_some(()));
    assert!(files(&dir).remove(&dir.path().join("data/meta")) == before);
    write_keys(&dir, &key, &[&new_text, &old_text]);
    hang_up(&server);
    eventually("a rotation", || log(&dir).contains("can be removed from the file").then_some(()));
    server.kill();
    write_keys(&dir, &key, &[&old_text]);
    let (code, stderr) = exit_of(&mut sealed(&dir, &key, &[]));
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    write_keys(&dir, &key, &[&new_text]);
    let server = start(&dir, &key, &[]);
    assert_eq!(key_count(&server), 23);
    assert_eq!(hits(&dir, &values), 0);
    // The command refuses a directory in use, and names the other way.
    let mut command = Command::new(binary());
    command.args(["seal", "rotate", "--data"]).arg(dir.path().join("data"));
    let command = command.arg("--seal-key").arg(&key).arg("--new-seal-key").arg(&new);
    let (code, _, stderr) = exit_within(command);
    assert!(code == Some(75) && stderr.contains("send SIGHUP"), "{code:?}: {stderr}");
}

/// The seal key of a store cannot be replaced. An operator who followed the steps of a rotation had no
/// message, and removed the only key of the store.
#[test]
fn sighup_names_the_key_that_a_store_needs_when_its_file_changes() {
    let dir = TempDir::new();
    let (key, new) = (new_key(&dir, "key"), new_key(&dir, "new"));
    let [old_text, new_text] = [&key, &new].map(|path| std::fs::read_to_string(path).unwrap());
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let url = format!("file://{}", dir.path().join("store").display());
    let command = || {
        let mut command = keypeg(&["--advertise", "http://127.0.0.1:0", "--shards", "2"]);
        command.env("KEYPEG_STORE", &url).arg("--seal-key").arg(&key);
        command
    };
    let server = Server::logged(&mut command(), &dir.path().join("log"));
    let lines = |level: &str, of: &str| {
        let log = log(&dir);
        log.lines().filter(|line| line.contains(level) && line.contains(of)).count()
    };
    let hang_up = || kill_process(server.pid(), Signal::HUP).unwrap();
    let rule = "seal key of a store cannot be replaced: ";
    write_keys(&dir, &key, &[&old_text, &new_text]);
    hang_up();
    eventually("the reload", || (lines("INFO", "reread the seal key file") == 1).then_some(()));
    assert_eq!((lines("WARN", rule), lines("ERROR", rule)), (0, 0));
    write_keys(&dir, &key, &[&new_text, &old_text]);
    hang_up();
    eventually("a warning", || (lines("WARN", &format!("{rule}keep the key")) == 1).then_some(()));
    write_keys(&dir, &key, &[&new_text]);
    hang_up();
    eventually("an error", || (lines("ERROR", &format!("{rule}put the key")) == 1).then_some(()));
    drop(server);
    // A start needs the key too, and warns if it is not the first one.
    let (code, stderr) = exit_of(&mut command());
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    write_keys(&dir, &key, &[&new_text, &old_text]);
    let _server = Server::logged(&mut command(), &dir.path().join("log"));
    eventually("a warning", || (lines("WARN", &format!("{rule}keep the key")) == 2).then_some(()));
}

/// The way to another seal key of a store: the second key of the file opens the backup, the first one
/// seals the new installation.
#[test]
fn a_store_that_is_restored_with_two_keys_needs_the_first_one_and_refuses_the_old_one() {
    let dir = TempDir::new();
    let (old, new, both) = (new_key(&dir, "old"), new_key(&dir, "new"), dir.path().join("both"));
    let [old_text, new_text] = [&old, &new].map(|path| std::fs::read_to_string(path).unwrap());
    write_keys(&dir, &both, &[&new_text, &old_text]);
    // `files` reads "data".
    let [before, after] = ["before", "data"].map(|name| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        format!("file://{}", dir.path().join(name).display())
    });
    let command = |url: &str, key: &Path| {
        let mut command = keypeg(&["--advertise", "http://127.0.0.1:0", "--shards", "2"]);
        command.env("KEYPEG_STORE", url).arg("--seal-key").arg(key);
        command
    };
    let start = |url: &str, key: &Path| {
        let server = Server::logged(&mut command(url, key), &dir.path().join("log"));
        let is_ready = || server.client().ask("GET /readyz").status == 200;
        eventually("all shards are served", || is_ready().then_some(()));
        server
    };
    let server = start(&before, &old);
    let values = add_keys(&server);
    let file = back_up(&dir, &server);
    drop(server);
    let restore = |key: &Path| {
        let mut command = Command::new(binary());
        command.arg("restore").arg(&file).args(["--hold", "0s", "--shards", "2"]);
        exit_of(command.args(["--store", &after, "--seal-key"]).arg(key).env_clear())
    };
    let (code, stderr) = restore(&new);
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    assert_eq!(files(&dir).len(), 0, "a refused restore wrote to the store");
    let (code, stderr) = restore(&both);
    assert_eq!(code, 0, "{stderr}");
    assert!(!files(&dir).is_empty() && hits(&dir, &values) == 0, "a value is in the store");
    let (code, stderr) = exit_of(&mut command(&after, &old));
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    assert_eq!(reveal_all(&start(&after, &new)), values.into_iter().collect());
}

/// Two keys alternate in the first line of the file; the server is killed at a random moment after
/// SIGHUP, or ends by itself. The file opens the directory each time.
#[test]
fn a_rotation_under_sigkill_loses_nothing() {
    let rounds = env_number("KEYPEG_ROTATION_ROUNDS").unwrap_or(5);
    let seed = env_number("KEYPEG_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("KEYPEG_SEED={seed} KEYPEG_ROTATION_ROUNDS={rounds}");
    let random = &mut SeededRandom(seed);
    let dir = TempDir::new();
    let (key, new) = (new_key(&dir, "key"), new_key(&dir, "new"));
    let mut texts = [&key, &new].map(|path| std::fs::read_to_string(path).unwrap());
    let (mut keys, mut values) = (0, Vec::new());
    for round in 0..rounds {
        let mut server = start(&dir, &key, &[]);
        assert_eq!(key_count(&server), keys, "round {round}");
        let generated =
            server.client().send("POST /v1/pools/default/keys", &json!({ "count": 3 })).json();
        for key in generated["keys"].as_array().unwrap() {
            values.push(key["key"].as_str().unwrap().to_owned());
        }
        keys += 3;
        texts.reverse();
        write_keys(&dir, &key, &[&texts[0], &texts[1]]);
        kill_process(server.pid(), Signal::HUP).unwrap();
        pause(Duration::from_micros(random.below(4_000)));
        server.kill();
    }
    let server = start(&dir, &key, &[]);
    assert_eq!(key_count(&server), keys);
    drop(server);
    assert_eq!(hits(&dir, &values), 0);
    println!("{rounds} rotations under SIGKILL, {keys} keys, 0 lost");
}

/// Returns a backup of the server and whether a command on it succeeds, with what it says.
fn back_up(dir: &TempDir, server: &Server) -> PathBuf {
    let file = dir.path().join("a.backup");
    let mut command = Command::new(binary());
    command.arg("backup").arg(&file).env_clear();
    command.env("KEYPEG_SERVER", format!("http://{}", server.addr()));
    let (code, _, stderr) = exit_within(&mut command);
    assert_eq!(code, Some(0), "{stderr}");
    file
}

/// The restore of a backup once wrote all of its files before it looked at the seal key.
#[test]
fn a_sealed_backup_is_restored_with_its_key_and_refused_with_another_before_anything_is_written() {
    let dir = TempDir::new();
    let (key, other) = (new_key(&dir, "key"), new_key(&dir, "other"));
    let server = start(&dir, &key, &[]);
    let values = add_keys(&server);
    let file = back_up(&dir, &server);
    drop(server);
    let text = std::fs::read(&file).unwrap();
    let find = |value: &String| text.windows(value.len()).any(|found| found == value.as_bytes());
    assert!(!values.iter().any(find), "a value is in the backup");
    let run = |word: &str, key: Option<&Path>| {
        let mut command = Command::new(binary());
        command.arg(word).arg(&file).env_clear();
        if word == "restore" {
            command.arg("--data").arg(dir.path().join("new/data"));
        }
        exit_within(command.args(key.map(|_| "--seal-key")).args(key))
    };
    std::fs::create_dir(dir.path().join("new")).unwrap();
    let cases = [(None, "is sealed with the key"), (Some(&*other), "is sealed with the key")];
    for (wrong, says) in cases {
        for word in ["check", "restore"] {
            let (code, _, stderr) = run(word, wrong);
            assert!(code == Some(78) && stderr.contains(says), "{word} {code:?}: {stderr}");
        }
    }
    assert!(!dir.path().join("new/data").exists(), "a refused restore created the directory");
    let (code, stdout, stderr) = run("check", Some(&key));
    assert!(code == Some(0) && stdout.contains("23 keys in 1 pool"), "{stdout}{stderr}");
    let (code, _, stderr) = run("restore", Some(&key));
    assert_eq!(code, Some(0), "{stderr}");
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    std::fs::rename(dir.path().join("new/data"), dir.path().join("data")).unwrap();
    assert_eq!(hits(&dir, &values), 0);
    let (code, stderr) = exit_of(&mut sealed(&dir, &other, &[]));
    assert!(code == 78 && stderr.contains("is sealed with the key"), "{code}: {stderr}");
    let server = start(&dir, &key, &[]);
    assert_eq!(reveal_all(&server), values.into_iter().collect());
}

#[test]
fn a_backup_that_is_not_sealed_is_refused_with_a_key_before_anything_is_written() {
    let dir = TempDir::new();
    let key = new_key(&dir, "key");
    let server = Server::on(&dir, &[]);
    add_keys(&server);
    let file = back_up(&dir, &server);
    let mut command = Command::new(binary());
    command.arg("restore").arg(&file).arg("--data").arg(dir.path().join("restored"));
    let (code, _, stderr) = exit_within(command.arg("--seal-key").arg(&key));
    let says = "the backup is not sealed: restore it without --seal-key";
    assert!(code == Some(78) && stderr.contains(says), "{code:?}: {stderr}");
    assert!(!dir.path().join("restored").exists());
}

/// A core image would contain every value.
#[test]
fn a_server_that_aborts_writes_no_core_image() {
    let dir = TempDir::new();
    let key = new_key(&dir, "key");
    let words = ["sh", "-c", "cd \"$1\" && ulimit -c unlimited && shift && exec \"$@\"", "sh"];
    let path = dir.path().to_str().unwrap();
    let mut command = keypeg_under(&[&words[..], &[path]].concat(), &[]);
    command.arg("--data").arg(dir.path().join("data")).arg("--seal-key").arg(&key);
    let mut server = Server::logged(&mut command, &dir.path().join("log"));
    let values = add_keys(&server);
    kill_process(server.pid(), Signal::ABORT).unwrap();
    let status = eventually("the end of the server", || server.ended());
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status}");
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        assert!(!path.file_name().unwrap().to_str().unwrap().contains("core"), "{path:?}");
    }
    assert_eq!(hits(&dir, &values), 0);
}

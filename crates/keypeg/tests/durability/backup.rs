//! Backups of the real server: over HTTP and by the command line, restored and compared key by key.

use crate::support::tokens::Tokens;
use crate::support::{Client, Server, TempDir, binary, eventually, keypeg, skipped, volume};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Returns a command of the client or of a backup, without any variable of the test's environment.
fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).env_clear();
    command
}

fn backup(server: &Server, args: &[&str]) -> Command {
    let mut command = tool(&["backup"]);
    command.args(args).env("KEYPEG_SERVER", format!("http://{}", server.addr()));
    command
}

/// Runs a command; asserts its exit code and a part of what it prints.
#[track_caller]
fn run(mut command: Command, exit: i32, says: &str) -> Output {
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert_eq!(output.status.code(), Some(exit), "{command:?}: {text}");
    assert!(text.contains(says), "{command:?}: {text}");
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Starts a server with the keys of [`fill`].
fn original(dir: &TempDir) -> Server {
    let server = Server::on(dir, &[]);
    fill(&mut server.client());
    server
}

/// Creates 40 generated and two imported keys, of which some are lent, one rests and one is
/// quarantined.
fn fill(client: &mut Client) {
    client.send("PUT /v1/pools/ci", &json!({ "max_hold_seconds": 3600 })).is(201, &json!({}));
    client.send("POST /v1/pools/ci/keys", &json!({ "count": 40 })).is(201, &json!({}));
    let values = json!({ "values": ["sk-first", "sk-second"] });
    client.send("POST /v1/pools/ci/keys", &values).is(201, &json!({}));
    for end in [json!({ "rest_seconds": 7200 }), json!({ "quarantine": true, "reason": "429" })] {
        let lease = client.ask("POST /v1/pools/ci/leases").json();
        let release = format!("POST /v1/pools/ci/leases/{}/release", lease["id"].as_str().unwrap());
        client.send(&release, &end).is(204, &Value::Null);
    }
    acquire(client, 3);
}

/// Acquires keys; returns the highest token.
fn acquire(client: &mut Client, count: u32) -> u64 {
    let grant = |_| {
        let lease = client.ask("POST /v1/pools/ci/leases").is(201, &json!({}));
        lease["fencing_token"].as_u64().unwrap()
    };
    (0..count).map(grant).max().unwrap()
}

/// Returns the value, the time of creation and the state of each key, by id.
fn keys(client: &mut Client) -> BTreeMap<String, (String, Value, String)> {
    let page = client.ask("GET /v1/pools/ci/keys?limit=1000").is(200, &json!({}));
    let keys = page["keys"].as_array().unwrap().clone();
    let row = |key: Value| {
        let id = key["id"].as_str().unwrap().to_owned();
        let shown = client.ask(&format!("POST /v1/pools/ci/keys/{id}/reveal")).is(200, &json!({}));
        let state = key["state"].as_str().unwrap().to_owned();
        (id, (shown["key"].as_str().unwrap().to_owned(), key["created_at"].clone(), state))
    };
    keys.into_iter().map(row).collect()
}

/// Asserts that a restored server has the same keys and lends none of them at first.
fn has_the_keys(client: &mut Client, before: &BTreeMap<String, (String, Value, String)>) {
    let after = keys(client);
    assert_eq!((before.len(), after.len()), (42, 42));
    for (id, (value, created_at, was)) in before {
        let (same_value, same_time, is) = &after[id];
        assert_eq!((same_value, same_time), (value, created_at));
        let expected = if was == "quarantined" || was == "resting" { was } else { "leased" };
        assert_eq!(is, expected, "{id}");
    }
    client.ask("POST /v1/pools/ci/leases").problem(404, "no_key_available");
}

/// Starts a server on a store, and waits until it serves all shards.
fn on_store(url: &str, args: &[&str]) -> Server {
    let args = [&["--advertise", "http://127.0.0.1:0"], args].concat();
    let server = Server::given(&args, &[("KEYPEG_STORE", url)]);
    let client = &mut server.client();
    eventually("all shards are served", || (client.ask("GET /readyz").status == 200).then_some(()));
    server
}

fn restored(file: &Path, data: &Path, more: &[&str]) -> Server {
    let args = ["restore", text(file), "--data", text(data)];
    run(tool(&[&args[..], more].concat()), 0, "restored into");
    Server::given(&["--data", text(data)], &[])
}

#[test]
fn a_backup_restores_every_key_and_the_restored_server_lends_none_at_first() {
    let dir = TempDir::new();
    let file = dir.path().join("a.backup");
    let server = original(&dir);
    let before = keys(&mut server.client());
    run(backup(&server, &[text(&file)]), 0, "bytes written to");
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it contains the values of all keys");
    // The original goes on, with keys that were available at the backup.
    let highest = acquire(&mut server.client(), 20);
    run(tool(&["check", text(&file)]), 0, "42 keys in 2 pools");
    let restored = restored(&file, &dir.path().join("restored"), &[]);
    let client = &mut restored.client();
    has_the_keys(client, &before);
    let listed = client.ask("GET /v1/pools/ci/keys?state=leased").json();
    assert_eq!(listed["keys"][0]["lease"]["holder"], "(restored)");
    client.ask("POST /v1/pools/ci/keys").is(201, &json!({}));
    assert!(acquire(client, 1) > highest);
}

#[test]
fn a_backup_of_one_server_becomes_the_store_of_several_and_no_key_is_lent_at_first() {
    let (dir, store) = (TempDir::new(), TempDir::new());
    let file = dir.path().join("a.backup");
    let mut server = original(&dir);
    let before = keys(&mut server.client());
    run(backup(&server, &[text(&file)]), 0, "bytes written to");
    let highest = acquire(&mut server.client(), 20);
    server.terminate();
    let url = format!("file://{}", text(store.path()));
    let restore = || {
        let mut command = tool(&["restore", text(&file), "--shards", "4"]);
        command.env("KEYPEG_STORE", &url);
        command
    };
    run(restore(), 0, "restored into the store: 42 keys in 2 pools");
    run(restore(), 73, "the store is not empty");
    let start = || on_store(&url, &["--existing"]);
    let first = start();
    let client = &mut first.client();
    has_the_keys(client, &before);
    client.ask("POST /v1/pools/ci/keys").is(201, &json!({}));
    assert!(acquire(client, 1) > highest);
    // The next server reads the same snapshot, and the frames after it.
    drop(first);
    assert_eq!(keys(&mut start().client()).len(), 43);
}

#[test]
fn a_backup_of_a_store_without_a_snapshot_is_restored_into_a_directory_and_into_a_store() {
    let (dir, store, other) = (TempDir::new(), TempDir::new(), TempDir::new());
    let file = dir.path().join("a.backup");
    let server = on_store(&format!("file://{}", text(store.path())), &["--shards", "4"]);
    fill(&mut server.client());
    let before = keys(&mut server.client());
    run(backup(&server, &[text(&file)]), 0, "bytes written to");
    run(tool(&["check", text(&file)]), 0, "42 keys in 2 pools");
    drop(server);
    has_the_keys(&mut restored(&file, &dir.path().join("data"), &[]).client(), &before);
    let url = format!("file://{}", text(other.path()));
    let mut restore = tool(&["restore", text(&file), "--shards", "2"]);
    restore.env("KEYPEG_STORE", &url);
    run(restore, 0, "restored into the store: 42 keys in 2 pools");
    has_the_keys(&mut on_store(&url, &["--existing"]).client(), &before);
}

#[test]
fn the_length_of_the_hold_can_be_given() {
    let dir = TempDir::new();
    let file = dir.path().join("a.backup");
    let server = original(&dir);
    run(backup(&server, &[text(&file)]), 0, "");
    let restored = restored(&file, &dir.path().join("restored"), &["--hold", "0s"]);
    acquire(&mut restored.client(), 37);
}

#[test]
fn a_backup_passes_through_stdout_and_stdin() {
    let dir = TempDir::new();
    let server = original(&dir);
    let mut from = backup(&server, &["-"]).stdout(Stdio::piped()).spawn().unwrap();
    let data = dir.path().join("restored");
    let mut into = tool(&["restore", "-", "--data", text(&data)]);
    into.stdin(from.stdout.take().unwrap());
    run(into, 0, "42 keys in 2 pools");
    assert!(from.wait().unwrap().success());
    let mut stdout = backup(&server, &["-"]);
    stdout.stdout(File::options().write(true).open("/dev/full").unwrap());
    run(stdout, 74, "cannot write to stdout");
    let mut broken = backup(&server, &["-"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    run(
        {
            broken.stdout(writer);
            broken
        },
        74,
        "cannot write to stdout",
    );
}

#[test]
fn an_existing_file_is_replaced_only_on_request_and_only_by_a_complete_backup() {
    let dir = TempDir::new();
    let (file, partial) = (dir.path().join("a.backup"), dir.path().join("a.backup.partial"));
    let mut server = original(&dir);
    std::fs::write(&file, "old").unwrap();
    run(backup(&server, &[text(&file)]), 73, "--force");
    // It is longer than a backup, so that none of it may stay behind the new bytes, and others can
    // read it.
    std::fs::write(&partial, "left by an interrupted backup".repeat(10_000)).unwrap();
    std::fs::set_permissions(&partial, Permissions::from_mode(0o644)).unwrap();
    run(backup(&server, &[text(&file), "--force"]), 0, "");
    run(tool(&["check", text(&file)]), 0, "is complete");
    assert!(!partial.exists());
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() < 100_000, "{} bytes", bytes.len());
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "it contains the values of all keys");
    server.kill();
    run(backup(&server, &[text(&file), "--force"]), 69, "");
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "the old backup stays");
    assert!(!partial.exists());
    run(backup(&server, &["/nonexistent/a.backup"]), 73, "; create its directory first");
}

/// A small file system, on which a backup does not fit; `None` where none can be mounted.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(test: &str) -> Option<Self> {
        let dir = TempDir::new();
        let path = text(dir.path());
        match volume::run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", path]) {
            Ok(()) => Some(Self(dir)),
            Err(why) => {
                skipped(test, &why);
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = volume::run("umount", &["-l", text(self.0.path())]);
    }
}

#[test]
fn a_full_disk_at_the_file_of_a_backup_leaves_the_file_before_and_nothing_else() {
    const NAME: &str =
        "a_full_disk_at_the_file_of_a_backup_leaves_the_file_before_and_nothing_else";
    let dir = TempDir::new();
    let server = original(&dir);
    // A backup has at least 22 bytes for each of them, as rows or as batches.
    let many = json!({ "count": 10_000 });
    for _ in 0..2 {
        server.client().send("POST /v1/pools/ci/keys", &many).is(201, &json!({}));
    }
    let Some(small) = SmallDisk::mount(NAME) else { return };
    let file = small.0.path().join("a.backup");
    std::fs::write(&file, "old").unwrap();
    let output = run(backup(&server, &[text(&file), "--force"]), 74, "No space left on device");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for says in ["a.backup.partial", "is incomplete and was removed", "free space there"] {
        assert!(said.contains(says), "{says:?} is missing: {said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"old", "the previous backup stays");
    assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 1, "no half file is left");
    // The server has ended that backup, and makes the next one.
    let other = dir.path().join("b.backup");
    eventually("the next backup", || {
        let output = backup(&server, &[text(&other), "--force"]).output().unwrap();
        output.status.success().then_some(())
    });
    let mut check = tool(&["check", text(&other)]);
    check.env("TMPDIR", small.0.path());
    run(check, 74, "No space left on device (os error 28) in the temporary file of this check");
    let mut check = tool(&["check", text(&other)]);
    check.env("TMPDIR", "/nonexistent");
    run(check, 73, "name a directory for it with TMPDIR");
    // A restore there fails too, and leaves a directory that a restore accepts.
    let data = small.0.path().join("data");
    let restore = |into: &Path| tool(&["restore", text(&other), "--data", text(into)]);
    run(restore(&data), 74, "No space left on device");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    run(restore(&dir.path().join("restored")), 0, "20042 keys in 2 pools");
}

/// The signal of the limit killed the command, which left a half file and said nothing.
#[test]
fn a_limit_of_the_size_of_files_is_an_error_of_a_command_and_leaves_no_half_file() {
    let dir = TempDir::new();
    let server = original(&dir);
    let many = json!({ "count": 10_000 });
    server.client().send("POST /v1/pools/ci/keys", &many).is(201, &json!({}));
    let file = dir.path().join("a.backup");
    run(backup(&server, &[text(&dir.path().join("whole"))]), 0, "");
    let limited = |args: &[&str]| {
        // In blocks of 512 bytes.
        let script = "ulimit -f 100 && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", &binary().into_string().unwrap()]).args(args);
        command.env_clear().env("KEYPEG_SERVER", format!("http://{}", server.addr()));
        command
    };
    run(limited(&["backup", text(&file)]), 74, "File too large");
    assert!(!file.exists() && !dir.path().join("a.backup.partial").exists());
    let (whole, data) = (dir.path().join("whole"), dir.path().join("restored"));
    let restore = ["restore", text(&whole), "--data", text(&data)];
    run(limited(&restore), 74, "File too large");
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    let mut stdout = limited(&["backup", "-"]);
    stdout.stdout(File::create(dir.path().join("stdout")).unwrap());
    run(stdout, 74, "cannot write to stdout: File too large");
}

/// Returns the address of a server that answers one request with these bytes.
fn answering(body: Vec<u8>) -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        // The command closes the connection at the first damage.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    });
    addr
}

/// A proxy can end an answer that is too long for it as if it were complete.
#[test]
fn bytes_that_are_not_what_the_server_sent_make_no_backup() {
    let dir = TempDir::new();
    let server = original(&dir);
    let (good, file) = (dir.path().join("good"), dir.path().join("a.backup"));
    run(backup(&server, &[text(&good)]), 0, "");
    let bytes = std::fs::read(&good).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    let cut = bytes[..bytes.len() - 1].to_vec();
    for (content, says) in [(cut, "is incomplete"), (flipped, "is damaged at byte")] {
        let mut command = tool(&["backup", text(&file)]);
        command.env("KEYPEG_SERVER", format!("http://{}", answering(content)));
        let output = run(command, 76, "did not arrive as the server sent it");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(says), "{said}");
        assert!(!file.exists() && !dir.path().join("a.backup.partial").exists());
    }
    let mut command = tool(&["backup", text(&file)]);
    command.env("KEYPEG_SERVER", format!("http://{}", answering(bytes)));
    run(command, 0, "bytes written to");
}

#[test]
fn what_is_not_a_complete_backup_is_refused_and_leaves_no_directory_that_a_start_accepts() {
    let dir = TempDir::new();
    let file = dir.path().join("a.backup");
    let server = original(&dir);
    run(backup(&server, &[text(&file)]), 0, "");
    let bytes = std::fs::read(&file).unwrap();
    let damaged: PathBuf = dir.path().join("damaged");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    for (content, says) in [
        (&bytes[..bytes.len() - 1], "is incomplete"),
        (&bytes[..bytes.len() / 2], "is incomplete"),
        (&flipped, "is damaged at byte"),
        (b"text", "not a backup"),
    ] {
        std::fs::write(&damaged, content).unwrap();
        run(tool(&["check", text(&damaged)]), 65, says);
        let data = dir.path().join("restored");
        run(tool(&["restore", text(&damaged), "--data", text(&data)]), 65, says);
        assert_eq!(std::fs::read_dir(&data).unwrap().count(), 0);
    }
    run(tool(&["check", "/nonexistent"]), 66, "cannot open the backup");
    run(tool(&["check", text(dir.path())]), 66, "is a directory");
    let data = dir.path().join("data");
    run(tool(&["restore", text(&file), "--data", text(&data)]), 75, "in use");
    drop(server);
    run(tool(&["restore", text(&file), "--data", text(&data)]), 73, "is not empty");
    let low = ["restore", text(&file), "--data", "x", "--token-floor", "1"];
    let mut low = tool(&low);
    low.current_dir(dir.path());
    run(low, 78, "--token-floor is too low");
}

#[test]
fn a_backup_needs_the_scope_admin_and_each_one_is_in_the_audit_log() {
    let (dir, tokens) = (TempDir::new(), Tokens::new());
    let admin = tokens.add("admin", "*", &["admin"], &[]);
    let reader = tokens.add("reader", "*", &["read", "keys", "lend", "reveal"], &[]);
    let log = dir.path().join("audit");
    let tokens_args = tokens.args();
    let args = [&tokens_args[0], &tokens_args[1], "--audit", text(&log)];
    let server = Server::on(&dir, &args);
    let client = &mut server.client();
    client.ask("GET /v1/backup").problem(401, "unauthorized");
    client.with(&reader, "GET /v1/backup").problem(403, "forbidden");
    assert_eq!(client.with(&admin, "HEAD /v1/backup").status, 200);
    let file = dir.path().join("a.backup");
    let mut command = backup(&server, &[text(&file)]);
    command.env("KEYPEG_TOKEN", &admin);
    run(command, 0, "bytes written");
    let lines = std::fs::read_to_string(&log).unwrap();
    let backups = lines.lines().filter(|line| line.contains("\"backup\"") && line.contains("200"));
    assert!(backups.count() >= 1, "{lines}");
    let secrets = std::fs::read_to_string(&log).unwrap();
    assert!(!secrets.contains(&admin));
}

#[test]
fn a_server_in_memory_has_no_backups() {
    let server = Server::in_memory(&[]);
    let problem = server.client().ask("GET /v1/backup").problem(501, "backup_unsupported");
    assert!(problem["detail"].as_str().unwrap().contains("--data"), "{problem}");
    server.client().ask("GET /v1/backup?x=1").problem(422, "invalid");
    server.client().ask("POST /v1/backup").problem(405, "method_not_allowed");
    let cross_site =
        "GET /v1/backup HTTP/1.1\r\nhost: localhost\r\nsec-fetch-site: cross-site\r\n\r\n";
    server.client().raw(cross_site.as_bytes()).unwrap().problem(403, "forbidden");
}

/// A client that begins a backup and reads only its head.
fn unread_backup(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.write_all(b"GET /v1/backup HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    stream
}

/// Enough keys that the backup does not fit into the buffers of a connection.
#[test]
fn a_client_that_does_not_read_its_backup_keeps_out_other_backups_and_nothing_else() {
    let dir = TempDir::new();
    let mut server = Server::on(&dir, &[]);
    let client = &mut server.client();
    for _ in 0..10 {
        let many = json!({ "count": 10_000 });
        eventually("the keys are accepted", || {
            (client.send("POST /v1/pools/default/keys", &many).status == 201).then_some(())
        });
    }
    let file = dir.path().join("a.backup");
    // The keys must be in the database: a backup of the journal alone is small.
    eventually("a large backup", || {
        run(backup(&server, &[text(&file), "--force"]), 0, "");
        (file.metadata().unwrap().len() > 4 << 20).then_some(())
    });
    let stream = unread_backup(&server);
    let problem = server.client().ask("GET /v1/backup").problem(409, "backup_running");
    assert!(problem["detail"].as_str().unwrap().contains("one at a time"), "{problem}");
    client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
    drop(stream);
    let stream = eventually("the next backup", || {
        let answer = server.client().ask("HEAD /v1/backup");
        assert_eq!(answer.status, 200);
        let mut probe = backup(&server, &[text(&file), "--force"]);
        probe.output().unwrap().status.success().then(|| unread_backup(&server))
    });
    // The stop does not wait for the client either.
    assert_eq!(server.terminate().code(), Some(0));
    drop(stream);
    let mut next = keypeg(&["--data", text(&dir.path().join("data"))]);
    let next = Server::with_stderr(&mut next, Stdio::null());
    next.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 100_000 }));
}

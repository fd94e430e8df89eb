//! Command lines, configuration files and data directories that a start must refuse with the given
//! text and exit code, and damaged data directories that it must recover.

use super::refusals::assert_explained;
use super::{Log, Piece, cases, each, long_values, unhex};
use crate::support::{ANY_PORT, Server, TempDir, binary, exit_within, keypeg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandLine {
    #[serde(default, rename = "why")]
    _why: String,
    args: Vec<Piece>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    exit: i32,
    says: String,
}

#[test]
fn invalid_command_lines_are_refused() {
    command_lines_are_refused("cli.toml");
}

fn command_lines_are_refused(file: &str) {
    let dir = TempDir::new();
    let path = |name: &str| dir.path().join(name);
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir(path("dir")).unwrap();
    std::fs::write(path("half"), "[[token]]\nname = \"half a fi").unwrap();
    std::fs::write(path("open"), "[[token]]\n").unwrap();
    std::fs::set_permissions(path("open"), Permissions::from_mode(0o666)).unwrap();
    std::fs::write(path("binary"), [0xff; 40]).unwrap();
    let server = Server::on(&dir, &[]);
    let names = [
        ("taken", server.addr().to_string()),
        ("server", format!("http://{}", server.addr())),
        ("used", text(path("data"))),
        ("dir", text(path("dir"))),
        ("file", text(path("file"))),
        ("half", text(path("half"))),
        ("open", text(path("open"))),
        ("binary", text(path("binary"))),
    ];
    let lines = cases::<CommandLine>(file, &names);
    each(
        &lines,
        |line| format!("{:?} {:?}", line.args, line.env),
        |line| {
            let mut command = Command::new(binary());
            command.args(line.args.iter().map(|piece| OsString::from_vec(piece.bytes())));
            command.env_clear().envs(&line.env);
            let (exit, out, said) = exit_within(&mut command);
            assert_eq!(exit, Some(line.exit), "{said}");
            assert!(said.contains(&line.says), "{said}");
            assert!(!said.contains("panicked"), "{said}");
            assert_eq!(out, "", "on stdout: {said}");
            if line.args.first().is_some_and(|first| first.bytes() == b"serve") {
                assert_explained(line.exit, &said);
            }
        },
    );
    assert_eq!(std::fs::read_dir(path("dir")).unwrap().count(), 0, "a file was created");
    server.client().ask("GET /v1/pools/default").is(200, &json!({ "total": 0 }));
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    why: String,
    #[serde(default, rename = "text")]
    content: String,
    hex: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    says: Vec<String>,
}

#[test]
fn invalid_configuration_files_are_refused() {
    let dir = TempDir::new();
    let file = dir.path().join("keypeg.toml");
    let texts = cases::<ConfigFile>("config.toml", &long_values());
    each(
        &texts,
        |case| format!("{:.200} {}", case.content, case.why),
        |case| {
            let text = || case.content.clone().into_bytes();
            let bytes = case.hex.as_ref().map_or_else(text, |hex| unhex(hex));
            std::fs::write(&file, bytes).unwrap();
            let mut command = keypeg(&["--config"]);
            command.env_remove(ANY_PORT.0); // it would hide the file's `listen`
            command.arg(&file).args(&case.args).env("KEYPEG_DATA", dir.path().join("data"));
            let (exit, out, said) = exit_within(&mut command);
            assert_eq!(exit, Some(78), "{said:.2000}");
            for word in &case.says {
                assert!(said.contains(word), "{word}: {said:.2000}");
            }
            assert!(!said.contains("panicked") && said.len() < 4_000, "{said:.4000}");
            assert_explained(78, &said);
            assert_eq!(out, "");
        },
    );
    assert!(!dir.path().join("data").exists(), "a file was created");
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Damage {
    why: String,
    #[serde(default, rename = "do")]
    steps: Vec<Step>,
    exit: Option<i32>,
    #[serde(default)]
    says: String,
    #[serde(default)]
    starts: bool,
    /// Whether it starts without the last batch, which was never acknowledged as durable.
    #[serde(default)]
    loses_last_batch: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    remove: Option<String>,
    truncate: Option<String>,
    flip: Option<String>,
    fill: Option<String>,
    copy: Option<String>,
    rename: Option<String>,
    make: Option<String>,
    make_named_hex: Option<String>,
    mkdir: Option<String>,
    symlink: Option<String>,
    chmod: Option<String>,
    to: Option<toml::Value>,
    at: i64,
    len: usize,
    byte: u8,
    hex: String,
    mode: String,
    /// Whether `at` counts from the end of the written data.
    from_end: bool,
}

impl Step {
    fn apply(&self, dir: &Path) {
        let to = || dir.join(self.to.as_ref().and_then(toml::Value::as_str).unwrap());
        let open =
            |name: &String| File::options().read(true).write(true).open(dir.join(name)).unwrap();
        if let Some(name) = &self.remove {
            // The case may name more segments than the directory has.
            let _ = std::fs::remove_file(dir.join(name));
        } else if let Some(name) = &self.truncate {
            let len = self.to.as_ref().and_then(toml::Value::as_integer).unwrap();
            open(name).set_len(u64::try_from(len).unwrap()).unwrap();
        } else if let Some(name) = &self.flip {
            let (file, at, mut byte) = (open(name), self.offset(&dir.join(name)), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        } else if let Some(name) = &self.fill {
            let at = self.offset(&dir.join(name));
            open(name).write_all_at(&vec![self.byte; self.len], at).unwrap();
        } else if let Some(name) = &self.copy {
            let _ = std::fs::remove_file(to());
            std::fs::copy(dir.join(name), to()).unwrap();
        } else if let Some(name) = &self.rename {
            std::fs::rename(dir.join(name), to()).unwrap();
        } else if let Some(name) = &self.make {
            std::fs::write(dir.join(name), unhex(&self.hex)).unwrap();
        } else if let Some(name) = &self.make_named_hex {
            std::fs::write(dir.join(OsString::from_vec(unhex(name))), unhex(&self.hex)).unwrap();
        } else if let Some(name) = &self.mkdir {
            std::fs::create_dir(dir.join(name)).unwrap();
        } else if let Some(name) = &self.symlink {
            symlink(to(), dir.join(name)).unwrap();
        } else if let Some(name) = &self.chmod {
            let mode = u32::from_str_radix(&self.mode, 8).unwrap();
            std::fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
        } else {
            panic!("no step: {self:?}");
        }
    }

    fn offset(&self, file: &Path) -> u64 {
        let at = if self.at < 0 || self.from_end { written_len(file) } else { 0 };
        u64::try_from(i64::try_from(at).unwrap() + self.at).unwrap()
    }
}

/// Returns the length of the written data of a segment, after which all bytes are zero.
fn written_len(file: &Path) -> usize {
    let bytes = std::fs::read(file).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Returns the journal's segment files in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.to_str().is_some_and(|path| path.contains("/journal-"))).collect();
    files.sort();
    files
}

/// Creates a data directory in three runs that all end by SIGKILL; returns the state of the default
/// pool.
fn create_directory(dir: &TempDir) -> Value {
    for run in 0..3 {
        let mut server = Server::on(dir, &["--lease-ttl", "1h", "--keepalive-ttl", "1h"]);
        let client = &mut server.client();
        client.send("POST /v1/pools/default/keys", &json!({ "count": 5 })).is(201, &json!({}));
        client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
        if run == 2 {
            let mut state = client.ask("GET /v1/pools/default").json();
            // Each start restarts the keep-alive TTL of every key.
            state.as_object_mut().unwrap().remove("next_purge_at");
            // The last batch contains nothing but this pool.
            client.ask("PUT /v1/pools/tail").is(201, &json!({}));
            server.kill();
            return state;
        }
        server.kill();
    }
    unreachable!("the last run returns")
}

/// Returns a checksum of each file; links are not followed.
fn checksums(dir: &Path) -> BTreeMap<PathBuf, u32> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|entry| (entry.path(), checksum(&std::fs::read(entry.path()).unwrap()))).collect()
}

fn checksum(bytes: &[u8]) -> u32 {
    use std::hash::Hasher;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    u32::try_from(hasher.finish() >> 32).unwrap()
}

fn copy_directory(from: &Path, to: &Path) {
    let mut copy = Command::new("cp");
    let status = copy.args(["-a", "--sparse=always"]).args([from, to]).status().unwrap();
    assert!(status.success());
}

impl Damage {
    fn check(&self, data: &Path, before: &Value) {
        let original = checksums(data);
        let check = exit_within(Command::new(binary()).arg("check").arg("--data").arg(data));
        assert!(!check.2.contains("panicked"), "{}", check.2);
        assert_eq!(checksums(data), original, "check changed something");
        assert_eq!(check.0, Some(self.exit.unwrap_or(0)), "check: {}", check.2);
        let mut serve = keypeg(&["--data"]);
        serve.arg(data);
        let Some(exit) = self.exit else {
            return self.check_start(&mut serve, before);
        };
        let (code, _, said) = exit_within(serve.args(["--listen", "127.0.0.1:0"]));
        assert_eq!(code, Some(exit), "{said}");
        assert_explained(exit, &said);
        for said in [said, check.2] {
            assert!(said.contains(&self.says), "{said}");
            assert!(!said.contains("panicked"), "{said}");
        }
        let without_key_set = |mut sums: BTreeMap<PathBuf, u32>| {
            sums.remove(&data.join("keyset"));
            sums
        };
        assert_eq!(
            without_key_set(checksums(data)),
            without_key_set(original),
            "the refused directory was changed"
        );
    }

    fn check_start(&self, serve: &mut Command, before: &Value) {
        assert!(self.starts != self.loses_last_batch, "a case has exactly one of the two");
        let log = Log::new();
        let server = Server::logged(serve, log.path());
        let client = &mut server.client();
        client.ask("GET /v1/pools/default").is(200, before);
        let tail = client.ask("GET /v1/pools/tail").status;
        assert_eq!(tail, if self.loses_last_batch { 404 } else { 200 });
        client.ask("POST /v1/pools/default/leases").is(201, &json!({}));
        log.assert_clean(&[]);
    }
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::{
        Damage, Path, Server, TempDir, cases, command_lines_are_refused, copy_directory,
        create_directory, each, json, segments, written_len,
    };

    #[test]
    fn data_directories_that_cannot_be_used_are_refused() {
        command_lines_are_refused("data_dirs.toml");
    }

    #[test]
    fn damaged_data_directories_are_refused_or_recovered() {
        let (whole, another) = (TempDir::new(), TempDir::new());
        let before = create_directory(&whole);
        let mut other = Server::on(&another, &[]);
        let keys = json!({ "values": ["not", "ours"] });
        other.client().send("POST /v1/pools/default/keys", &keys).is(201, &json!({}));
        assert_eq!(other.terminate().code(), Some(0));
        let segments = segments(&whole.path().join("data"));
        let current = segments.iter().rfind(|file| written_len(file) > 0).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let names = [
            ("another", another.path().join("data").to_str().unwrap().into()),
            ("current", name(current)),
            ("last", name(segments.last().unwrap())),
        ];
        each(
            &cases::<Damage>("data.toml", &names),
            |case| case.why.clone(),
            |case| {
                let dir = TempDir::new();
                let data = dir.path().join("data");
                copy_directory(&whole.path().join("data"), &data);
                case.steps.iter().for_each(|step| step.apply(&data));
                case.check(&data, &before);
            },
        );
    }
}

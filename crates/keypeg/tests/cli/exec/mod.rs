//! `keypeg exec` and the processes that it runs, in each of the ways in which people start it.
//!
//! Each test is one thing that can happen, and goes through all kinds of commands: a plain one, a
//! shell with children, one on a terminal, one whose caller ignores signals, and exec as process 1.
//! Once, the processes of a command could outlive the lease and use a key that others held.

mod cookbook;
mod options;
mod secrets;
mod stops;

use crate::support::late::unless_late;
use crate::support::proxy::Proxy;
use crate::support::tokens::Tokens;
use crate::support::{Server, TempDir, binary, eventually, skipped};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How exec is started, and what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One process, stdin is not a terminal.
    Plain,
    /// A shell with two children, of which one ignores SIGTERM and one has left the process group.
    Children,
    /// On a terminal.
    Terminal,
    /// By a caller that ignores SIGHUP and SIGINT, as `nohup` in the background.
    Ignoring,
    /// As process 1 of a pid namespace, as in a container.
    Init,
}

const KINDS: [Kind; 5] = [Kind::Plain, Kind::Children, Kind::Terminal, Kind::Ignoring, Kind::Init];

/// A part of the time that a renewal has in the tests whose lease is short.
const LATE: Duration = Duration::from_millis(100);

/// Checks all kinds at once, because they spend their time waiting.
fn each_kind_unless_late(check: impl Fn(Kind) + Sync) {
    std::thread::scope(|scope| {
        for kind in KINDS {
            let check = &check;
            scope.spawn(move || unless_late(LATE, || check(kind)));
        }
    });
}

/// Writes each signal that it gets; ends with 43 at SIGTERM.
const PROBE: &str = r#"
for signal in INT HUP QUIT USR1 USR2; do trap "echo $signal >>\"$LOG\"" $signal; done
trap 'echo TERM >>"$LOG"; exit 43' TERM
if [ "$CHILDREN" ]; then
    (trap '' TERM INT HUP QUIT USR1 USR2; exec sleep 1000) &
    setsid sleep 1001 &
fi
echo ready >>"$LOG"
while :; do sleep 0.02; done
"#;

/// The command line of exec, for a shell.
const LINE: &str = r#"exec "$KEYPEG" exec --pool ci --grace 1s $MORE -- /bin/sh -c "$PROBE""#;

/// A running exec.
struct Run {
    process: Child,
    exec: Pid,
    dir: TempDir,
    kind: Kind,
}

impl Run {
    /// Starts exec and waits until its command runs; `None` if this kind does not work here.
    fn start(kind: Kind, url: &str, more: &str) -> Option<Self> {
        let mut run = Self::spawn(kind, url, more, PROBE)?;
        eventually("the command runs", || {
            assert!(run.process.try_wait().unwrap().is_none(), "{kind:?}: {}", run.output());
            (run.count("ready") == 1).then_some(())
        });
        let probe =
            run.processes().into_iter().find(|(_, line)| line.starts_with("/bin/sh\0-c\0\nfor"));
        run.exec = parent_of(probe.expect("the probe runs").0);
        Some(run)
    }

    /// Starts exec with a script as its command; `None` if this kind does not work here.
    fn spawn(kind: Kind, url: &str, more: &str, script: &str) -> Option<Self> {
        let dir = TempDir::new();
        let mut command = match kind {
            Kind::Plain | Kind::Children => words(&["/bin/sh", "-c", LINE]),
            Kind::Ignoring => words(&["/bin/sh", "-c", &format!("trap '' HUP INT; {LINE}")]),
            Kind::Terminal => words(&["script", "-qefc", LINE, "/dev/null"]),
            Kind::Init => {
                words(&["unshare", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c", LINE])
            }
        };
        if !is_available(kind) {
            return None;
        }
        let output = File::create(dir.path().join("output")).unwrap();
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("KEYPEG", binary())
            .env("KEYPEG_SERVER", url)
            .env("LOG", dir.path().join("log"))
            .env("PROBE", script)
            .env("MORE", more)
            .env("CHILDREN", if kind == Kind::Children { "yes" } else { "" })
            .stdin(if kind == Kind::Terminal { Stdio::piped() } else { Stdio::null() })
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0);
        let process = command.spawn().unwrap();
        Some(Self { exec: Pid::from_child(&process), process, dir, kind })
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join("output")).unwrap()).into()
    }

    /// Counts the lines of the probe's log with this word.
    fn count(&self, word: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| *line == word).count()
    }

    /// Returns the processes with the environment of this run, and their command lines.
    fn processes(&self) -> Vec<(i32, String)> {
        let mark = format!("LOG={}\0", self.dir.path().join("log").display());
        let read = |pid: i32, file: &str| {
            String::from_utf8_lossy(
                &std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default(),
            )
            .into_owned()
        };
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let own = pids.filter(|pid| read(*pid, "environ").contains(&mark));
        own.map(|pid| (pid, read(pid, "cmdline"))).collect()
    }

    /// Returns whether exec is stopped.
    fn is_stopped(&self) -> bool {
        let path = format!("/proc/{}/stat", self.exec.as_raw_pid());
        std::fs::read_to_string(path).is_ok_and(|stat| stat.contains(") T "))
    }

    fn send(&self, signal: Signal) {
        kill_process(self.exec, signal).unwrap();
    }

    /// Sends SIGINT as a terminal does.
    fn press_ctrl_c(&mut self) {
        match self.kind {
            Kind::Terminal => self.process.stdin.as_ref().unwrap().write_all(b"\x03").unwrap(),
            Kind::Plain | Kind::Children | Kind::Ignoring => {
                kill_process_group(Pid::from_child(&self.process), Signal::INT).unwrap();
            }
            Kind::Init => self.send(Signal::INT),
        }
    }

    /// Waits for the end of exec; returns its exit code as a shell shows it.
    fn code(&mut self) -> i32 {
        let status = eventually("exec ends", || self.process.try_wait().unwrap());
        status.code().or_else(|| Some(128 + status.signal()?)).unwrap()
    }

    /// Asserts that exec ends with this code and leaves no process behind.
    #[track_caller]
    fn ends(&mut self, code: i32, says: &str) {
        let (found, kind) = (self.code(), self.kind);
        let output = self.output();
        let left = self.processes();
        assert_eq!(found, code, "{kind:?}: {output}");
        assert!(output.contains(says), "{kind:?}: {output}");
        assert!(left.is_empty(), "{kind:?}: {left:?}");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// Returns a command that ignores no signal, also where the caller of the tests does: a job in the
/// background of a shell ignores SIGINT, and no shell can trap an ignored signal.
fn words(words: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal").args(words);
    command
}

fn parent_of(pid: i32) -> Pid {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    Pid::from_raw(line.parse().unwrap()).unwrap()
}

fn is_available(kind: Kind) -> bool {
    let check = match kind {
        Kind::Plain | Kind::Children | Kind::Ignoring => return true,
        Kind::Terminal => {
            words(&["script", "-qefc", "true", "/dev/null"]).stdin(Stdio::null()).output()
        }
        Kind::Init => words(&["unshare", "--pid", "--fork", "--mount-proc", "true"]).output(),
    };
    let works = check.is_ok_and(|output| output.status.success());
    if !works {
        skipped("cli::exec", &format!("{kind:?}: script or unshare does not work here"));
    }
    works
}

/// A server with one key in `ci`, whose leases last as long as given.
fn server(args: &[&str], lease_s: f64) -> Server {
    let server = Server::in_memory(args);
    prepare(&server, lease_s);
    server
}

fn prepare(server: &Server, lease_s: f64) {
    let policy = json!({ "lease_ttl_seconds": lease_s, "max_hold_seconds": 3600 });
    server.client().send("PUT /v1/pools/ci", &policy).is(201, &json!({}));
    server.client().send("POST /v1/pools/ci/keys", &json!({})).is(201, &json!({}));
}

fn url(server: &Server) -> String {
    format!("http://{}", server.addr())
}

fn key(server: &Server) -> Value {
    server.client().ask("GET /v1/pools/ci/keys").json()["keys"][0].clone()
}

/// Waits until the lease of the only key was renewed `times` more times.
fn renewed(server: &Server, times: usize) {
    for _ in 0..times {
        let before = key(server)["lease"]["expires_at"].clone();
        eventually("a renewal", || {
            let lease = &key(server)["lease"];
            assert_ne!(*lease, Value::Null, "the lease has ended");
            (lease["expires_at"] != before).then_some(())
        });
    }
}

#[test]
fn each_signal_reaches_the_command_once_and_the_exit_code_is_the_commands() {
    let server = server(&[], 60.0);
    for kind in KINDS {
        let Some(mut run) = Run::start(kind, &url(&server), "") else { continue };
        let is_ignored = kind == Kind::Ignoring;
        run.press_ctrl_c();
        run.send(Signal::USR1);
        eventually("USR1", || (run.count("USR1") == 1).then_some(()));
        if !is_ignored {
            eventually("INT by the terminal", || (run.count("INT") == 1).then_some(()));
        }
        run.send(Signal::INT);
        run.send(Signal::HUP);
        run.send(Signal::QUIT);
        run.send(Signal::USR2);
        eventually("USR2", || (run.count("USR2") == 1).then_some(()));
        eventually("QUIT", || (run.count("QUIT") == 1).then_some(()));
        if !is_ignored {
            eventually("INT by kill", || (run.count("INT") == 2).then_some(()));
            eventually("HUP", || (run.count("HUP") == 1).then_some(()));
        }
        run.send(Signal::TERM);
        run.ends(43, "");
        let counts = ["INT", "HUP", "TERM"].map(|signal| run.count(signal));
        assert_eq!(counts, if is_ignored { [0, 0, 1] } else { [2, 1, 1] }, "{kind:?}");
        assert_eq!(key(&server)["state"], "available", "{kind:?}");
    }
}

#[test]
fn a_command_ends_with_all_its_processes_when_exec_is_killed() {
    let server = server(&[], 60.0);
    for kind in KINDS {
        let Some(mut run) = Run::start(kind, &url(&server), "") else { continue };
        run.send(Signal::KILL);
        // unshare reports the end of process 1 by SIGKILL in its own way.
        let code = run.code();
        assert!(code == 128 + 9 || kind == Kind::Init && code != 0, "{kind:?}: {code}");
        eventually("all processes end", || run.processes().is_empty().then_some(()));
        let release =
            format!("POST /v1/pools/ci/keys/{}/release", key(&server)["id"].as_str().unwrap());
        server.client().ask(&release).is(200, &json!({ "released": true }));
    }
}

#[test]
fn a_command_ends_with_all_its_processes_when_the_lease_is_lost() {
    let server = server(&[], 3600.0);
    for kind in KINDS {
        let Some(mut run) = Run::start(kind, &url(&server), "") else { continue };
        let id = key(&server)["id"].clone();
        let release = format!("POST /v1/pools/ci/keys/{}/release", id.as_str().unwrap());
        server.client().ask(&release).is(200, &json!({ "released": true }));
        run.ends(75, "another client released it");
    }
}

#[test]
fn a_command_ends_with_all_its_processes_when_the_key_is_deleted() {
    let server = server(&[], 3600.0);
    for kind in KINDS {
        let Some(mut run) = Run::start(kind, &url(&server), "") else { continue };
        let id = key(&server)["id"].clone();
        server.client().ask(&format!("DELETE /v1/pools/ci/keys/{}", id.as_str().unwrap()));
        run.ends(75, "the lease has ended");
        server.client().send("POST /v1/pools/ci/keys", &json!({})).is(201, &json!({}));
    }
}

#[test]
fn a_command_ends_with_all_its_processes_before_its_lease_when_the_server_is_gone() {
    each_kind_unless_late(|kind| {
        let mut server = server(&[], 4.0);
        let Some(mut run) = Run::start(kind, &url(&server), "") else { return };
        server.kill();
        run.ends(75, "cannot be reached: ");
    });
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::*;

    #[test]
    fn a_command_continues_when_the_server_restarts() {
        each_kind_unless_late(|kind| {
            let dir = TempDir::new();
            let mut server = Server::on(&dir, &[]);
            // Half of it can pass before a renewal, and the rest is for the restart, whose syncs
            // take seconds on a busy disk.
            prepare(&server, 40.0);
            let proxy = Proxy::to(server.addr());
            let Some(mut run) = Run::start(kind, &proxy.url(), "") else { return };
            proxy.remove_server();
            server.terminate();
            let server = Server::on(&dir, &[]);
            proxy.replace_server(server.addr());
            renewed(&server, 2);
            run.send(Signal::TERM);
            run.ends(43, "");
            assert_eq!(key(&server)["state"], "available", "{kind:?}");
        });
    }
}

#[test]
fn a_command_continues_when_its_token_is_replaced() {
    each_kind_unless_late(|kind| {
        let tokens = Tokens::new();
        let [first, second] =
            ["first", "second"].map(|name| tokens.add(name, "*", &["admin", "read", "lend"], &[]));
        let watcher = tokens.add("watcher", "*", &["admin"], &[]);
        let server = Server::in_memory(&tokens.args().each_ref().map(String::as_str));
        let bearer = [("authorization", &*format!("Bearer {watcher}"))];
        let ask = |request: &str, body: &str| {
            let json_type = ("content-type", "application/json");
            let headers = [bearer[0], json_type];
            server.client().try_send(request, &headers, body).unwrap()
        };
        let policy = json!({ "lease_ttl_seconds": 5, "max_hold_seconds": 3600 }).to_string();
        assert_eq!(ask("PUT /v1/pools/ci", &policy).status, 201);
        assert_eq!(ask("POST /v1/pools/ci/keys", "{}").status, 201);
        let file: PathBuf = tokens.path().with_file_name("token");
        let write = |token: &str| {
            std::fs::write(&file, token).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&file, mode).unwrap();
        };
        write(&first);
        let more = format!("--token-file {}", file.display());
        let Some(mut run) = Run::start(kind, &url(&server), &more) else { return };
        write(&second);
        tokens.revoke("first");
        let end =
            || ask("GET /v1/pools/ci/keys", "").json()["keys"][0]["lease"]["expires_at"].clone();
        for _ in 0..3 {
            let before = end();
            eventually("a renewal", || (end() != before).then_some(()));
        }
        assert_ne!(end(), Value::Null, "{kind:?}");
        // Without a new token the lease ends, and the message names the cause.
        tokens.revoke("second");
        run.ends(75, "status 401");
        assert!(run.output().contains("unauthorized"), "{kind:?}: {}", run.output());
    });
}

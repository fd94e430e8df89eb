//! The server under a supervisor such as systemd: what it reports over the socket of
//! `sd_notify(3)`, when it reports it, and the credentials that it reads.

use crate::support::tokens::Tokens;
use crate::support::volume::Volume;
use crate::support::{Server, TempDir, eventually, exit_of, keypeg, skipped};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The supervisor's end of the socket.
struct Supervisor {
    dir: TempDir,
    socket: UnixDatagram,
}

impl Supervisor {
    fn new() -> Self {
        let dir = TempDir::new();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        Self { dir, socket }
    }

    /// Starts a server that reports here. Variables: name and value.
    fn start(&self, args: &[&str], env: &[(&str, &str)]) -> Server {
        let mut command = keypeg(args);
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        command.envs(env.iter().copied());
        Server::logged(&mut command, &self.dir.path().join("log"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Returns the next message, as its lines.
    fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4_096];
        let length = loop {
            match self.socket.recv(&mut bytes) {
                // A stop of this process interrupts the call.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.expect("a message"),
            }
        };
        String::from_utf8(bytes[..length].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Returns whether a message arrives within this time.
    fn hears_within(&self, time: Duration) -> bool {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let heard = self.socket.recv(&mut [0; 4_096]);
        self.socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let is_silence = |error: &std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            )
        };
        assert!(heard.is_ok() || heard.as_ref().is_err_and(is_silence), "{heard:?}");
        heard.is_ok()
    }
}

#[test]
fn a_server_is_ready_once_it_has_recovered_and_listens() {
    let supervisor = Supervisor::new();
    let data = supervisor.dir.path().join("data");
    let mut server = supervisor.start(&["--data", data.to_str().unwrap()], &[]);
    assert_eq!(supervisor.next(), ["STATUS=recovering the data directory"]);
    let ready = supervisor.next();
    assert_eq!(ready[0], "READY=1");
    assert_eq!(ready[1], format!("STATUS={}", server.ready()));
    TcpStream::connect(server.addr()).unwrap();
    server.terminate();
    let stopping = supervisor.next();
    assert_eq!(stopping[0], "STOPPING=1");
    assert!(stopping[1].starts_with("STATUS=stopping"), "{stopping:?}");
    assert!(!supervisor.hears_within(Duration::from_millis(1)));
}

/// What needs a store that keeps its data: see CONTRIBUTING.md.
mod durability {
    use super::*;

    #[test]
    fn a_server_that_does_not_start_is_never_ready() {
        let supervisor = Supervisor::new();
        let data = supervisor.dir.path().join("missing");
        let mut command = keypeg(&["--existing", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(&data).env("NOTIFY_SOCKET", supervisor.dir.path().join("notify"));
        let (code, said) = exit_of(&mut command);
        assert_eq!(code, 66, "{said}");
        // What a process has sent is in the queue of the socket when the process has ended.
        assert_eq!(supervisor.next(), ["STATUS=recovering the data directory"]);
        assert!(!supervisor.hears_within(Duration::from_millis(1)));
    }

    /// The engine's thread, or a single HTTP thread, hangs in a write to a frozen file system. All other
    /// threads run, and `/livez` answers.
    #[test]
    fn a_server_whose_engine_hangs_reports_nothing_until_the_engine_answers() {
        for threads in ["1", "2"] {
            a_server_whose_engine_hangs_reports_nothing(threads);
        }
    }

    fn a_server_whose_engine_hangs_reports_nothing(threads: &str) {
        const NAME: &str = "a_server_whose_engine_hangs_reports_nothing_until_the_engine_answers";
        let supervisor = Supervisor::new();
        let volume = match Volume::new(200) {
            Ok(volume) => volume,
            Err(why) => return skipped(NAME, &why),
        };
        let data = volume.path().join("data");
        let args = ["--data", data.to_str().unwrap(), "--http-threads", threads];
        let server = supervisor.start(&args, &[("WATCHDOG_USEC", "60000")]);
        while supervisor.next()[0] != "READY=1" {}
        assert_eq!(supervisor.next(), ["WATCHDOG=1"]);
        let Some(frozen) = Frozen::new(volume.path()) else {
            return skipped(NAME, "fsfreeze does not work here");
        };
        let addr = server.addr();
        let change = std::thread::spawn(move || {
            crate::support::Client::new(addr).ask("POST /v1/pools/default/keys").status
        });
        // Answers that were on their way may still count.
        eventually("the engine hangs", || {
            (!supervisor.hears_within(Duration::from_millis(500))).then_some(())
        });
        server.client().ask("GET /livez").is(200, &json!({}));
        assert!(!change.is_finished() && !supervisor.hears_within(Duration::from_millis(500)));
        drop(frozen);
        assert_eq!(supervisor.next(), ["WATCHDOG=1"]);
        assert_eq!(change.join().unwrap(), 201);
    }
}

/// `systemctl reload` returns at the second READY=1, so the new tokens must apply by then.
#[test]
fn a_reload_ends_when_the_new_token_file_applies() {
    let supervisor = Supervisor::new();
    let tokens = Tokens::new();
    tokens.add("first", "*", &["admin"], &[]);
    let [flag, file] = tokens.args();
    let audit = supervisor.dir.path().join("audit.log");
    let args = ["--ephemeral", &flag, &file, "--audit", audit.to_str().unwrap()];
    let server = supervisor.start(&args, &[]);
    while supervisor.next()[0] != "READY=1" {}
    for round in 0..20 {
        let moved = supervisor.dir.path().join(format!("audit.{round}"));
        std::fs::rename(&audit, moved).unwrap();
        let token = tokens.add(&format!("t{round}"), "*", &["admin"], &[]);
        let before = monotonic_us();
        kill_process(server.pid(), Signal::HUP).unwrap();
        let reloading = supervisor.next();
        assert_eq!(reloading[0], "RELOADING=1", "{reloading:?}");
        let at = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse::<u64>().unwrap();
        assert!(before <= at && at <= monotonic_us(), "{reloading:?}");
        assert_eq!(supervisor.next(), ["READY=1"]);
        server.client().with(&token, "GET /v1/pools").is(200, &json!({}));
        assert!(audit.exists(), "the audit log is open again");
    }
}

#[expect(clippy::disallowed_methods, reason = "compared with what the server reports")]
fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000 + u64::try_from(time.tv_nsec).unwrap() / 1_000
}

#[test]
fn a_server_that_works_reports_so_and_only_where_the_supervisor_wants_it() {
    let supervisor = Supervisor::new();
    let _server = supervisor.start(&["--ephemeral"], &[("WATCHDOG_USEC", "30000")]);
    while supervisor.next()[0] != "READY=1" {}
    for _ in 0..10 {
        assert_eq!(supervisor.next(), ["WATCHDOG=1"]);
    }
    // The variables of another process, as a child of a service has them.
    let supervisor = Supervisor::new();
    let env = [("WATCHDOG_USEC", "30000"), ("WATCHDOG_PID", "1")];
    let _server = supervisor.start(&["--ephemeral"], &env);
    while supervisor.next()[0] != "READY=1" {}
    assert!(!supervisor.hears_within(Duration::from_millis(200)));
}

/// A file system on which every write hangs, until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(path: PathBuf) -> Option<Self> {
        let frozen = Command::new("fsfreeze").arg("--freeze").arg(&path).status();
        frozen.is_ok_and(|status| status.success()).then_some(Self(path))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).status();
    }
}

#[test]
fn a_socket_that_nothing_reads_changes_nothing() {
    for socket in ["/proc/nowhere/notify", "@keypeg-test-nothing-listens", "relative"] {
        let supervisor = Supervisor::new();
        let env = [("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "3000")];
        let mut server = supervisor.start(&["--ephemeral"], &env);
        server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
        assert!(server.terminate().success());
        let log = supervisor.log();
        assert_eq!(log.matches("cannot send a message to the supervisor").count(), 1, "{log}");
    }
    // A socket whose queue is full blocks no thread but the one that sends.
    let supervisor = Supervisor::new();
    let mut server = supervisor.start(&["--ephemeral"], &[("WATCHDOG_USEC", "3000")]);
    for _ in 0..200 {
        kill_process(server.pid(), Signal::HUP).unwrap();
        server.client().ask("GET /livez").is(200, &json!({}));
    }
    server.client().ask("POST /v1/pools/default/keys").is(201, &json!({}));
    assert!(server.terminate().success());
}

#[test]
fn the_credential_with_tokens_applies_unless_an_option_names_a_file() {
    let tokens = Tokens::new();
    let token = tokens.add("ci", "*", &["admin"], &[]);
    let credentials = TempDir::new();
    let env = [("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())];
    // Without a credential of this name there are no tokens.
    let server = Server::given(&["--ephemeral"], &env);
    server.client().ask("GET /v1/pools").is(200, &json!({}));
    std::fs::copy(&tokens.args()[1], credentials.path().join("tokens")).unwrap();
    let server = Server::given(&["--ephemeral"], &env);
    server.client().ask("GET /v1/pools").problem(401, "unauthorized");
    server.client().with(&token, "GET /v1/pools").is(200, &json!({}));
    let other = Tokens::new();
    let other_token = other.add("other", "*", &["admin"], &[]);
    let [flag, file] = other.args();
    let server = Server::given(&["--ephemeral", &flag, &file], &env);
    server.client().with(&token, "GET /v1/pools").problem(401, "unauthorized");
    server.client().with(&other_token, "GET /v1/pools").is(200, &json!({}));
}

/// A server that ignored the credential would serve every client without a token.
#[test]
fn a_credential_that_is_not_a_token_file_ends_the_start() {
    let credentials = TempDir::new();
    let env = ("CREDENTIALS_DIRECTORY", credentials.path());
    let path = credentials.path().join("tokens");
    let check = || {
        let mut command = keypeg(&["--ephemeral", "--listen", "127.0.0.1:0"]);
        let (code, said) = exit_of(command.env(env.0, env.1));
        assert_ne!(code, 0, "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    };
    std::fs::write(&path, "").unwrap();
    check();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    check();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    check();
}

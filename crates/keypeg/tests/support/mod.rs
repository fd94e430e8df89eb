//! What the tests share: the real binary on a directory and port of its own, and a small HTTP
//! client that shows what came, byte for byte.

mod http;
pub(crate) mod story;
pub(crate) mod tokens;
pub(crate) mod volume;

pub(crate) use http::{Answer, Client};

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How long anything awaited may take before the test gives up.
const PATIENCE: Duration = Duration::from_mins(1);

/// A directory of the test's own, removed with it.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("keypeg-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    addr: SocketAddr,
    ready: String,
}

impl Server {
    /// Starts one in memory, with more arguments.
    pub(crate) fn in_memory(args: &[&str]) -> Self {
        Self::run(keypeg(args).arg("--ephemeral"))
    }

    /// Starts one on a directory, with more arguments.
    pub(crate) fn on(dir: &TempDir, args: &[&str]) -> Self {
        Self::run(keypeg(args).arg("--data").arg(dir.path().join("data")))
    }

    /// Starts one with what is given and nothing else.
    pub(crate) fn given(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::run(keypeg(args).envs(env.iter().copied()))
    }

    fn run(command: &mut Command) -> Self {
        Self::start(command, Stdio::null())
            .unwrap_or_else(|(_, said)| panic!("not a ready line: {said:?}"))
    }

    /// Starts one whose log goes to a file. `command` is a `serve`, whatever it is run under.
    pub(crate) fn logged(command: &mut Command, log: &Path) -> Self {
        Self::try_logged(command, log)
            .unwrap_or_else(|status| panic!("{status}: {}", std::fs::read_to_string(log).unwrap()))
    }

    /// The same for one that may end before it is ready; then how it ended.
    pub(crate) fn try_logged(command: &mut Command, log: &Path) -> Result<Self, ExitStatus> {
        let log = File::options().create(true).append(true).open(log).unwrap();
        Self::start(command, log.into()).map_err(|(status, _)| status)
    }

    fn start(command: &mut Command, log: Stdio) -> Result<Self, (ExitStatus, String)> {
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let addr =
            ready.split_once("http://").and_then(|(_, rest)| rest.split_once(": ")?.0.parse().ok());
        let Some(addr) = addr else { return Err((process.wait().unwrap(), ready)) };
        Ok(Self { process, addr, ready: ready.trim_end().into() })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The one line it says when it is ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// SIGKILL: the process has no say in it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The process that was started: the server, or what it is run under.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// How it ended, once it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.process.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The binary: the one built with the tests, or the one that `KEYPEG_BINARY` names.
pub(crate) fn binary() -> OsString {
    std::env::var_os("KEYPEG_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_keypeg").into())
}

/// The binary's `serve`, without anything from the environment.
pub(crate) fn keypeg(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("serve").args(args).env_clear();
    command
}

/// The same, run by another program: what comes before the binary on the command line.
pub(crate) fn keypeg_under(words: &[&str], args: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(binary()).arg("serve").args(args).env_clear();
    command
}

/// Says, past the capture of libtest, that a test could not run here; `./test` counts such lines.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\nskipped test: {test}: {why}");
}

/// Runs a command that ends by itself; its exit code and what it said on stderr.
pub(crate) fn exit_of(command: &mut Command) -> (i32, String) {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (process.wait().unwrap().code().expect("ended by itself"), said)
}

/// Runs a command that should end by itself, and ends it where it does not: its exit code, what it
/// said on stdout, and on stderr.
pub(crate) fn exit_within(command: &mut Command) -> (Option<i32>, String, String) {
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = pipes.spawn().unwrap();
    let pid = Pid::from_child(&process);
    let (done, over) = std::sync::mpsc::sync_channel::<()>(1);
    let watch = std::thread::spawn(move || {
        if over.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let output = process.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Asks again and again until there is something.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        pause(Duration::from_millis(2));
    }
}

/// The clock of the clients.
#[expect(clippy::disallowed_methods, reason = "what clients measure is the point of the tests")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Lets time pass where nothing can be waited for: between questions, before a kill.
#[expect(clippy::disallowed_methods, reason = "polling, and kills at random moments")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

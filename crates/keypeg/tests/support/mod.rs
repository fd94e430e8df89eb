//! What the tests share: the real binary on a directory and port of its own, and a small HTTP
//! client that shows what came, byte for byte.

mod http;

pub(crate) use http::{Answer, Client};

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
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
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let addr = ready
            .split_once("http://")
            .and_then(|(_, rest)| rest.split_once(": ")?.0.parse().ok())
            .unwrap_or_else(|| panic!("not a ready line: {ready:?}"));
        Self { process, addr, ready: ready.trim_end().into() }
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

/// The binary's `serve`, without anything from the environment.
pub(crate) fn keypeg(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keypeg"));
    command.arg("serve").args(args).env_clear();
    command
}

/// Runs a command that ends by itself; its exit code and what it said on stderr.
pub(crate) fn exit_of(command: &mut Command) -> (i32, String) {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (process.wait().unwrap().code().expect("ended by itself"), said)
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

//! Shared test support: starting and stopping the real binary, and waiting.
//!
//! Each server has its own directory and a port that no other program gets while its test runs, also
//! after the server was killed, and ends with its test. The HTTP client is in
//! `http`, the checked history of clients under load in `history`.

pub(crate) mod certificates;
pub(crate) mod history;
mod http;
pub(crate) mod late;
#[cfg(feature = "cli")]
pub(crate) mod proxy;
mod sockets;
pub(crate) mod stderr;
#[cfg(feature = "cli")]
pub(crate) mod terminal;
pub(crate) mod tokens;
pub(crate) mod volume;

pub(crate) use http::{Answer, Client, read_answer, small_socket_from, socket_from};
pub(crate) use keypeg_testkit::TempDir;
pub(crate) use sockets::{has_read, reserve_port};

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// The longest time to wait for an event before the test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    addr: SocketAddr,
    ready: String,
    _port: OwnedFd,
}

impl Server {
    /// Starts a server in memory, with these further arguments.
    pub(crate) fn in_memory(args: &[&str]) -> Self {
        Self::run(keypeg(args).arg("--ephemeral"))
    }

    /// Starts a server on a directory, with these further arguments.
    pub(crate) fn on(dir: &TempDir, args: &[&str]) -> Self {
        Self::run(keypeg(args).arg("--data").arg(dir.path().join("data")))
    }

    /// Starts a server with these arguments and environment variables.
    pub(crate) fn given(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::run(keypeg(args).envs(env.iter().copied()))
    }

    fn run(command: &mut Command) -> Self {
        Self::start(command, Stdio::null())
            .unwrap_or_else(|(_, line)| panic!("not a ready line: {line:?}"))
    }

    /// Starts a server whose log goes to a file. `command` is a `serve`, possibly run by another
    /// program.
    pub(crate) fn logged(command: &mut Command, log: &Path) -> Self {
        Self::try_logged(command, log)
            .unwrap_or_else(|status| panic!("{status}: {}", std::fs::read_to_string(log).unwrap()))
    }

    /// Like [`Self::logged`], for a server that may end before it is ready; then returns its
    /// status.
    pub(crate) fn try_logged(command: &mut Command, log: &Path) -> Result<Self, ExitStatus> {
        let log = File::options().create(true).append(true).open(log).unwrap();
        Self::start(command, log.into()).map_err(|(status, _)| status)
    }

    /// Starts a server whose stderr is `stderr`.
    pub(crate) fn with_stderr(command: &mut Command, stderr: Stdio) -> Self {
        Self::start(command, stderr)
            .unwrap_or_else(|(status, line)| panic!("{status}: not a ready line: {line:?}"))
    }

    fn start(command: &mut Command, log: Stdio) -> Result<Self, (ExitStatus, String)> {
        let (port, reserved) = reserve_port();
        let listen = format!("--listen={reserved}");
        command.arg(listen).stdout(Stdio::piped()).stderr(log);
        let mut process = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let addr =
            ready.split_once("://").and_then(|(_, rest)| rest.split_once(": ")?.0.parse().ok());
        let Some(addr) = addr else { return Err((process.wait().unwrap(), ready)) };
        Ok(Self { process, addr, ready: ready.trim_end().into(), _port: port })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the line that the server prints when it is ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.addr)
    }

    /// Sends SIGKILL, which the process cannot handle.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Returns the started process: the server, or the program that runs it.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Returns the exit status if the server has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Sends SIGTERM, waits for the end and returns the exit status.
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

/// The variable with which a server that a test expects to be refused does not listen on the default
/// port, which another test may use at that moment.
pub(crate) const ANY_PORT: (&str, &str) = ("KEYPEG_LISTEN", "127.0.0.1:0");

/// Returns the binary: the one built with the tests, or the one that `KEYPEG_BINARY` names.
pub(crate) fn binary() -> OsString {
    std::env::var_os("KEYPEG_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_keypeg").into())
}

/// Returns the threads for HTTP of each server: two, also on a machine with two processors, so that the
/// tests find what differs between threads; or the number in `KEYPEG_TEST_HTTP_THREADS`. A single
/// thread for HTTP also runs turns of the engine.
pub(crate) fn http_threads() -> usize {
    let threads = keypeg_testkit::env_number("KEYPEG_TEST_HTTP_THREADS");
    threads.map_or(2, |threads| usize::try_from(threads).unwrap())
}

/// Returns the cores of a server with a data directory or in memory: its threads for HTTP, and the
/// reserve of a single one.
pub(crate) fn cores() -> usize {
    http_threads() + usize::from(http_threads() == 1)
}

fn with_variables(command: &mut Command) {
    let variables = [ANY_PORT, ("KEYPEG_HTTP_THREADS", &http_threads().to_string())];
    command.env_clear().envs(variables);
}

/// Returns the command `keypeg serve` with an environment that has only [`ANY_PORT`] and the number of
/// [`http_threads`].
pub(crate) fn keypeg(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("serve").args(args);
    with_variables(&mut command);
    command
}

/// Like [`keypeg`], run by another program: `words` stand before the binary on the command line.
pub(crate) fn keypeg_under(words: &[&str], args: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(binary()).arg("serve").args(args);
    with_variables(&mut command);
    command
}

/// Reports that a test could not run here. It bypasses libtest's capture; `./test` counts such
/// lines.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\nskipped test: {test}: {why}");
}

/// Like [`exit_within`], of a command that must end by itself; returns its exit code and its stderr.
pub(crate) fn exit_of(command: &mut Command) -> (i32, String) {
    let (code, _, stderr) = exit_within(command);
    (code.unwrap_or_else(|| panic!("{command:?} was killed: {stderr}")), stderr)
}

/// Runs a command that should end by itself, and kills it after [`PATIENCE`]; returns its exit
/// code, its stdout and its stderr.
pub(crate) fn exit_within(command: &mut Command) -> (Option<i32>, String, String) {
    let pipes = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = pipes.spawn().unwrap();
    let pid = Pid::from_child(&process);
    let (done, finished) = std::sync::mpsc::sync_channel::<()>(1);
    let watch = std::thread::spawn(move || {
        if finished.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let output = process.wait_with_output().unwrap();
    drop(done);
    watch.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Calls `poll` until it returns a value; fails after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        pause(Duration::from_millis(2));
    }
}

/// Reads the clock that the clients measure with.
#[expect(clippy::disallowed_methods, reason = "the tests check what clients measure")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sleeps where no event can be waited for: between two polls, before a kill.
#[expect(clippy::disallowed_methods, reason = "polling, and kills at random moments")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

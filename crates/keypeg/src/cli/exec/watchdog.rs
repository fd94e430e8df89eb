//! The process that ends the command if `exec` cannot: `keypeg exec-watchdog`, an internal command.
//!
//! It reads a pipe from `exec`, and says once that it knows the end of the lease. When the pipe closes
//! without a farewell, `exec` was killed; when the lease ends and no line has extended it, `exec` is
//! stopped or does not run. In both cases the process group of the command ends, and all processes
//! whose environment names this lease, because those that have left the group are no children of
//! `exec` any more. Each end is an instant of the monotonic clock, so a line that is read late moves
//! no end. Knows no server, and no value of a key.

use super::processes::{OWN_PROGRAM, with_environment};
use crate::clock::monotonic_us;
use crate::failure::{Failure, exit};
use crate::variables;
use clap::Args;
use keypeg_client::Grant;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// The line after which the watchdog is no longer needed.
const FAREWELL: &str = "done";
/// What the watchdog writes on stdout once it knows the end of the lease.
const READY: &[u8] = b"ready\n";
/// The time between two looks for processes that have started while others were killed.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long processes may still exist after SIGKILL, for example while they wait for a disk.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// The arguments of the watchdog.
#[derive(Debug, Args)]
pub struct WatchdogArgs {
    /// Process group of the command
    #[arg(long)]
    group: i32,
    /// Time between SIGTERM and SIGKILL, in milliseconds
    #[arg(long)]
    grace_ms: u64,
    /// Id of the key
    #[arg(long)]
    key_id: String,
    /// Fencing token of the lease
    #[arg(long)]
    fencing_token: u64,
}

/// What a watchdog ends: a process group, and the processes with these variables.
#[derive(Debug)]
struct Target {
    group: Pid,
    variables: [String; 2],
}

impl Target {
    /// Sends a signal to all processes; returns whether there were any outside the group.
    fn signal(&self, signal: Signal) -> bool {
        // Fails if no process of the group is left.
        let _ = kill_process_group(self.group, signal);
        let others = with_environment(&self.variables, self.group);
        for process in &others {
            let _ = pidfd_send_signal(process, signal);
        }
        !others.is_empty()
    }

    /// Kills all processes, also those that are started meanwhile.
    async fn kill(&self) {
        let until = Instant::now() + KILL_PATIENCE;
        while self.signal(Signal::KILL) && Instant::now() < until {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// The side of `exec`.
#[derive(Debug)]
pub(super) struct Watchdog {
    pub(super) pid: Option<Pid>,
    pipe: Option<File>,
    /// The watchdog's stdout, until it was ready.
    output: Option<ChildStdout>,
}

impl Watchdog {
    /// Starts a watchdog of a process group and of the processes that know this lease.
    pub(super) fn start(group: Pid, grace: Duration, grant: &Grant) -> io::Result<Self> {
        let mut command = Command::new(OWN_PROGRAM);
        command
            .args(["exec-watchdog", "--group", &group.as_raw_pid().to_string()])
            .args(["--grace-ms", &grace.as_millis().to_string()])
            .arg(format!("--key-id={}", grant.key_id))
            .arg(format!("--fencing-token={}", grant.fencing_token))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Signals of a terminal are for the command.
            .process_group(0);
        let mut process = command.spawn()?;
        let pid = Some(Pid::from_child(&process));
        let pipe = process.stdin.take().map(OwnedFd::from);
        if let Some(pipe) = &pipe {
            // A watchdog that is stopped must not block exec.
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { pid, pipe: pipe.map(File::from), output: process.stdout.take() })
    }

    /// Waits until the watchdog knows the end that was reported to it first.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        let Some(output) = self.output.take() else { return Ok(()) };
        let mut output = pipe::Receiver::from_owned_fd(output.into())?;
        match output.read_exact(&mut [0; READY.len()]).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(io::Error::other("it has ended"))
            }
            Err(error) => Err(error),
        }
    }

    /// Reports how long the lease still lasts.
    pub(super) fn extend(&mut self, remaining: Duration) {
        let remaining = u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX);
        self.write(&monotonic_us().saturating_add(remaining).to_string());
    }

    /// Reports that the command has ended.
    pub(super) fn finish(&mut self) {
        self.write(FAREWELL);
        self.pipe = None;
    }

    fn write(&mut self, line: &str) {
        // Fails if the watchdog was killed; exec controls the command without it.
        if let Some(pipe) = &mut self.pipe {
            let _ = pipe.write_all(format!("{line}\n").as_bytes());
        }
    }
}

impl WatchdogArgs {
    /// Watches until the command or `exec` has ended.
    pub(crate) async fn watch(self) -> Result<u8, Failure> {
        let failed = |error| Failure::new(exit::OS, format!("cannot read stdin: {error}"));
        let pipe = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
        let pipe = pipe::Receiver::from_owned_fd(pipe).map_err(failed)?;
        let group = Pid::from_raw(self.group).ok_or_else(|| {
            Failure::new(exit::USAGE, "--group must be the id of a process group")
        })?;
        let variables = [
            format!("{}={}", variables::KEY_ID, self.key_id),
            format!("{}={}", variables::FENCING_TOKEN, self.fencing_token),
        ];
        let target = Target { group, variables };
        let mut lines = BufReader::new(pipe).lines();
        let mut end: Option<Instant> = None;
        let mut is_ready = false;
        loop {
            let line = match end {
                Some(end) => timeout_at(end, lines.next_line()).await,
                None => Ok(lines.next_line().await),
            };
            match line {
                Ok(Ok(Some(line))) if line == FAREWELL => return Ok(0),
                Ok(Ok(Some(line))) => {
                    end = line.parse().ok().map(from_monotonic_us);
                    if !is_ready {
                        // Fails if exec was killed, which the pipe shows.
                        let _ = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
                        is_ready = true;
                    }
                }
                // exec was killed: the command may still clean up.
                Ok(Ok(None) | Err(_)) => {
                    target.signal(Signal::TERM);
                    target.signal(Signal::CONT);
                    let grace = Instant::now() + Duration::from_millis(self.grace_ms);
                    sleep_until(end.map_or(grace, |end| end.min(grace))).await;
                    break;
                }
                // exec does not run, and another client may get the key now.
                Err(_) => break,
            }
        }
        target.kill().await;
        Ok(0)
    }
}

/// Converts an instant of the monotonic clock, in microseconds.
fn from_monotonic_us(end_us: u64) -> Instant {
    Instant::now() + Duration::from_micros(end_us.saturating_sub(monotonic_us()))
}

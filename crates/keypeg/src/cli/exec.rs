//! `keypeg exec`: runs a command under a lease.
//!
//! The command never outlives its lease. When the lease ends, by the pool's maximum hold, by a
//! force-release or because the server does not answer for too long, the command is terminated.
//! This fails only if this process is killed with SIGKILL; then only the fencing token protects.

use crate::failure::{Failure, exit};
use keypeg_client::{AcquireRequest, Client, Code, Error, LeaseGuard};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::time::{sleep, timeout};

/// Time for the command between SIGTERM and SIGKILL.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);
/// The shortest pause after a failed keep-alive.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Exit code of a shell for a command that cannot be run.
const CANNOT_RUN: u8 = 126;
/// Exit code of a shell for a command that is not found.
const NOT_FOUND: u8 = 127;

/// Runs `command` with a key of `pool`, and returns the command's exit code.
pub(super) async fn run(
    client: &Client,
    pool: &str,
    request: &AcquireRequest,
    command: &[OsString],
) -> Result<u8, Failure> {
    let mut signals = Signals::new().map_err(|error| {
        Failure::new(exit::OS, format!("cannot install signal handlers: {error}"))
    })?;
    let acquired = async {
        Ok::<_, Error>((client.pool(pool).await?, client.acquire_guard(pool, request).await?))
    };
    let (pool_info, guard) = tokio::select! {
        acquired = acquired => acquired?,
        // No command runs yet that could receive the signal.
        (signal, _) = signals.next() => return Ok(code_of_signal(signal.as_raw())),
    };
    let max_hold = pool_info.max_hold_seconds.unwrap_or(pool_info.lease_ttl_seconds);
    let interval = pool_info.keepalive_every_seconds.map(|every| Duration::from_millis(every.ms));
    print_message(&format!(
        "a lease of this pool lasts {:?} at most; a command that runs longer is terminated",
        Duration::from_millis(max_hold.ms)
    ));
    let outcome = match start(&guard, command) {
        Ok(mut child) => {
            let key_gone = keep_alive(client, &guard, interval);
            supervise(&mut child, &mut signals, &guard, key_gone).await
        }
        Err(failure) => Err(failure),
    };
    match guard.release().await {
        Ok(()) => {}
        Err(error) if error.problem().is_some_and(|problem| problem.code == Code::LeaseEnded) => {}
        Err(error) => {
            print_message(&format!("cannot release the key: {error}; its lease will expire"));
        }
    }
    outcome
}

fn start(guard: &LeaseGuard, command: &[OsString]) -> Result<Child, Failure> {
    let (program, arguments) = command.split_first().expect("invariant: clap requires a command");
    let grant = guard.grant();
    let mut command = Command::new(program);
    command
        .args(arguments)
        // The command gets the key, not the access token of this program.
        .env_remove(super::server::TOKEN_VARIABLE)
        .env_remove(super::server::TOKEN_FILE_VARIABLE)
        .env("KEYPEG_KEY", &grant.key.0)
        .env("KEYPEG_KEY_ID", &grant.key_id)
        .env("KEYPEG_FENCING_TOKEN", grant.fencing_token.to_string());
    command.spawn().map_err(|error| {
        let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
        Failure::new(code, format!("cannot run {}: {error}", program.display()))
    })
}

/// Waits for the command to exit and forwards signals; terminates it when its lease ends.
async fn supervise(
    child: &mut Child,
    signals: &mut Signals,
    guard: &LeaseGuard,
    key_gone: impl Future<Output = ()>,
) -> Result<u8, Failure> {
    let lease_ended = async {
        tokio::select! {
            () = guard.ended() => {}
            () = key_gone => {}
        }
    };
    let mut lease_ended = std::pin::pin!(lease_ended);
    loop {
        tokio::select! {
            exited = child.wait() => {
                return exited.map(code_of_status).map_err(|error| wait_failure(&error));
            }
            (signal, is_terminal_signal) = signals.next() => {
                // A terminal sends its signals to the command as well.
                if !(is_terminal_signal && signals.has_terminal) {
                    send(child, signal);
                }
            }
            () = &mut lease_ended => break,
        }
    }
    print_message("the lease has ended: terminating the command");
    send(child, Signal::TERM);
    if timeout(TERMINATION_GRACE, child.wait()).await.is_err() {
        child.kill().await.map_err(|error| wait_failure(&error))?;
    }
    Err(Failure::new(exit::TEMPORARY, "the command was terminated because its lease ended"))
}

/// Keeps the key alive; ready when the key or its pool no longer exists.
async fn keep_alive(client: &Client, guard: &LeaseGuard, interval: Option<Duration>) {
    let Some(interval) = interval else { return std::future::pending().await };
    let grant = guard.grant();
    loop {
        let pause = match client.keep_alive(&grant.pool, &grant.key_id).await {
            Ok(_) => interval,
            Err(error) if is_gone(&error) => return,
            Err(_) => (interval / 4).max(RETRY_MIN),
        };
        sleep(pause).await;
    }
}

fn is_gone(error: &Error) -> bool {
    let code = error.problem().map(|problem| problem.code);
    matches!(code, Some(Code::UnknownKey | Code::UnknownPool))
}

fn code_of_status(status: ExitStatus) -> u8 {
    let exited = status.code().and_then(|code| u8::try_from(code).ok());
    exited.or_else(|| status.signal().map(code_of_signal)).unwrap_or(exit::SOFTWARE)
}

/// Returns the exit code of a shell for a command that a signal ended.
fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(exit::SOFTWARE)
}

fn wait_failure(error: &std::io::Error) -> Failure {
    Failure::new(exit::OS, format!("cannot wait for the command: {error}"))
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Fails if the command has just exited, which needs no signal.
        let _ = kill_process(pid, signal);
    }
}

fn print_message(message: &str) {
    // With stderr closed there is no other place to report to.
    let _ = writeln!(std::io::stderr(), "keypeg: {message}");
}

/// The signals that are forwarded to the command.
struct Signals {
    term: unix::Signal,
    hangup: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    user1: unix::Signal,
    user2: unix::Signal,
    /// Whether stdin is a terminal, which sends some of the signals to the command itself.
    has_terminal: bool,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            has_terminal: std::io::stdin().is_terminal(),
        })
    }

    /// Waits for the next signal; returns it and whether terminals send it.
    async fn next(&mut self) -> (Signal, bool) {
        tokio::select! {
            _ = self.term.recv() => (Signal::TERM, false),
            _ = self.hangup.recv() => (Signal::HUP, false),
            _ = self.interrupt.recv() => (Signal::INT, true),
            _ = self.quit.recv() => (Signal::QUIT, true),
            _ = self.user1.recv() => (Signal::USR1, false),
            _ = self.user2.recv() => (Signal::USR2, false),
        }
    }
}

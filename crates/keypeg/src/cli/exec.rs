//! `keypeg exec`: runs a command while it holds a key.
//!
//! The command never runs on without its lease: when that ends, by the pool's longest hold, by
//! somebody's hand or because the server is silent for too long, the command is ended too. That
//! fails only when this process is killed outright; then the fencing token has to tell.

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

/// How long a command has between SIGTERM and SIGKILL.
const END_TIME: Duration = Duration::from_secs(5);
/// The shortest pause between two keep-alives that fail.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// What shells say of a command that cannot be run, or found.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs `command` with a key of `pool`; the code to exit with is the command's.
pub(super) async fn run(
    client: &Client,
    pool: &str,
    request: &AcquireRequest,
    command: &[OsString],
) -> Result<u8, Failure> {
    let mut signals = Signals::new()
        .map_err(|error| Failure::new(exit::OS, format!("listening to signals: {error}")))?;
    let asked =
        async { Ok::<_, Error>((client.pool(pool).await?, client.hold(pool, request).await?)) };
    let (shown, guard) = tokio::select! {
        asked = asked => asked?,
        // Nothing runs yet that it could be passed on to.
        (signal, _) = signals.next() => return Ok(of_signal(signal.as_raw())),
    };
    let hold = shown.max_hold_seconds.unwrap_or(shown.lease_ttl_seconds);
    let every = shown.keepalive_every_seconds.map(|every| Duration::from_millis(every.ms));
    say(&format!(
        "this pool lends a key for {:?} at most; a command that runs longer is ended",
        Duration::from_millis(hold.ms)
    ));
    let outcome = match start(&guard, command) {
        Ok(mut child) => {
            let kept = keep_alive(client, &guard, every);
            attend(&mut child, &mut signals, &guard, kept).await
        }
        Err(failure) => Err(failure),
    };
    match guard.release().await {
        Ok(()) => {}
        Err(error) if error.problem().is_some_and(|told| told.code == Code::LeaseEnded) => {}
        Err(error) => say(&format!("giving the key back: {error}; its lease ends by itself")),
    }
    outcome
}

fn start(guard: &LeaseGuard, command: &[OsString]) -> Result<Child, Failure> {
    let (program, arguments) = command.split_first().expect("invariant: clap wants a command");
    let grant = guard.grant();
    let mut command = Command::new(program);
    command
        .args(arguments)
        // What lets this program in is not lent.
        .env_remove(super::TOKEN)
        .env_remove(super::TOKEN_FILE)
        .env("KEYPEG_KEY", &grant.key.0)
        .env("KEYPEG_KEY_ID", &grant.key_id)
        .env("KEYPEG_FENCING_TOKEN", grant.fencing_token.to_string());
    command.spawn().map_err(|error| {
        let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
        Failure::new(code, format!("running {}: {error}", program.display()))
    })
}

/// Waits for the command's end, passing signals on, or ends it with its lease.
async fn attend(
    child: &mut Child,
    signals: &mut Signals,
    guard: &LeaseGuard,
    key_gone: impl Future<Output = ()>,
) -> Result<u8, Failure> {
    let lost = async {
        tokio::select! {
            () = guard.ended() => {}
            () = key_gone => {}
        }
    };
    let mut lost = std::pin::pin!(lost);
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map(code).map_err(|error| waiting(&error)),
            (signal, of_terminal) = signals.next() => {
                // A terminal sends its own to the command as well.
                if !(of_terminal && signals.terminal) {
                    send(child, signal);
                }
            }
            () = &mut lost => break,
        }
    }
    say("the lease is over: ending the command");
    send(child, Signal::TERM);
    if timeout(END_TIME, child.wait()).await.is_err() {
        child.kill().await.map_err(|error| waiting(&error))?;
    }
    Err(Failure::new(exit::TEMPORARY, "the command was ended because its lease was over"))
}

/// Keeps the key alive; ready when it is gone.
async fn keep_alive(client: &Client, guard: &LeaseGuard, every: Option<Duration>) {
    let Some(every) = every else { return std::future::pending().await };
    let grant = guard.grant();
    loop {
        let pause = match client.keep_alive(&grant.pool, &grant.key_id).await {
            Ok(_) => every,
            Err(error) if is_gone(&error) => return,
            Err(_) => (every / 4).max(RETRY_MIN),
        };
        sleep(pause).await;
    }
}

fn is_gone(error: &Error) -> bool {
    let code = error.problem().map(|problem| problem.code);
    matches!(code, Some(Code::UnknownKey | Code::UnknownPool))
}

fn code(status: ExitStatus) -> u8 {
    let exited = status.code().and_then(|code| u8::try_from(code).ok());
    exited.or_else(|| status.signal().map(of_signal)).unwrap_or(exit::SOFTWARE)
}

/// What shells make of a signal that ended a command.
fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(exit::SOFTWARE)
}

fn waiting(error: &std::io::Error) -> Failure {
    Failure::new(exit::OS, format!("waiting for the command: {error}"))
}

fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // One that has just ended needs no signal.
        let _ = kill_process(pid, signal);
    }
}

fn say(message: &str) {
    // Nobody left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "keypeg: {message}");
}

/// The signals that are passed on.
struct Signals {
    term: unix::Signal,
    hangup: unix::Signal,
    interrupt: unix::Signal,
    quit: unix::Signal,
    user1: unix::Signal,
    user2: unix::Signal,
    /// Whether a terminal is there to send some of them.
    terminal: bool,
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
            terminal: std::io::stdin().is_terminal(),
        })
    }

    /// Waits for the next, and tells whether it is one of those that terminals send.
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

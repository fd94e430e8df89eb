//! Signals. The first SIGTERM or SIGINT stops the server, the second ends the process at once.
//!
//! A thread of its own receives them and waits for nothing else, so that the second signal works
//! whatever all other threads do. SIGHUP never ends the server: it reloads files
//! (`reloads.rs`). Every command catches SIGXFSZ, so that a write past the limit of `ulimit -f`
//! fails with an error.

use crate::failure::{Failure, exit};
use crate::supervisor::{self, Message};
use crate::{log, reloads, vital};
use rustix::process::Signal as Number;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// The longest time for which a supervisor waits for a reload.
const RELOAD_TIME: Duration = Duration::from_secs(10);

/// Installs the signal handlers; the future is ready at the first signal to stop.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot install signal handlers: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    let watch = move || runtime.block_on(watch(signals, stop));
    vital::spawn("keypeg-signals", watch).map_err(failed)?;
    Ok(async {
        // The thread ends with the process only: it keeps the sender until it has sent.
        let _ = stopped.await;
    })
}

/// Catches SIGXFSZ, which would kill the process before it can report the error or remove a file that
/// is not complete. Programs that it executes do not inherit the handler.
pub(crate) fn catch_file_size_limit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Without a handler the command can still run.
    let _ = runtime.map(|runtime| runtime.block_on(async { file_size_limit() }));
}

/// The handler stays installed without a receiver.
fn file_size_limit() -> io::Result<()> {
    signal(SignalKind::from_raw(Number::XFSZ.as_raw())).map(drop)
}

struct Signals {
    term: Signal,
    int: Signal,
    hangup: Signal,
}

/// What a signal requests.
enum Wanted {
    /// A stop; with the exit code that a shell reports for a process that the signal killed.
    Stop(i32),
    Reload,
}

impl Signals {
    fn new() -> io::Result<Self> {
        file_size_limit()?;
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    async fn next(&mut self) -> Wanted {
        tokio::select! {
            _ = self.term.recv() => Wanted::Stop(128 + 15),
            _ = self.int.recv() => Wanted::Stop(128 + 2),
            _ = self.hangup.recv() => Wanted::Reload,
        }
    }
}

/// Reloads all files, and reports begin and end to the supervisor.
async fn reload() {
    supervisor::notify_reloading();
    if timeout(RELOAD_TIME, reloads::request()).await.is_err() {
        let seconds = RELOAD_TIME.as_secs();
        tracing::warn!("a file could not be read again within {seconds} s: its disk may hang");
    }
    supervisor::notify(Message::Reloaded);
}

async fn watch(mut signals: Signals, stop: oneshot::Sender<()>) {
    let mut stop = Some(stop);
    loop {
        match (signals.next().await, stop.take()) {
            (Wanted::Reload, stop_later) => {
                tracing::info!(
                    "SIGHUP: rereads the files of tokens, certificates, authorities and seal keys, and reopens the audit log, if any"
                );
                // A task: this one must stay free for the next signal.
                tokio::spawn(reload());
                stop = stop_later;
            }
            (Wanted::Stop(_), Some(stop)) => {
                tracing::info!(
                    "stopping: new connections are refused, requests in progress are answered"
                );
                supervisor::notify(Message::Stopping);
                // The receiver is dropped if the server has already ended by itself.
                let _ = stop.send(());
            }
            (Wanted::Stop(code), None) => {
                tracing::warn!("received a second signal: exiting at once");
                log::flush_streams_briefly();
                std::process::exit(code);
            }
        }
    }
}

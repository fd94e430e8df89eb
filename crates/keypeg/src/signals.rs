//! SIGTERM and SIGINT: the first signal stops the server, the second ends the process at once.
//!
//! A dedicated thread receives them, so that the second signal works even if all other threads are
//! busy.

use crate::failure::{Failure, exit};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Installs the signal handlers; the future is ready at the first signal.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error| Failure::new(exit::OS, format!("cannot install signal handlers: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new()
        .name("keypeg-signals".into())
        .spawn(move || runtime.block_on(watch(signals, stop)))
        .map_err(failed)?;
    Ok(async {
        // If the watching thread has ended, no signal can arrive: the future stays pending.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal; returns the exit code a shell reports for a process it killed.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => 128 + 15,
            _ = self.int.recv() => 128 + 2,
        }
    }
}

async fn watch(mut signals: Signals, stop: oneshot::Sender<()>) {
    signals.next().await;
    tracing::info!("stopping: new connections are refused, requests in progress are answered");
    // The receiver is dropped if the server has already ended by itself.
    let _ = stop.send(());
    let code = signals.next().await;
    tracing::warn!("received a second signal: exiting at once");
    std::process::exit(code);
}

//! SIGTERM and SIGINT: the first asks the server to stop, the second ends the process at once.
//!
//! They are listened to on a thread of their own, so that the second is heard whatever the others
//! are busy with.

use crate::failure::{Failure, exit};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Begins to listen; the future is ready at the first signal.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let failed = |error| Failure::new(exit::OS, format!("listening to signals: {error}"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(failed)?;
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new()
        .name("keypeg-signals".into())
        .spawn(move || runtime.block_on(watch(signals, stop)))
        .map_err(failed)?;
    Ok(async {
        // A watcher that is gone cannot tell of a signal: then there is none to wait for.
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

    /// Waits for the next; tells what a shell would show for a process that it killed.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.term.recv() => 128 + 15,
            _ = self.int.recv() => 128 + 2,
        }
    }
}

async fn watch(mut signals: Signals, stop: oneshot::Sender<()>) {
    signals.next().await;
    tracing::info!("stopping: no new connections, and what was begun is answered");
    // Nobody waits when the server has ended by itself.
    let _ = stop.send(());
    let code = signals.next().await;
    tracing::warn!("a second signal: ending at once");
    std::process::exit(code);
}

//! The phases of the server's shutdown, which each connection watches.

use tokio::sync::watch;

/// The phase of the server's life, as the cores see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ServerPhase {
    Serving,
    Draining,
    Stopped,
}

/// Waits until the server has reached a phase.
pub(super) async fn reached(watched: &mut watch::Receiver<ServerPhase>, phase: ServerPhase) {
    // A dropped sender means that the server has stopped.
    let _ = watched.wait_for(|now| *now >= phase).await;
}

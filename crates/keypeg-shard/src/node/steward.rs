//! The steward of a node: it keeps the server's heartbeat, watches those of the others, and hands a
//! shard over to a server that should own it.

use super::clock::{now, passed_since};
use super::options::NodeOptions;
use super::view::View;
use keypeg_log::{Heartbeat, LogError, ServerName, Shard};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two heartbeats.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long another server must be the better owner of a shard before the shard moves.
const BETTER_FOR: Duration = Duration::from_secs(8);

/// After this time the other servers have read in a heartbeat to whom a shard moves.
const READ_AFTER: Duration = Duration::from_millis(2_500);

/// The thread that keeps the heartbeat.
pub(super) struct Steward {
    pub(super) options: Arc<NodeOptions>,
    pub(super) view: Arc<View>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) count: u64,
}

impl Steward {
    /// Sends a heartbeat, which it returns, and reads those of the others.
    pub(super) fn beat(&mut self) -> Result<Heartbeat, LogError> {
        self.count += 1;
        let presence = self.view.presence(&self.options.address).to_string();
        let heartbeat = Heartbeat::new(self.options.server.clone(), &presence, self.count)?;
        let heartbeats = keypeg_log::wait(self.options.log.beat(&heartbeat))?;
        self.view.observe(&heartbeats);
        Ok(heartbeat)
    }

    /// Runs until the node has stopped.
    pub(super) fn run(mut self) {
        let mut better = HashMap::new();
        let mut error_text = String::new();
        while !self.stopping.load(Ordering::Acquire) {
            thread::park_timeout(BEAT_EVERY);
            match self.beat() {
                Ok(_) => error_text.clear(),
                Err(error) => {
                    let text = error.to_string();
                    if text != error_text {
                        tracing::warn!("no heartbeat: {text}");
                    }
                    error_text = text;
                }
            }
            self.view.note_owners();
            self.spread(&mut better);
        }
        // The other servers need not wait until the heartbeat is old.
        if let Err(error) = keypeg_log::wait(self.options.log.forget(&self.options.server)) {
            tracing::warn!("the heartbeat of this server was not removed: {error}");
        }
    }

    /// Hands over one shard that another server has been the better owner of for long enough.
    fn spread(&self, better: &mut HashMap<Shard, (ServerName, Instant)>) {
        if let Some((shard, since)) = self.view.moved()
            && passed_since(since) >= READ_AFTER
            && let Some(control) = &self.view.shard(shard).facts().control
        {
            control.hand_over();
            return;
        }
        for (shard, view) in self.view.shards() {
            let control = view.facts().control.clone();
            let (Some(control), Some(server)) = (control, self.view.better_owner(shard)) else {
                better.remove(&shard);
                continue;
            };
            let (known, since) = better.entry(shard).or_insert_with(|| (server.clone(), now()));
            if *known != server {
                (*known, *since) = (server, now());
            } else if passed_since(*since) >= BETTER_FOR {
                tracing::info!(%shard, to = %server, "the shard moves to the server that should own it");
                better.remove(&shard);
                control.hand_over();
                return;
            }
        }
    }
}

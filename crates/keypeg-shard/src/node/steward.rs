//! The steward of a node: it keeps the server's heartbeat, watches those of the others, and hands a
//! shard over to a server that should own it.

use super::clock::{now, passed_since};
use super::namesake::find_later;
use super::options::NodeOptions;
use super::presence::Presence;
use super::view::View;
use keypeg_engine::end_process;
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

/// The exit code of a server whose name a later one uses: `EX_TEMPFAIL` of sysexits.h, as at a start.
const EXIT_TEMPORARY: i32 = 75;

/// The thread that keeps the heartbeat.
pub(super) struct Steward {
    pub(super) options: Arc<NodeOptions>,
    pub(super) view: Arc<View>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) count: u64,
    /// The number of this start, see [`Presence::start`].
    pub(super) start: u64,
}

/// What became of a heartbeat.
#[derive(Debug)]
pub(super) enum Beat {
    /// It was sent.
    Sent(Heartbeat),
    /// It was not sent: a server at this address has started later under the same name.
    NameInUse { address: String },
}

impl Steward {
    /// Reads the heartbeats of all servers, and then sends one, unless a later server has this name. In
    /// the other order it would mostly read its own heartbeat in place of that one.
    pub(super) fn beat(&mut self) -> Result<Beat, LogError> {
        let NodeOptions { log, server, address, has_tokens, .. } = &*self.options;
        let mut all = keypeg_log::wait(log.heartbeats())?;
        if let Some(address) = find_later(&all, server, self.start) {
            return Ok(Beat::NameInUse { address });
        }
        self.count += 1;
        let (start, has_tokens) = (self.start, Some(*has_tokens));
        let presence = Presence { start, has_tokens, ..self.view.presence(address) };
        let heartbeat = Heartbeat::new(server.clone(), &presence.to_string(), self.count)?;
        keypeg_log::wait(log.beat(&heartbeat))?;
        all.retain(|other| other.server != *server);
        all.push(heartbeat.clone());
        self.view.observe(&all);
        Ok(Beat::Sent(heartbeat))
    }

    /// Runs until the node has stopped.
    pub(super) fn run(mut self) {
        let (mut better, mut differs) = (HashMap::new(), None);
        while !self.stopping.load(Ordering::Acquire) {
            thread::park_timeout(BEAT_EVERY);
            match self.beat() {
                Ok(Beat::Sent(_)) => {}
                Ok(Beat::NameInUse { address }) => {
                    let server = &self.options.server;
                    let error = format!("a server at {address} has the name {server} too");
                    let why = "that server started while this one stood still, and goes on: this one ends";
                    end_process(&error, why, EXIT_TEMPORARY);
                }
                Err(error) => {
                    if self.view.note_store_error(error.to_string()) {
                        tracing::warn!("no heartbeat: {error}");
                    }
                }
            }
            self.view.note_owners();
            self.compare_tokens(&mut differs);
            self.spread(&mut better);
        }
        // The other servers need not wait until the heartbeat is old.
        if let Err(error) = keypeg_log::wait(self.options.log.forget(&self.options.server)) {
            tracing::warn!("the heartbeat of this server was not removed: {error}");
        }
    }

    /// Warns once of each server that requires access tokens while this one does not, or the reverse.
    fn compare_tokens(&self, known: &mut Option<ServerName>) {
        let has_tokens = self.options.has_tokens;
        let other = self.view.find_other_tokens(has_tokens);
        if let Some(name) = other.as_ref().filter(|name| known.as_ref() != Some(*name)) {
            let (open, closed) =
                if has_tokens { (name, &self.view.me) } else { (&self.view.me, name) };
            tracing::warn!(
                "the server {open} requires no access tokens, and the server {closed} does: every client \
                 that connects to {open} may create backups of all pools, move shards and use the \
                 pools that it serves. Start it with the same --tokens"
            );
        }
        *known = other;
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

//! What a node knows of the shards and servers of its installation: its threads publish it, and the
//! server's calls read it. It decides who should take a shard over, which is only a hint.

mod status;
#[cfg(test)]
mod tests;

use super::clock::{now, passed_since};
use super::presence::{Presence, ShardSet};
use crate::ownership::{LiveServers, owner_order};
use keypeg_engine::ShardControl;
use keypeg_log::{Heartbeat, ServerName, Shard};
use keypeg_store::{MoveError, Peer, Place, ShardRole, Wakeup};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long a server that has taken a shard over may leave it out of its heartbeat.
const CLAIM_MAX: Duration = Duration::from_secs(4);
/// How much later each further server takes over a shard that the first one should.
const NEXT_AFTER: Duration = Duration::from_secs(3);

/// How long the other server has to take over a shard that is moved by hand.
const MOVE_MAX: Duration = Duration::from_mins(1);

/// What all threads of a node share.
#[derive(Debug)]
pub(super) struct View {
    pub(super) me: ServerName,
    shards: Vec<ShardView>,
    servers: RwLock<Servers>,
    started: Instant,
}

/// What is known of one shard.
#[derive(Debug)]
pub(super) struct ShardView {
    /// Whether this server serves it.
    is_here: AtomicBool,
    facts: Mutex<Facts>,
    /// Wakes the shard's thread.
    pub(super) wakeup: Wakeup,
}

/// What the shard's thread has found out.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) role: ShardRole,
    /// The server that has taken the shard over last, as far as this server has read.
    pub(super) owner: Option<String>,
    /// When this server has read of that takeover for the first time, or has begun.
    pub(super) owner_since: Instant,
    /// When the present replica was made.
    pub(super) begun: Instant,
    /// Whether the owner has handed the shard over.
    pub(super) is_released: bool,
    /// The position of the last frame that was appended or applied.
    pub(super) position: u64,
    /// The end of the log, as it was known last.
    pub(super) end: u64,
    /// The position of the newest snapshot.
    pub(super) snapshot: u64,
    /// When the end of the log was read last; `None` before the first time.
    pub(super) at_end: Option<Instant>,
    /// Since when no server seems to own the shard.
    pub(super) vacant_since: Option<Instant>,
    /// Since when no live server is known to serve it.
    unowned_since: Option<Instant>,
    /// The takeovers that were seen since the log was read to its end for the first time.
    takeovers: u64,
    /// The position of the last one.
    taken_over_at: u64,
    /// Whether the log was read to its end once.
    was_at_end: bool,
    /// Why the shard cannot be followed; empty if it can.
    pub(super) error: String,
    /// The position that this server had reached when it found that out.
    error_at: u64,
    /// Why the shard was not taken over; empty if it was, or if it has an owner.
    pub(super) takeover_error: String,
    /// What can end the engine of the shard, while this server owns it.
    pub(super) control: Option<ShardControl>,
    /// Whether the shard was moved here by hand.
    pub(super) is_pinned: bool,
}

/// The servers, from their heartbeats.
#[derive(Debug, Default)]
struct Servers {
    live: LiveServers,
    presences: BTreeMap<ServerName, Presence>,
    peers: BTreeMap<ServerName, Arc<Peer>>,
    /// The shard that this server hands over by hand, and when it began.
    moved: Option<(Shard, String, Instant)>,
    /// When the store has answered a heartbeat.
    heard: Option<Instant>,
    /// Why the last heartbeat failed; empty if it did not.
    store_error: String,
}

/// What the thread of a shard that this server does not own should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    TakeOver,
    /// No server seems to own it: look again at the latest after this time.
    Wait(Duration),
    /// Another server owns it.
    Follow,
}

impl ShardView {
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View {
    pub(super) fn new(me: ServerName, shards: u16) -> Self {
        let began = now();
        let facts = || Facts {
            role: ShardRole::Loading,
            owner: None,
            owner_since: began,
            begun: began,
            is_released: false,
            position: 0,
            end: 0,
            snapshot: 0,
            at_end: None,
            vacant_since: None,
            unowned_since: Some(began),
            takeovers: 0,
            taken_over_at: 0,
            was_at_end: false,
            error: String::new(),
            error_at: 0,
            takeover_error: String::new(),
            control: None,
            is_pinned: false,
        };
        let shard = |_| ShardView {
            is_here: AtomicBool::new(false),
            facts: Mutex::new(facts()),
            wakeup: Wakeup::default(),
        };
        let shards = (0..shards).map(shard).collect();
        Self { me, shards, servers: RwLock::default(), started: began }
    }

    pub(super) fn shard(&self, shard: Shard) -> &ShardView {
        &self.shards[usize::from(shard.get())]
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = (Shard, &ShardView)> {
        (0..).map(Shard::new).zip(&self.shards)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(passed_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes that this server serves a shard, or no longer.
    pub(super) fn set_here(&self, shard: Shard, control: Option<ShardControl>) {
        if control.is_some() {
            self.end_move(shard);
        }
        let view = self.shard(shard);
        let mut facts = view.facts();
        facts.role = if control.is_some() { ShardRole::Owner } else { ShardRole::Loading };
        view.is_here.store(control.is_some(), Ordering::Release);
        facts.is_pinned &= control.is_some();
        facts.control = control;
    }

    /// Returns what this server says about itself.
    pub(super) fn presence(&self, address: &str) -> Presence {
        let mut presence = Presence { address: address.to_owned(), ..Presence::default() };
        for (shard, view) in self.shards() {
            let facts = view.facts();
            let is_owned = facts.role == ShardRole::Owner;
            let sets: [(bool, &mut ShardSet); 3] = [
                (is_owned, &mut presence.owned),
                (is_owned || facts.at_end.is_some(), &mut presence.ready),
                (is_owned && facts.is_pinned, &mut presence.pinned),
            ];
            for (is_member, set) in sets {
                if is_member {
                    set.insert(shard);
                }
            }
        }
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let moved = servers.moved.as_ref();
        presence.moved = moved.map(|(shard, server, _)| (*shard, server.clone()));
        presence
    }

    /// Notes the heartbeats of all servers.
    pub(super) fn observe(&self, heartbeats: &[Heartbeat]) {
        let now_us = self.now_us();
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        servers.heard = Some(now());
        servers.store_error.clear();
        servers.live.observe(heartbeats, now_us);
        let read = |beat: &Heartbeat| (beat.server.clone(), Presence::read(&beat.address));
        servers.presences = heartbeats.iter().map(read).collect();
        let peer = |(name, presence): (&ServerName, &Presence)| {
            let (text, address) = (name.to_string(), presence.address.clone());
            (name.clone(), Arc::new(Peer { name: text, address }))
        };
        servers.peers = servers.presences.iter().map(peer).collect();
        if servers.moved.as_ref().is_some_and(|moved| self.has_ended(&servers, moved)) {
            servers.moved = None;
        }
    }

    /// Notes why a heartbeat failed. Returns whether it is another reason than before.
    pub(super) fn note_store_error(&self, text: String) -> bool {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = servers.store_error != text;
        servers.store_error = text;
        is_new
    }

    /// Returns a live server that requires access tokens if this one does not, or the reverse.
    pub(super) fn find_other_tokens(&self, has_tokens: bool) -> Option<ServerName> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let differs = |name: &&ServerName| {
            let presence = servers.presences.get(*name);
            presence.and_then(|it| it.has_tokens).is_some_and(|other| other != has_tokens)
        };
        servers.live.names().find(differs).cloned()
    }

    /// Returns whether a move has ended: the other server has the shard, or will not take it over.
    fn has_ended(&self, servers: &Servers, moved: &(Shard, String, Instant)) -> bool {
        let (shard, server, since) = moved;
        let Some(target) = servers.live.names().find(|name| name.as_str() == server) else {
            return true;
        };
        let claims = servers.presences.get(target).is_some_and(|it| it.owned.contains(*shard));
        // A claim from before this server took the shard over.
        let is_old_claim = self.shard(*shard).facts().role == ShardRole::Owner;
        claims && !is_old_claim || passed_since(*since) > MOVE_MAX
    }

    /// Gives up the move of a shard by hand, if there is one.
    fn end_move(&self, shard: Shard) {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        servers.moved.take_if(|(moved, ..)| *moved == shard);
    }

    /// Returns the servers that should own a shard, the best one first.
    fn candidates(&self, servers: &Servers, shard: Shard) -> Vec<ServerName> {
        let mut order = owner_order(shard, servers.live.names().chain([&self.me]));
        let is_first = |name: &ServerName| servers.is_moved_to(shard, name);
        let is_pinned = |name: &ServerName| {
            servers.presences.get(name).is_some_and(|presence| presence.pinned.contains(shard))
        };
        order.sort_by_key(|name| (!is_first(name), !is_pinned(name)));
        order
    }

    /// Returns the server that should own a shard, and whether it was chosen by hand.
    fn preferred(&self, servers: &Servers, shard: Shard) -> (Option<ServerName>, bool) {
        let first = self.candidates(servers, shard).into_iter().next();
        let by_hash = owner_order(shard, servers.live.names().chain([&self.me]));
        let is_by_hand = first.as_ref() != by_hash.first();
        (first, is_by_hand)
    }

    /// Decides what the thread of a shard that this server does not own should do now. `noise` is
    /// random, from 0 to 1.
    pub(super) fn decide(&self, shard: Shard, noise: f64) -> Decision {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let mut facts = self.shard(shard).facts();
        let live: Vec<_> = servers.live.names().cloned().collect();
        let claims = |name: &ServerName| {
            name != &self.me
                && servers.presences.get(name).is_some_and(|it| it.owned.contains(shard))
        };
        let is_owned = match &facts.owner {
            _ if facts.is_released => false,
            Some(owner) if owner == self.me.as_str() => false,
            // Its heartbeat may not show the takeover yet.
            Some(_) if passed_since(facts.owner_since) < CLAIM_MAX => true,
            Some(owner) => live.iter().any(|name| name.as_str() == owner && claims(name)),
            // Its takeover lies before the snapshot: only its heartbeat shows it.
            None if facts.position > 0 && passed_since(facts.begun) < CLAIM_MAX => true,
            None => live.iter().any(claims),
        };
        if is_owned {
            facts.vacant_since = None;
            return Decision::Follow;
        }
        let vacant = passed_since(*facts.vacant_since.get_or_insert_with(now));
        let mut order = self.candidates(&servers, shard);
        if facts.is_released && order.len() > 1 {
            // It has just handed the shard over.
            order.retain(|name| facts.owner.as_deref() != Some(name.as_str()));
        }
        let rank = order.iter().position(|name| *name == self.me).unwrap_or(order.len());
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        let noise = if rank == 0 { 0.0 } else { noise };
        let after = NEXT_AFTER.saturating_mul(rank) + Duration::from_millis(500).mul_f64(noise);
        match after.saturating_sub(vacant) {
            Duration::ZERO => Decision::TakeOver,
            left => Decision::Wait(left),
        }
    }

    /// Returns the server to which this server should hand a shard over that it owns.
    pub(super) fn better_owner(&self, shard: Shard) -> Option<ServerName> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let first = self.preferred(&servers, shard).0?;
        let is_ready = servers.presences.get(&first).is_some_and(|it| it.ready.contains(shard));
        let is_pinned = self.shard(shard).facts().is_pinned;
        (first != self.me && is_ready && !is_pinned).then_some(first)
    }

    /// Returns whether a server hands this shard over to this one by hand.
    pub(super) fn is_moved_here(&self, shard: Shard) -> bool {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.is_moved_to(shard, &self.me)
    }

    /// Notes that this server hands a shard over by hand.
    pub(super) fn begin_move(&self, shard: Shard, server: &str) -> Result<(), MoveError> {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let number = usize::from(shard.get());
        match &servers.moved {
            Some((moved, to, _)) if *moved == shard && to == server => return Ok(()),
            Some((moved, ..)) => return Err(MoveError::Busy(usize::from(moved.get()))),
            None => {}
        }
        let live = servers.live.names().find(|name| name.as_str() == server);
        let name = live.ok_or_else(|| MoveError::UnknownServer(server.to_owned()))?;
        let presence = servers.presences.get(name);
        if !presence.is_some_and(|it| it.ready.contains(shard)) {
            return Err(MoveError::NotReady { shard: number, server: server.to_owned() });
        }
        servers.moved = Some((shard, server.to_owned(), now()));
        Ok(())
    }

    /// Returns whether this server is handing a shard over to another server by hand: the other one has
    /// not taken it over, and this one has not given the move up.
    pub(super) fn is_moving(&self, shard: Shard, server: &str) -> bool {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.moved.as_ref().is_some_and(|(moved, to, _)| *moved == shard && to == server)
    }

    /// Returns the shard that this server hands over by hand, and since when.
    pub(super) fn moved(&self) -> Option<(Shard, Instant)> {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.moved.as_ref().map(|(shard, _, since)| (*shard, *since))
    }

    pub(super) fn place(&self, shard: Shard) -> Place {
        let view = self.shard(shard);
        if view.is_here.load(Ordering::Acquire) {
            return Place::Here;
        }
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let facts = view.facts();
        let mut live = servers.live.names().filter(|name| **name != self.me);
        let found = match &facts.owner {
            Some(owner) if !facts.is_released => live.find(|name| name.as_str() == owner),
            _ => None,
        };
        let claims = |name: &&ServerName| {
            servers.presences.get(*name).is_some_and(|it| it.owned.contains(shard))
        };
        // A heartbeat may be newer than what this server has read of the log.
        let found = found.filter(claims).or_else(|| {
            servers.live.names().filter(|name| **name != self.me).find(claims).or(found)
        });
        let found = found.or_else(|| {
            let first = self
                .candidates(&servers, shard)
                .into_iter()
                .find(|name| !facts.is_released || facts.owner.as_deref() != Some(name.as_str()));
            servers.peers.keys().find(|name| Some(*name) == first.as_ref() && **name != self.me)
        });
        let peer = found.and_then(|name| servers.peers.get(name));
        peer.map_or(Place::Unknown, |peer| Place::There(Arc::clone(peer)))
    }
}

impl Servers {
    /// Returns whether a live server is handing a shard over to the named one by hand. Heartbeats of
    /// servers that were killed stay in the store, and do not count.
    fn is_moved_to(&self, shard: Shard, server: &ServerName) -> bool {
        let mut live =
            self.live.names().filter_map(|name| self.presences.get(name)?.moved.as_ref());
        live.any(|(moved, to)| *moved == shard && to == server.as_str())
    }
}

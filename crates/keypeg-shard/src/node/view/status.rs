//! What operators see of the shards and servers: who serves what, and how far this server has read.
//!
//! It decides nothing. Invariant: an owner that is shown is live by the watcher's own clock.

use super::{CLAIM_MAX, Facts, Servers, ShardView, View};
use crate::follower::Progress;
use crate::node::clock::{now, passed_since};
use keypeg_log::{ServerName, Shard};
use keypeg_store::{ClusterStatus, Peer, ServerStatus, ShardRole, ShardStatus};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

impl Facts {
    /// Notes the last takeover that was read. What lies before the first end of the log has happened
    /// before this server began.
    pub(in crate::node) fn note_takeover(&mut self, at: u64) {
        if at > self.taken_over_at {
            (self.taken_over_at, self.owner_since) = (at, now());
            self.takeovers += u64::from(self.was_at_end);
        }
    }

    /// Notes why the shard cannot be followed: by a store that does not answer, which ends by itself, or
    /// by the log or this server. Returns whether it is another reason than before.
    pub(in crate::node) fn note_error(&mut self, text: &str, is_brief: bool) -> bool {
        let is_new = self.error != text;
        text.clone_into(&mut self.error);
        self.error_at = 0;
        if !is_brief {
            self.error_at = self.position;
            (self.role, self.at_end) = (ShardRole::Loading, None);
        }
        is_new
    }

    /// Notes why the shard was not taken over. Returns whether it is another reason than before.
    pub(in crate::node) fn note_failed_takeover(&mut self, text: String) -> bool {
        let is_new = self.takeover_error != text;
        self.takeover_error = text;
        is_new
    }

    /// Returns whether a replica that has come so far shows the shard as it is. One that has failed
    /// must come further than before: it reads the frames before the fault once more.
    pub(in crate::node) fn is_at_end(&self, progress: Progress) -> bool {
        match progress {
            Progress::Behind => false,
            Progress::NearEnd => self.error.is_empty() || self.position > self.error_at,
            Progress::AtEnd => true,
        }
    }

    /// Notes that the log was read to its end.
    pub(in crate::node) fn note_end(&mut self) {
        self.at_end = Some(now());
        self.end = self.position;
        self.was_at_end = true;
    }
}

impl View {
    /// Returns what operators see. O(shards × servers).
    pub(in crate::node) fn status(&self, store: &str) -> ClusterStatus {
        self.note_owners();
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let store_silent_ms = millis(passed_since(servers.heard.unwrap_or(self.started)));
        let server = |(name, peer)| servers.status(name, peer, store_silent_ms);
        ClusterStatus {
            store: store.to_owned(),
            store_silent_ms,
            store_error: servers.store_error.clone(),
            servers: servers.peers.iter().map(server).collect(),
            shards: self
                .shards()
                .map(|(shard, view)| self.shard_status(&servers, shard, view))
                .collect(),
        }
    }

    /// Notes since when the shards have no live owner.
    pub(in crate::node) fn note_owners(&self) {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        for (shard, view) in self.shards() {
            let mut facts = view.facts();
            if self.owner(&servers, shard, &facts).is_some() {
                facts.unowned_since = None;
                facts.takeover_error.clear();
            } else {
                facts.unowned_since.get_or_insert_with(now);
            }
        }
    }

    /// Returns the live server that serves a shard.
    fn owner<'a>(
        &'a self,
        servers: &'a Servers,
        shard: Shard,
        facts: &Facts,
    ) -> Option<&'a ServerName> {
        if facts.role == ShardRole::Owner {
            return Some(&self.me);
        }
        let last = facts.owner.as_deref();
        let claims = |name: &ServerName| {
            servers.presences.get(name).is_some_and(|it| it.owned.contains(shard))
        };
        // Its heartbeat may not show the takeover, or the end of it, yet.
        let is_new = passed_since(facts.owner_since) < CLAIM_MAX;
        let is_owner = |name: &&ServerName| {
            let is_last = last == Some(name.as_str());
            **name != self.me
                && (claims(name) || is_last && is_new)
                && !(is_last && facts.is_released)
        };
        let live = || servers.live.names();
        let found = live().filter(is_owner).find(|name| last == Some(name.as_str()));
        found.or_else(|| live().find(is_owner))
    }

    fn shard_status(&self, servers: &Servers, shard: Shard, view: &ShardView) -> ShardStatus {
        let (preferred, is_pinned) = self.preferred(servers, shard);
        let facts = view.facts();
        let behind = match facts.role {
            ShardRole::Owner => Duration::ZERO,
            ShardRole::Following | ShardRole::Loading => {
                passed_since(facts.at_end.unwrap_or(facts.begun))
            }
        };
        ShardStatus {
            role: facts.role,
            owner: self.owner(servers, shard, &facts).map(ToString::to_string),
            unowned_ms: facts.unowned_since.map_or(0, since_ms),
            preferred: preferred.map(|name| name.to_string()),
            is_pinned,
            position: facts.position,
            behind_frames: facts.end.saturating_sub(facts.position),
            behind_ms: millis(behind),
            snapshot: facts.snapshot,
            takeovers: facts.takeovers,
            error: if facts.error.is_empty() { &facts.takeover_error } else { &facts.error }
                .clone(),
        }
    }
}

impl Servers {
    /// Returns what is known of a server. No heartbeat was read since the store is silent.
    fn status(&self, name: &ServerName, peer: &Arc<Peer>, store_silent_ms: u64) -> ServerStatus {
        let presence = self.presences.get(name);
        let owned = presence.map(|presence| presence.owned).unwrap_or_default();
        let ready = presence.map(|presence| presence.ready).unwrap_or_default();
        let owns: Vec<_> = owned.numbers().collect();
        ServerStatus {
            peer: Peer::clone(peer),
            is_live: self.live.names().any(|live| live == name),
            silent_ms: self.live.silent_us(name).unwrap_or(0) / 1_000 + store_silent_ms,
            has_tokens: presence.and_then(|presence| presence.has_tokens),
            follows: ready.numbers().filter(|shard| !owns.contains(shard)).collect(),
            owns,
        }
    }
}

fn since_ms(since: Instant) -> u64 {
    millis(passed_since(since))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::view::tests::{observe, view};

    #[test]
    fn an_owner_is_shown_while_a_live_server_serves_the_shard() {
        let view = view(&[("two", "http://two:1 owned=2 ready=f")]);
        let status = view.status("a store");
        let owners: Vec<_> = status.shards.iter().map(|shard| shard.owner.as_deref()).collect();
        assert_eq!(owners, [None, Some("two"), None, None]);
        assert_eq!((&*status.store, status.servers.len()), ("a store", 1));
        assert_eq!(status.servers[0].owns, [1]);
        assert_eq!(status.servers[0].follows, [0, 2, 3]);
        assert!(view.shard(Shard::new(0)).facts().unowned_since.is_some());
        assert_eq!(status.shards[1].unowned_ms, 0);
        // It has handed the shard over, which its heartbeat does not show yet.
        {
            let mut facts = view.shard(Shard::new(1)).facts();
            (facts.owner, facts.is_released) = (Some("two".into()), true);
        }
        assert_eq!(view.status("").shards[1].owner, None);
        // Its takeover was read, which its heartbeat does not show yet.
        {
            let mut facts = view.shard(Shard::new(2)).facts();
            (facts.owner, facts.owner_since) = (Some("two".into()), now());
        }
        assert_eq!(view.status("").shards[2].owner.as_deref(), Some("two"));
        observe(&view, &[], 2);
        assert!(view.status("").shards.iter().all(|shard| shard.owner.is_none()));
    }

    #[test]
    fn a_takeover_counts_once_and_only_after_the_log_was_read_to_its_end() {
        let view = view(&[]);
        let shard = view.shard(Shard::FIRST);
        shard.facts().note_takeover(7);
        shard.facts().note_end();
        for at in [7, 9, 9, 12] {
            shard.facts().note_takeover(at);
        }
        // Another replica reads the log again.
        for at in [7, 9, 12] {
            shard.facts().note_takeover(at);
        }
        assert_eq!(view.status("").shards[0].takeovers, 2);
    }

    /// A server that read the same frames again and again showed the owner of long ago as the present
    /// one, and was ready.
    #[test]
    fn a_takeover_that_is_read_again_makes_no_new_owner() {
        let view = view(&[("two", "http://two:1")]);
        let read = |at| {
            let mut facts = view.shard(Shard::FIRST).facts();
            facts.owner = Some("two".into());
            facts.note_takeover(at);
        };
        let owner = || view.status("").shards.swap_remove(0).owner;
        read(7);
        assert_eq!(owner().as_deref(), Some("two"), "its heartbeat may not show it yet");
        let earlier = now().checked_sub(2 * CLAIM_MAX).expect("the machine runs");
        view.shard(Shard::FIRST).facts().owner_since = earlier;
        read(7);
        assert_eq!(owner(), None);
        read(9);
        assert_eq!(owner().as_deref(), Some("two"));
    }

    #[test]
    fn the_frames_that_are_left_to_read_are_shown() {
        let view = view(&[]);
        {
            let mut facts = view.shard(Shard::FIRST).facts();
            (facts.position, facts.end) = (40, 100);
        }
        assert_eq!(view.status("").shards[0].behind_frames, 60);
        view.shard(Shard::FIRST).facts().note_end();
        assert_eq!(view.status("").shards[0].behind_frames, 0);
    }

    /// All servers were shown with heartbeats of the present while none could be read.
    #[test]
    fn a_silent_store_makes_all_servers_silent_and_its_error_is_shown() {
        let view = view(&[("two", "http://two:1")]);
        let earlier = now().checked_sub(Duration::from_secs(40)).expect("the machine runs");
        view.servers.write().expect("no panic").heard = Some(earlier);
        assert!(view.note_store_error("the store refuses".into()));
        assert!(!view.note_store_error("the store refuses".into()));
        let shown = view.status("");
        assert!(shown.store_silent_ms >= 40_000 && shown.servers[0].silent_ms >= 40_000);
        assert_eq!(shown.store_error, "the store refuses");
        observe(&view, &[("two", "http://two:1")], 2);
        let shown = view.status("");
        assert!(shown.servers[0].silent_ms < 40_000 && shown.store_error.is_empty(), "{shown:?}");
    }

    /// Two servers claim a shard after a takeover that the former owner has not read yet.
    #[test]
    fn of_two_servers_that_claim_a_shard_the_last_owner_is_shown() {
        let view = view(&[("three", "http://three:1 owned=1"), ("two", "http://two:1 owned=1")]);
        for last in ["three", "two"] {
            view.shard(Shard::FIRST).facts().owner = Some(last.into());
            assert_eq!(view.status("").shards[0].owner.as_deref(), Some(last));
        }
    }

    #[test]
    fn a_shard_without_an_owner_is_shown_so_since_its_owner_left() {
        let view = view(&[]);
        let earlier = now().checked_sub(Duration::from_secs(1)).expect("the machine runs");
        view.shard(Shard::FIRST).facts().unowned_since = Some(earlier);
        view.note_owners();
        assert_eq!(view.shard(Shard::FIRST).facts().unowned_since, Some(earlier));
        observe(&view, &[("two", "http://two:1 owned=1")], 2);
        view.note_owners();
        assert_eq!(view.shard(Shard::FIRST).facts().unowned_since, None);
    }

    /// It reads no log, so the end of that was read long ago.
    #[test]
    fn an_owner_is_never_behind() {
        let view = view(&[]);
        let earlier = now().checked_sub(Duration::from_secs(1)).expect("the machine runs");
        view.shard(Shard::FIRST).facts().at_end = Some(earlier);
        assert!(view.status("").shards[0].behind_ms >= 1_000);
        view.shard(Shard::FIRST).facts().role = ShardRole::Owner;
        assert_eq!(view.status("").shards[0].behind_ms, 0);
    }
}

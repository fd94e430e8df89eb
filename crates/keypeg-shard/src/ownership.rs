//! Which server should own which shard. It is a hint that keeps servers from duels; it never decides.
//!
//! A server counts as live while its heartbeat changes, by the clock of the server that watches. The
//! shards are spread by rendezvous hashing: a server that comes or goes moves only its own share.

use keypeg_log::{Heartbeat, ServerName, Shard};
use std::collections::BTreeMap;

/// How long the heartbeat of a server may stand still before its shards are taken over.
const SILENT_MAX_US: u64 = 4_000_000;
/// The most time that counts between two looks at the heartbeats. While the store does not answer,
/// no heartbeat can change.
const GAP_MAX_US: u64 = 1_500_000;

/// The servers that were seen.
#[derive(Clone, Debug, Default)]
pub struct LiveServers {
    seen: BTreeMap<ServerName, Seen>,
    /// When the heartbeats were looked at last, by the clock of the watching server.
    looked_us: Option<u64>,
    /// The time during which the heartbeats could be looked at.
    watched_us: u64,
}

#[derive(Clone, Debug)]
struct Seen {
    address: String,
    count: u64,
    /// In watched time.
    changed_us: u64,
}

impl LiveServers {
    /// Notes what the log lists, at this time of the watching server's own clock in microseconds.
    pub fn observe(&mut self, heartbeats: &[Heartbeat], now_us: u64) {
        let gap_us = now_us.saturating_sub(self.looked_us.unwrap_or(now_us));
        self.looked_us = Some(now_us);
        self.watched_us += gap_us.min(GAP_MAX_US);
        self.seen.retain(|name, _| heartbeats.iter().any(|beat| beat.server == *name));
        for Heartbeat { server, address, count } in heartbeats {
            let changed =
                Seen { address: address.clone(), count: *count, changed_us: self.watched_us };
            let seen = self.seen.entry(server.clone()).or_insert_with(|| changed.clone());
            if seen.count != *count || seen.address != *address {
                *seen = changed;
            }
        }
    }

    /// Returns for how long the heartbeat of a server has not changed, in microseconds of watched
    /// time; `None` for a server without a heartbeat.
    pub fn silent_us(&self, name: &ServerName) -> Option<u64> {
        self.seen.get(name).map(|seen| self.watched_us - seen.changed_us)
    }

    /// Returns the servers whose heartbeats change, by name.
    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        let is_live = |seen: &Seen| self.watched_us - seen.changed_us < SILENT_MAX_US;
        self.seen.iter().filter(move |(_, seen)| is_live(seen)).map(|(name, _)| name)
    }
}

/// Returns the servers in the order in which they should own a shard, each once.
pub fn owner_order<'a>(
    shard: Shard,
    servers: impl Iterator<Item = &'a ServerName>,
) -> Vec<ServerName> {
    let mut order: Vec<_> = servers.cloned().collect();
    order.sort_by_cached_key(|name| std::cmp::Reverse((rank(shard, name), name.clone())));
    order.dedup();
    order
}

fn rank(shard: Shard, name: &ServerName) -> u64 {
    mixed(
        name.as_str()
            .bytes()
            .fold(u64::from(shard.get()) + 1, |sum, byte| mixed(sum ^ u64::from(byte))),
    )
}

/// Returns the shard of a pool: the same for all versions of the server.
pub fn shard_of_pool(pool: &str, shards: u16) -> Shard {
    let hash = pool.bytes().fold(0x006b_6579_7065_6700, |sum, byte| mixed(sum ^ u64::from(byte)));
    let shard = (u128::from(hash) * u128::from(shards)) >> 64;
    Shard::new(u16::try_from(shard).expect("invariant: below the number of shards"))
}

/// Mixes 64 bits (the finalizer of splitmix64).
fn mixed(bits: u64) -> u64 {
    let mut mixed = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<ServerName> {
        (0..count).map(|index| ServerName::new(&format!("node-{index}")).expect("a name")).collect()
    }

    #[test]
    fn a_server_counts_as_live_while_its_heartbeat_changes_by_the_watchers_clock() {
        let [name, other] = [0, 1].map(|index| names(2)[index].clone());
        let beat = |server: &ServerName, count| Heartbeat::new(server.clone(), "", count).unwrap();
        let mut live = LiveServers::default();
        for second in 0..4 {
            live.observe(&[beat(&name, 7), beat(&other, second)], 100 + second * 1_000_000);
            assert_eq!(live.names().count(), 2);
        }
        live.observe(&[beat(&name, 7), beat(&other, 4)], 100 + 4_000_000);
        let left: Vec<_> = live.names().collect();
        assert_eq!(left, [&other], "the heartbeat of the first has not changed for four seconds");
        assert_eq!([&name, &other].map(|name| live.silent_us(name)), [Some(4_000_000), Some(0)]);
        live.observe(&[beat(&name, 8)], 5_000_000);
        assert_eq!(live.silent_us(&other), None);
        assert_eq!(live.names().collect::<Vec<_>>(), [&name], "the other was removed");
    }

    /// Otherwise all servers would take each other's shards over after each outage of the store.
    #[test]
    fn no_server_is_silent_because_the_store_was_down() {
        let [name, other] = [0, 1].map(|index| names(2)[index].clone());
        let beat = |server: &ServerName, count| Heartbeat::new(server.clone(), "", count).unwrap();
        let mut live = LiveServers::default();
        live.observe(&[beat(&name, 7), beat(&other, 1)], 1_000_000);
        live.observe(&[beat(&name, 7), beat(&other, 2)], 61_000_000);
        assert_eq!(live.names().count(), 2);
        live.observe(&[beat(&name, 7), beat(&other, 3)], 62_000_000);
        live.observe(&[beat(&name, 7), beat(&other, 4)], 63_000_000);
        live.observe(&[beat(&name, 7), beat(&other, 5)], 64_000_000);
        assert_eq!(live.names().collect::<Vec<_>>(), [&other], "it is silent since then too");
    }

    #[test]
    fn a_server_that_leaves_moves_its_own_shards_alone() {
        let servers = names(4);
        let all = |servers: &[ServerName]| -> Vec<_> {
            let owner = |shard| owner_order(Shard::new(shard), servers.iter()).into_iter().next();
            (0..128).map(owner).collect()
        };
        let before = all(&servers);
        for server in &servers {
            let share = before.iter().filter(|owner| owner.as_ref() == Some(server)).count();
            assert!((16..=56).contains(&share), "{server}: {share} of 128 shards");
        }
        let after = all(&servers[..3]);
        for (was, is) in before.iter().zip(&after) {
            assert!(was == is || was.as_ref() == Some(&servers[3]));
        }
        assert_eq!(owner_order(Shard::FIRST, [].iter()), []);
    }

    #[test]
    fn pools_are_spread_evenly_and_keep_their_shard() {
        let mut counts = [0; 16];
        for pool in 0..16_000 {
            counts[usize::from(shard_of_pool(&format!("pool-{pool}"), 16).get())] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        // Another result would lose every pool of an existing installation.
        let fixed = ["default", "ci", "gpu", "a"].map(|pool| shard_of_pool(pool, 16).get());
        assert_eq!(fixed, [1, 8, 2, 6]);
    }
}

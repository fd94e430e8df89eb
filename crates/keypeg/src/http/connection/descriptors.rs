//! File descriptors: how many the server reserves for its own files and sockets, and how many
//! connections of clients the rest allows.
//!
//! The check of a start and the limit of connections use the same number, so that no connection takes a
//! descriptor that the journal needs. Does not know which files are open.

use crate::config::Config;
use crate::failure::{Failure, exit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For the journal, the key set and the files of the configuration, which the server must be able to
/// open whatever clients do.
const OF_FILES: usize = 64;
/// Of the runtime of one thread.
pub(super) const OF_THREAD: usize = 4;
/// Of the runtime and the connections that all shards of a store share.
const OF_STORE: usize = 16;
/// Of one shard of a store: the segments and the key set of its copy, and the requests by which it
/// reads and appends to the log, of which at most 16 are in progress.
const OF_SHARD: usize = 24;
/// Of one connection to another server, by which a request is forwarded.
const OF_LINK: usize = 2;
/// A server with room for fewer connections is not worth a start.
const CONNECTIONS_MIN: usize = 16;
/// The most connections of the listener for operations.
pub(super) const OPS_CONNECTIONS_MAX: usize = 16;

/// What takes file descriptors beside the connections of clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorNeeds {
    /// The threads that answer HTTP, and their reserve.
    pub(crate) cores: usize,
    /// Whether there is a listener for operations.
    pub(crate) has_ops: bool,
    /// The shards of the store; `None` with a data directory or in memory.
    pub(crate) shards: Option<usize>,
}

impl DescriptorNeeds {
    /// Returns the needs of a configuration. Before the store opens, a server that is not given the
    /// number of shards counts that of a new store.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            cores: config.cores(),
            has_ops: config.ops_listen.is_some(),
            shards: config.cluster.as_ref().map(|cluster| cluster.new_shards().into()),
        }
    }

    /// Returns how many descriptors no client may take.
    fn reserved(self) -> usize {
        let of_ops = if self.has_ops { OF_THREAD + OPS_CONNECTIONS_MAX } else { 0 };
        let of_store = self.shards.map_or(0, |shards| OF_STORE + shards * OF_SHARD);
        OF_FILES + self.cores * OF_THREAD + of_ops + of_store
    }

    /// Refuses a limit of file descriptors with which the server would start and serve no client.
    pub(crate) fn check(self) -> Result<(), Failure> {
        let needed = self.needed_for(CONNECTIONS_MIN) as u64;
        match getrlimit(Resource::Nofile).maximum.filter(|limit| *limit < needed) {
            None => Ok(()),
            Some(limit) => {
                let message = format!(
                    "the limit of open files is {limit}, and the server needs {needed} at least: \
                     raise it (`ulimit -n`, LimitNOFILE)"
                );
                Err(Failure::new(exit::OS, message))
            }
        }
    }

    /// Returns the limit that so many connections of clients need.
    pub(super) fn needed_for(self, connections: usize) -> usize {
        self.reserved() + connections * self.of_connection()
    }

    /// Returns the most connections of clients that the limit of file descriptors allows.
    pub(super) fn connections_max(self) -> usize {
        (self.free_under(descriptor_limit()) / self.of_connection()).max(CONNECTIONS_MIN)
    }

    /// Returns the most connections to other servers beside so many of clients.
    pub(super) fn links_max(self, connections: usize) -> usize {
        self.links_under(descriptor_limit(), connections)
    }

    fn links_under(self, limit: usize, connections: usize) -> usize {
        let free = self.free_under(limit).saturating_sub(connections);
        if self.shards.is_some() { free / OF_LINK } else { 0 }
    }

    /// Returns how many descriptors a connection of a client takes, with the one to another server to
    /// which its request is forwarded.
    fn of_connection(self) -> usize {
        if self.shards.is_some() { 1 + OF_LINK } else { 1 }
    }

    fn free_under(self, limit: usize) -> usize {
        limit.saturating_sub(self.reserved())
    }
}

/// Returns the soft limit of file descriptors; the greatest number if there is none.
fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map(usize::try_from).and_then(Result::ok).unwrap_or(usize::MAX)
}

/// Raises the soft limit of file descriptors to the hard limit: shells often set 1024, and each
/// connection takes one. If that fails, accepting waits for free descriptors instead.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: connections left 64 descriptors for all else, of which 16 threads alone take 64.
    #[test]
    fn connections_leave_what_threads_the_operations_and_shards_need() {
        let alone = DescriptorNeeds { cores: 1, has_ops: false, shards: None };
        for (needs, reserved) in [
            (alone, 68),
            (DescriptorNeeds { cores: 16, ..alone }, 128),
            (DescriptorNeeds { has_ops: true, ..alone }, 88),
            (DescriptorNeeds { shards: Some(1), ..alone }, 108),
            (DescriptorNeeds { shards: Some(128), ..alone }, 3_156),
        ] {
            assert_eq!(needs.reserved(), reserved, "{needs:?}");
            for connections in [16, 17, 10_000] {
                let limit = needs.needed_for(connections);
                let each = if needs.shards.is_some() { 3 } else { 1 };
                assert_eq!(limit, reserved + each * connections, "{needs:?}");
                let links = needs.links_under(limit, connections);
                assert_eq!(links, if needs.shards.is_some() { connections } else { 0 });
                // Memory can allow fewer connections: the rest is for those to other servers.
                let more = needs.links_under(limit, 10);
                assert!(reserved + 10 + OF_LINK * more <= limit && more >= links, "{needs:?}");
            }
            assert_eq!(needs.free_under(reserved), 0);
            assert!(needs.free_under(usize::MAX) > 1 << 30);
        }
    }
}

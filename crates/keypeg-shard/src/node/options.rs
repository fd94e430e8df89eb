//! What a node is started with.

use keypeg_core::{Policy, RandomSource};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::JournalSizes;
use keypeg_engine::{Clock, SealOptions, ShardIdentity};
use keypeg_log::{ServerName, SharedLog};
use keypeg_store::StoreMetrics;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The usual distance of snapshots: 32 MiB of frames, which are read in less than a second.
pub const SNAPSHOT_AFTER: u64 = 32 << 20;

/// Gives an empty directory for the scratch files of a shard, each time that a replica begins.
pub type MakeScratch = Box<dyn Fn(u16) -> io::Result<Arc<dyn Disk>> + Send + Sync>;
/// Creates a clock of this machine.
pub type MakeClock = Box<dyn Fn() -> Box<dyn Clock> + Send + Sync>;
/// Creates a source of random numbers.
pub type MakeRandom = Box<dyn Fn() -> Box<dyn RandomSource + Send> + Send + Sync>;

/// What a node is started with.
pub struct NodeOptions {
    /// The log. Its probe has succeeded.
    pub log: Arc<dyn SharedLog>,
    /// The store in words, for operators.
    pub store: String,
    /// The identity of the installation.
    pub identity: ShardIdentity,
    /// The name of this server, unique in the installation.
    pub server: ServerName,
    /// The URL at which other servers reach this one: at most 100 bytes, without a blank.
    pub address: String,
    /// The lanes of each shard: one for each core.
    pub lanes: usize,
    /// The policy of the default pool when its shard is created.
    pub default_policy: Policy,
    /// The most keys of a shard.
    pub max_keys: u64,
    /// The most bytes of the pools of all shards.
    pub memory: u64,
    /// Data that needs more bytes is refused.
    pub memory_max: u64,
    /// Bytes of pages that the database of a shard keeps in memory at most.
    pub cache: usize,
    /// The sizes of the scratch files of a shard's journal.
    pub sizes: JournalSizes,
    /// Whether this server requires access tokens: all servers should.
    pub has_tokens: bool,
    /// The seal keys.
    pub seal: Option<SealOptions>,
    /// How often a shard's log is read while another server owns it.
    pub follow_every: Duration,
    /// What a server that begins has to read above the newest snapshot, in bytes, before the owner
    /// writes another one; more if the snapshots are larger. Usually [`SNAPSHOT_AFTER`].
    pub snapshot_after: u64,
    /// Gives scratch directories.
    pub scratch: MakeScratch,
    /// Creates clocks.
    pub clock: MakeClock,
    /// Creates sources of random numbers.
    pub random: MakeRandom,
    /// The counters of all shards that this server serves.
    pub metrics: Arc<StoreMetrics>,
}

impl fmt::Debug for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { log, server, address, .. } = self;
        f.debug_struct("NodeOptions")
            .field("log", log)
            .field("server", server)
            .field("address", address)
            .finish_non_exhaustive()
    }
}

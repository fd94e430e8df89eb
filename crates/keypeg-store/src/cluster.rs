//! A store whose pools are spread over several servers: which server serves which shard.
//!
//! All of it is a hint. A shard that this server does not serve refuses a request with
//! [`NotOwner`](crate::RequestError::NotOwner), and only the store's log decides who owns it.

use crate::request::Call;
use keypeg_core::PoolName;
use std::fmt;
use std::sync::Arc;

/// The pools' way to the servers that serve them. The methods are cheap: they read what the store's
/// threads have published.
pub trait Cluster: fmt::Debug + Send + Sync {
    /// Returns the name of this server.
    fn server(&self) -> &str;

    /// Returns the number of shards.
    fn shards(&self) -> usize;

    /// Returns the shard of a pool, below [`Cluster::shards`]. O(length of the name).
    fn shard_of(&self, pool: &PoolName) -> usize;

    /// Returns where a shard is served, as far as this server knows. O(1).
    fn place(&self, shard: usize) -> Place;

    /// Asks the thread of a shard to read the log now: another server has said that it does not own
    /// the shard, or cannot be reached. O(1).
    fn look(&self, shard: usize);

    /// Returns the shards and servers as this server sees them.
    fn status(&self) -> ClusterStatus;

    /// Begins to hand a shard that this server serves over to another server, which keeps it until it
    /// stops. [`Cluster::status`] shows when it has taken the shard over.
    fn move_shard(&self, shard: usize, server: &str) -> Result<(), MoveError>;

    /// Returns whether a move that this server has begun goes on. It ends when the other server has
    /// taken the shard over, has died, or has not taken it over while it could.
    fn is_moving(&self, shard: usize, server: &str) -> bool;

    /// Returns the secret that only the servers of one installation know: a request that presents it
    /// was forwarded by one of them.
    fn peer_secret(&self) -> [u8; 32];
}

/// Where a shard is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// By this server.
    Here,
    /// By another server.
    There(Arc<Peer>),
    /// By no server that this one knows: it is being taken over.
    Unknown,
}

/// A server of the same installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// The URL at which it is reached by the other servers.
    pub address: String,
}

/// The shards and servers of an installation, as one server sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The store, in words, such as `PostgreSQL 15.14, synchronous standbys s1`.
    pub store: String,
    /// For how long the store has not answered a heartbeat of this server, in milliseconds.
    pub store_silent_ms: u64,
    /// Why the last heartbeat of this server failed; empty if it did not.
    pub store_error: String,
    /// The servers, by name.
    pub servers: Vec<ServerStatus>,
    /// The shards, by number.
    pub shards: Vec<ShardStatus>,
}

/// A server of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerStatus {
    /// Its name and address.
    pub peer: Peer,
    /// Whether its heartbeat changes.
    pub is_live: bool,
    /// For how long this server has not seen its heartbeat change, in milliseconds.
    pub silent_ms: u64,
    /// The shards that it serves, as its heartbeat says.
    pub owns: Vec<usize>,
    /// The shards that it follows and could take over at once, as its heartbeat says.
    pub follows: Vec<usize>,
    /// Whether it requires access tokens; `None` if its heartbeat does not say so.
    pub has_tokens: Option<bool>,
}

/// A shard as one server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// What this server does with the shard.
    pub role: ShardRole,
    /// The live server that serves the shard; `None` while no server does.
    pub owner: Option<String>,
    /// For how long no live server has served it, in milliseconds; 0 if one does.
    pub unowned_ms: u64,
    /// The server that should own the shard.
    pub preferred: Option<String>,
    /// Whether the preferred server was chosen by hand.
    pub is_pinned: bool,
    /// The position of the last frame that this server has appended or applied.
    pub position: u64,
    /// The frames above it that this server knows of; 0 as the owner.
    pub behind_frames: u64,
    /// How long ago this server has read the log to its end, in milliseconds; 0 as the owner.
    pub behind_ms: u64,
    /// The position of the newest snapshot that this server knows of; 0 for none.
    pub snapshot: u64,
    /// The takeovers of the shard, by any server, that this one has seen since its start.
    pub takeovers: u64,
    /// Why this server cannot follow the shard now, or could not take it over while it has no owner;
    /// empty if it can.
    pub error: String,
}

/// What a server does with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardRole {
    /// It reads the newest snapshot.
    Loading,
    /// It follows the shard's log.
    Following,
    /// It serves the shard.
    Owner,
}

/// Why a shard cannot be moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    /// There is no such shard.
    #[error("there is no shard {shard}: the shards are 0 to {last}")]
    UnknownShard {
        /// The number.
        shard: usize,
        /// The greatest number.
        last: usize,
    },
    /// No live server has this name.
    #[error("no live server has the name {0}")]
    UnknownServer(String),
    /// This server does not serve the shard.
    #[error("this server does not serve shard {0}")]
    NotOwner(usize),
    /// The other server has not read the log of the shard to its end.
    #[error("{server} has not read shard {shard} to its end")]
    NotReady {
        /// The shard.
        shard: usize,
        /// The other server.
        server: String,
    },
    /// This server moves another shard at the moment, or this one to another server.
    #[error("this server moves shard {0} at the moment")]
    Busy(usize),
}

impl Call {
    /// Returns the pool that the call concerns, whose shard answers it; `None` for all pools.
    pub fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::ListPools { .. } => None,
            Self::PutPool { pool, .. }
            | Self::PutPoolIf { pool, .. }
            | Self::GetPool { pool }
            | Self::DeletePool { pool }
            | Self::Generate { pool, .. }
            | Self::Import { pool, .. }
            | Self::Acquire { pool, .. }
            | Self::RevokeUndelivered { pool, .. }
            | Self::Subscribe { pool }
            | Self::Release { pool, .. }
            | Self::Renew { pool, .. }
            | Self::Reveal { pool, .. }
            | Self::ForceRelease { pool, .. }
            | Self::QuarantineKey { pool, .. }
            | Self::EndQuarantine { pool, .. }
            | Self::DeleteKey { pool, .. }
            | Self::KeepAlive { pool, .. }
            | Self::KeepAliveMany { pool, .. }
            | Self::KeepAliveAll { pool }
            | Self::ListKeys { pool, .. }
            | Self::GetKey { pool, .. }
            | Self::SetLabel { pool, .. } => Some(pool),
        }
    }
}

//! The servers and shards of an installation, on the wire, and the request that moves a shard.
//!
//! Everything here is what one server sees. Only the log of a shard decides who owns it.

use crate::time::Seconds;
use serde::{Deserialize, Serialize};

/// The servers and shards of an installation, as the server that was asked sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct Cluster {
    /// The name of the server that was asked.
    pub server: String,
    /// The store of the logs, in words for people.
    pub store: String,
    /// For how long the store has not answered a heartbeat of this server. A heartbeat is sent each
    /// second.
    pub store_silent_seconds: Seconds,
    /// Why the last heartbeat of this server failed; null if it did not.
    pub store_error: Option<String>,
    /// The servers, by name.
    pub servers: Vec<ClusterServer>,
    /// The shards, by number.
    pub shards: Vec<ClusterShard>,
}

/// A server of an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct ClusterServer {
    /// Its name.
    pub server: String,
    /// The URL at which the other servers reach it.
    pub address: String,
    /// Whether its heartbeat changes.
    pub live: bool,
    /// For how long its heartbeat has not changed, as far as the server that was asked has read.
    pub silent_seconds: Seconds,
    /// The shards that it serves, as its heartbeat says.
    pub owns: Vec<u32>,
    /// The shards that it follows and could take over at once, as its heartbeat says.
    pub follows: Vec<u32>,
    /// Whether it requires access tokens, as all servers of an installation should; null if its
    /// heartbeat does not say so.
    pub access_tokens: Option<bool>,
    /// Why the server that was asked could not connect to it in the last minute, to forward a request;
    /// null if it could, or did not try.
    pub unreachable: Option<String>,
}

/// A shard, as one server sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct ClusterShard {
    /// Its number, from 0.
    pub shard: u32,
    /// The live server that serves it; null while no server does.
    pub owner: Option<String>,
    /// For how long no live server has served it; 0 if one does.
    pub unowned_seconds: Seconds,
    /// What the server that was asked does with the shard.
    pub role: ShardRole,
    /// The server that should own the shard.
    pub preferred: Option<String>,
    /// Whether that server was chosen by hand.
    pub pinned: bool,
    /// The position of the last frame that the server that was asked has appended or applied.
    pub position: u64,
    /// The frames above this position that it knows of; 0 as the owner.
    pub behind_frames: u64,
    /// How long ago it has read the log to its end; 0 as the owner.
    pub behind_seconds: Seconds,
    /// The position of the newest snapshot that it knows of; 0 for none.
    pub snapshot_position: u64,
    /// The takeovers of the shard, by any server, that it has seen since its start.
    pub takeovers: u64,
    /// Why it cannot follow the shard now, or could not take it over while the shard has no owner; null
    /// if it can.
    pub error: Option<String>,
}

/// What a server does with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ShardRole {
    /// It reads the newest snapshot and the log above it.
    Loading,
    /// It follows the log, and could take the shard over at once.
    Following,
    /// It serves the shard.
    Owner,
}

/// A request that moves a shard to another server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct MoveShardRequest {
    /// The name of the server that is to own the shard. Required.
    pub server: Option<String>,
}

impl ShardRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Loading, Self::Following, Self::Owner];

    /// Returns the word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Following => "following",
            Self::Owner => "owner",
        }
    }
}

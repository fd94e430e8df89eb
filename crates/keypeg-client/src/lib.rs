//! The contract of Keypeg's HTTP API as types: requests, answers, events, routes and error codes.
//!
//! Server and clients share these types, so each field, route and error code is spelt in one place.
//! The types know no engine, socket or clock, and make no decisions. The feature `client` adds
//! [`Client`], and [`LeaseGuard`], which renews a lease while it exists. The feature `openapi` adds
//! the JSON Schema of each type, for keypeg-openapi.

mod access;
#[cfg(feature = "client")]
mod address;
#[cfg(feature = "client")]
mod backoff;
#[cfg(feature = "client")]
mod backup;
#[cfg(feature = "client")]
mod client;
mod cluster;
#[cfg(feature = "client")]
mod error;
mod event;
#[cfg(feature = "client")]
mod events;
#[cfg(feature = "client")]
mod follow;
#[cfg(feature = "client")]
mod guard;
mod history;
mod key;
#[cfg(feature = "client")]
mod key_calls;
mod lease;
#[cfg(feature = "client")]
mod lease_end;
#[cfg(feature = "client")]
mod pages;
mod pool;
mod problem;
#[cfg(feature = "client")]
mod renewal;
pub mod routes;
#[cfg(feature = "client")]
mod source;
mod time;
#[cfg(feature = "client")]
mod tls;
#[cfg(feature = "client")]
mod tls_error;
#[cfg(feature = "client")]
mod wait;

pub use access::Access;
#[cfg(feature = "client")]
pub use address::check_server_address;
#[cfg(feature = "client")]
pub use backup::Backup;
#[cfg(feature = "client")]
pub use client::{Client, ServerVersion};
pub use cluster::{Cluster, ClusterServer, ClusterShard, MoveShardRequest, ShardRole};
#[cfg(feature = "client")]
pub use error::Error;
pub use event::{
    DrainCancelled, Draining, Event, Granted, KeyChanged, KeysAdded, Labelled, LeaseEnded,
    PolicyChanged, PoolDeleted, Quarantined, Renewed, Resync,
};
#[cfg(feature = "client")]
pub use events::Events;
#[cfg(feature = "client")]
pub use guard::{GuardOptions, LeaseGuard};
pub use history::History;
#[cfg(feature = "client")]
pub use key::KeyFilter;
pub use key::{
    GenerateRequest, KeepAliveRequest, KeptAlive, KeptAliveMany, Key, KeyLease, KeyPage,
    KeyReleased, KeyRequest, KeyState, NewKey, NewKeys, QuarantineRequest, QuarantineWhen,
    RevealedKey, Secret, Verification, VerifyRequest,
};
pub use lease::{AcquireRequest, Grant, Lease, ReleaseRequest, RenewRequest};
#[cfg(feature = "client")]
pub use lease_end::LeaseEnd;
#[cfg(feature = "client")]
pub use pages::{KeyPages, PoolPages};
#[cfg(feature = "client")]
pub use pool::Existence;
pub use pool::{PolicyRequest, Pool, Pools};
pub use problem::{Code, Outcome, Problem, ProblemExtensions};
#[cfg(feature = "client")]
pub use source::ClientSource;
pub use time::{Seconds, UnixMs};
#[cfg(feature = "client")]
pub use tls::{ClientIdentity, TlsSettings};
#[cfg(feature = "client")]
pub use tls_error::tls_next_step;
#[cfg(feature = "client")]
pub use wait::{LongWait, SentGrant};

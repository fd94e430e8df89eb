//! The contract of Keypeg's HTTP API as types: what requests and answers look like on the wire.
//!
//! Server and clients share these, so there is one spelling of every field, route and error code.
//! No type here knows of an engine, a socket or a clock, and none decides anything. The feature
//! `client` adds what calls: [`Client`], and [`LeaseGuard`], which keeps a lease while it lives;
//! `openapi` adds the document that describes all this.

#[cfg(feature = "client")]
mod client;
mod event;
#[cfg(feature = "client")]
mod events;
#[cfg(feature = "client")]
mod guard;
mod key;
mod lease;
#[cfg(feature = "openapi")]
pub mod openapi;
mod pool;
mod problem;
pub mod routes;
mod time;

#[cfg(feature = "client")]
pub use client::{Client, Error, KeyPages, ServerVersion};
pub use event::{
    Event, Granted, KeyMoved, KeysAdded, LeaseOver, PolicyChanged, PoolDropped, Quarantined,
    Renewed, Resync,
};
#[cfg(feature = "client")]
pub use events::Events;
#[cfg(feature = "client")]
pub use guard::LeaseGuard;
pub use key::{
    Freed, GenerateRequest, KeepAliveRequest, Kept, KeptMany, Key, KeyLease, KeyPage, KeyState,
    NewKey, NewKeys, Revealed, Secret,
};
pub use lease::{AcquireRequest, Grant, Lease, ReleaseRequest, RenewRequest};
pub use pool::{PolicyRequest, Pool, Pools};
pub use problem::{Code, More, Outcome, Problem};
pub use time::{Seconds, UnixMs};

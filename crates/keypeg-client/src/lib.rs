//! The contract of Keypeg's HTTP API as types: what requests and answers look like on the wire.
//!
//! Server and clients share these, so there is one spelling of every field, route and error code.
//! Nothing here knows of an engine, a socket or a clock, and no type here decides anything.

mod key;
mod lease;
mod pool;
mod problem;
pub mod routes;
mod time;

pub use key::{
    Freed, GenerateRequest, KeepAliveRequest, Kept, KeptMany, Key, KeyLease, KeyState, NewKey,
    NewKeys, Secret,
};
pub use lease::{AcquireRequest, Grant, Lease, RenewRequest};
pub use pool::{PolicyRequest, Pool, Pools};
pub use problem::{Code, More, Outcome, Problem};
pub use time::{Seconds, UnixMs};

//! The handlers of the routes: each parses its request, submits a call through its core's lane, and
//! maps the reply.

pub(crate) mod abandon;
pub(crate) mod backup;
pub(crate) mod cluster;
#[cfg(feature = "bench-constant")]
pub(crate) mod constant;
mod default_pool;
pub(crate) mod django;
pub(crate) mod events;
mod gateway;
pub(crate) mod history;
pub(crate) mod keys;
pub(crate) mod leases;
pub(crate) mod operation;
pub(crate) mod ops;
pub(crate) mod payload;
pub(crate) mod pools;
mod readiness;
pub(crate) mod simple;
pub(crate) mod verify;

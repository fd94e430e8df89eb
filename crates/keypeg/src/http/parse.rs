//! Parses the parts of a request: path, query, headers and body. Every error names its field and
//! what is allowed.

pub(crate) mod body;
pub(crate) mod cluster;
pub(crate) mod idempotency;
pub(crate) mod json;
pub(crate) mod keys;
pub(crate) mod leases;
pub(crate) mod members;
pub(crate) mod path;
pub(crate) mod pools;
pub(crate) mod precondition;
pub(crate) mod prefer;
pub(crate) mod query;

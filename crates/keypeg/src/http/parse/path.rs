//! The names and ids in a path. An invalid one cannot exist, so it is reported as an unknown one.

use crate::http::error::Problem;
use keypeg_core::{KeyId, KeyRef, LeaseId, PoolName, Refusal};
use keypeg_store::RequestError;

/// Parses a pool name. An invalid name is reported as an unknown pool.
pub(crate) fn pool_name(text: &str) -> Result<PoolName, Problem> {
    PoolName::parse(text)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownPool)))
}

/// Parses a key id. An invalid id is reported as an unknown key.
pub(crate) fn key_ref(text: &str) -> Result<KeyRef, Problem> {
    KeyId::parse(text)
        .map(KeyRef::Id)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownKey)))
}

/// Parses a lease id. An invalid id is reported as an ended lease.
pub(crate) fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    LeaseId::parse(text).ok_or_else(|| Problem::lease_ended(None))
}

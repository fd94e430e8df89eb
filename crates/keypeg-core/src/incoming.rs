//! Keys that enter a pool: from a request, from a fact, or from the database.

use crate::ids::KeyId;
use crate::numbers::KeyNumber;

/// A key that is about to be inserted.
#[derive(Clone, Copy)]
pub(crate) struct IncomingKey<'a> {
    pub(crate) number: KeyNumber,
    pub(crate) id: KeyId,
    pub(crate) value: &'a [u8],
    pub(crate) imported: bool,
}

/// A key as the database contains it.
#[derive(Clone, Copy)]
pub struct StoredKey<'a> {
    /// Its value.
    pub value: &'a [u8],
    /// Its id, as [`IdHashKey::key_id`](crate::IdHashKey::key_id) computes it. Most of the cost of
    /// loading a key is this hash, so the caller computes it on the thread that reads.
    pub id: KeyId,
    /// The time of creation, wall time in milliseconds.
    pub created_at_ms: u64,
    /// Whether it was imported.
    pub imported: bool,
}

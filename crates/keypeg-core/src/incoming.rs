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
    /// Whether the key is purged unless it is kept alive.
    pub(crate) keepalive: bool,
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
    /// Whether it is purged unless it is kept alive.
    pub keepalive: bool,
}

/// What an import requests besides its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Whether the keys are purged unless they are kept alive, as the policy says. If not, they
    /// exist until a call deletes them.
    pub keepalive: bool,
    /// Whether values may be imported whose keys were deleted or purged.
    pub allow_retired: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { keepalive: true, allow_retired: false }
    }
}

//! The keys of one call that adds many, as far as they are computed before the call changes a pool:
//! the ids of values to import, or generated values with their ids.
//!
//! Plain data. It belongs to one pool and one form of values; a call that finds another pool or
//! another form computes what it needs again.

use crate::ids::KeyId;
use crate::numbers::PoolId;
use crate::policy::Policy;
use crate::secret::Secret;
use crate::symbols::Symbols;

/// The keys that a call adds.
#[derive(Clone, Copy, Debug)]
pub enum KeysToAdd<'a> {
    /// So many keys with random values.
    Generated(u32),
    /// Keys with these values.
    Imported(&'a [Secret]),
}

/// The keys of one call that are prepared so far, in their order: about 50 bytes for each.
pub struct PreparedKeys {
    pool: PoolId,
    prefix: Box<str>,
    key_length: u16,
    pub(crate) keys: Vec<PreparedKey>,
    /// Generated values, one behind the other: all have the same length.
    pub(crate) values: Vec<u8>,
    pub(crate) symbols: Symbols,
}

#[derive(Clone, Copy)]
pub(crate) struct PreparedKey {
    pub(crate) id: KeyId,
    /// Whether the pool recognises the value as one that it generated.
    pub(crate) has_tag: bool,
}

impl PreparedKeys {
    /// Returns the number of prepared keys.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// Begins a preparation for this pool and the form of its values.
    pub(crate) fn new(pool: PoolId, policy: &Policy) -> Self {
        Self {
            pool,
            prefix: policy.key_prefix.clone(),
            key_length: policy.key_length,
            keys: Vec::new(),
            values: Vec::new(),
            symbols: Symbols::default(),
        }
    }

    /// Returns the id of a value to import.
    pub(crate) fn imported(&self, pool: PoolId, index: usize) -> Option<PreparedKey> {
        self.keys.get(index).copied().filter(|_| self.pool == pool && self.values.is_empty())
    }

    /// Returns a generated value and its id.
    pub(crate) fn generated(
        &self,
        pool: PoolId,
        policy: &Policy,
        index: usize,
    ) -> Option<(&[u8], KeyId)> {
        let length = self.prefix.len() + usize::from(self.key_length);
        let value = self.values.get(index * length..(index + 1) * length)?;
        let id = self.keys.get(index)?.id;
        self.is_for(pool, policy).then_some((value, id))
    }

    /// Returns whether the key at this place is prepared.
    pub(crate) fn is_ready(&self, pool: PoolId, policy: &Policy, index: usize) -> bool {
        let is_imported = self.imported(pool, index).is_some();
        is_imported || self.generated(pool, policy, index).is_some()
    }

    /// Returns whether it is for this pool and the form of its values.
    pub(crate) fn is_for(&self, pool: PoolId, policy: &Policy) -> bool {
        let Self { prefix, key_length, .. } = self;
        self.pool == pool && (&policy.key_prefix, policy.key_length) == (prefix, *key_length)
    }
}

impl KeysToAdd<'_> {
    /// Returns the number of keys.
    pub fn count(self) -> usize {
        match self {
            Self::Generated(count) => count as usize,
            Self::Imported(values) => values.len(),
        }
    }
}

/// Shows only the number: values are secret.
impl std::fmt::Debug for PreparedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PreparedKeys({})", self.keys.len())
    }
}

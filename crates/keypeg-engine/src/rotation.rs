//! The seal of an open data directory: which key seals it, and its replacement by another one.
//!
//! A rotation encrypts the secrets with the new key and replaces `meta` by a rename, so after a
//! crash the directory opens with the old key or with the new one. Knows no value and no journal.

use crate::disk::Disk;
use crate::meta::{Meta, Protection};
use crate::seal::{Envelope, SealKeyId, SealKeys, Secrets, Unsealed};
use keypeg_core::{IdHash, RandomSource};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The seal of an open directory.
pub struct SealControl {
    disk: Arc<dyn Disk>,
    installation: u128,
    id_hash: IdHash,
    secrets: Secrets,
    stored: Mutex<Stored>,
}

/// What `meta` contains about the seal.
#[derive(Clone)]
struct Stored {
    envelope: Envelope,
    /// The key of the envelope.
    key: SealKeyId,
    unsealed: Unsealed,
}

/// What the keys of a file changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealUse {
    /// The first key sealed the directory already.
    Unchanged(SealKeyId),
    /// The first key seals the directory from now on.
    Rotated {
        /// The key before.
        from: SealKeyId,
        /// The first key.
        to: SealKeyId,
    },
}

/// Why the seal key was not replaced. The directory is still sealed with the key before.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The file does not contain the key that seals the directory.
    #[error(
        "the data directory is sealed with the key {key}, and the file contains {given}: add the \
         key {key} after the new one, so that the file opens the directory at every moment"
    )]
    MissingKey {
        /// The key that seals the directory.
        key: SealKeyId,
        /// The ids of the keys of the file.
        given: String,
    },
    /// `meta` could not be written.
    #[error("writing meta failed: {0}")]
    Io(#[from] io::Error),
}

impl SealControl {
    /// Returns the seal that `meta` contains; `None` if it has none.
    pub(crate) fn of(disk: Arc<dyn Disk>, meta: &Meta, secrets: Secrets) -> Option<Self> {
        let Protection::Sealed { envelope, unsealed } = &meta.protection else { return None };
        let (key, envelope) = (envelope.key_id()?, envelope.clone());
        let stored = Mutex::new(Stored { envelope, key, unsealed: *unsealed });
        let Meta { installation, id_hash, .. } = *meta;
        Some(Self { disk, installation, id_hash, secrets, stored })
    }

    /// Seals the directory with the first of the keys, durably. One of them must be the key that
    /// seals it now.
    pub fn use_keys(
        &self,
        keys: &SealKeys,
        random: &mut dyn RandomSource,
    ) -> Result<SealUse, RotationError> {
        let mut stored = self.locked();
        let (from, to) = (stored.key, keys.first().id());
        if from == to {
            return Ok(SealUse::Unchanged(to));
        }
        if !keys.contains(from) {
            return Err(RotationError::MissingKey { key: from, given: keys.to_string() });
        }
        let envelope = Envelope::seal(&self.secrets, keys.first(), self.installation, random);
        let new = Stored { envelope, key: to, unsealed: stored.unsealed };
        self.write(&new)?;
        *stored = new;
        Ok(SealUse::Rotated { from, to })
    }

    /// Returns the id of the key that seals the directory.
    pub fn key(&self) -> SealKeyId {
        self.locked().key
    }

    /// Returns whether every value on the disk is sealed.
    pub(crate) fn is_complete(&self) -> bool {
        self.locked().unsealed == Unsealed::Refused
    }

    /// Notes durably that every value on the disk is sealed.
    pub(crate) fn set_complete(&self) -> io::Result<()> {
        let mut stored = self.locked();
        stored.unsealed = Unsealed::Refused;
        self.write(&stored)
    }

    fn write(&self, Stored { envelope, unsealed, .. }: &Stored) -> io::Result<()> {
        let protection = Protection::Sealed { envelope: envelope.clone(), unsealed: *unsealed };
        let Self { installation, id_hash, .. } = *self;
        let meta = Meta { installation, id_hash, protection, has_keyset: true };
        meta.replace(&*self.disk)
    }

    fn locked(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SealControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealControl({})", self.key())
    }
}

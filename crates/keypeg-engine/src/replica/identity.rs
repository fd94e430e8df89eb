//! The identity of an installation that several servers share: what every replica of every shard
//! must have in common before it reads its first batch.
//!
//! It is created once and stored in the log of the installation, where a second one is refused. It
//! contains the `meta` of a data directory, so that secrets are sealed in it as they are there.

use crate::backup::{BackupError, meta_of};
use crate::meta::{Meta, Protection};
use crate::seal::{SealKeyId, SealOptions};
use crate::start::StartError;
use crate::state::FIRST_TOKEN_MAX;
use crate::unlock::{self, Unlocked};
use keypeg_core::RandomSource;
use std::io::Read;

/// The most shards of an installation: each has numbers of pools of its own.
pub const SHARDS_MAX: u16 = 128;
const MAGIC: &[u8; 8] = b"KEYPEGSH";
/// The form of the bytes.
const VERSION: u8 = 1;
/// Magic (8), version (1), number of shards (2), first token (8).
const HEAD: usize = 8 + 1 + 2 + 8;

/// What all shards of an installation have in common.
#[derive(Clone, PartialEq, Eq)]
pub struct ShardIdentity {
    meta: Meta,
    /// The number of shards.
    shards: u16,
    /// The first fencing token of each shard.
    first_token: u64,
}

impl ShardIdentity {
    /// Creates an identity with this number of shards, at this wall time in microseconds.
    ///
    /// # Panics
    /// If there is no shard, or more than [`SHARDS_MAX`].
    pub fn create(
        shards: u16,
        seal: Option<&SealOptions>,
        wall_us: u64,
        random: &mut dyn RandomSource,
    ) -> Self {
        assert!((1..=SHARDS_MAX).contains(&shards), "from 1 to {SHARDS_MAX} shards");
        let (meta, _) = unlock::create(seal, random);
        Self { meta, shards, first_token: wall_us.min(FIRST_TOKEN_MAX) }
    }

    /// Creates the identity of an installation that continues with the data of a backup: its number
    /// and its keys stay, so that ids, tags and stored answers keep their meaning. O(bytes).
    ///
    /// # Panics
    /// If there is no shard, or more than [`SHARDS_MAX`].
    pub fn of_backup(backup: &mut dyn Read, shards: u16) -> Result<Self, BackupError> {
        assert!((1..=SHARDS_MAX).contains(&shards), "from 1 to {SHARDS_MAX} shards");
        let meta = meta_of(backup)?;
        // The first snapshot of each shard reserves the tokens of the backup, which can be below
        // those of the present time.
        Ok(Self { meta, shards, first_token: 1 })
    }

    /// Returns the bytes to store.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.shards.to_le_bytes());
        bytes.extend_from_slice(&self.first_token.to_le_bytes());
        bytes.extend_from_slice(&self.meta.write());
        bytes
    }

    /// Reads stored bytes.
    pub fn read(bytes: &[u8]) -> Result<Self, StartError> {
        let refused = |why: &str| StartError::Corrupt(format!("the installation's identity {why}"));
        let (head, meta) =
            bytes.split_first_chunk::<HEAD>().ok_or_else(|| refused("is incomplete"))?;
        let (magic, rest) = head.split_first_chunk::<8>().expect("invariant: a longer head");
        if magic != MAGIC {
            return Err(refused("is not one of keypeg"));
        }
        let &[version, low, high, ref token @ ..] = rest else {
            return Err(refused("is incomplete"));
        };
        if version != VERSION {
            return Err(refused("has a newer format: use a newer version of keypeg"));
        }
        let shards = u16::from_le_bytes([low, high]);
        let token = <[u8; 8]>::try_from(token).map_err(|_| refused("is incomplete"))?;
        let first_token = u64::from_le_bytes(token);
        if !(1..=SHARDS_MAX).contains(&shards) || first_token > FIRST_TOKEN_MAX {
            return Err(refused("has a number that is out of range"));
        }
        Ok(Self { meta: Meta::read(meta)?, shards, first_token })
    }

    /// Returns the number of shards.
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// Returns the secret that only the servers of this installation know: it follows from the key
    /// of the ids, and does not reveal it.
    pub fn peer_secret(
        &self,
        seal: Option<&SealOptions>,
        random: &mut dyn RandomSource,
    ) -> Result<[u8; 32], StartError> {
        const CONTEXT: &str = "keypeg 2026 secret of the servers of an installation";
        let (meta, unlocked) = self.unlock(seal, random)?;
        Ok(match (&unlocked.secrets, &meta.protection) {
            (Some(secrets), _) => blake3::derive_key(CONTEXT, &*secrets.id_key),
            (None, Protection::Plain { id_key }) => blake3::derive_key(CONTEXT, id_key),
            (None, Protection::Sealed { .. }) => {
                unreachable!("invariant: a seal that was opened has secrets")
            }
        })
    }

    /// Returns the `meta` of a data directory with this identity.
    pub(crate) fn meta(&self) -> Vec<u8> {
        self.meta.write()
    }

    pub(super) fn first_token(&self) -> u64 {
        self.first_token
    }

    /// Returns the key that seals the installation; `None` if it is not sealed.
    pub fn seal_key(&self) -> Option<SealKeyId> {
        match &self.meta.protection {
            Protection::Plain { .. } => None,
            Protection::Sealed { envelope, .. } => envelope.key_id(),
        }
    }

    /// Checks that the seal keys of a server open the seal of the installation: an installation is
    /// sealed, or not, when it is created.
    pub fn check_seal(
        &self,
        seal: Option<&SealOptions>,
        random: &mut dyn RandomSource,
    ) -> Result<(), StartError> {
        if seal.is_some() && !self.meta.is_sealed() {
            return Err(StartError::Seal(
                "the installation in the store is not sealed, and it can be sealed only when it is \
                 created: omit --seal-key"
                    .into(),
            ));
        }
        self.unlock(seal, random).map(|_| ())
    }

    /// Opens its seal.
    pub(super) fn unlock(
        &self,
        seal: Option<&SealOptions>,
        random: &mut dyn RandomSource,
    ) -> Result<(Meta, Unlocked), StartError> {
        let mut meta = self.meta.clone();
        let unlocked = unlock::unlock(&mut meta, seal, random)?;
        Ok((meta, unlocked))
    }
}

impl std::fmt::Debug for ShardIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardIdentity")
            .field("meta", &self.meta)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

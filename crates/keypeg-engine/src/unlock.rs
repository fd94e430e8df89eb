//! Opens the seal of a data directory at a start, or refuses the start before anything is changed.
//!
//! It decides what `meta` is to become; when it is written is the business of the start. Knows
//! neither journal nor key set.

use crate::meta::{Meta, Protection};
use crate::seal::{Envelope, EnvelopeError, Installation, SealKeys, SealOptions, Secrets};
use crate::seal::{Unsealed, ValueSeal};
use crate::start::StartError;
use keypeg_core::{IdHash, IdHashKey, RandomSource};
use zeroize::Zeroizing;

/// A directory whose secrets are known.
pub(crate) struct Unlocked {
    pub(crate) installation: Installation,
    /// Its secrets; `None` if it is not sealed.
    pub(crate) secrets: Option<Secrets>,
    /// Whether `meta` is to be replaced: the directory is to be sealed, or with another key.
    pub(crate) changes_meta: bool,
}

/// Creates the identity of a new directory, which is sealed if there is a key.
pub(crate) fn create(
    options: Option<&SealOptions>,
    random: &mut dyn RandomSource,
) -> (Meta, Unlocked) {
    let (mut installation, mut id_key) = ([0; 16], Zeroizing::new([0; 32]));
    random.fill(&mut installation);
    random.fill(&mut *id_key);
    let installation = u128::from_le_bytes(installation);
    let id_hash = id_hash_of_processor();
    let (protection, unlocked) = match options {
        None => (Protection::Plain { id_key: *id_key }, plain(installation, id_hash, *id_key)),
        Some(SealOptions { keys, .. }) => {
            let secrets = Secrets::with_id_key(id_key, random);
            let envelope = Envelope::seal(&secrets, keys.first(), installation, random);
            let unsealed = Unsealed::Refused;
            let unlocked = sealed(installation, id_hash, secrets, unsealed);
            (Protection::Sealed { envelope, unsealed }, unlocked)
        }
    };
    (Meta { installation, id_hash, protection, has_keyset: true }, unlocked)
}

/// Returns the faster hash of ids on this processor: AES without its instructions takes five times
/// as long as BLAKE3.
fn id_hash_of_processor() -> IdHash {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    if has_aes { IdHash::AesCmac } else { IdHash::Blake3 }
}

/// Opens an existing directory; the first key is to seal it from now on.
pub(crate) fn unlock(
    meta: &mut Meta,
    options: Option<&SealOptions>,
    random: &mut dyn RandomSource,
) -> Result<Unlocked, StartError> {
    let Meta { installation, id_hash, .. } = *meta;
    match (&mut meta.protection, options) {
        (Protection::Plain { id_key }, None) => Ok(plain(installation, id_hash, *id_key)),
        (Protection::Plain { .. }, Some(SealOptions { seals_existing: false, .. })) => {
            Err(StartError::Seal(
                "the data directory is not sealed: add --seal-existing to seal it, which rewrites \
                 all values before the server listens, or omit --seal-key; nothing was changed"
                    .into(),
            ))
        }
        (Protection::Plain { id_key }, Some(SealOptions { keys, .. })) => {
            let secrets = Secrets::with_id_key(Zeroizing::new(*id_key), random);
            let envelope = Envelope::seal(&secrets, keys.first(), installation, random);
            meta.protection = Protection::Sealed { envelope, unsealed: Unsealed::Accepted };
            let unlocked = sealed(installation, id_hash, secrets, Unsealed::Accepted);
            Ok(Unlocked { changes_meta: true, ..unlocked })
        }
        (Protection::Sealed { envelope, .. }, None) => {
            let key = envelope.key_id().ok_or_else(damaged)?;
            Err(StartError::Seal(format!(
                "the data is sealed with the key {key}: give the file of that key with \
                 --seal-key; nothing was changed"
            )))
        }
        (Protection::Sealed { envelope, unsealed }, Some(SealOptions { keys, .. })) => {
            let unsealed = *unsealed;
            let secrets = open(envelope, keys, installation)?;
            let changes_meta = envelope.key_id() != Some(keys.first().id());
            if changes_meta {
                *envelope = Envelope::seal(&secrets, keys.first(), installation, random);
            }
            Ok(Unlocked { changes_meta, ..sealed(installation, id_hash, secrets, unsealed) })
        }
    }
}

/// Opens the directory that a backup was created of, and gives it another installation.
pub(crate) fn adopt(
    meta: &mut Meta,
    keys: Option<&SealKeys>,
    installation: u128,
    random: &mut dyn RandomSource,
) -> Result<Unlocked, StartError> {
    let original = std::mem::replace(&mut meta.installation, installation);
    let id_hash = meta.id_hash;
    match (&mut meta.protection, keys) {
        (Protection::Plain { id_key }, None) => Ok(plain(installation, id_hash, *id_key)),
        (Protection::Plain { .. }, Some(_)) => Err(StartError::Seal(
            "the backup is not sealed: restore it without --seal-key, and start the server with \
             --seal-key and --seal-existing"
                .into(),
        )),
        (Protection::Sealed { envelope, .. }, None) => {
            let key = envelope.key_id().ok_or_else(damaged)?;
            Err(StartError::Seal(format!(
                "the backup is sealed with the key {key}: give the file of that key with --seal-key"
            )))
        }
        (Protection::Sealed { envelope, unsealed }, Some(keys)) => {
            let secrets = open(envelope, keys, original)?;
            *envelope = Envelope::seal(&secrets, keys.first(), installation, random);
            Ok(sealed(installation, id_hash, secrets, *unsealed))
        }
    }
}

/// Opens an envelope; the error says which key is missing.
pub(crate) fn open(
    envelope: &Envelope,
    keys: &SealKeys,
    installation: u128,
) -> Result<Secrets, StartError> {
    envelope.open(keys, installation).map_err(|error| match error {
        EnvelopeError::Damaged => damaged(),
        EnvelopeError::OtherKey(key) => StartError::Seal(format!(
            "the data is sealed with the key {key}, and the file of --seal-key contains {keys}: \
             give the file of the key {key}; nothing was changed"
        )),
    })
}

fn damaged() -> StartError {
    StartError::Corrupt(
        "meta: the seal of the data is damaged, or it belongs to another directory. \
         Restore the data directory from a backup; nothing was changed"
            .into(),
    )
}

fn plain(installation: u128, id_hash: IdHash, id_key: [u8; 32]) -> Unlocked {
    let (ids, seal) = (IdHashKey::of(id_hash, id_key), ValueSeal::default());
    let installation = Installation { id: installation, ids, seal };
    Unlocked { installation, secrets: None, changes_meta: false }
}

fn sealed(installation: u128, id_hash: IdHash, secrets: Secrets, unsealed: Unsealed) -> Unlocked {
    let ids = IdHashKey::of(id_hash, *secrets.id_key);
    let seal = ValueSeal::new(&secrets, unsealed);
    let installation = Installation { id: installation, ids, seal };
    Unlocked { installation, secrets: Some(secrets), changes_meta: false }
}

//! The encryption of values where facts become bytes: AES-256-GCM-SIV with the data key.
//!
//! The values of one record are sealed together, each row of the key set by itself. The nonce is the
//! pool and the key number, so nothing is drawn; the associated data binds the pool and the key, the
//! data key the installation. This file does not know records and rows, and no seal key.

use super::{Secrets, TAG_LEN};
use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt};
use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use keypeg_core::{IdHashKey, KeyNumber, PoolId};
use std::sync::Arc;
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes that a sealed value or the sealed values of a record are longer than the plain ones.
pub(crate) const SEAL_LEN: usize = TAG_LEN;

/// What a directory's files are read and written with: its number, the hash key of its ids, the
/// encryption of its values.
#[derive(Clone)]
pub(crate) struct Installation {
    pub(crate) id: u128,
    pub(crate) ids: IdHashKey,
    pub(crate) seal: ValueSeal,
}

/// What happens to values on the disk that are not sealed, in a sealed directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsealed {
    /// They are read: the sealing of the directory is not complete.
    Accepted,
    /// They are refused: the server wrote none.
    Refused,
}

/// The encryption of values; none in a directory that is not sealed.
#[derive(Clone, Default)]
pub(crate) struct ValueSeal(Option<Arc<ValueKeys>>);

struct ValueKeys {
    records: Aes256GcmSiv,
    rows: Aes256GcmSiv,
    digests: Aes256,
    unsealed: Unsealed,
}

/// Why a stored value is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// It is sealed, and the directory is not.
    NoKey,
    /// It is not sealed, and the directory is.
    Plain,
    /// It belongs to another key, pool or directory, or it is damaged.
    Mismatch,
}

impl OpenError {
    /// Returns the reason for the operator.
    pub(crate) fn why(self) -> &'static str {
        match self {
            Self::NoKey => "a value is sealed, but the data directory is not",
            Self::Plain => "a value is not sealed, but the data directory is",
            Self::Mismatch => {
                "a sealed value does not open: it belongs to another key, pool or data directory, \
                 or it was changed"
            }
        }
    }
}

impl ValueSeal {
    /// Returns the encryption with the data key of an installation, which no other one has, except
    /// one that was restored from its backup.
    pub(crate) fn new(secrets: &Secrets, unsealed: Unsealed) -> Self {
        let subkey =
            |context: &str| Zeroizing::new(blake3::derive_key(context, &*secrets.data_key));
        let aead = |context| Aes256GcmSiv::new((&*subkey(context)).into());
        Self(Some(Arc::new(ValueKeys {
            records: aead("keypeg 2026 values of records"),
            rows: aead("keypeg 2026 values of rows"),
            digests: Aes256::new((&*subkey("keypeg 2026 digests of bodies")).into()),
            unsealed,
        })))
    }

    /// Returns the seal with a data key of these bytes.
    #[cfg(test)]
    pub(crate) fn for_tests(data_key: u8) -> Self {
        let (data_key, id_key) = (Zeroizing::new([data_key; 32]), Zeroizing::new([0; 32]));
        Self::new(&Secrets { data_key, id_key }, Unsealed::Refused)
    }

    /// Returns this seal with another treatment of plain values.
    #[cfg(test)]
    pub(crate) fn accepting(mut self, unsealed: Unsealed) -> Self {
        let keys = self.0.as_mut().and_then(Arc::get_mut).expect("a seal of its own");
        keys.unsealed = unsealed;
        self
    }

    /// Returns whether values are sealed.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Checks whether a value that is not sealed may be read.
    pub(crate) fn check_plain(&self) -> Result<(), OpenError> {
        let refuses = self.0.as_ref().is_some_and(|keys| keys.unsealed == Unsealed::Refused);
        if refuses { Err(OpenError::Plain) } else { Ok(()) }
    }

    /// Seals the values of a record, which are the bytes of `out` from `start` on, in place. Does
    /// nothing in a directory that is not sealed.
    pub(crate) fn seal_record(&self, first: (PoolId, KeyNumber), out: &mut Vec<u8>, start: usize) {
        if let Some(keys) = &self.0 {
            seal(&keys.records, first, out, start);
        }
    }

    /// Replaces `values` by the opened values of a record.
    pub(crate) fn open_record(
        &self,
        first: (PoolId, KeyNumber),
        sealed: &[u8],
        values: &mut Zeroizing<Vec<u8>>,
    ) -> Result<(), OpenError> {
        let keys = self.0.as_ref().ok_or(OpenError::NoKey)?;
        open(&keys.records, first, sealed, values)
    }

    /// Seals the value of a row, which is the bytes of `out` from `start` on, in place. Does nothing
    /// in a directory that is not sealed.
    pub(crate) fn seal_row(&self, key: (PoolId, KeyNumber), out: &mut Vec<u8>, start: usize) {
        if let Some(keys) = &self.0 {
            seal(&keys.rows, key, out, start);
        }
    }

    /// Replaces `value` by the opened value of a row.
    pub(crate) fn open_row(
        &self,
        key: (PoolId, KeyNumber),
        sealed: &[u8],
        value: &mut Zeroizing<Vec<u8>>,
    ) -> Result<(), OpenError> {
        let keys = self.0.as_ref().ok_or(OpenError::NoKey)?;
        open(&keys.rows, key, sealed, value)
    }

    /// Seals the digest of a request's body, which may contain values: a permutation of 128 bits, so
    /// that it stays as long as it is. The same in a directory that is not sealed.
    pub(crate) fn seal_digest(&self, digest: u128) -> u128 {
        let Some(keys) = &self.0 else { return digest };
        let mut block = digest.to_le_bytes().into();
        keys.digests.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }

    /// Opens what [`ValueSeal::seal_digest`] returned.
    pub(crate) fn open_digest(&self, sealed: u128) -> Result<u128, OpenError> {
        let keys = self.0.as_ref().ok_or(OpenError::NoKey)?;
        let mut block = sealed.to_le_bytes().into();
        keys.digests.decrypt_block(&mut block);
        Ok(u128::from_le_bytes(block.into()))
    }
}

fn seal(cipher: &Aes256GcmSiv, key: (PoolId, KeyNumber), out: &mut Vec<u8>, start: usize) {
    let tag = cipher
        .encrypt_inout_detached(&nonce(key).into(), &nonce(key), (&mut out[start..]).into())
        .expect("invariant: a batch is bounded");
    out.extend_from_slice(&tag);
}

fn open(
    cipher: &Aes256GcmSiv,
    key: (PoolId, KeyNumber),
    sealed: &[u8],
    opened: &mut Zeroizing<Vec<u8>>,
) -> Result<(), OpenError> {
    let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or(OpenError::Mismatch)?;
    if opened.capacity() < body.len() {
        // A buffer that grows would leave a copy of its content behind.
        opened.zeroize();
        opened.reserve(body.len());
    }
    opened.clear();
    opened.extend_from_slice(body);
    cipher
        .decrypt_inout_detached(
            &nonce(key).into(),
            &nonce(key),
            (&mut opened[..]).into(),
            &(*tag).into(),
        )
        .map_err(|_| OpenError::Mismatch)
}

/// Returns the nonce of a key, which is its associated data too. A key number is used twice only if
/// a crash discarded its first use, or after a restore; the second use may then have another value,
/// which AES-GCM-SIV allows.
fn nonce((PoolId(pool), KeyNumber(key)): (PoolId, KeyNumber)) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&pool.to_le_bytes());
    bytes[4..].copy_from_slice(&key.to_le_bytes());
    bytes
}

impl std::fmt::Debug for ValueSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ValueSeal({})", if self.is_on() { "on" } else { "off" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (PoolId, KeyNumber) = (PoolId(3), KeyNumber(4));

    fn opened(
        seal: &ValueSeal,
        key: (PoolId, KeyNumber),
        sealed: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        let mut value = Zeroizing::new(b"what was before".to_vec());
        seal.open_row(key, sealed, &mut value).map(|()| value.to_vec())
    }

    #[test]
    fn a_value_opens_only_for_its_key_its_pool_its_installation_and_its_place() {
        let ours = ValueSeal::for_tests(1);
        let mut sealed = b"head".to_vec();
        sealed.extend(b"sk-123");
        ours.seal_row(KEY, &mut sealed, 4);
        assert_eq!((&sealed[..4], sealed.len()), (&b"head"[..], 10 + SEAL_LEN));
        let sealed = &sealed[4..];
        assert!(!sealed.windows(6).any(|part| part == b"sk-123"));
        assert_eq!(opened(&ours, KEY, sealed), Ok(b"sk-123".to_vec()));
        for (seal, key) in [
            (&ours, (PoolId(4), KeyNumber(4))),
            (&ours, (PoolId(3), KeyNumber(5))),
            (&ValueSeal::for_tests(2), KEY),
        ] {
            assert_eq!(opened(seal, key, sealed), Err(OpenError::Mismatch), "{key:?}");
        }
        let mut values = Zeroizing::new(Vec::new());
        assert_eq!(ours.open_record(KEY, sealed, &mut values), Err(OpenError::Mismatch));
        assert_eq!(opened(&ValueSeal::default(), KEY, sealed), Err(OpenError::NoKey));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opened(&ours, KEY, &changed), Err(OpenError::Mismatch), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(opened(&ours, KEY, &sealed[..len]), Err(OpenError::Mismatch), "{len} bytes");
        }
    }

    #[test]
    fn a_digest_opens_to_itself_and_a_directory_without_a_seal_keeps_it() {
        let ours = ValueSeal::for_tests(1);
        let sealed = ours.seal_digest(42);
        assert_ne!(sealed, 42);
        assert_eq!(ours.open_digest(sealed), Ok(42));
        assert_eq!(ValueSeal::default().seal_digest(42), 42);
        assert_eq!(ValueSeal::default().open_digest(42), Err(OpenError::NoKey));
    }

    #[test]
    fn plain_values_are_accepted_until_all_are_sealed() {
        assert_eq!(ValueSeal::default().check_plain(), Ok(()));
        assert_eq!(ValueSeal::for_tests(1).check_plain(), Err(OpenError::Plain));
        let accepting = ValueSeal::for_tests(1).accepting(Unsealed::Accepted);
        assert_eq!(accepting.check_plain(), Ok(()));
    }
}

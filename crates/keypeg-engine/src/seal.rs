//! Seal keys and the envelope: the data key and the hash key of ids of a directory, encrypted with a
//! seal key.
//!
//! The seal key is in a file of the operator, the envelope in `meta`. To rotate the seal key replaces
//! the envelope alone. The envelope is opaque to all other files. `values.rs` encrypts with the data
//! key; this file does not know what.

mod values;

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use keypeg_core::RandomSource;
use std::fmt;
use zeroize::Zeroizing;

pub(crate) use values::{Installation, OpenError, SEAL_LEN, Unsealed, ValueSeal};

/// The most keys of a file: that which seals, and those before it.
pub const SEAL_KEYS_MAX: usize = 8;
/// Bytes of a seal key.
pub const SEAL_KEY_LEN: usize = 32;

/// The form of the envelope.
const ENVELOPE_VERSION: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const SECRETS_LEN: usize = 64;
/// Version (1), id of the seal key (8), nonce (12), secrets (64), tag (16).
const ENVELOPE_LEN: usize = 1 + 8 + NONCE_LEN + SECRETS_LEN + TAG_LEN;

/// Which seal key it is: a hash of the key, which does not reveal the key. Written as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SealKeyId([u8; 8]);

/// A key that encrypts the envelope of a data directory.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; SEAL_KEY_LEN]>);

/// The keys of a seal key file, at least one: the first one seals, each of them opens.
#[derive(Clone)]
pub struct SealKeys(Vec<SealKey>);

/// How a start treats sealed and unsealed data.
#[derive(Clone, Debug)]
pub struct SealOptions {
    /// The keys of the operator.
    pub keys: SealKeys,
    /// Whether a directory that is not sealed is sealed; otherwise it is refused.
    pub seals_existing: bool,
}

/// The secrets of a directory: what the envelope contains.
#[derive(Clone)]
pub(crate) struct Secrets {
    /// The key that encrypts values.
    pub(crate) data_key: Zeroizing<[u8; 32]>,
    /// The hash key of all ids.
    pub(crate) id_key: Zeroizing<[u8; 32]>,
}

/// The encrypted secrets of a directory, as its `meta` and its backups contain them.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Envelope(Vec<u8>);

/// Why an envelope cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EnvelopeError {
    /// It is not an envelope, or of a newer form, or its bytes were changed.
    Damaged,
    /// It was sealed with another key.
    OtherKey(SealKeyId),
}

impl SealKey {
    /// Creates a key from its bytes.
    pub fn new(bytes: [u8; SEAL_KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Returns the id of the key.
    pub fn id(&self) -> SealKeyId {
        let hash = Zeroizing::new(blake3::derive_key("keypeg 2026 id of a seal key", &*self.0));
        let (id, _) = hash.split_first_chunk::<8>().expect("invariant: 32 bytes");
        SealKeyId(*id)
    }

    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new((&*self.0).into())
    }
}

impl SealKeys {
    /// Creates the keys of a file; `None` for no key or more than [`SEAL_KEYS_MAX`].
    pub fn new(keys: Vec<SealKey>) -> Option<Self> {
        (1..=SEAL_KEYS_MAX).contains(&keys.len()).then_some(Self(keys))
    }

    /// Returns the key that seals.
    pub fn first(&self) -> &SealKey {
        self.0.first().expect("invariant: there is a key")
    }

    /// Adds keys that open, behind those that are there.
    pub(crate) fn add_old(&mut self, old: &Self) {
        self.0.extend_from_slice(&old.0);
    }

    /// Returns whether a key is among them.
    pub fn contains(&self, id: SealKeyId) -> bool {
        self.find(id).is_some()
    }

    fn find(&self, id: SealKeyId) -> Option<&SealKey> {
        self.0.iter().find(|key| key.id() == id)
    }
}

impl Secrets {
    /// Draws the data key of a directory with this hash key.
    pub(crate) fn with_id_key(id_key: Zeroizing<[u8; 32]>, random: &mut dyn RandomSource) -> Self {
        let mut data_key = Zeroizing::new([0; 32]);
        random.fill(&mut *data_key);
        Self { data_key, id_key }
    }
}

impl Envelope {
    /// Seals the secrets of an installation with a key.
    pub(crate) fn seal(
        secrets: &Secrets,
        key: &SealKey,
        installation: u128,
        random: &mut dyn RandomSource,
    ) -> Self {
        let mut nonce = [0; NONCE_LEN];
        random.fill(&mut nonce);
        let mut body = Zeroizing::new([0; SECRETS_LEN]);
        body[..32].copy_from_slice(&*secrets.data_key);
        body[32..].copy_from_slice(&*secrets.id_key);
        let header = Self::header(key.id());
        let tag = key
            .cipher()
            .encrypt_inout_detached(
                &nonce.into(),
                &associated(&header, installation),
                (&mut body[..]).into(),
            )
            .expect("invariant: an envelope is short");
        let mut bytes = Vec::with_capacity(ENVELOPE_LEN);
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&*body);
        bytes.extend_from_slice(&tag);
        Self(bytes)
    }

    /// Opens the envelope of an installation with one of the keys.
    pub(crate) fn open(
        &self,
        keys: &SealKeys,
        installation: u128,
    ) -> Result<Secrets, EnvelopeError> {
        let id = self.key_id().ok_or(EnvelopeError::Damaged)?;
        let key = keys.find(id).ok_or(EnvelopeError::OtherKey(id))?;
        let (header, rest) = self.0.split_first_chunk::<9>().ok_or(EnvelopeError::Damaged)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(EnvelopeError::Damaged)?;
        let (body, tag) = rest.split_first_chunk::<SECRETS_LEN>().ok_or(EnvelopeError::Damaged)?;
        let tag: [u8; TAG_LEN] = tag.try_into().map_err(|_| EnvelopeError::Damaged)?;
        let mut body = Zeroizing::new(*body);
        key.cipher()
            .decrypt_inout_detached(
                &(*nonce).into(),
                &associated(header, installation),
                (&mut body[..]).into(),
                &tag.into(),
            )
            .map_err(|_| EnvelopeError::Damaged)?;
        let (mut data_key, mut id_key) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        data_key.copy_from_slice(&body[..32]);
        id_key.copy_from_slice(&body[32..]);
        Ok(Secrets { data_key, id_key })
    }

    /// Returns the id of the key that sealed it; `None` if the bytes are no envelope of this form.
    pub(crate) fn key_id(&self) -> Option<SealKeyId> {
        let (&[version, ref id @ ..], _) = self.0.split_first_chunk::<9>()?;
        (version == ENVELOPE_VERSION && self.0.len() == ENVELOPE_LEN).then_some(SealKeyId(*id))
    }

    /// Returns the bytes, to be stored; see [`Envelope::from_bytes`].
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes bytes that were stored; [`Envelope::open`] checks them.
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    fn header(SealKeyId(id): SealKeyId) -> [u8; 9] {
        let mut header = [ENVELOPE_VERSION; 9];
        header[1..].copy_from_slice(&id);
        header
    }
}

/// Returns what the tag of an envelope covers besides its secrets.
fn associated(header: &[u8; 9], installation: u128) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[..9].copy_from_slice(header);
    bytes[9..].copy_from_slice(&installation.to_le_bytes());
    bytes
}

impl fmt::Display for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SealKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.id())
    }
}

/// The ids of the keys, as a message lists them.
impl fmt::Display for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{}", key.id())?;
        }
        Ok(())
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKeys({self})")
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({:?})", self.key_id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::SeededRandom;

    fn key(byte: u8) -> SealKey {
        SealKey::new([byte; 32])
    }

    fn keys(bytes: &[u8]) -> SealKeys {
        SealKeys::new(bytes.iter().map(|byte| key(*byte)).collect()).expect("one at least")
    }

    fn secrets() -> Secrets {
        Secrets { data_key: Zeroizing::new([1; 32]), id_key: Zeroizing::new([2; 32]) }
    }

    fn seal_with(key: &SealKey) -> Envelope {
        Envelope::seal(&secrets(), key, 7, &mut SeededRandom(9))
    }

    #[test]
    fn an_envelope_opens_with_its_key_among_others_and_with_no_other() {
        let envelope = seal_with(&key(5));
        assert_eq!(envelope.key_id(), Some(key(5).id()));
        for opening in [&[5][..], &[4, 5], &[5, 4]] {
            let opened = envelope.open(&keys(opening), 7).expect("opens");
            assert_eq!((*opened.data_key, *opened.id_key), ([1; 32], [2; 32]));
        }
        let refused = envelope.open(&keys(&[4, 6]), 7).expect_err("another key");
        assert_eq!(refused, EnvelopeError::OtherKey(key(5).id()));
    }

    #[test]
    fn a_changed_bit_a_cut_or_another_installation_is_refused() {
        let envelope = seal_with(&key(5));
        let open = |bytes: &[u8], installation| {
            Envelope::from_bytes(bytes.to_vec()).open(&keys(&[5]), installation).map(drop)
        };
        let bytes = envelope.bytes();
        assert_eq!(open(bytes, 7), Ok(()));
        assert_eq!(open(bytes, 8), Err(EnvelopeError::Damaged));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&changed, 7).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(open(&bytes[..len], 7), Err(EnvelopeError::Damaged), "{len} bytes");
        }
        assert_eq!(open(&[bytes, &[0]].concat(), 7), Err(EnvelopeError::Damaged));
    }

    #[test]
    fn an_envelope_contains_none_of_its_secrets_and_a_debug_text_no_key() {
        let envelope = seal_with(&key(5));
        for secret in [[1; 32], [2; 32], [5; 32]] {
            assert!(!envelope.bytes().windows(8).any(|part| part == &secret[..8]));
        }
        let shown = format!("{:?} {:?} {:?}", keys(&[5, 6]), secrets(), key(5));
        assert!(!shown.contains("05, 05") && !shown.contains("5, 5"), "{shown}");
    }
}

//! Public ids of keys and leases, and other values derived from the installation's hash key.
//!
//! The id of a key is a keyed hash of its pool and its value. So one index finds a key by its id or by
//! its value. An attacker does not have the hash key, and so cannot choose values whose ids collide.
//! The id of a lease is its token with a MAC of 75 bits, so it cannot be guessed. The hash key never
//! leaves the installation, and an installation never changes its [`IdHash`].

mod cmac;
mod digits;

use crate::numbers::{BorrowerId, PoolId};
use cmac::Cmac;
use digits::{DIGITS_LEN, digits, parse_128};
use std::fmt;
use std::sync::Arc;
use zeroize::{Zeroize as _, Zeroizing};

/// A key's public id: 128 bits that reveal nothing of the value. Written as 26 of `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u128);

/// A lease's id, known only to the client that holds or held the lease. Written as 26 of `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u128);

/// The id of a stored answer: one Idempotency-Key of one caller, for one kind of call on one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyId(pub u128);

/// The digest of a request's body: the first 128 bits of its BLAKE3 hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest(pub u128);

/// The start of a page: a slot of one pool in one run of the server, with a MAC of 96 bits.
/// Written as 26 of `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub u128);

/// Bits of a cursor that contain its slot.
const SLOT_BITS: u32 = 32;
/// Bits of a lease id that contain its fencing token.
const TOKEN_BITS: u32 = 53;
/// The largest fencing token: every JSON parser represents integers below 2^53 exactly.
pub const TOKEN_MAX: u64 = (1 << TOKEN_BITS) - 1;

impl KeyId {
    /// Parses the written form; `None` for any text that [`Display`](fmt::Display) does not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }

    /// Returns the written form.
    pub fn digits(self) -> [u8; DIGITS_LEN] {
        digits(self.0)
    }

    /// Returns the bits by which an index places this key.
    pub(crate) fn hash(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl IdempotencyId {
    /// Returns the bits by which an index places this answer.
    pub(crate) fn hash(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl BodyDigest {
    /// Computes the digest of a body.
    pub fn of(body: &[u8]) -> Self {
        Self(first_128(&blake3::hash(body)))
    }
}

/// Computes the [`BodyDigest`] of a body that arrives in parts.
#[derive(Clone, Debug, Default)]
pub struct BodyHasher(blake3::Hasher);

impl BodyHasher {
    /// Adds the next part.
    pub fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    /// Returns the digest of all parts together.
    pub fn finish(&self) -> BodyDigest {
        BodyDigest(first_128(&self.0.finalize()))
    }
}

impl LeaseId {
    /// Parses the written form; `None` for any text that [`Display`](fmt::Display) does not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }

    /// Returns the written form.
    pub fn digits(self) -> [u8; DIGITS_LEN] {
        digits(self.0)
    }

    /// Returns the fencing token in the id; untrusted until [`IdHashKey::has_issued`].
    pub fn token(self) -> u64 {
        u64::try_from(self.0 & u128::from(TOKEN_MAX)).expect("invariant: 53 bits")
    }
}

impl Cursor {
    /// Parses the written form; `None` for any text that [`Display`](fmt::Display) does not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }
}

/// How an installation computes the ids of keys and leases, and the tags of generated values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdHash {
    /// BLAKE3 in keyed mode: installations of earlier versions, and of processors without AES
    /// instructions.
    Blake3,
    /// AES-CMAC; for a lease AES of one block.
    AesCmac,
}

/// The installation's hash key: created once, stored in the data directory and its backups.
#[derive(Clone)]
pub struct IdHashKey {
    key: [u8; 32],
    /// `None` for [`IdHash::Blake3`].
    aes: Option<Arc<AesKeys>>,
}

/// The keys of [`IdHash::AesCmac`], one for each kind of input, so that no two kinds collide.
struct AesKeys {
    keys: Cmac,
    leases: Cmac,
    tags: Cmac,
}

impl AesKeys {
    fn new(key: &[u8; 32]) -> Self {
        let derive = |context| {
            let derived = Zeroizing::new(blake3::derive_key(context, key));
            let (half, _) = derived.split_first_chunk().expect("invariant: 32 bytes");
            Cmac::new(*half)
        };
        Self {
            keys: derive("keypeg 2026 ids of keys"),
            leases: derive("keypeg 2026 ids of leases"),
            tags: derive("keypeg 2026 tags of values"),
        }
    }
}

/// The kinds of calls that accept an Idempotency-Key; the same key for both names two answers.
///
/// The discriminants are hashed into the ids of stored answers, which journals contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdempotentCall {
    /// Generating or importing keys.
    AddKeys = 1,
    /// Acquiring a lease.
    Acquire = 2,
}

impl IdHashKey {
    /// Creates a hash key of [`IdHash::AesCmac`] from 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self::of(IdHash::AesCmac, bytes)
    }

    /// Creates a hash key from the 32 random bytes of an installation.
    pub fn of(hash: IdHash, key: [u8; 32]) -> Self {
        let aes = (hash == IdHash::AesCmac).then(|| Arc::new(AesKeys::new(&key)));
        Self { key, aes }
    }

    /// Computes the id of the key with this value in this pool.
    pub fn key_id(&self, pool: PoolId, value: &[u8]) -> KeyId {
        let pool = pool.0.to_le_bytes();
        KeyId(match &self.aes {
            Some(aes) => aes.keys.mac(pool, value),
            None => self.blake3([b"key:", &pool, value]),
        })
    }

    /// Computes the hash from which the tag of a value follows, given the bytes before the tag.
    pub(crate) fn value_hash(&self, pool: PoolId, head: &[u8]) -> u128 {
        let pool = pool.0.to_le_bytes();
        match &self.aes {
            Some(aes) => aes.tags.mac(pool, head),
            None => self.blake3([b"value:", &pool, head]),
        }
    }

    /// Computes the id of the lease with this token in this pool.
    pub fn lease_id(&self, pool: PoolId, token: u64) -> LeaseId {
        let mac = match &self.aes {
            // All inputs have this length, so that one block needs no more than its encryption.
            Some(aes) => aes.leases.encrypt(u128::from(pool.0) << 64 | u128::from(token)),
            None => self.blake3([b"lease:", &pool.0.to_le_bytes(), &token.to_le_bytes()]),
        };
        LeaseId((mac << TOKEN_BITS) | u128::from(token & TOKEN_MAX))
    }

    /// Computes the id of the stored answer to a caller's Idempotency-Key for one kind of call on
    /// this pool.
    pub fn answer_id(
        &self,
        pool: PoolId,
        call: IdempotentCall,
        caller: &str,
        key: &str,
    ) -> IdempotencyId {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"answer:").update(&pool.0.to_le_bytes()).update(&[call as u8]);
        hasher.update(&(caller.len() as u64).to_le_bytes()).update(caller.as_bytes());
        IdempotencyId(first_128(&hasher.update(key.as_bytes()).finalize()))
    }

    /// Computes the borrower that a network counts as, for a client without a name.
    pub(crate) fn network_id(&self, network: u128) -> BorrowerId {
        let hash = self.blake3([b"network:", &network.to_le_bytes(), b""]);
        // 56 bits take 8 bytes as a varint in the journal.
        BorrowerId(((hash >> 72) as u64).max(1))
    }

    /// Computes the cursor of a page of this pool that starts at the position `slot`, in this run.
    pub fn cursor(&self, pool: PoolId, run_id: u64, slot: u32) -> Cursor {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"page:").update(&pool.0.to_le_bytes()).update(&run_id.to_le_bytes());
        hasher.update(&slot.to_le_bytes());
        Cursor((first_128(&hasher.finalize()) << SLOT_BITS) | u128::from(slot))
    }

    /// Returns the position of a cursor, if the cursor is of this pool and this run.
    pub fn verify_cursor(&self, pool: PoolId, run_id: u64, cursor: Cursor) -> Option<u32> {
        let slot = u32::try_from(cursor.0 & u128::from(u32::MAX)).expect("invariant: 32 bits");
        (self.cursor(pool, run_id, slot) == cursor).then_some(slot)
    }

    /// Computes the BLAKE3 hash of concatenated parts. Most fit into one block, and hashing one
    /// block at once is faster than hashing its parts one by one.
    fn blake3(&self, parts: [&[u8]; 3]) -> u128 {
        let mut block = [0; blake3::BLOCK_LEN];
        let len = parts.iter().map(|part| part.len()).sum();
        let Some(mut rest) = block.get_mut(..len) else {
            let mut hasher = blake3::Hasher::new_keyed(&self.key);
            for part in parts {
                hasher.update(part);
            }
            return first_128(&hasher.finalize());
        };
        for part in parts {
            let (start, remaining) = rest.split_at_mut(part.len());
            start.copy_from_slice(part);
            rest = remaining;
        }
        first_128(&blake3::keyed_hash(&self.key, &block[..len]))
    }

    /// Returns whether this installation issued the lease id for this pool.
    pub fn has_issued(&self, pool: PoolId, lease: LeaseId) -> bool {
        self.lease_id(pool, lease.token()) == lease
    }
}

fn first_128(hash: &blake3::Hash) -> u128 {
    let (head, _) = hash.as_bytes().split_first_chunk::<16>().expect("invariant: 32 bytes");
    u128::from_le_bytes(*head)
}

fn write_128(bits: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(std::str::from_utf8(&digits(bits)).expect("invariant: ASCII digits"))
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_128(self.0, f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_128(self.0, f)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_128(self.0, f)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_128(self.0, f)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_128(self.0, f)
    }
}

impl fmt::Debug for LeaseId {
    /// Shows only the token, which is not secret: the id authorises its bearer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId(token {})", self.token())
    }
}

impl Drop for IdHashKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for IdHashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdHashKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same 32 bytes for both ways to compute ids.
    fn both() -> [IdHashKey; 2] {
        [IdHash::Blake3, IdHash::AesCmac].map(|hash| IdHashKey::of(hash, [7; 32]))
    }

    #[test]
    fn ids_parse_what_they_write_and_nothing_else() {
        let ids = IdHashKey::new([7; 32]);
        let id = ids.key_id(PoolId(1), b"secret");
        assert_eq!(KeyId::parse(&id.to_string()), Some(id));
        for bits in [0, 1, u128::MAX, u128::MAX >> 1] {
            assert_eq!(KeyId::parse(&KeyId(bits).to_string()), Some(KeyId(bits)));
        }
        let overlong = format!("8{}", "0".repeat(25));
        for bad in ["", "0", &overlong, "0000000000000000000000000w", "0000000000000000000000000A"]
        {
            assert_eq!(KeyId::parse(bad), None, "{bad:?}");
        }
    }

    /// Clients and data directories contain ids: they must never change.
    #[test]
    fn an_installation_computes_the_same_ids_in_every_version() {
        let written = both().map(|ids| {
            let key = ids.key_id(PoolId(3), b"ci_0123456789abcdefghij");
            let long = ids.key_id(PoolId(3), &[b'x'; 4_096]);
            let cursor = ids.cursor(PoolId(3), 9, 42);
            [
                key.to_string(),
                long.to_string(),
                ids.lease_id(PoolId(3), 42).to_string(),
                cursor.to_string(),
            ]
        });
        assert_eq!(
            written,
            [
                [
                    "2u4ndd5rn1enimnogebm4cl29a",
                    "4gdgc20a9mm9b3qojje5ub511o",
                    "0slssn2ai7v1jkv8000000001a",
                    "1n6lebo5jaqmtj7b6b2s00001a"
                ],
                [
                    "01d73672ps448mf3q0s19gh53s",
                    "6uv9if01andht56qe8cioblil6",
                    "2vfrhpfge68n4hpo000000001a",
                    "1n6lebo5jaqmtj7b6b2s00001a"
                ]
            ]
        );
    }

    #[test]
    fn both_hashes_compute_different_ids_from_the_same_hash_key() {
        let [blake3, aes] = both();
        assert_ne!(blake3.key_id(PoolId(1), b"a"), aes.key_id(PoolId(1), b"a"));
        assert_ne!(blake3.lease_id(PoolId(1), 1), aes.lease_id(PoolId(1), 1));
        assert!(!blake3.has_issued(PoolId(1), aes.lease_id(PoolId(1), 1)));
    }

    /// A value can be the same bytes as the input of a tag or of a lease id.
    #[test]
    fn ids_of_different_kinds_do_not_follow_from_each_other() {
        for ids in both() {
            let (pool, token) = (PoolId(3), 42_u64);
            assert_ne!(ids.key_id(pool, b"a").0, ids.value_hash(pool, b"a"));
            let mac = ids.lease_id(pool, token).0 >> TOKEN_BITS;
            for value in [&token.to_le_bytes()[..], &[&[0; 4], &token.to_le_bytes()[..]].concat()] {
                let key = ids.key_id(pool, value).0;
                assert_ne!(key & (u128::MAX >> TOKEN_BITS), mac, "{value:?}");
            }
        }
    }

    /// Data directories contain ids: values that fit into one block must hash like longer ones.
    #[test]
    fn an_id_is_the_keyed_hash_of_its_parts_at_any_length() {
        let key = [7; 32];
        for len in [1, 20, 55, 56, 57, 64, 65, 1_024, 4_096] {
            let value = vec![b'x'; len];
            let whole = [&b"key:"[..], &9_u32.to_le_bytes(), &value].concat();
            let hash = blake3::Hasher::new_keyed(&key).update(&whole).finalize();
            assert_eq!(
                IdHashKey::of(IdHash::Blake3, key).key_id(PoolId(9), &value),
                KeyId(first_128(&hash)),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn a_lease_id_is_valid_only_for_its_pool_and_token() {
        for ids in both() {
            let lease = ids.lease_id(PoolId(3), 42);
            assert_eq!(lease.token(), 42);
            assert!(ids.has_issued(PoolId(3), lease));
            assert!(!ids.has_issued(PoolId(4), lease));
            for bit in 0..128 {
                assert!(!ids.has_issued(PoolId(3), LeaseId(lease.0 ^ (1 << bit))), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_cursor_is_valid_only_for_its_pool_its_run_and_its_slot() {
        let ids = IdHashKey::new([7; 32]);
        let slot = 42;
        let cursor = ids.cursor(PoolId(3), 9, slot);
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(ids.verify_cursor(PoolId(3), 9, cursor), Some(slot));
        assert_eq!(ids.verify_cursor(PoolId(4), 9, cursor), None);
        assert_eq!(ids.verify_cursor(PoolId(3), 8, cursor), None);
        assert_eq!(ids.verify_cursor(PoolId(3), 9, Cursor(cursor.0 + 1)), None);
        assert_eq!(ids.verify_cursor(PoolId(3), 9, Cursor(cursor.0 ^ (1 << 127))), None);
    }

    #[test]
    fn the_same_value_has_different_ids_in_different_pools_and_installations() {
        for hash in [IdHash::Blake3, IdHash::AesCmac] {
            let [ids, others] = [7, 8].map(|byte| IdHashKey::of(hash, [byte; 32]));
            assert_ne!(ids.key_id(PoolId(1), b"a"), ids.key_id(PoolId(2), b"a"));
            assert_ne!(ids.key_id(PoolId(1), b"a"), others.key_id(PoolId(1), b"a"));
            assert_ne!(ids.lease_id(PoolId(1), 1), others.lease_id(PoolId(1), 1));
        }
    }
}

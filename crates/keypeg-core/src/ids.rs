//! Public handles of keys and leases: what a client may hold that is not a secret.
//!
//! A key's id is a keyed hash of its pool and its value, so one index finds a key by either and
//! nobody without the hash key can aim at a bucket. A lease's id is its token under a MAC of 75
//! bits, so it cannot be guessed. The hash key is the installation's and never leaves it.

use crate::numbers::PoolId;
use std::fmt;

/// A key's public handle: 128 bits that tell nothing of the secret. Written as 26 of `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u128);

/// A lease's handle: who shows it holds, or held, that lease. Written as 26 of `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub u128);

/// What one Idempotency-Key of one caller asks of one pool: which answer is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyId(pub u128);

/// What tells two bodies apart: the first 128 bits of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyDigest(pub u128);

/// Where a listing goes on: a slot of one pool, in one run of the server. Written as 26 of
/// `0-9a-v`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cursor(pub u128);

/// Bits of a cursor that carry its slot.
const SLOT_BITS: u32 = 32;
/// Bits of a lease id that carry its fencing token.
const TOKEN_BITS: u32 = 53;
/// The bound of fencing tokens: every JSON reader can hold an integer below 2^53.
pub const TOKEN_MAX: u64 = (1 << TOKEN_BITS) - 1;

impl KeyId {
    /// Reads the written form; `None` for anything [`Display`](fmt::Display) would not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }

    /// The bits that place this key in an index.
    pub(crate) fn hash(self) -> u64 {
        (self.0 >> 64) as u64
    }
}

impl IdempotencyId {
    /// The bits that place this answer in an index.
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

impl LeaseId {
    /// Reads the written form; `None` for anything [`Display`](fmt::Display) would not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }

    /// The fencing token this id claims; believe it only after [`IdHashKey::owns`].
    pub fn token(self) -> u64 {
        u64::try_from(self.0 & u128::from(TOKEN_MAX)).expect("invariant: 53 bits")
    }
}

impl Cursor {
    /// Reads the written form; `None` for anything [`Display`](fmt::Display) would not write.
    pub fn parse(text: &str) -> Option<Self> {
        parse_128(text).map(Self)
    }
}

/// The installation's hash key: made once, kept in its directory and its backups.
#[derive(Clone)]
pub struct IdHashKey([u8; 32]);

impl IdHashKey {
    /// Takes 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Computes the id of the key with this value in this pool.
    pub fn key_id(&self, pool: PoolId, value: &[u8]) -> KeyId {
        KeyId(self.keyed([b"key:", &pool.0.to_le_bytes(), value]))
    }

    /// Computes the id of the lease that `token` was granted for in this pool.
    pub fn lease_id(&self, pool: PoolId, token: u64) -> LeaseId {
        let mac = self.keyed([b"lease:", &pool.0.to_le_bytes(), &token.to_le_bytes()]);
        LeaseId((mac << TOKEN_BITS) | u128::from(token & TOKEN_MAX))
    }

    /// Computes the id of the answer that `by` asks of `route` in this pool under an
    /// Idempotency-Key.
    pub(crate) fn answer_id(&self, pool: PoolId, route: u8, by: &str, key: &str) -> IdempotencyId {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"answer:").update(&pool.0.to_le_bytes()).update(&[route]);
        hasher.update(&(by.len() as u64).to_le_bytes()).update(by.as_bytes());
        IdempotencyId(first_128(&hasher.update(key.as_bytes()).finalize()))
    }

    /// Makes the cursor of a listing of this pool that goes on at `slot`, in this run.
    pub(crate) fn cursor(&self, pool: PoolId, run: u64, slot: u32) -> Cursor {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"page:").update(&pool.0.to_le_bytes()).update(&run.to_le_bytes());
        hasher.update(&slot.to_le_bytes());
        Cursor((first_128(&hasher.finalize()) << SLOT_BITS) | u128::from(slot))
    }

    /// Reads the slot of a cursor that was made for this pool in this run.
    pub(crate) fn position(&self, pool: PoolId, run: u64, cursor: Cursor) -> Option<u32> {
        let slot = u32::try_from(cursor.0 & u128::from(u32::MAX)).expect("invariant: 32 bits");
        (self.cursor(pool, run, slot) == cursor).then_some(slot)
    }

    /// The keyed hash of a few bytes in parts: most fit into one block, which takes less at once than
    /// bit by bit.
    fn keyed(&self, parts: [&[u8]; 3]) -> u128 {
        let mut block = [0; blake3::BLOCK_LEN];
        let len = parts.iter().map(|part| part.len()).sum();
        let Some(mut rest) = block.get_mut(..len) else {
            let mut hasher = blake3::Hasher::new_keyed(&self.0);
            for part in parts {
                hasher.update(part);
            }
            return first_128(&hasher.finalize());
        };
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        first_128(&blake3::keyed_hash(&self.0, &block[..len]))
    }

    /// Tells whether this installation made that lease id, for that pool.
    pub fn verifies(&self, pool: PoolId, lease: LeaseId) -> bool {
        self.lease_id(pool, lease.token()) == lease
    }
}

fn first_128(hash: &blake3::Hash) -> u128 {
    let (head, _) = hash.as_bytes().split_first_chunk::<16>().expect("invariant: 32 bytes");
    u128::from_le_bytes(*head)
}

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// Digits of 5 bits that 128 bits take; the first carries three.
const DIGITS_LEN: usize = 26;

fn write_128(bits: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [0; DIGITS_LEN];
    let mut rest = bits;
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(rest & 31) as usize];
        rest >>= 5;
    }
    f.write_str(std::str::from_utf8(&text).expect("invariant: ASCII digits"))
}

fn parse_128(text: &str) -> Option<u128> {
    let text: &[u8; DIGITS_LEN] = text.as_bytes().try_into().ok()?;
    if text[0] > b'7' {
        return None;
    }
    text.iter().try_fold(0, |bits, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'v' => byte - b'a' + 10,
            _ => return None,
        };
        Some((bits << 5) | u128::from(digit))
    })
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
    /// A lease id is a right: only its token, which is no secret, is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseId(token {})", self.token())
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

    #[test]
    fn ids_read_back_what_they_write_and_nothing_else() {
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

    /// Directories hold ids: what fits into a block must hash as what does not.
    #[test]
    fn an_id_is_the_keyed_hash_of_its_parts_however_long() {
        let key = [7; 32];
        for len in [1, 20, 55, 56, 57, 64, 65, 1_024, 4_096] {
            let value = vec![b'x'; len];
            let whole = [&b"key:"[..], &9_u32.to_le_bytes(), &value].concat();
            let hash = blake3::Hasher::new_keyed(&key).update(&whole).finalize();
            assert_eq!(
                IdHashKey::new(key).key_id(PoolId(9), &value),
                KeyId(first_128(&hash)),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn a_lease_id_holds_only_for_its_pool_and_token() {
        let ids = IdHashKey::new([7; 32]);
        let lease = ids.lease_id(PoolId(3), 42);
        assert_eq!(lease.token(), 42);
        assert!(ids.verifies(PoolId(3), lease));
        assert!(!ids.verifies(PoolId(4), lease));
        assert!(!ids.verifies(PoolId(3), LeaseId(lease.0 ^ (1 << 60))));
        assert!(!ids.verifies(PoolId(3), LeaseId(lease.0 + 1)));
    }

    #[test]
    fn a_cursor_holds_only_for_its_pool_its_run_and_its_slot() {
        let ids = IdHashKey::new([7; 32]);
        let cursor = ids.cursor(PoolId(3), 9, 42);
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
        assert_eq!(ids.position(PoolId(3), 9, cursor), Some(42));
        assert_eq!(ids.position(PoolId(4), 9, cursor), None);
        assert_eq!(ids.position(PoolId(3), 8, cursor), None);
        assert_eq!(ids.position(PoolId(3), 9, Cursor(cursor.0 + 1)), None);
        assert_eq!(ids.position(PoolId(3), 9, Cursor(cursor.0 ^ (1 << 127))), None);
    }

    #[test]
    fn the_same_value_has_another_id_in_another_pool_or_installation() {
        let ids = IdHashKey::new([7; 32]);
        assert_ne!(ids.key_id(PoolId(1), b"a"), ids.key_id(PoolId(2), b"a"));
        assert_ne!(ids.key_id(PoolId(1), b"a"), IdHashKey::new([8; 32]).key_id(PoolId(1), b"a"));
    }
}

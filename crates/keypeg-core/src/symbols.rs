//! How a value is generated: random symbols from the operating system's CSPRNG after the prefix, then
//! a tag of four symbols.
//!
//! The tag is a keyed hash of the pool and of all symbols before it. So the pool recognises a value
//! that it generated, also after the key is gone, without storing it. Only the installation has the
//! hash key, and the random symbols before the tag are as many as a value had without one.

use crate::ids::IdHashKey;
use crate::numbers::PoolId;
use crate::policy::Policy;
use crate::random::RandomSource;

const SYMBOLS: &[u8; SYMBOL_COUNT] =
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const SYMBOL_COUNT: usize = 62;
/// Rejection sampling: bytes from the largest multiple of 62 on are discarded, so that all symbols
/// are equally likely.
const FAIR_BELOW: u8 = 62 * 4;
/// Symbols of the tag: one of 14 776 336 values of other origin ends in its valid tag by chance.
const TAG_LEN: usize = 4;
/// The number of different tags.
const TAGS: u128 = (SYMBOL_COUNT as u128).pow(4);

/// Random bytes that are not used yet. A value of 20 symbols carries 95 bits before its tag.
#[derive(Clone, Default)]
pub(crate) struct Symbols {
    bytes: Vec<u8>,
}

impl Symbols {
    /// Writes one value of the policy's form, of this pool, into `value`.
    pub(crate) fn generate(
        &mut self,
        (ids, pool): (&IdHashKey, PoolId),
        policy: &Policy,
        random: &mut dyn RandomSource,
        value: &mut Vec<u8>,
    ) {
        value.clear();
        value.extend_from_slice(policy.key_prefix.as_bytes());
        let length = value.len() + usize::from(policy.key_length);
        while value.len() < length - TAG_LEN {
            let byte = self.bytes.pop().unwrap_or_else(|| {
                self.bytes.resize(64, 0);
                random.fill(&mut self.bytes);
                self.bytes.pop().expect("invariant: just filled")
            });
            if byte < FAIR_BELOW {
                value.push(SYMBOLS[usize::from(byte) % SYMBOL_COUNT]);
            }
        }
        let tag = tag_of(ids, pool, value);
        value.extend_from_slice(&tag);
        debug_assert_eq!(value.len(), length);
    }
}

/// Returns whether the value ends in the tag of this pool: then the pool generated it, or, once in
/// 14 776 336, it is of another origin. O(length).
pub(crate) fn has_tag(ids: &IdHashKey, pool: PoolId, value: &[u8]) -> bool {
    let Some((head, tag)) = value.split_last_chunk::<TAG_LEN>() else { return false };
    // Most other values have a byte that no tag has, and are not hashed.
    tag.iter().all(u8::is_ascii_alphanumeric) && tag_of(ids, pool, head) == *tag
}

/// Computes the tag of a value, given the bytes before it. All tags are equally likely, up to one
/// part in 2^104.
fn tag_of(ids: &IdHashKey, pool: PoolId, head: &[u8]) -> [u8; TAG_LEN] {
    let low = ids.value_hash(pool, head) % TAGS;
    let mut rest = usize::try_from(low).expect("invariant: below 62^4");
    [(); TAG_LEN].map(|()| {
        let symbol = SYMBOLS[rest % SYMBOL_COUNT];
        rest /= SYMBOL_COUNT;
        symbol
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::IdHash;

    /// A directory contains values with tags: the tag of a value must never change.
    #[test]
    fn a_tag_belongs_to_its_pool_its_installation_and_every_byte_before_it() {
        for (hash, tag) in [(IdHash::Blake3, *b"WT7y"), (IdHash::AesCmac, *b"7PoV")] {
            check_tag(hash, tag);
        }
    }

    fn check_tag(hash: IdHash, tag: [u8; TAG_LEN]) {
        let ids = IdHashKey::of(hash, [7; 32]);
        let (pool, head) = (PoolId(3), b"ci_0123456789abcdef");
        let value = [&head[..], &tag_of(&ids, pool, head)].concat();
        assert!(value.is_ascii() && has_tag(&ids, pool, &value));
        assert!(!has_tag(&ids, PoolId(4), &value));
        assert!(!has_tag(&IdHashKey::of(hash, [8; 32]), pool, &value));
        for index in 0..value.len() {
            let mut other = value.clone();
            other[index] = if other[index] == b'x' { b'y' } else { b'x' };
            assert!(!has_tag(&ids, pool, &other), "byte {index}");
        }
        for short in [&b""[..], b"abc", b"abcd"] {
            assert!(!has_tag(&ids, pool, short), "{short:?}");
        }
        assert_eq!(tag_of(&ids, pool, head), tag);
    }
}

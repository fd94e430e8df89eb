//! A hash table that grows a little at a time: linear hashing over small tables of `hashbrown`.
//!
//! It maps a hash to an index that the caller can hash and compare again. One insertion splits at
//! most one shard of a few thousand entries, so no call is ever O(n). Knows nothing of keys.

use crate::heap::allocated;
use crate::indices::ItemIndex;
use hashbrown::HashTable;

/// Entries a shard has on average before the next one is split.
const SHARD_FILL: usize = 1_600;

/// Indices of type `V`, found by a hash and a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Index<V> {
    shards: Vec<HashTable<V>>,
    len: usize,
    /// The bytes of all shards.
    bytes: usize,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        let shards = vec![HashTable::new()];
        let bytes = list_bytes(&shards);
        Self { shards, len: 0, bytes }
    }
}

impl<V: ItemIndex> Index<V> {
    /// Creates an index with room for about `count` entries, so that filling it places each entry
    /// only once.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let shards = (count / SHARD_FILL).max(1);
        let level = shards.next_power_of_two();
        // Shards of the level before that are not split yet get twice as many entries.
        let unsplit = if shards == level { 0..0 } else { shards - level / 2..level / 2 };
        let shards = (0..shards).map(|shard| {
            let each = count.div_ceil(if unsplit.contains(&shard) { level / 2 } else { level });
            // Hashes fill shards unevenly. Four standard deviations of extra room are exceeded
            // once in thirty thousand shards.
            HashTable::with_capacity(each + 4 * each.isqrt())
        });
        let shards: Vec<_> = shards.collect();
        let bytes = list_bytes(&shards) + shards.iter().map(shard_bytes).sum::<usize>();
        Self { shards, len: 0, bytes }
    }

    /// Returns the bytes of all entries and of the room for more. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the shard of a hash: shards below the split point are split at this level already.
    #[inline]
    fn shard(&self, hash: u64) -> usize {
        if self.shards.len() == 1 {
            return 0;
        }
        // hashbrown places by the low bits and tags by the top seven: these are in between.
        let bits = (hash >> 24) as usize & 0xffff_ffff;
        let level = self.shards.len().next_power_of_two();
        let wide = bits & (level - 1);
        if wide < self.shards.len() { wide } else { bits & (level / 2 - 1) }
    }

    #[inline]
    pub(crate) fn find(&self, hash: u64, is_match: impl FnMut(V) -> bool) -> Option<V> {
        let mut is_match = is_match;
        self.shards[self.shard(hash)].find(hash, |&value| is_match(value)).copied()
    }

    /// Inserts a value; `rehash` returns the hash of any value in the index.
    pub(crate) fn insert(&mut self, hash: u64, value: V, rehash: impl Fn(V) -> u64) {
        let shard = self.shard(hash);
        let shard = &mut self.shards[shard];
        let before = shard.num_buckets();
        shard.insert_unique(hash, value, |&value| rehash(value));
        if shard.num_buckets() != before {
            self.bytes = self.bytes - bytes_of_buckets::<V>(before) + shard_bytes(shard);
        }
        self.len += 1;
        if self.len > self.shards.len() * SHARD_FILL {
            self.split_one(rehash);
        }
    }

    /// Removes a value, which must be in the index.
    pub(crate) fn remove(&mut self, hash: u64, value: V, rehash: impl Fn(V) -> u64) {
        let shard = self.shard(hash);
        match self.shards[shard].find_entry(hash, |&other| other == value) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("invariant: a removed value is in the index"),
        }
        self.len -= 1;
        if self.shards.len() > 1 && self.len < self.shards.len() * SHARD_FILL / 4 {
            self.merge_one(rehash);
        }
    }

    fn split_one(&mut self, rehash: impl Fn(V) -> u64) {
        let level = (self.shards.len() + 1).next_power_of_two();
        let from = self.shards.len() - level / 2;
        let old = std::mem::take(&mut self.shards[from]);
        self.bytes -= shard_bytes(&old) + list_bytes(&self.shards);
        self.shards.push(HashTable::with_capacity(old.len() / 2));
        self.bytes += list_bytes(&self.shards);
        self.shards[from].reserve(old.len() / 2, |_| unreachable!("invariant: empty"));
        let last = self.shards.len() - 1;
        self.bytes += shard_bytes(&self.shards[from]) + shard_bytes(&self.shards[last]);
        self.redistribute(old, rehash);
    }

    fn merge_one(&mut self, rehash: impl Fn(V) -> u64) {
        let last = self.shards.pop().expect("invariant: more than one shard");
        self.bytes -= shard_bytes(&last);
        self.redistribute(last, rehash);
    }

    fn redistribute(&mut self, entries: HashTable<V>, rehash: impl Fn(V) -> u64) {
        for value in entries {
            let hash = rehash(value);
            let shard = self.shard(hash);
            let shard = &mut self.shards[shard];
            self.bytes -= shard_bytes(shard);
            shard.insert_unique(hash, value, |&value| rehash(value));
            self.bytes += shard_bytes(shard);
        }
    }
}

/// Returns the bytes of a shard with so many buckets, of which it fills seven eighths.
#[cold]
fn bytes_of_buckets<V>(buckets: usize) -> usize {
    let capacity = if buckets <= 8 { buckets - 1 } else { buckets / 8 * 7 };
    let shard = HashTable::<V>::with_capacity(capacity);
    debug_assert_eq!(shard.num_buckets(), buckets, "a capacity has one number of buckets");
    shard_bytes(&shard)
}

fn list_bytes<V>(shards: &Vec<HashTable<V>>) -> usize {
    allocated(shards.capacity() * size_of::<HashTable<V>>())
}

fn shard_bytes<V>(shard: &HashTable<V>) -> usize {
    allocated(shard.allocation_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(value: u32) -> u64 {
        (u64::from(value) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Shards that are not split yet once had room for half of their entries: a start placed most
    /// keys twice.
    #[test]
    fn an_index_with_capacity_rehashes_hardly_any_value() {
        for shards in [1_usize, 2, 3, 5, 8, 11, 13] {
            let count = u32::try_from(shards * SHARD_FILL + SHARD_FILL / 2).expect("small");
            let mut index = Index::with_capacity(count as usize);
            let rehashed = std::cell::Cell::new(0);
            for value in 0..count {
                index.insert(spread(value), value, |value| {
                    rehashed.set(rehashed.get() + 1);
                    spread(value)
                });
            }
            // The last half of a shard's fill may split one.
            let rehashed = rehashed.get();
            assert!(rehashed <= 3 * SHARD_FILL, "{shards} shards: {rehashed} rehashed");
        }
    }

    #[test]
    fn it_finds_every_entry_while_it_grows_and_shrinks() {
        let mut index = Index::default();
        let count = 20 * u32::try_from(SHARD_FILL).expect("small");
        for value in 0..count {
            index.insert(spread(value), value, spread);
        }
        let bytes = |index: &Index<u32>| {
            list_bytes(&index.shards) + index.shards.iter().map(shard_bytes).sum::<usize>()
        };
        assert_eq!(index.bytes(), bytes(&index));
        assert_eq!(index.len(), count as usize);
        assert!(index.shards.len() >= 19, "{} shards", index.shards.len());
        for value in 0..count {
            assert_eq!(index.find(spread(value), |other| other == value), Some(value));
        }
        for value in (0..count).filter(|value| value % 50 != 0) {
            index.remove(spread(value), value, spread);
        }
        assert!(index.shards.len() <= 4, "{} shards", index.shards.len());
        assert_eq!(index.bytes(), bytes(&index));
        for value in 0..count {
            let found = index.find(spread(value), |other| other == value);
            assert_eq!(found.is_some(), value % 50 == 0);
        }
    }
}

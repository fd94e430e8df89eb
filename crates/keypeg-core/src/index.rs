//! A hash table that grows a little at a time: linear hashing over small tables of hashbrown's.
//!
//! It maps a hash to a `u32` that the caller can hash and compare again. One insertion splits at
//! most one shard of a few thousand entries, so no call is ever O(n). Knows nothing of keys.

use hashbrown::HashTable;

/// Entries a shard has on average before the next one is split.
const SHARD_FILL: usize = 1_600;

/// PackedValues found by a hash and a comparison.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    shards: Vec<HashTable<u32>>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: vec![HashTable::new()], len: 0 }
    }
}

impl Index {
    /// Begins with room for about `count` values, so that filling it places each only once.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let shards = (count / SHARD_FILL).max(1);
        let round = shards.next_power_of_two();
        // Of the shards of the round before, those not split yet get twice as much as the others.
        let whole = if shards == round { 0..0 } else { shards - round / 2..round / 2 };
        let shards = (0..shards).map(|at| {
            let each = count.div_ceil(if whole.contains(&at) { round / 2 } else { round });
            // RandomSource fills them unevenly: by more than four deviations, one in thirty thousand.
            HashTable::with_capacity(each + 4 * each.isqrt())
        });
        Self { shards: shards.collect(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The shard of a hash: shards below the split point have been split in this round already.
    fn shard(&self, hash: u64) -> usize {
        // hashbrown places by the low bits and tags by the top seven: these are in between.
        let bits = (hash >> 24) as usize & 0xffff_ffff;
        let round = self.shards.len().next_power_of_two();
        let wide = bits & (round - 1);
        if wide < self.shards.len() { wide } else { bits & (round / 2 - 1) }
    }

    pub(crate) fn find(&self, hash: u64, is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut is = is;
        self.shards[self.shard(hash)].find(hash, |&value| is(value)).copied()
    }

    /// Adds a value; `rehash` gives the hash of any value that is in.
    pub(crate) fn insert(&mut self, hash: u64, value: u32, rehash: impl Fn(u32) -> u64) {
        let shard = self.shard(hash);
        self.shards[shard].insert_unique(hash, value, |&value| rehash(value));
        self.len += 1;
        if self.len > self.shards.len() * SHARD_FILL {
            self.split_one(rehash);
        }
    }

    /// Takes a value out; it must be in.
    pub(crate) fn remove(&mut self, hash: u64, value: u32, rehash: impl Fn(u32) -> u64) {
        let shard = self.shard(hash);
        match self.shards[shard].find_entry(hash, |&other| other == value) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("invariant: what is removed is in"),
        }
        self.len -= 1;
        if self.shards.len() > 1 && self.len < self.shards.len() * SHARD_FILL / 4 {
            self.merge_one(rehash);
        }
    }

    fn split_one(&mut self, rehash: impl Fn(u32) -> u64) {
        let round = (self.shards.len() + 1).next_power_of_two();
        let from = self.shards.len() - round / 2;
        let old = std::mem::take(&mut self.shards[from]);
        self.shards.push(HashTable::with_capacity(old.len() / 2));
        self.shards[from].reserve(old.len() / 2, |_| unreachable!("invariant: empty"));
        self.place_again(old, rehash);
    }

    fn merge_one(&mut self, rehash: impl Fn(u32) -> u64) {
        let last = self.shards.pop().expect("invariant: more than one shard");
        self.place_again(last, rehash);
    }

    fn place_again(&mut self, entries: HashTable<u32>, rehash: impl Fn(u32) -> u64) {
        for value in entries {
            let hash = rehash(value);
            let shard = self.shard(hash);
            self.shards[shard].insert_unique(hash, value, |&value| rehash(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(value: u32) -> u64 {
        (u64::from(value) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Shards that were not split yet once had room for half of what they get: a start placed most
    /// of its keys twice.
    #[test]
    fn with_the_capacity_given_hardly_a_value_is_placed_twice() {
        for shards in [1_usize, 2, 3, 5, 8, 11, 13] {
            let count = u32::try_from(shards * SHARD_FILL + SHARD_FILL / 2).expect("small");
            let mut index = Index::with_capacity(count as usize);
            let again = std::cell::Cell::new(0);
            for value in 0..count {
                index.insert(spread(value), value, |value| {
                    again.set(again.get() + 1);
                    spread(value)
                });
            }
            // The last half of a shard's fill may split one.
            assert!(again.get() <= 3 * SHARD_FILL, "{shards} shards: {} again", again.get());
        }
    }

    #[test]
    fn it_finds_all_it_holds_while_it_grows_and_shrinks() {
        let mut index = Index::default();
        let count = 20 * u32::try_from(SHARD_FILL).expect("small");
        for value in 0..count {
            index.insert(spread(value), value, spread);
        }
        assert_eq!(index.len(), count as usize);
        assert!(index.shards.len() >= 19, "{} shards", index.shards.len());
        for value in 0..count {
            assert_eq!(index.find(spread(value), |other| other == value), Some(value));
        }
        for value in (0..count).filter(|value| value % 50 != 0) {
            index.remove(spread(value), value, spread);
        }
        assert!(index.shards.len() <= 4, "{} shards", index.shards.len());
        for value in 0..count {
            let found = index.find(spread(value), |other| other == value);
            assert_eq!(found.is_some(), value % 50 == 0);
        }
    }
}

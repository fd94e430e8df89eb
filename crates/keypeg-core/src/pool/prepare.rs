//! The preparation of a call that adds many keys: hashes and random values, which are most of its work.
//!
//! A preparation takes some units of work at a time and changes nothing.

use super::Pool;
use crate::ids::KeyId;
use crate::prepared::{KeysToAdd, PreparedKey, PreparedKeys};
use crate::random::RandomSource;
use crate::shared::SharedState;
use crate::symbols::{Symbols, has_tag};

/// The units that the hashes of one value cost, see `keypeg-store`.
pub(super) const HASHES: u32 = 3;
/// The bytes of a value that are hashed for one unit: its id, and often its tag.
pub(super) const VALUE_BYTES: usize = 128;

impl Pool {
    /// Generates a value that the pool does not have and did not have; returns its id.
    pub(super) fn draw_value(
        &self,
        shared: &SharedState,
        random: &mut dyn RandomSource,
        symbols: &mut Symbols,
        value: &mut Vec<u8>,
    ) -> KeyId {
        loop {
            symbols.generate((&shared.ids, self.id), &self.policy, random, value);
            let id = shared.ids.key_id(self.id, value);
            if !self.has_or_had(id, value) {
                return id;
            }
        }
    }

    /// Prepares more of the keys that a call adds, for about `units_max` units of work; returns the
    /// units that it took: 0 where all are prepared, or the pool has changed since the first of them.
    /// Draws from `random` only to generate values.
    pub fn prepare_keys(
        &self,
        shared: &SharedState,
        keys: KeysToAdd<'_>,
        prepared: &mut Option<Box<PreparedKeys>>,
        random: &mut dyn RandomSource,
        units_max: u32,
    ) -> u32 {
        let prepared =
            prepared.get_or_insert_with(|| Box::new(PreparedKeys::new(self.id, &self.policy)));
        // A pool that changed since: a preparation that began again with each change could last
        // for any number of turns.
        if !prepared.is_for(self.id, &self.policy) {
            return 0;
        }
        let (mut units, mut value) = (0, Vec::new());
        while prepared.count() < keys.count() && units < units_max {
            let (id, is_tagged, len) = match keys {
                KeysToAdd::Imported(values) => {
                    let value = values[prepared.count()].bytes();
                    let id = shared.ids.key_id(self.id, value);
                    (id, has_tag(&shared.ids, self.id, value), value.len())
                }
                KeysToAdd::Generated(_) => {
                    let pool = (&shared.ids, self.id);
                    prepared.symbols.generate(pool, &self.policy, random, &mut value);
                    prepared.values.extend_from_slice(&value);
                    (shared.ids.key_id(self.id, &value), true, value.len())
                }
            };
            prepared.keys.push(PreparedKey { id, has_tag: is_tagged });
            units += HASHES + u32::try_from(len / VALUE_BYTES).expect("invariant: short");
        }
        units
    }
}

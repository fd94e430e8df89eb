//! The changes of one checkpoint, collected from facts before they are written to the database.
//!
//! A key that is created and removed within one delta never reaches the database. This file knows
//! the rows of the database but not its tables or transactions.

use super::rows::{CreatedKey, PoolRow, PoolRows, RowKey, retired_key, rows_of, write_key};
use crate::seal::{Installation, OpenError};
use keypeg_core::{Counters, Fact, KeyNumber, Lsn, PoolId};
use std::collections::{BTreeMap, BTreeSet};

/// The changes of one checkpoint: the net effect of many facts.
#[derive(Debug, Default)]
pub(crate) struct KeySetDelta {
    /// The journal position up to which it contains all changes.
    pub(crate) lsn: Lsn,
    pub(crate) counters: Counters,
    pub(super) pools: PoolRows,
    pub(super) deleted_pools: BTreeSet<PoolId>,
    /// The rows of created keys.
    pub(super) created: BTreeMap<RowKey, Vec<u8>>,
    /// Keys of earlier checkpoints that were deleted or purged.
    pub(super) removed: BTreeSet<RowKey>,
    /// Values to retire that were created and removed within this delta, by pool and key id.
    pub(super) retired: BTreeSet<(u32, u128)>,
    /// Keys that are quarantined or draining, with the reason; `None` for keys that are neither any
    /// more.
    pub(super) quarantined: BTreeMap<RowKey, Option<String>>,
    /// Keys whose label changed, with the label; `None` for no label.
    pub(super) labels: BTreeMap<RowKey, Option<String>>,
    facts: usize,
}

impl KeySetDelta {
    /// Creates an empty delta that continues at a position.
    pub(crate) fn after(lsn: Lsn, counters: Counters) -> Self {
        Self { lsn, counters, ..Self::default() }
    }

    /// Returns how many facts were applied; a created key counts as one more.
    pub(crate) fn facts(&self) -> usize {
        self.facts
    }

    /// Counts a fact that does not change the key set.
    pub(crate) fn skip(&mut self) {
        self.facts += 1;
    }

    /// Applies a fact; a fact that does not change the key set only counts. `pools` are the pools
    /// after all facts so far.
    pub(crate) fn apply(
        &mut self,
        fact: &Fact<'_>,
        installation: &Installation,
        pools: &mut PoolRows,
    ) -> Result<(), OpenError> {
        self.facts += 1;
        match fact {
            Fact::PoolCreated { pool, name, policy } => {
                self.counters.next_pool = self.counters.next_pool.max(PoolId(pool.0 + 1));
                let row = PoolRow { name: (*name).to_owned(), policy: policy.clone() };
                self.set_pool(*pool, row, pools);
            }
            Fact::PolicyChanged { pool, policy } => {
                if let Some(row) = pools.get(pool).cloned() {
                    self.set_pool(*pool, PoolRow { policy: policy.clone(), ..row }, pools);
                }
            }
            Fact::PoolDeleted { pool } => {
                pools.remove(pool);
                self.pools.remove(pool);
                // Only the rows of this pool are visited: a batch may delete many small pools.
                self.created.extract_if(rows_of(*pool), |_, _| true).for_each(drop);
                self.quarantined.extract_if(rows_of(*pool), |_, _| true).for_each(drop);
                self.labels.extract_if(rows_of(*pool), |_, _| true).for_each(drop);
                self.deleted_pools.insert(*pool);
            }
            Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels, values } => {
                let labelled = values.iter().zip(labels.iter());
                for (number, (value, label)) in first.range(values.count()).zip(labelled) {
                    let row_key = (pool.0, number.0);
                    let (created_at_ms, imported, keepalive) = (*at_ms, *imported, *keepalive);
                    let key = CreatedKey { created_at_ms, imported, keepalive, value };
                    self.created.insert(row_key, write_key(row_key, key, &installation.seal));
                    self.counters.next_key = self.counters.next_key.max(KeyNumber(number.0 + 1));
                    self.facts += 1;
                    if let Some(label) = label {
                        self.labels.insert(row_key, Some(label.to_owned()));
                    }
                }
            }
            Fact::KeyLabelled { pool, key, label } => {
                self.labels.insert((pool.0, key.0), label.map(str::to_owned));
            }
            Fact::KeyDeleted { pool, key } | Fact::KeyPurged { pool, key } => {
                self.remove_key((pool.0, key.0), installation)?;
            }
            Fact::Quarantined { pool, key, reason }
            | Fact::QuarantinedWhenFree { pool, key, reason } => {
                let reason = reason.unwrap_or_default().to_owned();
                self.quarantined.insert((pool.0, key.0), Some(reason));
            }
            Fact::KeyFreed { pool, key } | Fact::DrainCancelled { pool, key } => {
                self.quarantined.insert((pool.0, key.0), None);
            }
            Fact::TokensReserved { until } => {
                self.counters.tokens_reserved = self.counters.tokens_reserved.max(*until);
            }
            Fact::Granted { .. }
            | Fact::LeaseSnapshot { .. }
            | Fact::RestSnapshot { .. }
            | Fact::Renewed { .. }
            | Fact::Released { .. }
            | Fact::AnswerStored { .. }
            | Fact::AnswerRevoked { .. }
            | Fact::SegmentsDropped { .. }
            | Fact::Stopped { .. } => {}
        }
        Ok(())
    }

    fn set_pool(&mut self, pool: PoolId, row: PoolRow, pools: &mut PoolRows) {
        pools.insert(pool, row.clone());
        self.pools.insert(pool, row);
    }

    fn remove_key(
        &mut self,
        row_key: RowKey,
        installation: &Installation,
    ) -> Result<(), OpenError> {
        self.quarantined.remove(&row_key);
        self.labels.remove(&row_key);
        match self.created.remove(&row_key) {
            None => {
                self.removed.insert(row_key);
            }
            Some(row) => self.retired.extend(retired_key(row_key, &row, installation)?),
        }
        Ok(())
    }
}

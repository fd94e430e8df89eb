//! The cost of each call for the thread that executes it, in units of work.
//!
//! A unit is about a thousand instructions, a quarter of a microsecond: `bench/cost` counts the
//! instructions of the frequent calls. The cost of a call follows from its arguments alone, and is
//! an upper bound: a refused call costs less. A store executes short calls as they arrive. It
//! executes long calls within a budget for each turn, callers in rotation.

use crate::request::Call;
use keypeg_core::Secret;
use keypeg_core::sabotage::{TestLimit, limit};

/// The cost up to which a call is short. No frequent call costs more than a tenth of it.
pub const SHORT_UNITS_MAX: u32 = 64;
/// The most keys that one [`Call::KeepAliveMany`] names. A client that keeps more keys alive sends
/// several calls: such a list is not a transaction.
pub const KEEP_ALIVE_MAX: usize = 512;

/// Changing the state or the deadline of one key.
const CHANGE: u32 = 4;
/// Reading one key or the counters of one pool.
const READ: u32 = 2;
/// Creating a key with a random value.
const GENERATE: u32 = 5;
/// Creating a key with a given value, beside hashing the value.
const IMPORT: u32 = 4;
/// Storing and recording the label of one key.
const LABEL: u32 = 1;
/// The bytes of a value that are hashed, compared and logged for one unit.
const VALUE_BYTES: usize = 256;
/// The slots that a page examines for one unit.
const SLOTS: u32 = 16;
/// The slots that a page of keys examines at most, in units.
const PAGE_SLOTS: u32 = 4_096 / SLOTS;
/// The names that a page of some pools examines at most, in units.
const PAGE_NAMES: u32 = 1_024;

impl Call {
    /// Returns the most units of work that the call costs. O(values) for an import, otherwise O(1).
    pub fn units(&self) -> u32 {
        match self {
            Self::Acquire { .. }
            | Self::RevokeUndelivered { .. }
            | Self::Release { .. }
            | Self::Renew { .. }
            | Self::ForceRelease { .. }
            | Self::QuarantineKey { .. }
            | Self::EndQuarantine { .. }
            | Self::DeleteKey { .. }
            | Self::SetLabel { .. }
            | Self::Subscribe { .. }
            | Self::PutPool { .. }
            | Self::PutPoolIf { .. }
            | Self::DeletePool { .. } => CHANGE,
            Self::KeepAlive { .. }
            | Self::KeepAliveAll { .. }
            | Self::GetPool { .. }
            | Self::GetKey { .. }
            | Self::Reveal { .. } => READ,
            Self::KeepAliveMany { keys, .. } => cost_of(keys.len(), READ),
            Self::Generate { count, labels, .. } => {
                let labels = cost_of(labels.count(*count as usize), LABEL);
                count.saturating_mul(GENERATE).saturating_add(labels)
            }
            Self::Import { values, labels, .. } => {
                let bytes: usize = values.iter().map(|value: &Secret| value.bytes().len()).sum();
                let labels = cost_of(labels.count(values.len()), LABEL);
                let values = cost_of(values.len(), IMPORT);
                values.saturating_add(cost_of(bytes / VALUE_BYTES, 1)).saturating_add(labels)
            }
            Self::ListKeys { limit, .. } => cost_of(*limit, READ).saturating_add(PAGE_SLOTS),
            Self::ListPools { limit, filter, .. } => {
                let names = if filter.is_some() { PAGE_NAMES } else { 0 };
                cost_of(*limit, READ).saturating_add(names)
            }
        }
    }

    /// Returns whether the call costs more than [`SHORT_UNITS_MAX`].
    pub fn is_long(&self) -> bool {
        let max = limit(TestLimit::ShortUnits, u64::from(SHORT_UNITS_MAX));
        u64::from(self.units()) > max
    }
}

fn cost_of(items: usize, units: u32) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX).saturating_mul(units)
}

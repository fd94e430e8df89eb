//! The recent history of a pool, or of all pools, on the wire.
//!
//! Columns rather than a list of points: each name occurs once, and a chart takes columns.

use crate::time::UnixMs;
use serde::{Deserialize, Serialize};

/// What happened in the last seconds, second by second, the oldest first. All arrays have the same
/// length. Null: the server has no record of this second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(schemars::JsonSchema))]
pub struct History {
    /// The pool; null if the numbers are sums of several pools.
    pub pool: Option<String>,
    /// How many pools the last second is the sum of.
    pub pools: u64,
    /// The instant of the first element of each array; each further element is a second later.
    pub from_at: UnixMs,
    /// Available keys at each instant.
    pub available: Vec<Option<u64>>,
    /// Leased keys at each instant.
    pub leased: Vec<Option<u64>>,
    /// Resting keys at each instant.
    pub resting: Vec<Option<u64>>,
    /// Quarantined keys at each instant.
    pub quarantined: Vec<Option<u64>>,
    /// Requests in the wait queue at each instant.
    pub waiting: Vec<Option<u64>>,
    /// Leases granted in the second before each instant.
    pub grants: Vec<Option<u64>>,
    /// Requests refused in that second because no key was available.
    pub refusals: Vec<Option<u64>>,
    /// Leases that ended by time in that second.
    pub expiries: Vec<Option<u64>>,
    /// Keys purged by time in that second.
    pub purges: Vec<Option<u64>>,
    /// The seconds that the requests granted in that second had waited in the wait queue, summed up.
    pub waited_seconds: Vec<Option<f64>>,
}

//! The number of a shard.

use std::fmt;

/// The number of a shard: a part of the pools with a log of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u16);

impl Shard {
    /// The first shard.
    pub const FIRST: Self = Self(0);

    /// The shard of [`SharedLog::probe`](crate::SharedLog::probe). It never has pools.
    pub const PROBE: Self = Self(u16::MAX);

    /// Returns the shard with a number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

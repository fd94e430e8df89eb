//! The numbers that facts, calls and ids contain, one type for each kind.
//!
//! Each is a plain integer in memory and in the journal; the types only keep one kind from being
//! passed where another is expected. Fencing tokens stay `u64`, because clients compare them.

/// A pool's number; never used twice, so that no fact of a deleted pool applies to a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct PoolId(pub u32);

impl PoolId {
    /// The bits of a number that count the pools of one block.
    const BLOCK_BITS: u32 = 24;

    /// Returns the first number of a block. Each shard of an installation has a block of its own.
    pub fn first_of(block: u16) -> Self {
        Self((u32::from(block) << Self::BLOCK_BITS) + 1)
    }

    /// Returns the block that a number belongs to.
    pub fn block(self) -> u16 {
        // A number of 32 bits has 8 bits above those of the block.
        u16::try_from(self.0.saturating_sub(1) >> Self::BLOCK_BITS).unwrap_or(u16::MAX)
    }
}

/// A key's number; unique on the server and never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct KeyNumber(pub u64);

/// A log sequence number: the position of a batch in the journal; increases with every batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Lsn(pub u64);

/// The number by which the caller knows a waiting request; unique among the waiting requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct WaiterId(pub u64);

/// A borrower's number: 56 bits of the digest of its name. The default, 0, means no borrower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct BorrowerId(pub u64);

impl KeyNumber {
    /// Returns `count` consecutive numbers that begin with this one.
    pub fn range(self, count: u32) -> impl Iterator<Item = Self> {
        (self.0..self.0.saturating_add(u64::from(count))).map(Self)
    }

    /// Returns the number `count` after this one.
    pub(crate) fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl BorrowerId {
    /// Stands for a lease without a borrower, which no limit counts.
    pub const NONE: Self = Self(0);
}

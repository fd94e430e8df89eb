//! Positions within the structures of the pools, one type for each structure.
//!
//! Each is a `u32` at run time; the types only keep an index into one structure from being used
//! for another. An index is stable while its item exists and is reused afterwards.

/// A position in a structure of fewer than 2^32 items.
pub(crate) trait ItemIndex: Copy + Eq {
    /// Stands for the absence of an item where an `Option` would take twice the memory.
    const NONE: Self;

    fn new(index: u32) -> Self;
    fn get(self) -> u32;

    /// Converts a length or an offset; the number of keys and waiters is bounded far below 2^32.
    #[inline]
    fn of(index: usize) -> Self {
        Self::new(u32::try_from(index).expect("invariant: structures hold fewer than 2^32 items"))
    }
}

impl ItemIndex for u32 {
    const NONE: Self = u32::MAX;

    #[inline]
    fn new(index: u32) -> Self {
        index
    }

    #[inline]
    fn get(self) -> u32 {
        self
    }
}

macro_rules! index_types {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(transparent)]
        pub(crate) struct $name(u32);

        impl ItemIndex for $name {
            const NONE: Self = Self(u32::MAX);

            #[inline]
            fn new(index: u32) -> Self {
                Self(index)
            }

            #[inline]
            fn get(self) -> u32 {
                self.0
            }
        }
    )*};
}

index_types! {
    /// A pool among the pools of the server.
    PoolIndex
    /// A key's slot in its pool.
    SlotIndex
    /// A hold (a lease or a rest) among those of its pool.
    HoldIndex
    /// A waiter among those of its pool.
    WaiterIndex
    /// A stored answer among those of its pool.
    AnswerIndex
    /// A position in a heap of deadlines.
    HeapPosition
    /// A block of positions in a heap of deadlines.
    HeapBlock
    /// A position in the array of a pool's available keys.
    AvailablePosition
    /// The reason of a quarantined key among those of its pool.
    ReasonIndex
    /// A text that slots have, among those of its pool.
    TextIndex
    /// A value too long for its slot, among those of its pool.
    LongValueIndex
    /// A retired value among those of its pool; wraps around.
    RetiredIndex
}

/// The position of an item that is in no heap.
pub(crate) const NOT_IN_HEAP: HeapPosition = HeapPosition::NONE;

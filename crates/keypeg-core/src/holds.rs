//! Holds: the keys that are leased or rest, found by slot or by token.
//!
//! A hold is a dense record beside its slot, so an available key costs no memory for it. The
//! pool's heap of hold ends, whose items are holds, knows when each ends.

use crate::chunks::Chunks;
use crate::deadlines::HeapIndex;
use crate::fact::Grant;
use crate::heap::allocated_text;
use crate::ids::TOKEN_MAX;
use crate::index::Index;
use crate::indices::{HeapPosition, HoldIndex, ItemIndex, NOT_IN_HEAP, SlotIndex};
use crate::numbers::{BorrowerId, KeyNumber};

/// The token of a record that no hold uses.
const UNUSED: u64 = TOKEN_MAX + 1;

/// What keeps a key from being available for a time: a lease or a rest.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) slot: SlotIndex,
    /// The position in the heap of hold ends.
    heap_position: HeapPosition,
    /// The fencing token of the lease; while the key rests, of the lease before.
    pub(crate) token: u64,
    pub(crate) granted_us: u64,
    /// The latest end that renewals can give the lease.
    pub(crate) latest_us: u64,
    /// How long the key rests after the lease.
    pub(crate) rest_us: u64,
    /// The borrower that the lease counts for.
    pub(crate) borrower: BorrowerId,
    /// The holder's name; while the key rests, the reason.
    pub(crate) holder_or_reason: Option<Box<str>>,
}

/// How a key rests after a lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest<'a> {
    /// The end of the rest, lease time in microseconds; 0 when the key does not rest.
    pub(crate) until_us: u64,
    pub(crate) reason: Option<&'a str>,
}

/// A lease that ends, as its hold and its slot describe it: read once for all that its end changes.
#[derive(Clone, Copy)]
pub(crate) struct EndingLease {
    pub(crate) hold: HoldIndex,
    pub(crate) slot: SlotIndex,
    pub(crate) key: KeyNumber,
    pub(crate) token: u64,
    pub(crate) granted_us: u64,
    /// How long the key rests after the lease, as the grant said.
    pub(crate) rest_us: u64,
    pub(crate) is_draining: bool,
    pub(crate) borrower: BorrowerId,
}

/// What a view shows of a lease.
#[derive(Clone, Copy)]
pub(crate) struct ShownLease<'a> {
    pub(crate) granted_us: u64,
    pub(crate) until_us: u64,
    pub(crate) holder: Option<&'a str>,
}

impl<'a> ShownLease<'a> {
    /// Returns what is shown of a lease that has just been granted.
    pub(crate) fn of(&Grant { granted_us, until_us, holder, .. }: &Grant<'a>) -> Self {
        Self { granted_us, until_us, holder }
    }
}

/// All holds of a pool: a slab with a free list. An index is stable while its hold exists.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    records: Chunks<HoldIndex, Hold>,
    free: Chunks<u32, HoldIndex>,
    by_token: Index<HoldIndex>,
    /// The bytes of holders and reasons.
    text_bytes: usize,
}

impl Holds {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// Returns the end of the range of indices in use.
    pub(crate) fn end(&self) -> HoldIndex {
        HoldIndex::of(self.records.len())
    }

    /// Returns whether a hold exists at an index below [`Holds::end`].
    pub(crate) fn is_used(&self, hold: HoldIndex) -> bool {
        self.records[hold].slot != SlotIndex::NONE
    }

    /// Returns the bytes of all holds with their texts. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.records.bytes() + self.free.bytes() + self.by_token.bytes() + self.text_bytes
    }

    /// Inserts a hold.
    pub(crate) fn add(&mut self, record: Hold) -> HoldIndex {
        let token = record.token;
        self.text_bytes += record.text_bytes();
        let hold = if let Some(hold) = self.free.pop() {
            self.records[hold] = record;
            hold
        } else {
            self.records.push(record)
        };
        self.by_token.insert(hash_token(token), hold, |hold| hash_token(self.records[hold].token));
        hold
    }

    /// Removes a hold that is not in the heap. Returns the holder or the reason.
    pub(crate) fn remove(&mut self, hold: HoldIndex) -> Option<Box<str>> {
        let record = &mut self.records[hold];
        debug_assert_eq!(record.heap_position, NOT_IN_HEAP, "its end is cancelled first");
        self.text_bytes -= record.text_bytes();
        record.slot = SlotIndex::NONE;
        let token = std::mem::replace(&mut record.token, UNUSED);
        let text = record.holder_or_reason.take();
        // The index compares holds, and computes the hashes of other holds only.
        self.by_token
            .remove(hash_token(token), hold, |other| hash_token(self.records[other].token));
        self.free.push(hold);
        text
    }

    #[inline]
    pub(crate) fn find_by_token(&self, token: u64) -> Option<HoldIndex> {
        self.by_token.find(hash_token(token), |hold| self.records[hold].token == token)
    }

    /// Turns the hold of a lease into that of a rest, with the reason if one was given. Returns the
    /// holder.
    pub(crate) fn set_rest_reason(
        &mut self,
        hold: HoldIndex,
        reason: Option<&str>,
    ) -> Option<Box<str>> {
        let record = &mut self.records[hold];
        self.text_bytes -= record.text_bytes();
        let holder = std::mem::replace(&mut record.holder_or_reason, reason.map(Into::into));
        self.text_bytes += record.text_bytes();
        holder
    }

    /// Replaces the terms of the lease by those of a snapshot record.
    pub(crate) fn set_grant(&mut self, hold: HoldIndex, lease: &Grant<'_>) {
        let record = &mut self.records[hold];
        let Hold { slot, heap_position, token, .. } = *record;
        self.text_bytes -= record.text_bytes();
        *record = Hold { heap_position, ..Hold::new(slot, token, lease) };
        self.text_bytes += record.text_bytes();
    }

    #[inline]
    pub(crate) fn get(&self, hold: HoldIndex) -> &Hold {
        &self.records[hold]
    }
}

impl Hold {
    pub(crate) fn new(slot: SlotIndex, token: u64, lease: &Grant<'_>) -> Self {
        Self {
            slot,
            heap_position: NOT_IN_HEAP,
            token,
            granted_us: lease.granted_us,
            latest_us: lease.hold_until_us,
            rest_us: lease.rest_us,
            borrower: lease.borrower,
            holder_or_reason: lease.holder.map(Into::into),
        }
    }

    fn text_bytes(&self) -> usize {
        allocated_text(self.holder_or_reason.as_deref())
    }
}

/// Returns a token's hash: tokens are consecutive, so their bits are mixed first.
pub(crate) fn hash_token(token: u64) -> u64 {
    let mixed = (token ^ (token >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// The holds' positions in the heap of hold ends.
impl HeapIndex for Holds {
    type Item = HoldIndex;

    #[inline]
    fn heap_position(&self, item: HoldIndex) -> HeapPosition {
        self.records[item].heap_position
    }

    #[inline]
    fn set_heap_position(&mut self, item: HoldIndex, position: HeapPosition) {
        self.records[item].heap_position = position;
    }
}

//! The keys of a pool in little memory: 44 bytes a slot, with values of up to 20 bytes inline. A
//! longer value is stored with its id, so that it is hashed once, when it enters.
//!
//! A slab with a free list: a slot is reused after its key is deleted or purged, a key's number
//! never is. Which state allows which transition is the business of `pool.rs`.

use crate::chunks::Chunks;
use crate::deadlines::HeapIndex;
use crate::heap::allocated;
use crate::ids::KeyId;
use crate::incoming::IncomingKey;
use crate::indices::{
    AvailablePosition, HeapPosition, HoldIndex, ItemIndex, LongValueIndex, NOT_IN_HEAP,
    ReasonIndex, SlotIndex,
};
use crate::key::KeyState;
use crate::numbers::KeyNumber;
use zeroize::Zeroize as _;

/// Bytes of a value that a slot stores inline.
const INLINE: usize = 20;
/// The length that marks a value stored outside its slot.
const OUTSIDE: u8 = u8::MAX;
/// Bytes of the id before a value that is stored outside its slot.
const ID: usize = size_of::<KeyId>();

/// One key. The first four fields are in the journal; the positions are derived from the state.
#[derive(Clone)]
struct Slot {
    value: [u8; INLINE],
    number: [u8; 8],
    created_ms: [u8; 6],
    len: u8,
    flags: u8,
    /// By state: the position among the available keys, the hold of a leased or resting key, the
    /// reason of a quarantined key, the place of a staged value in its call, the next slot of the
    /// free list.
    link: u32,
    /// The position in the heap of key ends.
    heap_position: HeapPosition,
}

const STATE: u8 = 0b111;
/// The slot has a value that a call stages: no key for any other call.
const STAGED: u8 = 0b100;
const EMPTY: u8 = 0b111;
/// The slot has a staged value and never had a key, so that nothing refers to it.
const NEVER_USED: u8 = 0b10_0000;
const IMPORTED: u8 = 0b1000;
/// The key has no keep-alive deadline.
const NO_KEEPALIVE: u8 = 0b1_0000;
/// The key is leased, and is quarantined when its lease ends.
const DRAINING: u8 = 0b100_0000;
/// The key has a label.
const LABELLED: u8 = 0b1000_0000;

/// All slots of a pool. `Debug` shows only their number, because a slot contains a secret.
#[derive(Clone)]
pub(crate) struct Slots {
    records: Chunks<SlotIndex, Slot>,
    first_free: SlotIndex,
    /// Whether empty slots are not reused, so that slots keep the order of insertion.
    keep_order: bool,
    /// Each is the id of its key, little-endian, then the value.
    long_values: Chunks<LongValueIndex, Box<[u8]>>,
    free_long_values: Chunks<u32, LongValueIndex>,
    /// The bytes of the values outside the slots.
    long_value_bytes: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            records: Chunks::default(),
            first_free: SlotIndex::NONE,
            keep_order: false,
            long_values: Chunks::default(),
            free_long_values: Chunks::default(),
            long_value_bytes: 0,
        }
    }
}

impl Slots {
    /// Inserts a key and returns its slot. The key is available, but neither among the available
    /// keys nor in the heap yet.
    pub(crate) fn add(&mut self, key: &IncomingKey<'_>, created_ms: u64) -> SlotIndex {
        let (inline, len) = self.store(key.id, key.value);
        let [c0, c1, c2, c3, c4, c5, ..] = created_ms.to_le_bytes();
        let record = Slot {
            value: inline,
            number: key.number.0.to_le_bytes(),
            created_ms: [c0, c1, c2, c3, c4, c5],
            len,
            flags: state_bits(KeyState::Available)
                | if key.imported { IMPORTED } else { 0 }
                | if key.keepalive { 0 } else { NO_KEEPALIVE },
            link: AvailablePosition::NONE.get(),
            heap_position: NOT_IN_HEAP,
        };
        self.place(record)
    }

    fn place(&mut self, record: Slot) -> SlotIndex {
        if self.first_free == SlotIndex::NONE || self.keep_order {
            self.records.push(record)
        } else {
            let slot = self.first_free;
            self.first_free = SlotIndex::new(self.records[slot].link);
            self.records[slot] = record;
            slot
        }
    }

    /// Stores a value that is no key yet, the one at `place` of its call; returns its slot.
    pub(crate) fn stage(&mut self, key: &IncomingKey<'_>, place: u32) -> SlotIndex {
        let len = self.len();
        let slot = self.add(key, 0);
        let never_used = if self.len() > len { NEVER_USED } else { 0 };
        let record = &mut self.records[slot];
        record.flags = record.flags & !STATE | STAGED | never_used;
        record.link = place;
        slot
    }

    /// Returns the place of a staged value in its call; `None` for any other slot.
    pub(crate) fn staged_place(&self, slot: SlotIndex) -> Option<u32> {
        let record = &self.records[slot];
        (record.flags & STATE == STAGED).then_some(record.link)
    }

    /// Makes a staged value a key: available, but neither among the available keys nor in the heap
    /// yet.
    pub(crate) fn publish(&mut self, slot: SlotIndex, number: KeyNumber, created_ms: u64) {
        let [c0, c1, c2, c3, c4, c5, ..] = created_ms.to_le_bytes();
        let record = &mut self.records[slot];
        debug_assert!(record.flags & STATE == STAGED, "a staged value becomes a key once");
        record.number = number.0.to_le_bytes();
        record.created_ms = [c0, c1, c2, c3, c4, c5];
        record.flags = record.flags & !(STATE | NEVER_USED) | state_bits(KeyState::Available);
        record.link = AvailablePosition::NONE.get();
    }

    /// Removes a staged value. Its slot goes too where it is the last one and never had a key: an
    /// ended lease and a stored answer refer to slots whose keys are gone.
    pub(crate) fn withdraw(&mut self, slot: SlotIndex) {
        let never_used = self.records[slot].flags & NEVER_USED != 0;
        self.remove(slot);
        if never_used && slot.get() + 1 == self.len() {
            self.first_free = SlotIndex::new(self.records[slot].link);
            self.records.pop();
        }
    }

    /// Sets whether empty slots are not reused.
    pub(crate) fn keep_order(&mut self, keep: bool) {
        self.keep_order = keep;
    }

    /// Removes a key; its slot joins the free list.
    pub(crate) fn remove(&mut self, slot: SlotIndex) {
        let record = &mut self.records[slot];
        if record.len == OUTSIDE {
            let long = long_value_index(&record.value);
            self.long_value_bytes -= allocated(self.long_values[long].len());
            self.long_values[long].zeroize();
            self.long_values[long] = Box::default();
            self.free_long_values.push(long);
        }
        record.value = [0; INLINE];
        record.flags = EMPTY;
        record.link = self.first_free.get();
        self.first_free = slot;
    }

    fn store(&mut self, id: KeyId, value: &[u8]) -> ([u8; INLINE], u8) {
        let mut inline = [0; INLINE];
        if value.len() <= INLINE {
            inline[..value.len()].copy_from_slice(value);
            return (inline, u8::try_from(value.len()).expect("invariant: at most 20"));
        }
        let stored = [&id.0.to_le_bytes()[..], value].concat().into_boxed_slice();
        self.long_value_bytes += allocated(stored.len());
        let long = if let Some(long) = self.free_long_values.pop() {
            self.long_values[long] = stored;
            long
        } else {
            self.long_values.push(stored)
        };
        inline[..4].copy_from_slice(&long.get().to_le_bytes());
        (inline, OUTSIDE)
    }

    pub(crate) fn value(&self, slot: SlotIndex) -> &[u8] {
        let record = &self.records[slot];
        if record.len == OUTSIDE {
            &self.long_values[long_value_index(&record.value)][ID..]
        } else {
            &record.value[..usize::from(record.len)]
        }
    }

    /// Returns the id of a key whose value is stored outside its slot. To hash a shorter value, of
    /// one block, costs less than the memory for its id.
    pub(crate) fn stored_id(&self, slot: SlotIndex) -> Option<KeyId> {
        let record = &self.records[slot];
        (record.len == OUTSIDE).then(|| {
            let stored = &self.long_values[long_value_index(&record.value)];
            let (id, _) = stored.split_first_chunk::<ID>().expect("invariant: an id comes first");
            KeyId(u128::from_le_bytes(*id))
        })
    }

    pub(crate) fn number(&self, slot: SlotIndex) -> KeyNumber {
        KeyNumber(u64::from_le_bytes(self.records[slot].number))
    }

    pub(crate) fn created_ms(&self, slot: SlotIndex) -> u64 {
        let [c0, c1, c2, c3, c4, c5] = self.records[slot].created_ms;
        u64::from_le_bytes([c0, c1, c2, c3, c4, c5, 0, 0])
    }

    pub(crate) fn imported(&self, slot: SlotIndex) -> bool {
        self.records[slot].flags & IMPORTED != 0
    }

    /// Returns whether a key is purged unless it is kept alive.
    pub(crate) fn keepalive(&self, slot: SlotIndex) -> bool {
        self.records[slot].flags & NO_KEEPALIVE == 0
    }

    #[inline]
    pub(crate) fn has_label(&self, slot: SlotIndex) -> bool {
        self.records[slot].flags & LABELLED != 0
    }

    pub(crate) fn set_has_label(&mut self, slot: SlotIndex, has_label: bool) {
        self.set_flag(slot, LABELLED, has_label);
    }

    #[inline]
    pub(crate) fn is_draining(&self, slot: SlotIndex) -> bool {
        self.records[slot].flags & DRAINING != 0
    }

    pub(crate) fn set_draining(&mut self, slot: SlotIndex, draining: bool) {
        self.set_flag(slot, DRAINING, draining);
    }

    fn set_flag(&mut self, slot: SlotIndex, flag: u8, set: bool) {
        let record = &mut self.records[slot];
        record.flags = record.flags & !flag | if set { flag } else { 0 };
    }

    /// Returns the state of a key; `None` for a slot that is empty or has a staged value.
    pub(crate) fn state(&self, slot: SlotIndex) -> Option<KeyState> {
        match self.records[slot].flags & STATE {
            0 => Some(KeyState::Available),
            1 => Some(KeyState::Leased),
            2 => Some(KeyState::Resting),
            3 => Some(KeyState::Quarantined),
            _ => None,
        }
    }

    pub(crate) fn set_state(&mut self, slot: SlotIndex, state: KeyState) {
        let record = &mut self.records[slot];
        record.flags = record.flags & !STATE | state_bits(state);
    }

    /// Makes a key available, at this position among the available keys.
    #[inline]
    pub(crate) fn set_available(&mut self, slot: SlotIndex, position: AvailablePosition) {
        let record = &mut self.records[slot];
        record.flags = record.flags & !STATE | state_bits(KeyState::Available);
        record.link = position.get();
    }

    /// Returns the position of an available key among the available keys.
    #[inline]
    pub(crate) fn available_position(&self, slot: SlotIndex) -> AvailablePosition {
        AvailablePosition::new(self.records[slot].link)
    }

    #[inline]
    pub(crate) fn set_available_position(&mut self, slot: SlotIndex, to: AvailablePosition) {
        self.records[slot].link = to.get();
    }

    /// Returns the hold of a leased or resting key.
    #[inline]
    pub(crate) fn hold(&self, slot: SlotIndex) -> HoldIndex {
        HoldIndex::new(self.records[slot].link)
    }

    #[inline]
    pub(crate) fn set_hold(&mut self, slot: SlotIndex, hold: HoldIndex) {
        self.records[slot].link = hold.get();
    }

    /// Returns the reason of a quarantined key.
    #[inline]
    pub(crate) fn reason(&self, slot: SlotIndex) -> ReasonIndex {
        ReasonIndex::new(self.records[slot].link)
    }

    #[inline]
    pub(crate) fn set_reason(&mut self, slot: SlotIndex, reason: ReasonIndex) {
        self.records[slot].link = reason.get();
    }

    /// Returns the bytes of all slots and values. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.long_values.bytes() + self.free_long_values.bytes();
        self.records.bytes() + lists + self.long_value_bytes
    }

    /// Returns the bytes that a value of this length takes outside its slot, its place included.
    pub(crate) fn bytes_of_value(len: usize) -> usize {
        if len <= INLINE { 0 } else { allocated(ID + len) + size_of::<Box<[u8]>>() }
    }

    /// Returns the number of slots, empty ones included.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.records.len()).expect("invariant: keys are bounded")
    }

    /// Returns the number of empty slots, given the number of keys.
    pub(crate) fn free_count(&self, keys: u64) -> u32 {
        let free = u64::from(self.len()).saturating_sub(keys);
        u32::try_from(free).expect("invariant: fewer than slots")
    }

    /// Returns the slots that contain a key, in order.
    pub(crate) fn used(&self) -> impl Iterator<Item = SlotIndex> + '_ {
        (0..self.len()).map(SlotIndex::new).filter(|slot| self.state(*slot).is_some())
    }
}

/// Overwrites all values, so that none stays in free memory. O(keys).
impl Drop for Slots {
    fn drop(&mut self) {
        for slot in (0..self.len()).map(SlotIndex::new) {
            self.records[slot].value.zeroize();
        }
        for long in (0..self.long_values.len()).map(LongValueIndex::of) {
            self.long_values[long].zeroize();
        }
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({})", self.records.len())
    }
}

/// The slots' positions in the heap of key ends.
impl HeapIndex for Slots {
    type Item = SlotIndex;

    #[inline]
    fn heap_position(&self, item: SlotIndex) -> HeapPosition {
        self.records[item].heap_position
    }

    #[inline]
    fn set_heap_position(&mut self, item: SlotIndex, position: HeapPosition) {
        self.records[item].heap_position = position;
    }
}

fn state_bits(state: KeyState) -> u8 {
    match state {
        KeyState::Available => 0,
        KeyState::Leased => 1,
        KeyState::Resting => 2,
        KeyState::Quarantined => 3,
    }
}

fn long_value_index(inline: &[u8; INLINE]) -> LongValueIndex {
    let (head, _) = inline.split_first_chunk::<4>().expect("invariant: 20 bytes");
    LongValueIndex::new(u32::from_le_bytes(*head))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64, value: &[u8]) -> IncomingKey<'_> {
        let (id, number) = (KeyId(u128::from(number)), KeyNumber(number));
        IncomingKey { number, id, value, imported: false, keepalive: true }
    }

    #[test]
    fn a_slot_is_small_and_stores_values_of_every_length() {
        assert_eq!(size_of::<Slot>(), 44);
        let mut slots = Slots::default();
        let value = |len: usize| "x".repeat(len).into_bytes();
        let created = (1 << 48) - 1;
        for (number, len) in [(1, 1), (u64::MAX, 20), (7, 21), (8, 254), (9, 4096)] {
            let value_of_len = value(len);
            let key = key(number, &value_of_len);
            let key = IncomingKey { imported: len > 20, keepalive: len < 254, ..key };
            let slot = slots.add(&key, created);
            slots.set_state(slot, KeyState::Quarantined);
            assert_eq!(slots.value(slot), value(len));
            let id = (len > INLINE).then_some(KeyId(u128::from(number)));
            assert_eq!(slots.stored_id(slot), id, "a long value has its id beside it");
            assert_eq!(slots.number(slot), KeyNumber(number));
            assert_eq!(slots.created_ms(slot), created);
            assert_eq!((slots.imported(slot), slots.keepalive(slot)), (len > 20, len < 254));
        }
        let [first, fourth, fifth] = [0, 3, 4].map(SlotIndex::new);
        slots.remove(fifth);
        slots.remove(first);
        assert_eq!(slots.state(fifth), None);
        let reused = slots.add(&key(10, &value(300)), 0);
        assert_eq!(reused, first, "the slot emptied last is reused first");
        assert_eq!(slots.long_values.len(), 3, "room outside the slots is reused");
        assert_eq!(slots.value(first), value(300));
        assert_eq!(slots.value(fourth), value(254));
    }
}

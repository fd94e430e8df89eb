//! The keys of a pool in little memory: 44 bytes a slot, values of up to 20 bytes within it.
//!
//! A slot's number is reused after its key is gone; a key's number never is. Which states allow
//! what is `pool.rs`' business.

use crate::chunks::Chunks;
use crate::deadlines::{HeapIndex, NO_INDEX};
use crate::key::KeyState;
use crate::numbers::KeyNumber;

/// Bytes of a value that a slot holds itself.
const INLINE: usize = 20;
/// The length that says a value lies outside its slot.
const OUTSIDE: u8 = u8::MAX;

/// One key. The first four fields are the journal's; the places are derived from state.
#[derive(Clone)]
struct Slot {
    value: [u8; INLINE],
    number: [u8; 8],
    created_ms: [u8; 6],
    len: u8,
    flags: u8,
    /// In the free keys when available, in the holds when leased or resting, next free slot when
    /// empty.
    place: u32,
    /// In the heap of keep-alive deadlines.
    life: u32,
}

const STATE: u8 = 0b111;
const EMPTY: u8 = 0b111;
const IMPORTED: u8 = 0b1000;

/// All slots of a pool. `Debug` shows how many, for a slot is mostly a secret.
#[derive(Clone)]
pub(crate) struct Slots {
    records: Chunks<Slot>,
    first_free: u32,
    /// Whether empty slots are left alone, so that slots keep the order they were filled in.
    keep_order: bool,
    long: Vec<Box<[u8]>>,
    long_free: Vec<u32>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            records: Chunks::default(),
            first_free: NO_INDEX,
            keep_order: false,
            long: vec![],
            long_free: vec![],
        }
    }
}

impl Slots {
    /// Puts a key in and gives its slot; it is available and in no heap yet.
    pub(crate) fn add(
        &mut self,
        number: KeyNumber,
        value: &[u8],
        created_ms: u64,
        imported: bool,
    ) -> u32 {
        let (inline, len) = self.store(value);
        let [c0, c1, c2, c3, c4, c5, ..] = created_ms.to_le_bytes();
        let slot = Slot {
            value: inline,
            number: number.0.to_le_bytes(),
            created_ms: [c0, c1, c2, c3, c4, c5],
            len,
            flags: state_bits(KeyState::Available) | if imported { IMPORTED } else { 0 },
            place: NO_INDEX,
            life: NO_INDEX,
        };
        if self.first_free == NO_INDEX || self.keep_order {
            let at = u32::try_from(self.records.len()).expect("invariant: keys are bounded");
            self.records.push(slot);
            at
        } else {
            let at = self.first_free;
            self.first_free = self.records[at].place;
            self.records[at] = slot;
            at
        }
    }

    /// Sets whether empty slots are left alone.
    pub(crate) fn keep_order(&mut self, keep: bool) {
        self.keep_order = keep;
    }

    /// Takes a key out; its slot will be used again.
    pub(crate) fn remove(&mut self, at: u32) {
        let slot = &mut self.records[at];
        if slot.len == OUTSIDE {
            let long = long_place(&slot.value);
            self.long[long as usize] = Box::default();
            self.long_free.push(long);
        }
        slot.value = [0; INLINE];
        slot.flags = EMPTY;
        slot.place = self.first_free;
        self.first_free = at;
    }

    fn store(&mut self, value: &[u8]) -> ([u8; INLINE], u8) {
        let mut inline = [0; INLINE];
        if value.len() <= INLINE {
            inline[..value.len()].copy_from_slice(value);
            return (inline, u8::try_from(value.len()).expect("invariant: at most 20"));
        }
        let long = if let Some(long) = self.long_free.pop() {
            self.long[long as usize] = value.into();
            long
        } else {
            self.long.push(value.into());
            u32::try_from(self.long.len() - 1).expect("invariant: keys are bounded")
        };
        inline[..4].copy_from_slice(&long.to_le_bytes());
        (inline, OUTSIDE)
    }

    pub(crate) fn value(&self, at: u32) -> &[u8] {
        let slot = &self.records[at];
        if slot.len == OUTSIDE {
            &self.long[long_place(&slot.value) as usize]
        } else {
            &slot.value[..usize::from(slot.len)]
        }
    }

    pub(crate) fn number(&self, at: u32) -> KeyNumber {
        KeyNumber(u64::from_le_bytes(self.records[at].number))
    }

    pub(crate) fn created_ms(&self, at: u32) -> u64 {
        let [c0, c1, c2, c3, c4, c5] = self.records[at].created_ms;
        u64::from_le_bytes([c0, c1, c2, c3, c4, c5, 0, 0])
    }

    pub(crate) fn imported(&self, at: u32) -> bool {
        self.records[at].flags & IMPORTED != 0
    }

    /// The state of a key that is in; `None` for an empty slot.
    pub(crate) fn state(&self, at: u32) -> Option<KeyState> {
        match self.records[at].flags & STATE {
            0 => Some(KeyState::Available),
            1 => Some(KeyState::Leased),
            2 => Some(KeyState::Resting),
            3 => Some(KeyState::Quarantined),
            _ => None,
        }
    }

    pub(crate) fn set_state(&mut self, at: u32, state: KeyState) {
        let slot = &mut self.records[at];
        slot.flags = slot.flags & !STATE | state_bits(state);
    }

    /// Where the key is among the free keys or the holds, by its state.
    pub(crate) fn place(&self, at: u32) -> u32 {
        self.records[at].place
    }

    pub(crate) fn set_place(&mut self, at: u32, place: u32) {
        self.records[at].place = place;
    }

    /// How many slots there are, empty ones included.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.records.len()).expect("invariant: keys are bounded")
    }
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slots({} of them)", self.records.len())
    }
}

/// Slots in the heap of keep-alive deadlines.
impl HeapIndex for Slots {
    fn place(&self, item: u32) -> u32 {
        self.records[item].life
    }

    fn set_place(&mut self, item: u32, place: u32) {
        self.records[item].life = place;
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

fn long_place(inline: &[u8; INLINE]) -> u32 {
    let (head, _) = inline.split_first_chunk::<4>().expect("invariant: 20 bytes");
    u32::from_le_bytes(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_small_and_keeps_values_of_every_length() {
        assert_eq!(size_of::<Slot>(), 44);
        let mut slots = Slots::default();
        let value = |len: usize| "x".repeat(len).into_bytes();
        let created = (1 << 48) - 1;
        for (number, len) in [(1, 1), (u64::MAX, 20), (7, 21), (8, 254), (9, 4096)] {
            let at = slots.add(KeyNumber(number), &value(len), created, len > 20);
            assert_eq!(slots.value(at), value(len));
            assert_eq!(slots.number(at), KeyNumber(number));
            assert_eq!(slots.created_ms(at), created);
            assert_eq!(slots.imported(at), len > 20);
        }
        slots.remove(4);
        slots.remove(0);
        assert_eq!(slots.state(4), None);
        assert_eq!(
            slots.add(KeyNumber(10), &value(300), 0, false),
            0,
            "the last emptied slot comes first"
        );
        assert_eq!(slots.long.len(), 3, "room outside is used again");
        assert_eq!(slots.value(0), value(300));
        assert_eq!(slots.value(3), value(254));
    }
}

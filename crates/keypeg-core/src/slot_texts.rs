//! Texts of some slots of a pool: labels, and the reasons of quarantines that begin when a lease
//! ends.
//!
//! A slot without a text takes no memory here, and a text that many slots have is stored once. A
//! flag of the slot says whether it has a text, so nothing is looked up for a slot without one.
//! Each change costs O(1) and moves at most one entry.

use crate::chunks::Chunks;
use crate::heap::allocated;
use crate::index::Index;
use crate::indices::{ItemIndex, SlotIndex, TextIndex};
use std::hash::BuildHasher as _;

/// The most bytes that the text of one slot takes beside the text itself: its entry, the record of
/// the text, and both in an index, each with the room that a growing structure keeps.
const ENTRY_BYTES: usize = 112;

/// The texts of the slots of a pool, at most one for each slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotTexts(Option<Box<Table>>);

#[derive(Clone, Debug, Default)]
struct Table {
    entries: Chunks<u32, Entry>,
    by_slot: Index<u32>,
    texts: Chunks<TextIndex, Text>,
    free: Chunks<u32, TextIndex>,
    by_text: Index<TextIndex>,
    /// The bytes of the texts.
    text_bytes: usize,
    hasher: foldhash::quality::RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: SlotIndex,
    text: TextIndex,
}

#[derive(Clone, Debug)]
struct Text {
    text: Box<str>,
    /// The number of slots that have this text.
    uses: u32,
}

impl SlotTexts {
    /// Returns the most bytes that one more slot with this text takes.
    pub(crate) fn bytes_of(text: &str) -> usize {
        ENTRY_BYTES + allocated(text.len())
    }

    /// Returns the number of slots with a text.
    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |table| table.entries.len())
    }

    /// Returns the bytes of all texts. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |table| table.bytes())
    }

    /// Gives a slot without a text this one.
    pub(crate) fn add(&mut self, slot: SlotIndex, text: &str) {
        self.0.get_or_insert_default().add(slot, text);
    }

    /// Removes the text of a slot that has one.
    pub(crate) fn remove(&mut self, slot: SlotIndex) {
        self.0.as_mut().expect(HAS_TEXT).remove(slot);
    }

    /// Returns the text of a slot that has one.
    pub(crate) fn get(&self, slot: SlotIndex) -> &str {
        let table = self.0.as_ref().expect(HAS_TEXT);
        &table.texts[table.entries[table.entry_of(slot)].text].text
    }

    /// Returns the text of a slot, if it has one.
    pub(crate) fn text_of(&self, slot: SlotIndex) -> Option<&str> {
        let table = self.0.as_ref()?;
        let entry = table.find_entry(slot)?;
        Some(&table.texts[table.entries[entry].text].text)
    }

    /// Finds a text, to be compared with those of slots; `None` where no slot has it.
    pub(crate) fn find(&self, text: &str) -> Option<TextIndex> {
        self.0.as_ref().and_then(|table| table.find(text))
    }

    /// Returns whether a slot that has a text has this one.
    pub(crate) fn is(&self, slot: SlotIndex, text: TextIndex) -> bool {
        let table = self.0.as_ref().expect(HAS_TEXT);
        table.entries[table.entry_of(slot)].text == text
    }

    /// Panics unless the structures agree with each other. O(n).
    pub(crate) fn check_invariants(&self) {
        let Some(table) = &self.0 else { return };
        let entries = u32::try_from(table.entries.len()).expect("small");
        let mut uses = 0;
        for entry in 0..entries {
            assert_eq!(table.entry_of(table.entries[entry].slot), entry, "found by its slot");
        }
        for text in (0..table.texts.len()).map(TextIndex::of) {
            let Text { text: words, uses: count } = &table.texts[text];
            uses += count;
            assert!(*count == 0 || table.find(words) == Some(text), "a text is stored once");
        }
        assert_eq!(uses, entries, "each entry uses a text");
    }
}

const HAS_TEXT: &str = "invariant: the slot has a text";

impl Table {
    fn bytes(&self) -> usize {
        let lists = self.entries.bytes() + self.texts.bytes() + self.free.bytes();
        let indices = self.by_slot.bytes() + self.by_text.bytes();
        allocated(size_of::<Self>()) + lists + indices + self.text_bytes
    }

    fn find(&self, text: &str) -> Option<TextIndex> {
        self.by_text.find(self.hasher.hash_one(text), |other| &*self.texts[other].text == text)
    }

    fn entry_of(&self, slot: SlotIndex) -> u32 {
        self.find_entry(slot).expect(HAS_TEXT)
    }

    fn find_entry(&self, slot: SlotIndex) -> Option<u32> {
        self.by_slot.find(hash_of(slot), |entry| self.entries[entry].slot == slot)
    }

    fn add(&mut self, slot: SlotIndex, text: &str) {
        let text = match self.find(text) {
            Some(found) => {
                self.texts[found].uses += 1;
                found
            }
            None => self.add_text(text),
        };
        let entry = self.entries.push(Entry { slot, text });
        self.index_entry(entry);
    }

    fn add_text(&mut self, text: &str) -> TextIndex {
        self.text_bytes += allocated(text.len());
        let hash = self.hasher.hash_one(text);
        let text = Text { text: text.into(), uses: 1 };
        let index = if let Some(index) = self.free.pop() {
            self.texts[index] = text;
            index
        } else {
            self.texts.push(text)
        };
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.by_text.insert(hash, index, |other| hasher.hash_one(&*texts[other].text));
        index
    }

    fn index_entry(&mut self, entry: u32) {
        let entries = &self.entries;
        self.by_slot.insert(hash_of(entries[entry].slot), entry, |at| hash_of(entries[at].slot));
    }

    fn unindex_entry(&mut self, entry: u32) {
        let entries = &self.entries;
        self.by_slot.remove(hash_of(entries[entry].slot), entry, |at| hash_of(entries[at].slot));
    }

    fn remove(&mut self, slot: SlotIndex) {
        let entry = self.entry_of(slot);
        let last = u32::try_from(self.entries.len() - 1).expect("invariant: keys are bounded");
        self.unindex_entry(entry);
        if entry != last {
            self.unindex_entry(last);
        }
        let Entry { text, .. } = self.entries.swap_remove(entry);
        if entry != last {
            self.index_entry(entry);
        }
        let uses = self.texts[text].uses - 1;
        self.texts[text].uses = uses;
        if uses == 0 {
            self.remove_text(text);
        }
    }

    fn remove_text(&mut self, text: TextIndex) {
        let (texts, hasher) = (&self.texts, &self.hasher);
        let hash = hasher.hash_one(&*texts[text].text);
        self.by_text.remove(hash, text, |other| hasher.hash_one(&*texts[other].text));
        self.text_bytes -= allocated(self.texts[text].text.len());
        self.texts[text].text = Box::default();
        self.free.push(text);
    }
}

/// Returns the hash of a slot: slots are consecutive, so their bits are mixed.
fn hash_of(slot: SlotIndex) -> u64 {
    let mixed = (u64::from(slot.get()) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_many_slots_is_stored_once_and_leaves_with_the_last_of_them() {
        let mut texts = SlotTexts::default();
        assert_eq!((texts.bytes(), texts.find("a")), (0, None));
        let slot = SlotIndex::new;
        for number in 0..10_000 {
            texts.add(slot(number), if number % 2 == 0 { "even" } else { "odd" });
        }
        texts.add(slot(20_000), "other");
        texts.check_invariants();
        let even = texts.find("even").expect("used");
        assert!(texts.is(slot(4), even) && !texts.is(slot(5), even));
        assert_eq!((texts.get(slot(7)), texts.get(slot(20_000))), ("odd", "other"));
        for number in (0..10_000).step_by(2) {
            texts.remove(slot(number));
        }
        texts.check_invariants();
        assert_eq!((texts.find("even"), texts.len()), (None, 5_001));
        assert_eq!(texts.get(slot(9_999)), "odd");
        texts.add(slot(0), "even");
        texts.check_invariants();
    }

    /// An estimate below what a label takes would admit more labels than the memory has room for.
    #[test]
    fn the_bytes_of_a_text_are_estimated_from_above() {
        let mut texts = SlotTexts::default();
        let text = |number: u32| format!("account {number}");
        for number in 0..50_000 {
            texts.add(SlotIndex::new(number), &text(number));
        }
        let estimate: usize = (0..50_000).map(|number| SlotTexts::bytes_of(&text(number))).sum();
        assert!(texts.bytes() <= estimate, "{} of {estimate}", texts.bytes());
    }
}

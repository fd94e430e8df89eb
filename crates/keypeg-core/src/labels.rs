//! The labels of keys that one call adds, as the call gives them and as a fact records them.
//!
//! Plain data. A label is a text that operators choose; labels need not differ. An empty label is
//! none, since a record cannot distinguish the two. Where a pool stores the labels of its keys is
//! the business of `slot_texts.rs`.

use crate::slot_texts::SlotTexts;

/// The labels of keys that a call adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NewLabels {
    /// No key has a label.
    #[default]
    None,
    /// All keys have the same label.
    All(Box<str>),
    /// The labels in the order of the keys; a key beyond the end has none.
    Each(Vec<Option<Box<str>>>),
}

/// No labels, to be borrowed.
pub(crate) static NO_LABELS: NewLabels = NewLabels::None;

impl NewLabels {
    /// Returns the label of the key at this place.
    pub fn get(&self, place: usize) -> Option<&str> {
        let label = match self {
            Self::None => None,
            Self::All(label) => Some(&**label),
            Self::Each(labels) => labels.get(place).and_then(Option::as_deref),
        };
        label.filter(|label| !label.is_empty())
    }

    /// Returns how many of `count` keys can have a label, at most.
    pub fn count(&self, count: usize) -> usize {
        match self {
            Self::None => 0,
            Self::All(_) => count,
            Self::Each(labels) => labels.len().min(count),
        }
    }

    /// Returns the most bytes that the labels of `count` keys take in a pool.
    pub(crate) fn bytes(&self, count: usize) -> usize {
        match self {
            Self::None => 0,
            Self::All(label) => SlotTexts::bytes_of("") * count + SlotTexts::bytes_of(label),
            Self::Each(labels) => {
                labels.iter().take(count).flatten().map(|label| SlotTexts::bytes_of(label)).sum()
            }
        }
    }

    /// Returns the labels of `count` keys in the form of [`PackedLabels`]; empty unless they differ.
    pub(crate) fn pack(&self, count: usize) -> Vec<u8> {
        let Self::Each(labels) = self else { return Vec::new() };
        if labels.iter().flatten().all(|label| label.is_empty()) {
            return Vec::new();
        }
        let mut packed = Vec::new();
        for place in 0..count {
            let label = self.get(place).unwrap_or_default();
            let len = u16::try_from(label.len()).expect("invariant: labels are short");
            packed.extend_from_slice(&len.to_le_bytes());
            packed.extend_from_slice(label.as_bytes());
        }
        packed
    }

    /// Returns the labels as a fact records them, with what [`NewLabels::pack`] returned.
    pub(crate) fn recorded<'a>(&'a self, packed: &'a [u8]) -> RecordedLabels<'a> {
        match self {
            Self::All(label) if !label.is_empty() => RecordedLabels::All(label),
            Self::Each(_) if !packed.is_empty() => RecordedLabels::Each(PackedLabels { packed }),
            Self::None | Self::All(_) | Self::Each(_) => RecordedLabels::None,
        }
    }
}

/// The labels of the keys of one fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedLabels<'a> {
    /// No key has a label.
    None,
    /// All keys have the same label, which is not empty.
    All(&'a str),
    /// The labels in the order of the keys.
    Each(PackedLabels<'a>),
}

impl<'a> RecordedLabels<'a> {
    /// Returns the label of each key in order, without end.
    pub fn iter(self) -> impl Iterator<Item = Option<&'a str>> {
        let (same, each) = match self {
            Self::None => (None, None),
            Self::All(label) => (Some(label), None),
            Self::Each(labels) => (None, Some(labels.iter())),
        };
        each.into_iter().flatten().chain(std::iter::repeat(same))
    }
}

/// Labels in one buffer, each after its length (two bytes, little-endian); length 0 is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedLabels<'a> {
    packed: &'a [u8],
}

impl<'a> PackedLabels<'a> {
    /// Parses a buffer; `None` unless it consists of `count` whole labels of UTF-8.
    pub fn parse(packed: &'a [u8], count: u32) -> Option<Self> {
        let mut rest = packed;
        for _ in 0..count {
            (_, rest) = split(rest)?;
        }
        rest.is_empty().then_some(Self { packed })
    }

    /// Returns the buffer.
    pub fn packed(&self) -> &'a [u8] {
        self.packed
    }

    /// Returns the labels in order.
    fn iter(self) -> impl Iterator<Item = Option<&'a str>> {
        let mut rest = self.packed;
        std::iter::from_fn(move || {
            let label;
            (label, rest) = split(rest)?;
            Some(Some(label).filter(|label| !label.is_empty()))
        })
    }
}

fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (label, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    Some((std::str::from_utf8(label).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_labels_parse_back_and_damaged_ones_are_rejected() {
        let labels =
            NewLabels::Each(vec![Some("a".into()), None, Some("".into()), Some("ä".into())]);
        let packed = labels.pack(5);
        let parsed = PackedLabels::parse(&packed, 5).expect("whole");
        let expected = [Some("a"), None, None, Some("ä"), None];
        assert_eq!(parsed.iter().collect::<Vec<_>>(), expected);
        let recorded = RecordedLabels::Each(parsed);
        assert_eq!(labels.recorded(&packed), recorded);
        assert_eq!(recorded.iter().take(6).collect::<Vec<_>>()[..5], expected);
        for count in [0, 4, 6] {
            assert_eq!(PackedLabels::parse(&packed, count), None, "{count}");
        }
        for end in 0..packed.len() {
            assert_eq!(PackedLabels::parse(&packed[..end], 5), None, "{end}");
        }
        assert_eq!(PackedLabels::parse(&[1, 0, 0xff], 1), None, "not UTF-8");
    }

    #[test]
    fn labels_without_a_text_are_recorded_as_none() {
        for labels in [
            NewLabels::None,
            NewLabels::All("".into()),
            NewLabels::Each(vec![None, Some("".into())]),
        ] {
            let packed = labels.pack(2);
            assert_eq!(labels.recorded(&packed), RecordedLabels::None, "{labels:?}");
            assert_eq!((labels.get(0), labels.get(1)), (None, None));
        }
    }
}

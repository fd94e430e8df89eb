//! Characters that a reader of a text does not see.
//!
//! Knows nothing of files and tables.

/// The format characters of Unicode 17 (general category Cf), and the two separators of lines and
/// paragraphs.
const INVISIBLE: [(u32, u32); 23] = [
    (0x00ad, 0x00ad),
    (0x0600, 0x0605),
    (0x061c, 0x061c),
    (0x06dd, 0x06dd),
    (0x070f, 0x070f),
    (0x0890, 0x0891),
    (0x08e2, 0x08e2),
    (0x180e, 0x180e),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x2064),
    (0x2066, 0x206f),
    (0xfeff, 0xfeff),
    (0xfff9, 0xfffb),
    (0x110bd, 0x110bd),
    (0x110cd, 0x110cd),
    (0x13430, 0x1343f),
    (0x1bca0, 0x1bca3),
    (0x1d173, 0x1d17a),
    (0xe0001, 0xe0001),
    (0xe0020, 0xe007f),
    // Not Cf, but drawn as nothing.
    (0x2800, 0x2800),
    (0x3164, 0x3164),
];

/// Returns whether a character is a control or format character, or a line separator.
pub(crate) fn is_invisible(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

/// Returns the number of a character as Unicode writes it: `U+200B`.
#[cfg(any(feature = "cli", test))]
pub(crate) fn number(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_blanks_are_visible_and_format_characters_are_not() {
        for c in "aZ0~ä漢字🔑 \u{a0}\u{301}".chars() {
            assert!(!is_invisible(c), "{}", number(c));
        }
        for c in "\0\t\n\r\u{1a}\u{7f}\u{85}\u{ad}\u{200b}\u{200d}\u{2028}\u{202e}\u{2066}\u{feff}"
            .chars()
        {
            assert!(is_invisible(c), "{}", number(c));
        }
        assert_eq!([number('\t'), number('\u{e0001}')], ["U+0009", "U+E0001"]);
    }
}

//! The encoding of files that people write: lists of keys, token files, configuration files.
//!
//! The text is UTF-8. One byte order mark at the start is not part of the text; editors on Windows
//! write one. Knows nothing of lines and of what the text means.

use std::fmt;

/// Why bytes are not a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotText {
    /// They are UTF-16, which some editors and shells write by default.
    Utf16,
    /// They are not UTF-8 from this line on, counted from 1.
    NotUtf8 {
        /// The line.
        line: usize,
    },
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Utf16 => f.write_str("the file is UTF-16: save it as UTF-8"),
            Self::NotUtf8 { line } => write!(f, "line {line} is not UTF-8: save the file as UTF-8"),
        }
    }
}

/// Decodes the bytes of a file.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<String, NotText> {
    if is_utf16(&bytes) {
        return Err(NotText::Utf16);
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        NotText::NotUtf8 { line: before.split(|byte| *byte == b'\n').count() }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Recognises UTF-16 by its byte order mark, or by two ASCII characters at the start.
fn is_utf16(bytes: &[u8]) -> bool {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [0, first, 0, second, ..] | [first, 0, second, 0, ..] => *first != 0 && *second != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_utf_8_with_or_without_a_byte_order_mark() {
        let utf16 = |text: &str, order: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(order).collect()
        };
        for (bytes, expected) in [
            (b"a\n".to_vec(), Ok("a\n")),
            (b"".to_vec(), Ok("")),
            (b"\xef\xbb\xbfa".to_vec(), Ok("a")),
            (b"\xef\xbb\xbf\xef\xbb\xbfa".to_vec(), Ok("\u{feff}a")),
            ("a\u{feff}".into(), Ok("a\u{feff}")),
            (b"\0\0\0\0".to_vec(), Ok("\0\0\0\0")),
            (b"ok\nf\xfcr\n".to_vec(), Err(NotText::NotUtf8 { line: 2 })),
            (utf16("\u{feff}key", u16::to_le_bytes), Err(NotText::Utf16)),
            (utf16("\u{feff}key", u16::to_be_bytes), Err(NotText::Utf16)),
            (utf16("key", u16::to_le_bytes), Err(NotText::Utf16)),
            (utf16("key", u16::to_be_bytes), Err(NotText::Utf16)),
        ] {
            assert_eq!(decode(bytes.clone()).as_deref(), expected.as_ref().copied(), "{bytes:x?}");
        }
    }
}

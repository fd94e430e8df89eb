//! Small random changes to bytes, for tests that feed invalid input; the caller draws the numbers.
//!
//! The fuzz tests of all crates share it. Knows no format: numbers and texts are bytes to it.

/// Numbers at the edges of common ranges.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 53,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];
/// Texts with a meaning in some format.
const WORDS: [&str; 24] = [
    "",
    "0",
    "-1",
    "1e400",
    "1.5",
    "null",
    "true",
    "[]",
    "{}",
    "\"",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\n",
    "%00",
    "%ff",
    "../",
    "ä",
    "\u{202e}",
    "'",
    "18446744073709551616",
    "\r\n",
    "inf",
    "=",
];

/// Changes `bytes` in one to four places. `below` returns a random number below its argument.
pub fn mutate(bytes: &mut Vec<u8>, below: &mut impl FnMut(usize) -> usize) {
    for _ in 0..=below(4) {
        let start = below(bytes.len() + 1);
        let end = start + below((bytes.len() - start).min(64) + 1);
        match below(10) {
            0 | 1 if start < bytes.len() => bytes[start] ^= 1 << below(8),
            2 if start < bytes.len() => bytes[start] = u8::try_from(below(256)).unwrap_or_default(),
            3 => drop(bytes.drain(start..end)),
            4 => {
                let part = bytes[start..end].to_vec();
                bytes.splice(start..start, part);
            }
            5 => {
                let part = bytes[start..end].to_vec();
                let to = below(bytes.len() + 1 - part.len());
                bytes[to..to + part.len()].copy_from_slice(&part);
            }
            6 => {
                let number = EDGES[below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][below(4)].min(bytes.len() - start);
                bytes[start..start + width].copy_from_slice(&number[..width]);
            }
            7 => {
                bytes.splice(start..end, WORDS[below(WORDS.len())].bytes());
            }
            8 => {
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let gap = bytes[start..].iter().position(is_digit);
                let from = gap.map_or(bytes.len(), |gap| start + gap);
                let len = bytes[from..].iter().take_while(|byte| is_digit(byte)).count();
                let number = EDGES[below(EDGES.len())].to_string();
                bytes.splice(from..from + len, number.into_bytes());
            }
            9 if below(4) == 0 => bytes.truncate(start),
            _ => {}
        }
    }
}

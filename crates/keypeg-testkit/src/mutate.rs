//! Small random changes to bytes, for tests of malformed input.
//!
//! The fuzz tests of all crates use them. Knows no format: numbers and texts are bytes to it.

/// Numbers near which bounds are.
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
/// Texts that mean something somewhere.
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

/// Changes `bytes` in one to four places. `below` draws a number below the one it is given.
pub fn mutate(bytes: &mut Vec<u8>, below: &mut impl FnMut(usize) -> usize) {
    for _ in 0..=below(4) {
        let at = below(bytes.len() + 1);
        let end = at + below((bytes.len() - at).min(64) + 1);
        match below(10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << below(8),
            2 if at < bytes.len() => bytes[at] = u8::try_from(below(256)).unwrap_or_default(),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let part = bytes[at..end].to_vec();
                let to = below(bytes.len() + 1 - part.len());
                bytes[to..to + part.len()].copy_from_slice(&part);
            }
            6 => {
                let number = EDGES[below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            7 => {
                bytes.splice(at..end, WORDS[below(WORDS.len())].bytes());
            }
            8 => {
                let digits = |byte: &u8| byte.is_ascii_digit();
                let from = bytes[at..].iter().position(digits).map_or(bytes.len(), |gap| at + gap);
                let len = bytes[from..].iter().take_while(|byte| digits(byte)).count();
                let number = EDGES[below(EDGES.len())].to_string();
                bytes.splice(from..from + len, number.into_bytes());
            }
            9 if below(4) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
}

//! The written form of an id: 26 digits of 5 bits, of which the first carries three.
//!
//! Knows no kind of id. One text stands for each id, so ids can be compared as texts.

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// The value of each byte that is a digit, and [`NO_DIGIT`] for any other byte.
const VALUES: [u8; 256] = {
    let (mut values, mut value) = ([NO_DIGIT; 256], 0);
    while value < 32 {
        values[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};
const NO_DIGIT: u8 = 32;
/// Digits that 128 bits take.
pub(super) const DIGITS_LEN: usize = 26;

/// The bits of twelve digits: arithmetic on 64 bits is cheaper than on 128.
const TWELVE: u32 = 60;

/// Returns the digits of an id.
pub(super) fn digits(bits: u128) -> [u8; DIGITS_LEN] {
    let mut text = [0; DIGITS_LEN];
    let low = |bits: u128| (bits & ((1 << TWELVE) - 1)) as u64;
    let parts = [low(bits >> (2 * TWELVE)), low(bits >> TWELVE), low(bits)];
    let (first, rest) = text.split_at_mut(2);
    let (second, third) = rest.split_at_mut(12);
    for (text, mut rest) in [first, second, third].into_iter().zip(parts) {
        for digit in text.iter_mut().rev() {
            *digit = DIGITS[(rest & 31) as usize];
            rest >>= 5;
        }
    }
    text
}

/// Parses what [`digits`] returns; `None` for any other text.
pub(super) fn parse_128(text: &str) -> Option<u128> {
    let text: &[u8; DIGITS_LEN] = text.as_bytes().try_into().ok()?;
    if text[0] > b'7' {
        return None;
    }
    // One check for all digits: a branch for each costs more than the rest.
    let mut all = 0;
    let mut parse = |text: &[u8]| {
        text.iter().fold(0_u64, |bits, byte| {
            let value = VALUES[usize::from(*byte)];
            all |= value;
            (bits << 5) | u64::from(value & 31)
        })
    };
    let (first, rest) = text.split_at(2);
    let (second, third) = rest.split_at(12);
    let high = u128::from(parse(first)) << TWELVE | u128::from(parse(second));
    let bits = high << TWELVE | u128::from(parse(third));
    (all < NO_DIGIT).then_some(bits)
}

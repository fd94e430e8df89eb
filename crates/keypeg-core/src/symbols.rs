//! How a value is generated: random symbols from the operating system's CSPRNG after the prefix.

use crate::policy::Policy;
use crate::random::RandomSource;

const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Rejection sampling: bytes from the largest multiple of 62 on are discarded, so that all symbols
/// are equally likely.
const FAIR_BELOW: u8 = 62 * 4;

/// Random bytes that are not used yet. A value of 20 symbols carries 119 bits.
#[derive(Default)]
pub(crate) struct Symbols {
    bytes: Vec<u8>,
}

impl Symbols {
    /// Writes one value of the policy's form into `value`.
    pub(crate) fn generate(
        &mut self,
        policy: &Policy,
        random: &mut dyn RandomSource,
        value: &mut Vec<u8>,
    ) {
        value.clear();
        value.extend_from_slice(policy.key_prefix.as_bytes());
        let length = value.len() + usize::from(policy.key_length);
        while value.len() < length {
            let byte = self.bytes.pop().unwrap_or_else(|| {
                self.bytes.resize(64, 0);
                random.fill(&mut self.bytes);
                self.bytes.pop().expect("invariant: just filled")
            });
            if byte < FAIR_BELOW {
                value.push(SYMBOLS[usize::from(byte % 62)]);
            }
        }
        debug_assert_eq!(value.len(), length);
    }
}

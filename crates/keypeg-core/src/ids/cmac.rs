//! AES-CMAC (NIST SP 800-38B, RFC 4493) with a key of 128 bits, and AES of one block.
//!
//! Ids of keys and leases are computed with it: on a processor with AES instructions it takes a fifth
//! of the instructions of BLAKE3 for a short input. It knows neither ids nor pools.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use zeroize::Zeroize as _;

/// Bytes of a block.
const BLOCK: usize = 16;
/// Bytes of the fixed part that each message begins with.
const HEAD: usize = 4;

/// A key, with the subkeys that end a message.
#[derive(Clone)]
pub(super) struct Cmac {
    cipher: Aes128,
    /// Added to a last block that is complete: K1 of the standard.
    complete: u128,
    /// Added to a last block that is padded: K2 of the standard.
    padded: u128,
}

impl Cmac {
    /// Creates the key from its bytes.
    pub(super) fn new(key: [u8; 16]) -> Self {
        let mut mac = Self { cipher: Aes128::new(&key.into()), complete: 0, padded: 0 };
        // The standard reads a block as a big-endian number when it doubles it.
        let complete = double(mac.encrypt(0).swap_bytes());
        mac.complete = complete.swap_bytes();
        mac.padded = double(complete).swap_bytes();
        mac
    }

    /// Encrypts one block, read and returned as a little-endian number.
    #[inline]
    pub(super) fn encrypt(&self, block: u128) -> u128 {
        let mut block = block.to_le_bytes().into();
        self.cipher.encrypt_block(&mut block);
        u128::from_le_bytes(block.into())
    }

    /// Computes the MAC of `head`, then `rest`. One encryption for each 16 bytes.
    pub(super) fn mac(&self, head: [u8; HEAD], rest: &[u8]) -> u128 {
        let Some((first, rest)) = rest.split_first_chunk::<{ BLOCK - HEAD }>() else {
            let (block, len) = (u128::from(u32::from_le_bytes(head)), HEAD + rest.len());
            return self.last(block | pad(rest) << (8 * HEAD), len);
        };
        let mut block = [0; BLOCK];
        block[..HEAD].copy_from_slice(&head);
        block[HEAD..].copy_from_slice(first);
        self.chain(u128::from_le_bytes(block), rest)
    }

    /// Continues with whole blocks while a block before the last one is left.
    fn chain(&self, first: u128, rest: &[u8]) -> u128 {
        let (mut block, mut rest) = (first, rest);
        while let Some((next, after)) = rest.split_first_chunk::<BLOCK>() {
            block = self.encrypt(block) ^ u128::from_le_bytes(*next);
            rest = after;
        }
        if rest.is_empty() {
            return self.last(block, BLOCK);
        }
        self.last(self.encrypt(block) ^ pad(rest), rest.len())
    }

    /// Encrypts the last block, of which `len` bytes are the message's.
    #[inline]
    fn last(&self, block: u128, len: usize) -> u128 {
        self.encrypt(block ^ if len == BLOCK { self.complete } else { self.padded })
    }
}

/// Returns fewer bytes than a block, with the bit that ends them.
#[inline]
fn pad(rest: &[u8]) -> u128 {
    let mut block = [0; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    block[rest.len()] = 0x80;
    u128::from_le_bytes(block)
}

/// Multiplies by `x` in the field of 2¹²⁸ elements.
fn double(block: u128) -> u128 {
    (block << 1) ^ if block >> 127 == 1 { 0x87 } else { 0 }
}

impl Drop for Cmac {
    fn drop(&mut self) {
        // The cipher overwrites its own keys.
        self.complete.zeroize();
        self.padded.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| {
            u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("two hex digits")
        })
    }

    /// The examples of RFC 4493, section 4, whose messages have at least four bytes.
    #[test]
    fn it_computes_the_examples_of_the_standard() {
        let mac = Cmac::new(bytes("2b7e151628aed2a6abf7158809cf4f3c"));
        let message: [u8; 64] = bytes(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
        );
        for (len, expected) in [
            (16, "070a16b46b4d4144f79bdd9dd04a287c"),
            (40, "dfa66747de9ae63030ca32611497c827"),
            (64, "51f0bebf7e3b9d92fc49741779363cfe"),
        ] {
            let (head, rest) = message[..len].split_first_chunk().expect("longer");
            assert_eq!(mac.mac(*head, rest).to_le_bytes(), bytes(expected), "{len} bytes");
        }
    }

    /// Where a block ends, a message and the same message with its padding must not agree.
    #[test]
    fn no_two_lengths_of_the_same_bytes_have_the_same_mac() {
        let mac = Cmac::new([7; 16]);
        for filler in [0, 0x80] {
            let message = [filler; 70];
            let mut all: Vec<u128> = (0..70).map(|len| mac.mac([1; 4], &message[..len])).collect();
            all.push(mac.mac([1; 4], &[&message[..27], &[0x80]].concat()));
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), if filler == 0 { 71 } else { 70 });
        }
    }
}

//! Blocks of a preview in a file without a name, so that a preview of any size takes little memory.
//!
//! Each block is encrypted with a key that exists only in the memory of this process: what remains
//! on the disk after the file, or in its swap, shows no value. Knows blocks, not files.

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Tag};
use keypeg_core::RandomSource;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use zeroize::Zeroizing;

/// Bytes of a block.
pub(super) const LEN: usize = 4096;
/// Bytes of a block and its tag.
const SLOT: usize = LEN + 16;

/// The file, and the key of its blocks.
pub(crate) struct Spill {
    file: File,
    cipher: Aes256GcmSiv,
    used: Mutex<Used>,
}

/// What the next block gets.
#[derive(Default)]
struct Used {
    slots: u64,
    writes: u64,
}

/// Where a block is.
#[derive(Clone, Copy)]
pub(super) struct Place {
    slot: u64,
    /// The number of the write, from which the nonce follows: no two writes have the same.
    write: u64,
}

impl Spill {
    /// Takes an empty file over, and creates a key.
    pub(crate) fn new(file: File, random: &mut dyn RandomSource) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        random.fill(&mut *key);
        Self { file, cipher: Aes256GcmSiv::new(&(*key).into()), used: Mutex::default() }
    }

    /// Writes a block to the slot of the one that it replaces, or to a new one.
    pub(super) fn put(&self, mut block: Vec<u8>, replaced: Option<Place>) -> io::Result<Place> {
        let place = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = replaced.map_or(used.slots, |place| place.slot);
            used.slots = used.slots.max(slot + 1);
            used.writes += 1;
            Place { slot, write: used.writes }
        };
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &nonce(place),
                &place.slot.to_le_bytes(),
                (&mut block[..]).into(),
            )
            .expect("invariant: a block is short");
        block.extend_from_slice(&tag);
        let written = self.file.write_all_at(&block, place.slot * SLOT as u64);
        written.map(|()| place).map_err(|error| {
            let message = format!("{error} in the temporary file of this check");
            io::Error::new(error.kind(), message)
        })
    }

    /// Reads a block.
    pub(super) fn get(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut block = vec![0; SLOT];
        self.file.read_exact_at(&mut block, place.slot * SLOT as u64)?;
        let tag = block.split_off(LEN);
        let tag = Tag::try_from(&tag[..]).expect("invariant: a tag has its length");
        let aad = place.slot.to_le_bytes();
        self.cipher
            .decrypt_inout_detached(&nonce(place), &aad, (&mut block[..]).into(), &tag)
            .map_err(|_| io::Error::other("the temporary file of this check was changed"))?;
        Ok(block)
    }
}

fn nonce(place: Place) -> aes_gcm_siv::Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&place.write.to_le_bytes());
    nonce.into()
}

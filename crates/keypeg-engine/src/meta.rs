//! `meta`: what a directory is, as a few lines of text under a sum.
//!
//! It is written once, last of all that a new directory gets, so a directory without it either is
//! new or has lost a part.

use crate::disk::Disk;
use crate::frame::FORMAT;
use crate::journal::UNFINISHED;
use crate::{RandomSource, StartError};
use std::fmt::Write as _;
use std::io;

/// The file's name.
pub(crate) const META: &str = "meta";

/// What a directory is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Which installation: drawn once, in every frame.
    pub(crate) installation: u128,
    /// The key of all ids. Who has it can tell which value an id belongs to.
    pub(crate) id_key: [u8; 32],
    /// Whether the directory has a key set: the first version made none.
    pub(crate) has_keyset: bool,
}

/// The parts a directory has; one of them missing is refused.
const PARTS: &str = "journal keyset";
const PARTS_BEFORE_THE_KEYSET: &str = "journal";

impl Meta {
    /// Draws a new installation.
    pub(crate) fn draw(random: &mut dyn RandomSource) -> Self {
        let (mut installation, mut id_key) = ([0; 16], [0; 32]);
        random.fill(&mut installation);
        random.fill(&mut id_key);
        Self { installation: u128::from_le_bytes(installation), id_key, has_keyset: true }
    }

    fn write(&self) -> Vec<u8> {
        let mut text = String::from("keypeg data directory: do not edit, back up with the rest\n");
        let mut line = |name: &str, value: &str| {
            writeln!(text, "{name} {value}").expect("invariant: text grows");
        };
        line("format", &FORMAT.to_string());
        line("installation", &format!("{:032x}", self.installation));
        line("id_key", &hex(&self.id_key));
        line("parts", PARTS);
        let sum = crc32fast::hash(text.as_bytes());
        writeln!(text, "sum {sum:08x}").expect("invariant: text grows");
        text.into_bytes()
    }

    /// Reads it back; anything else is refused and told.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, StartError> {
        let damaged = || {
            StartError::Corrupt(format!(
                "{META} is damaged. Restore the data directory from a backup; nothing was changed"
            ))
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let (summed, sum) = text.rsplit_once("sum ").ok_or_else(damaged)?;
        if sum.trim_end() != format!("{:08x}", crc32fast::hash(summed.as_bytes())) {
            return Err(damaged());
        }
        let field = |name: &str| {
            let mut lines = summed.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).ok_or_else(damaged)
        };
        let format: u32 = field("format")?.parse().map_err(|_| damaged())?;
        let parts = field("parts")?;
        if format > FORMAT || ![PARTS, PARTS_BEFORE_THE_KEYSET].contains(&parts) {
            return Err(StartError::Corrupt(format!(
                "the data directory has format {format}; this version reads up to {FORMAT}: use a \
                 newer keypeg. Nothing was changed"
            )));
        }
        let installation = u128::from_str_radix(field("installation")?, 16);
        let id_key = unhex(field("id_key")?).ok_or_else(damaged)?;
        let has_keyset = parts == PARTS;
        Ok(Self { installation: installation.map_err(|_| damaged())?, id_key, has_keyset })
    }

    /// Writes it under its unfinished name, durably.
    pub(crate) fn prepare(&self, disk: &dyn Disk) -> io::Result<()> {
        let bytes = self.write();
        if disk.list()?.contains(&unfinished()) {
            disk.remove(&unfinished())?;
        }
        let file = disk.create(&unfinished(), bytes.len() as u64)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        disk.sync_dir()
    }

    /// Gives it its name: from now on the directory is made.
    pub(crate) fn finish(disk: &dyn Disk) -> io::Result<()> {
        disk.rename(&unfinished(), META)?;
        disk.sync_dir()
    }
}

fn unfinished() -> String {
    format!("{META}{UNFINISHED}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("invariant: text grows");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meta({:032x})", self.installation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_any_flipped_bit_is_refused() {
        let meta = Meta { installation: 7 << 100, id_key: [0xa5; 32], has_keyset: true };
        let bytes = meta.write();
        assert_eq!(Meta::read(&bytes).expect("whole"), meta);
        for at in 0..bytes.len() - 1 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(Meta::read(&damaged).is_err(), "byte {at}");
        }
        assert!(Meta::read(b"").is_err());
    }

    #[test]
    fn a_newer_format_is_told_as_that() {
        let meta = Meta { installation: 1, id_key: [0; 32], has_keyset: true };
        let text = String::from_utf8(meta.write()).expect("text");
        let (summed, _) = text.rsplit_once("sum ").expect("summed");
        let newer = summed.replace("format 1", "format 2");
        let newer = format!("{newer}sum {:08x}\n", crc32fast::hash(newer.as_bytes()));
        let told = Meta::read(newer.as_bytes()).expect_err("newer").to_string();
        assert!(told.contains("format 2"), "{told}");
    }
}

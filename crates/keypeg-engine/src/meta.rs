//! The file `meta`: identifies a data directory, as a few lines of text with a CRC.
//!
//! It is written once, after all other files of a new directory. A directory without `meta` is
//! therefore either new or has lost a file.

use crate::disk::Disk;
use crate::frame::FORMAT;
use crate::layout::{META, TEMPORARY};
use crate::start::StartError;
use keypeg_core::RandomSource;
use std::fmt::Write as _;
use std::io;

/// The identity of a data directory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// A random number that identifies the directory; every frame contains it.
    pub(crate) installation: u128,
    /// The hash key of all ids, a secret: with it one can compute the id of a value.
    pub(crate) id_key: [u8; 32],
    /// Whether the directory has a key set; the first version of Keypeg wrote none.
    pub(crate) has_keyset: bool,
}

/// The parts of a directory; a start refuses a directory in which one is missing.
const PARTS: &str = "journal keyset";
/// The parts of a directory that the first version of Keypeg wrote.
const PARTS_WITHOUT_KEYSET: &str = "journal";

impl Meta {
    /// Creates the identity of a new directory.
    pub(crate) fn generate(random: &mut dyn RandomSource) -> Self {
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

    /// Parses the content of the file; the error names the file and the next step.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, StartError> {
        let damaged = || {
            StartError::Corrupt(format!(
                "{META} is damaged. Restore the data directory from a backup; nothing was changed"
            ))
        };
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let (summed_text, sum) = text.rsplit_once("sum ").ok_or_else(damaged)?;
        if sum.trim_end() != format!("{:08x}", crc32fast::hash(summed_text.as_bytes())) {
            return Err(damaged());
        }
        let field = |name: &str| {
            let mut lines = summed_text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).ok_or_else(damaged)
        };
        let format: u32 = field("format")?.parse().map_err(|_| damaged())?;
        let parts = field("parts")?;
        if format > FORMAT || ![PARTS, PARTS_WITHOUT_KEYSET].contains(&parts) {
            return Err(StartError::Corrupt(format!(
                "{META}: the data directory has format {format}, and this version of keypeg reads \
                 formats up to {FORMAT}: use a newer version of keypeg. Nothing was changed"
            )));
        }
        let installation = u128::from_str_radix(field("installation")?, 16);
        let id_key = unhex(field("id_key")?).ok_or_else(damaged)?;
        let has_keyset = parts == PARTS;
        Ok(Self { installation: installation.map_err(|_| damaged())?, id_key, has_keyset })
    }

    /// Writes the file under its temporary name, durably.
    pub(crate) fn prepare(&self, disk: &dyn Disk) -> io::Result<()> {
        let bytes = self.write();
        if disk.list()?.contains(&temporary_name()) {
            disk.remove(&temporary_name())?;
        }
        let file = disk.create(&temporary_name(), bytes.len() as u64)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        disk.sync_dir()
    }

    /// Renames the file to its final name: the directory is then complete.
    pub(crate) fn finish(disk: &dyn Disk) -> io::Result<()> {
        disk.rename(&temporary_name(), META)?;
        disk.sync_dir()
    }
}

fn temporary_name() -> String {
    format!("{META}{TEMPORARY}")
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
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
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
    fn meta_reads_back_and_any_flipped_bit_is_refused() {
        let meta = Meta { installation: 7 << 100, id_key: [0xa5; 32], has_keyset: true };
        let bytes = meta.write();
        assert_eq!(Meta::read(&bytes).expect("whole"), meta);
        for offset in 0..bytes.len() - 1 {
            let mut damaged = bytes.clone();
            damaged[offset] ^= 1;
            assert!(Meta::read(&damaged).is_err(), "byte {offset}");
        }
        assert!(Meta::read(b"").is_err());
    }

    #[test]
    fn the_error_for_a_newer_format_names_the_format() {
        let meta = Meta { installation: 1, id_key: [0; 32], has_keyset: true };
        let text = String::from_utf8(meta.write()).expect("text");
        let (summed_text, _) = text.rsplit_once("sum ").expect("a sum");
        let newer = summed_text.replace("format 1", "format 2");
        let newer = format!("{newer}sum {:08x}\n", crc32fast::hash(newer.as_bytes()));
        let error = Meta::read(newer.as_bytes()).expect_err("newer").to_string();
        assert!(error.contains("format 2"), "{error}");
    }
}

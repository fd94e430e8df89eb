//! The file `meta`: identifies a data directory, as a few lines of text with a CRC.
//!
//! It is written after all other files of a new directory, so a directory without `meta` is either
//! new or has lost a file. Later it is replaced as a whole, when the seal of the directory changes.
//! It does not know what an envelope contains.

use crate::disk::Disk;
use crate::frame::FORMAT;
use crate::layout::{META, TEMPORARY};
use crate::seal::{Envelope, Unsealed};
use crate::start::StartError;
use keypeg_core::IdHash;
use std::fmt::Write as _;
use std::io;

/// The identity of a data directory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// A random number that identifies the directory; every frame contains it.
    pub(crate) installation: u128,
    /// How its ids are computed, which never changes: clients have stored them.
    pub(crate) id_hash: IdHash,
    pub(crate) protection: Protection,
    /// Whether the directory has a key set; the first version of Keypeg wrote none.
    pub(crate) has_keyset: bool,
}

/// How the secrets of a directory are stored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Protection {
    /// As they are.
    Plain {
        /// The hash key of all ids, a secret: with it one can compute the id of a value.
        id_key: [u8; 32],
    },
    /// Encrypted with a seal key.
    Sealed {
        /// The data key and the hash key of all ids.
        envelope: Envelope,
        /// What happens to values that are not sealed.
        unsealed: Unsealed,
    },
}

/// The format of a sealed directory whose ids are BLAKE3 hashes. One that is not sealed has
/// [`FORMAT`], so that earlier versions read it.
const SEALED_FORMAT: u32 = 2;
/// The format of a directory that names the hash of its ids.
const NAMED_HASH_FORMAT: u32 = 3;
/// AES-CMAC, as the file says it.
const AES_CMAC: &str = "aes-cmac";
/// Whether all values are sealed, as the file says it.
const ALL: &str = "all";
const PARTLY: &str = "partly";

/// The parts of a directory; a start refuses a directory in which one is missing.
const PARTS: &str = "journal keyset";
/// The parts of a directory that the first version of Keypeg wrote.
const PARTS_WITHOUT_KEYSET: &str = "journal";

impl Meta {
    /// Returns whether the secrets are encrypted.
    pub(crate) fn is_sealed(&self) -> bool {
        matches!(self.protection, Protection::Sealed { .. })
    }

    /// Returns the content of the file.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut text = String::from("keypeg data directory: do not edit, back up with the rest\n");
        let mut line = |name: &str, value: &str| {
            writeln!(text, "{name} {value}").expect("invariant: text grows");
        };
        let format = match (self.id_hash, &self.protection) {
            (IdHash::AesCmac, _) => NAMED_HASH_FORMAT,
            (IdHash::Blake3, Protection::Plain { .. }) => FORMAT,
            (IdHash::Blake3, Protection::Sealed { .. }) => SEALED_FORMAT,
        };
        line("format", &format.to_string());
        line("installation", &format!("{:032x}", self.installation));
        if self.id_hash == IdHash::AesCmac {
            line("id_hash", AES_CMAC);
        }
        match &self.protection {
            Protection::Plain { id_key } => line("id_key", &hex(id_key)),
            Protection::Sealed { envelope, unsealed } => {
                line("seal", &hex(envelope.bytes()));
                line("sealed", if *unsealed == Unsealed::Accepted { PARTLY } else { ALL });
            }
        }
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
        if format > NAMED_HASH_FORMAT || ![PARTS, PARTS_WITHOUT_KEYSET].contains(&parts) {
            return Err(StartError::Corrupt(format!(
                "{META}: the data directory has format {format}, and this version of keypeg reads \
                 formats up to {NAMED_HASH_FORMAT}: use a newer version of keypeg. Nothing was changed"
            )));
        }
        let installation = u128::from_str_radix(field("installation")?, 16);
        let id_hash = match format {
            NAMED_HASH_FORMAT if field("id_hash")? == AES_CMAC => IdHash::AesCmac,
            NAMED_HASH_FORMAT => return Err(damaged()),
            _ => IdHash::Blake3,
        };
        let is_sealed = match format {
            NAMED_HASH_FORMAT => field("seal").is_ok(),
            _ => format == SEALED_FORMAT,
        };
        let protection = if is_sealed {
            let envelope = unhex(field("seal")?).ok_or_else(damaged)?;
            let unsealed = match field("sealed")? {
                ALL => Unsealed::Refused,
                PARTLY => Unsealed::Accepted,
                _ => return Err(damaged()),
            };
            Protection::Sealed { envelope: Envelope::from_bytes(envelope), unsealed }
        } else {
            let id_key = unhex(field("id_key")?).and_then(|bytes| bytes.try_into().ok());
            Protection::Plain { id_key: id_key.ok_or_else(damaged)? }
        };
        let installation = installation.map_err(|_| damaged())?;
        Ok(Self { installation, id_hash, protection, has_keyset: parts == PARTS })
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

    /// Replaces the file durably: after a crash it is the old one or this one.
    pub(crate) fn replace(&self, disk: &dyn Disk) -> io::Result<()> {
        self.prepare(disk)?;
        Self::finish(disk)
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

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let digit =
        |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = digits.as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
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
        let envelope = Envelope::from_bytes(vec![0x5a; 101]);
        let protections = [
            Protection::Plain { id_key: [0xa5; 32] },
            Protection::Sealed { envelope: envelope.clone(), unsealed: Unsealed::Accepted },
            Protection::Sealed { envelope, unsealed: Unsealed::Refused },
        ];
        let with = |id_hash| protections.clone().map(|protection| (id_hash, protection));
        for (id_hash, protection) in with(IdHash::Blake3).into_iter().chain(with(IdHash::AesCmac)) {
            let meta = Meta { installation: 7 << 100, id_hash, protection, has_keyset: true };
            let bytes = meta.write();
            assert_eq!(Meta::read(&bytes).expect("whole"), meta);
            for offset in 0..bytes.len() - 1 {
                let mut damaged = bytes.clone();
                damaged[offset] ^= 1;
                assert!(Meta::read(&damaged).is_err(), "byte {offset}");
            }
        }
        assert!(Meta::read(b"").is_err());
    }

    /// Returns the file of a directory with this change, and the sum of the changed file.
    fn changed(id_hash: IdHash, from: &str, to: &str) -> String {
        let protection = Protection::Plain { id_key: [0; 32] };
        let meta = Meta { installation: 1, id_hash, protection, has_keyset: true };
        let text = String::from_utf8(meta.write()).expect("text");
        let (summed_text, _) = text.rsplit_once("sum ").expect("a sum");
        let changed = summed_text.replace(from, to);
        assert_ne!(changed, summed_text, "{from:?} is in the file");
        format!("{changed}sum {:08x}\n", crc32fast::hash(changed.as_bytes()))
    }

    #[test]
    fn the_error_for_a_newer_format_names_the_format() {
        let newer = changed(IdHash::Blake3, "format 1", "format 4");
        let error = Meta::read(newer.as_bytes()).expect_err("newer").to_string();
        assert!(error.contains("format 4"), "{error}");
    }

    /// An id computed with another hash would name no key: clients would lose all of theirs.
    #[test]
    fn a_directory_without_a_known_hash_of_ids_is_refused() {
        for (from, to) in [("id_hash aes-cmac\n", ""), ("id_hash aes-cmac", "id_hash sha3")] {
            let refused = Meta::read(changed(IdHash::AesCmac, from, to).as_bytes());
            assert!(refused.is_err(), "{to:?}");
        }
    }
}

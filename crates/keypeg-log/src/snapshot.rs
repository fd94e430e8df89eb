//! Snapshots: the state of a shard after a frame, in parts, with a manifest that is written last.
//!
//! Each attempt at a snapshot has a random id, so the parts of two servers that write a snapshot of
//! the same position never mix. What the parts contain, this file does not know.

use crate::error::LogError;
use crate::frame::{FrameId, Tail};
use crate::shard::Shard;

/// The greatest length of a part in bytes.
pub const PART_MAX: usize = 8 << 20;
/// The length of a manifest in bytes.
pub const MANIFEST_LEN: usize = 64;

const MAGIC: [u8; 4] = *b"KPS1";

/// One attempt at a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotId {
    /// The shard.
    pub shard: Shard,
    /// The last frame that the snapshot holds. Its append is acknowledged.
    pub at: Tail,
    /// The random id of the attempt.
    pub attempt: FrameId,
}

/// A snapshot whose parts are all stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its attempt.
    pub id: SnapshotId,
    /// The number of its parts, which are numbered from 0.
    pub parts: u32,
    /// The bytes of all parts.
    pub bytes: u64,
}

impl Snapshot {
    /// Encodes the manifest.
    pub fn manifest(&self) -> [u8; MANIFEST_LEN] {
        let mut bytes = [0; MANIFEST_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.id.shard.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.at.position.to_le_bytes());
        bytes[16..32].copy_from_slice(self.id.at.id.bytes());
        bytes[32..48].copy_from_slice(self.id.attempt.bytes());
        bytes[48..52].copy_from_slice(&self.parts.to_le_bytes());
        bytes[52..60].copy_from_slice(&self.bytes.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes the manifest that a store has for a position.
    pub fn decode(shard: Shard, position: u64, bytes: &[u8]) -> Result<Self, LogError> {
        let damaged = |what| LogError::Damaged { shard, position, what };
        let bytes: &[u8; MANIFEST_LEN] =
            bytes.try_into().map_err(|_| damaged("the manifest has another length"))?;
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        if bytes[..4] != MAGIC || number(60, 4) != u64::from(crc32fast::hash(&bytes[..60])) {
            return Err(damaged("the manifest is not valid"));
        }
        if number(4, 2) != u64::from(shard.get()) || number(8, 8) != position {
            return Err(damaged("the manifest belongs to another shard or position"));
        }
        let id_at =
            |at: usize| FrameId::new(bytes[at..at + 16].try_into().expect("invariant: 16 bytes"));
        Ok(Self {
            id: SnapshotId { shard, at: Tail { position, id: id_at(16) }, attempt: id_at(32) },
            parts: u32::try_from(number(48, 4)).expect("invariant: 4 bytes"),
            bytes: number(52, 8),
        })
    }

    /// Checks the number of a part and the length of its bytes.
    pub fn check_part(part: u32, len: usize) -> Result<(), LogError> {
        if len > PART_MAX {
            return Err(LogError::TooLarge { what: "a part of a snapshot", len, max: PART_MAX });
        }
        // The number is stored in a signed column.
        if i32::try_from(part).is_err() {
            let text = format!("part {part} of a snapshot: use numbers below {}", i32::MAX);
            return Err(LogError::Unsuitable(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_each_changed_bit_is_found() {
        let shard = Shard::new(2);
        let at = Tail { position: 70_000, id: FrameId::new([3; 16]) };
        let id = SnapshotId { shard, at, attempt: FrameId::new([4; 16]) };
        let snapshot = Snapshot { id, parts: 70, bytes: 1 << 40 };
        let manifest = snapshot.manifest();
        assert_eq!(Snapshot::decode(shard, 70_000, &manifest), Ok(snapshot));
        for bit in 0..MANIFEST_LEN * 8 {
            let mut changed = manifest;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Snapshot::decode(shard, 70_000, &changed).is_err(), "bit {bit}");
        }
        assert!(Snapshot::decode(Shard::new(3), 70_000, &manifest).is_err());
        assert!(Snapshot::decode(shard, 70_001, &manifest).is_err());
        assert!(Snapshot::decode(shard, 70_000, &manifest[1..]).is_err());
    }
}

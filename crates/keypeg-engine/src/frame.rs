//! The two frames of the journal: the header of a segment, and the frame of a batch.
//!
//! Every frame contains the installation, the segment number and the position, and its CRC covers
//! them and the body: bytes of another directory, another file or another position are never valid.
//! This file knows the bytes only, not when a frame is read or written.

use keypeg_core::{Counters, KeyNumber, Lsn, PoolId};
use std::fmt;

/// The format that this version writes, and the newest format that it reads.
pub(crate) const FORMAT: u32 = 1;
/// Bytes of the header of a segment: a whole page, so that a batch never rewrites the header.
pub(crate) const SEGMENT_HEAD: usize = 4096;
/// Bytes of a batch frame before its body.
pub(crate) const BATCH_HEAD: usize = 64;
/// The alignment of a batch frame, in bytes from the start of the segment.
pub(crate) const ALIGN: usize = 8;

const _: () = assert!(
    SEGMENT_HEAD.is_multiple_of(ALIGN) && BATCH_HEAD.is_multiple_of(ALIGN),
    "frames stay aligned"
);

const SEGMENT_MAGIC: &[u8; 8] = b"KEYPEGSG";
const BATCH_MAGIC: &[u8; 4] = b"KPGB";

/// The number of a segment: 1 for the first, and one more for each next segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentNumber(pub(crate) u64);

impl SegmentNumber {
    pub(crate) const FIRST: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        self.plus(1)
    }

    /// Returns the number `count` segments after this one.
    pub(crate) fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    pub(crate) fn previous(self) -> Self {
        Self(self.0 - 1)
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns the position after `lsn`.
pub(crate) fn next_lsn(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 + 1)
}

/// Returns the position before `lsn`.
pub(crate) fn previous_lsn(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 - 1)
}

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub(crate) installation: u128,
    pub(crate) segment: SegmentNumber,
    /// The position of its first batch. Batches of earlier segments from there on are ignored.
    pub(crate) starts_at: Lsn,
    /// The last position known to be durable when the header was written.
    pub(crate) synced_through: Lsn,
    /// Starts of the server up to and including the one that created this segment.
    pub(crate) starts: u64,
    pub(crate) boot_id: u128,
    /// Boot time at the instant `lease_us`: the difference is valid for the whole segment.
    pub(crate) boot_us: u64,
    pub(crate) lease_us: u64,
    /// The counters before its first batch.
    pub(crate) counters: Counters,
}

/// The header of a batch frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) installation: u128,
    pub(crate) segment: SegmentNumber,
    /// The position of the batch: 1 for the first batch of the installation.
    pub(crate) lsn: Lsn,
    /// The last position known to be durable when the frame was written.
    pub(crate) synced_through: Lsn,
    /// Lease time of its turn.
    pub(crate) lease_us: u64,
}

/// A complete batch frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFrame<'a> {
    pub(crate) head: BatchHead,
    pub(crate) records: &'a [u8],
    /// Bytes up to the next frame.
    pub(crate) padded_len: usize,
}

/// The header of a frame whose CRC is not checked yet.
pub(crate) struct UncheckedFrame<'a> {
    pub(crate) head: BatchHead,
    crc: u32,
    /// The frame without its padding.
    frame: &'a [u8],
}

/// Why bytes are not a valid segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHead {
    /// All bytes are zero: the segment was preallocated and never used.
    Unused,
    /// A newer version wrote it, in this format.
    Newer(u32),
    /// The CRC or a field does not match.
    Damaged,
}

impl SegmentHead {
    /// Encodes the header, padded with zeros to [`SEGMENT_HEAD`].
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.installation.to_le_bytes());
        out.extend_from_slice(&self.boot_id.to_le_bytes());
        let numbers = [
            self.segment.0,
            self.starts_at.0,
            self.synced_through.0,
            self.starts,
            self.boot_us,
            self.lease_us,
            self.counters.next_key.0,
            u64::from(self.counters.next_pool.0),
            self.counters.tokens_reserved,
        ];
        for number in numbers {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.resize(SEGMENT_HEAD, 0);
        let crc = crc32fast::hash(&out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Parses the header at the start of `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, BadHead> {
        let head = bytes.get(..SEGMENT_HEAD).ok_or(BadHead::Damaged)?;
        if head.iter().all(|byte| *byte == 0) {
            return Err(BadHead::Unused);
        }
        let mut read = Reader(head);
        if read.take::<8>() != *SEGMENT_MAGIC {
            return Err(BadHead::Damaged);
        }
        let format = u32::from_le_bytes(read.take());
        let crc = u32::from_le_bytes(read.take());
        if format == 0 || crc32fast::hash(&head[16..]) != crc {
            return Err(BadHead::Damaged);
        }
        if format > FORMAT {
            return Err(BadHead::Newer(format));
        }
        let installation = u128::from_le_bytes(read.take());
        let boot_id = u128::from_le_bytes(read.take());
        Ok(Self {
            installation,
            boot_id,
            segment: SegmentNumber(read.number()),
            starts_at: Lsn(read.number()),
            synced_through: Lsn(read.number()),
            starts: read.number(),
            boot_us: read.number(),
            lease_us: read.number(),
            counters: Counters {
                next_key: KeyNumber(read.number()),
                next_pool: PoolId(u32::try_from(read.number()).map_err(|_| BadHead::Damaged)?),
                tokens_reserved: read.number(),
            },
        })
    }
}

impl BatchHead {
    /// Replaces `out` by the frame of a batch with these records, padded to [`ALIGN`].
    pub(crate) fn write(&self, body: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let len = u32::try_from(body.len()).expect("invariant: a batch is bounded");
        out.extend_from_slice(BATCH_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.installation.to_le_bytes());
        for number in [self.segment.0, self.lsn.0, self.synced_through.0, self.lease_us] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(body);
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out.resize(out.len().next_multiple_of(ALIGN), 0);
    }

    /// Returns the body length that the header contains, without a check of the frame.
    pub(crate) fn body_len(head: &[u8]) -> usize {
        let len = head.get(8..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        u32::from_le_bytes(len) as usize
    }

    /// Parses the frame at the start of `bytes`; `None` if it is not valid and complete.
    pub(crate) fn read(bytes: &[u8]) -> Option<BatchFrame<'_>> {
        UncheckedFrame::read(bytes)?.checked()
    }
}

impl<'a> UncheckedFrame<'a> {
    /// Parses the header at the start of `bytes`; `None` if no complete frame of this format can
    /// begin there. O(1).
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..BATCH_HEAD)?;
        let mut read = Reader(head);
        if read.take::<4>() != *BATCH_MAGIC {
            return None;
        }
        let crc = u32::from_le_bytes(read.take());
        let len = u32::from_le_bytes(read.take()) as usize;
        let frame = bytes.get(..BATCH_HEAD.checked_add(len)?)?;
        let format = u32::from_le_bytes(read.take());
        if format != FORMAT {
            return None;
        }
        let head = BatchHead {
            installation: u128::from_le_bytes(read.take()),
            segment: SegmentNumber(read.number()),
            lsn: Lsn(read.number()),
            synced_through: Lsn(read.number()),
            lease_us: read.number(),
        };
        Some(Self { head, crc, frame })
    }

    /// Returns the bytes that the CRC covers.
    pub(crate) fn checked_len(&self) -> usize {
        self.frame.len()
    }

    /// Computes the CRC; `None` if it does not match. O(bytes of the frame).
    pub(crate) fn checked(self) -> Option<BatchFrame<'a>> {
        let Self { head, crc, frame } = self;
        let padded_len = frame.len().next_multiple_of(ALIGN);
        (crc32fast::hash(&frame[8..]) == crc).then(|| BatchFrame {
            head,
            records: &frame[BATCH_HEAD..],
            padded_len,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("invariant: headers have fixed sizes");
        self.0 = rest;
        *head
    }

    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back_and_no_flipped_bit_is_accepted() {
        let head = SegmentHead {
            installation: 1 << 100,
            segment: SegmentNumber(2),
            starts_at: Lsn(3),
            synced_through: Lsn(4),
            starts: 5,
            boot_id: 6 << 90,
            boot_us: 7,
            lease_us: 8,
            counters: Counters {
                next_key: KeyNumber(9),
                next_pool: PoolId(10),
                tokens_reserved: 11,
            },
        };
        let bytes = head.write();
        assert_eq!(SegmentHead::read(&bytes), Ok(head));
        for offset in 0..200 {
            let mut damaged = bytes.clone();
            damaged[offset] ^= 1;
            let read = SegmentHead::read(&damaged);
            // The format number is the only field that the CRC does not cover.
            assert!(read != Ok(head), "byte {offset}");
        }
        assert_eq!(SegmentHead::read(&[0; SEGMENT_HEAD]), Err(BadHead::Unused));

        let batch = BatchHead {
            installation: 1 << 100,
            segment: SegmentNumber(2),
            lsn: Lsn(3),
            synced_through: Lsn(2),
            lease_us: 5,
        };
        let mut bytes = Vec::new();
        batch.write(b"records", &mut bytes);
        assert_eq!(bytes.len() % ALIGN, 0);
        let frame = BatchFrame { head: batch, records: b"records", padded_len: bytes.len() };
        assert_eq!(BatchHead::read(&bytes), Some(frame));
        for offset in 0..BATCH_HEAD + 7 {
            let mut damaged = bytes.clone();
            damaged[offset] ^= 0x10;
            assert_eq!(BatchHead::read(&damaged), None, "byte {offset}");
        }
    }
}

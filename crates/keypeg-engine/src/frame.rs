//! The journal's two frames: a segment's header and a batch around its records.
//!
//! Every frame is bound to its installation, its segment and its position, and its CRC covers all
//! of that and the body: bytes of another directory, another file or another place never pass.

use crate::core::{Counters, KeyNumber, PoolId};

/// The format this version writes, and the newest it reads.
pub(crate) const FORMAT: u32 = 1;
/// Bytes before a segment's first batch: a page of its own, so that a batch never rewrites it.
pub(crate) const SEGMENT_HEAD: usize = 4096;
/// Bytes before a batch's body.
pub(crate) const BATCH_HEAD: usize = 64;
/// Batches begin at multiples of this.
pub(crate) const ALIGN: usize = 8;

const SEGMENT_MAGIC: &[u8; 8] = b"KEYPEGSG";
const BATCH_MAGIC: &[u8; 4] = b"KPGB";

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHead {
    pub(crate) installation: u128,
    /// Its number; the next one's is one more.
    pub(crate) segment: u64,
    /// The position of its first batch. Batches of earlier segments from there on do not count.
    pub(crate) starts_at: u64,
    /// Batches up to this position were known to be durable.
    pub(crate) synced_through: u64,
    /// Starts of the server up to the one that made this segment.
    pub(crate) starts: u64,
    pub(crate) boot_id: u128,
    /// The two clocks at one instant: their distance holds for the whole segment.
    pub(crate) boot_us: u64,
    pub(crate) lease_us: u64,
    pub(crate) counters: Counters,
}

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) installation: u128,
    pub(crate) segment: u64,
    /// Counted from 1 over the installation's life.
    pub(crate) position: u64,
    /// Batches up to this position were known to be durable.
    pub(crate) synced_through: u64,
    /// The clock of its turn.
    pub(crate) lease_us: u64,
}

/// Why bytes are no segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHead {
    /// All zero: a segment made ready and never begun.
    Unused,
    /// A newer version wrote it.
    Newer(u32),
    /// Not whole.
    Damaged,
}

impl SegmentHead {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD);
        out.extend_from_slice(SEGMENT_MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.installation.to_le_bytes());
        out.extend_from_slice(&self.boot_id.to_le_bytes());
        let numbers = [
            self.segment,
            self.starts_at,
            self.synced_through,
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
            segment: read.number(),
            starts_at: read.number(),
            synced_through: read.number(),
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
    /// Writes the frame around `body` into `out`, padded to [`ALIGN`].
    pub(crate) fn write(&self, body: &[u8], out: &mut Vec<u8>) {
        out.clear();
        let len = u32::try_from(body.len()).expect("invariant: a batch is bounded");
        out.extend_from_slice(BATCH_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.installation.to_le_bytes());
        for number in [self.segment, self.position, self.synced_through, self.lease_us] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(body);
        let crc = crc32fast::hash(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out.resize(out.len().next_multiple_of(ALIGN), 0);
    }

    /// The length of the body that a head announces, whole or not.
    pub(crate) fn body_len(head: &[u8]) -> usize {
        let len = head.get(8..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        u32::from_le_bytes(len) as usize
    }

    /// Reads the frame at the front of `bytes`; gives its body and its padded length. `None` for
    /// anything that is not whole.
    pub(crate) fn read(bytes: &[u8]) -> Option<(Self, &[u8], usize)> {
        let head = bytes.get(..BATCH_HEAD)?;
        let mut read = Reader(head);
        if read.take::<4>() != *BATCH_MAGIC {
            return None;
        }
        let crc = u32::from_le_bytes(read.take());
        let len = u32::from_le_bytes(read.take()) as usize;
        let frame = bytes.get(..BATCH_HEAD.checked_add(len)?)?;
        if crc32fast::hash(&frame[8..]) != crc {
            return None;
        }
        let format = u32::from_le_bytes(read.take());
        if format != FORMAT {
            return None;
        }
        let this = Self {
            installation: u128::from_le_bytes(read.take()),
            segment: read.number(),
            position: read.number(),
            synced_through: read.number(),
            lease_us: read.number(),
        };
        Some((this, &frame[BATCH_HEAD..], frame.len().next_multiple_of(ALIGN)))
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("invariant: heads have fixed sizes");
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
    fn heads_read_back_and_no_flipped_bit_passes() {
        let head = SegmentHead {
            installation: 1 << 100,
            segment: 2,
            starts_at: 3,
            synced_through: 4,
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
        for at in 0..200 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let read = SegmentHead::read(&damaged);
            // The format alone stands outside the sum, so that a newer one can be told.
            assert!(read != Ok(head), "byte {at}");
        }
        assert_eq!(SegmentHead::read(&[0; SEGMENT_HEAD]), Err(BadHead::Unused));

        let batch = BatchHead {
            installation: 1 << 100,
            segment: 2,
            position: 3,
            synced_through: 2,
            lease_us: 5,
        };
        let mut bytes = Vec::new();
        batch.write(b"records", &mut bytes);
        assert_eq!(bytes.len() % ALIGN, 0);
        assert_eq!(BatchHead::read(&bytes), Some((batch, &b"records"[..], bytes.len())));
        for at in 0..BATCH_HEAD + 7 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(BatchHead::read(&damaged), None, "byte {at}");
        }
    }
}

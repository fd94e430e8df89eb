//! Frames: the unit of an append, as every store keeps it byte for byte.
//!
//! A frame contains its own place in the chain: shard, position, its random id and the id of its
//! predecessor. So a reader detects a gap, a fork and a misplaced frame in any store. What the
//! payload means, this file does not know. Invariant: a [`Frame`] has a valid head and checksum.

use crate::error::LogError;
use crate::shard::Shard;
use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// Bytes before the payload.
pub const HEAD_LEN: usize = 64;
/// The greatest payload in bytes: a body of 8 MiB with its records, several times.
pub const PAYLOAD_MAX: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"KPL1";
/// The offset of the checksum in the head.
const CHECKSUM: usize = 56;

/// The identity of a frame or of an attempt at a snapshot: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId([u8; 16]);

impl FrameId {
    /// The predecessor of the first frame.
    pub const NONE: Self = Self([0; 16]);

    /// Returns the id of these bytes, which are random and never all zero.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameId({self})")
    }
}

/// Where a log ends: the position of its last frame and the id of that frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tail {
    /// The position; 0 for an empty log.
    pub position: u64,
    /// The id; [`FrameId::NONE`] for an empty log.
    pub id: FrameId,
}

impl Tail {
    /// The tail of an empty log.
    pub const EMPTY: Self = Self { position: 0, id: FrameId::NONE };
}

/// What a log has to know about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The records of one turn.
    Turn,
    /// The first frame of a new owner of the shard.
    Takeover,
}

/// One frame, encoded. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    bytes: Bytes,
    shard: Shard,
    position: u64,
    id: FrameId,
    before: FrameId,
    kind: FrameKind,
}

impl Frame {
    /// Encodes the frame that follows `after`. Copies the payload once.
    pub fn new(
        shard: Shard,
        after: Tail,
        id: FrameId,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<Self, LogError> {
        let len = payload.len();
        if len > PAYLOAD_MAX {
            return Err(LogError::TooLarge { what: "a frame", len, max: PAYLOAD_MAX });
        }
        let position = after.position + 1;
        let mut bytes = BytesMut::with_capacity(HEAD_LEN + len);
        bytes.put_slice(&MAGIC);
        bytes.put_u16_le(shard.get());
        bytes.put_u8(match kind {
            FrameKind::Turn => 1,
            FrameKind::Takeover => 2,
        });
        bytes.put_u8(0);
        bytes.put_u64_le(position);
        bytes.put_slice(&id.0);
        bytes.put_slice(&after.id.0);
        bytes.put_u64_le(len as u64);
        bytes.put_u64_le(0);
        bytes.put_slice(payload);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
        Ok(Self { bytes: bytes.freeze(), shard, position, id, before: after.id, kind })
    }

    /// Decodes the frame that a store has at a position.
    pub fn decode(shard: Shard, position: u64, bytes: Bytes) -> Result<Self, LogError> {
        let damaged = |what| LogError::Damaged { shard, position, what };
        if bytes.len() < HEAD_LEN || bytes[..4] != MAGIC {
            return Err(damaged("it is no frame of this version"));
        }
        if u64_at(&bytes, CHECKSUM) != u64::from(checksum(&bytes)) {
            return Err(damaged("its checksum is wrong"));
        }
        if u64_at(&bytes, 48) != (bytes.len() - HEAD_LEN) as u64 {
            return Err(damaged("its length is wrong"));
        }
        let is_here = u16::from_le_bytes([bytes[4], bytes[5]]) == shard.get()
            && u64_at(&bytes, 8) == position
            && position > 0;
        if !is_here {
            return Err(damaged("it belongs to another shard or position"));
        }
        let kind = match bytes[6] {
            1 => FrameKind::Turn,
            2 => FrameKind::Takeover,
            _ => return Err(damaged("its kind is unknown: use a newer server")),
        };
        let (id, before) = (id_at(&bytes, 16), id_at(&bytes, 32));
        Ok(Self { bytes, shard, position, id, before, kind })
    }

    /// Returns the shard.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// Returns the position: 1 for the first frame of a log.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns the id.
    pub fn id(&self) -> FrameId {
        self.id
    }

    /// Returns the kind.
    pub fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Returns the tail of the log that the frame follows.
    pub fn after(&self) -> Tail {
        Tail { position: self.position - 1, id: self.before }
    }

    /// Returns the tail of the log that ends with this frame.
    pub fn tail(&self) -> Tail {
        Tail { position: self.position, id: self.id }
    }

    /// Returns the payload.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(HEAD_LEN..)
    }

    /// Returns the whole frame, as a store keeps it.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Checks that frames read from a store follow `after` in their chain. With `after.id`
    /// [`NONE`](FrameId::NONE) and a position above 0, the first link is not checked.
    pub fn check_chain(shard: Shard, mut after: Tail, frames: &[Self]) -> Result<Tail, LogError> {
        for frame in frames {
            let is_unchecked = after.position > 0 && after.id == FrameId::NONE;
            if frame.position != after.position + 1 {
                let (missing, found) = (after.position + 1, frame.position);
                return Err(LogError::Hole { shard, missing, found });
            }
            if !is_unchecked && frame.before != after.id {
                let what = "it does not follow the frame before it";
                return Err(LogError::Damaged { shard, position: frame.position, what });
            }
            after = frame.tail();
        }
        Ok(after)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, position, id, kind, .. } = self;
        let len = self.bytes.len() - HEAD_LEN;
        write!(f, "Frame({kind:?}, shard {shard}, position {position}, {id}, {len} bytes)")
    }
}

/// Returns the checksum of a frame: CRC-32 of all bytes but the last 8 of the head.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CHECKSUM]);
    hasher.update(&bytes[HEAD_LEN..]);
    hasher.finalize()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("invariant: 8 bytes"))
}

fn id_at(bytes: &[u8], at: usize) -> FrameId {
    FrameId(bytes[at..at + 16].try_into().expect("invariant: 16 bytes"))
}

#[cfg(test)]
mod tests;

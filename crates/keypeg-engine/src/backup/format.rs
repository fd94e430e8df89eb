//! The bytes of a backup: a stream of chunks, each with a CRC over its number and its content, and
//! a trailer with a digest of the whole.
//!
//! It knows chunks, not what they mean. A backup that is cut at any byte, or changed in any bit, is
//! refused: the trailer is the last chunk, and nothing may follow it.

use std::fmt;
use std::io;

/// The format of the backup of one server.
const ONE_SERVER: u32 = 1;
/// The format of a backup with several shards.
const SHARDS: u32 = 2;
/// The newest format that this version reads.
pub(crate) const BACKUP_FORMAT: u32 = SHARDS;
const MAGIC: &[u8; 8] = b"KEYPEGBK";
/// Bytes before the first chunk: magic (8), format (4), zeros (4).
const PREFIX: usize = 16;
/// Bytes of a chunk before its body: kind (1), zeros (3), length (4), CRC (4).
const CHUNK_HEAD: usize = 12;
/// Bytes of the body of the trailer: keys (8), batches (8), digest (32).
const TRAILER: usize = 48;
/// The longest body of a chunk that is accepted: a batch of the journal is shorter.
const BODY_MAX: usize = 32 << 20;

/// What a chunk contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    /// Positions, times and counts: see [`BackupHead`](super::head::BackupHead).
    Head,
    /// The file `meta` of the data directory, as it is.
    Meta,
    /// Batches of the journal.
    Batches,
    /// Rows of one table of the key set.
    Rows,
    /// The counts and the digest: the last chunk.
    Trailer,
    /// The begin of a shard, with its number: the chunks of its own backup follow.
    Shard,
    /// The counts of a shard: its last chunk.
    ShardEnd,
}

impl ChunkKind {
    fn byte(self) -> u8 {
        match self {
            Self::Head => 1,
            Self::Meta => 2,
            Self::Batches => 3,
            Self::Rows => 4,
            Self::Trailer => 5,
            Self::Shard => 6,
            Self::ShardEnd => 7,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        let kinds = [Self::Head, Self::Meta, Self::Batches, Self::Rows, Self::Trailer];
        let of_shards = [Self::Shard, Self::ShardEnd];
        kinds.into_iter().chain(of_shards).find(|kind| kind.byte() == byte)
    }
}

/// How much a backup contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupCounts {
    /// The rows of keys.
    pub(crate) keys: u64,
    /// The batches of the journal.
    pub(crate) batches: u64,
}

impl BackupCounts {
    /// Adds the counts of a shard; `None` if they are not valid, which its reader has refused.
    pub(crate) fn add(&mut self, counts: Option<Self>) {
        let Self { keys, batches } = counts.unwrap_or_default();
        self.keys += keys;
        self.batches += batches;
    }

    /// Returns the bytes before the digest of a trailer, which are those of the end of a shard too.
    pub(crate) fn write(self) -> Vec<u8> {
        [self.keys, self.batches].into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// Why bytes are not a complete backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Not the beginning of a backup.
    #[error("not a backup of keypeg: name a file that keypeg backup has written")]
    NotABackup,
    /// A newer version wrote it.
    #[error(
        "the backup has format {0}, and this version of keypeg reads formats up to \
         {BACKUP_FORMAT}: use a newer version of keypeg"
    )]
    Newer(u32),
    /// The bytes end before the trailer.
    #[error(
        "the backup is incomplete: it ends at byte {0}, before its trailer. Create the backup \
         again, or use another one"
    )]
    Truncated(u64),
    /// The bytes are not those that were written.
    #[error("the backup is damaged at byte {at}: {why}. Use another backup")]
    Damaged {
        /// The offset of the chunk.
        at: u64,
        /// What does not match.
        why: String,
    },
    /// Each chunk is intact, but the content is not that of a server.
    #[error("the backup is not consistent: {0}. Use another backup")]
    Content(String),
    /// The bytes cannot be read.
    #[error("cannot read the backup: {0}")]
    Io(#[from] io::Error),
}

/// Writes chunks to a consumer of bytes.
pub(crate) struct ChunkWriter<W> {
    send: W,
    digest: blake3::Hasher,
    /// The number of the next chunk.
    number: u64,
    pub(crate) counts: BackupCounts,
}

impl<E, W: FnMut(Vec<u8>) -> Result<(), E>> ChunkWriter<W> {
    /// Begins the backup of one server, or of one shard alone.
    pub(crate) fn begin(send: W) -> Result<Self, E> {
        Self::begin_format(send, ONE_SERVER)
    }

    /// Begins a backup with several shards.
    pub(super) fn begin_shards(send: W) -> Result<Self, E> {
        Self::begin_format(send, SHARDS)
    }

    fn begin_format(send: W, format: u32) -> Result<Self, E> {
        let (digest, counts) = (blake3::Hasher::new(), BackupCounts::default());
        let mut this = Self { send, digest, number: 0, counts };
        let mut prefix = MAGIC.to_vec();
        prefix.extend_from_slice(&format.to_le_bytes());
        prefix.resize(PREFIX, 0);
        this.digest.update(&prefix);
        (this.send)(prefix)?;
        Ok(this)
    }

    /// Writes a chunk. The body must be shorter than [`BODY_MAX`].
    pub(crate) fn chunk(&mut self, kind: ChunkKind, body: &[u8]) -> Result<(), E> {
        debug_assert!(body.len() <= BODY_MAX, "a batch is bounded");
        let len = u32::try_from(body.len()).expect("invariant: a chunk is bounded");
        let mut bytes = Vec::with_capacity(CHUNK_HEAD + body.len());
        bytes.extend_from_slice(&[kind.byte(), 0, 0, 0]);
        bytes.extend_from_slice(&len.to_le_bytes());
        let crc = chunk_crc(self.number, &bytes, body);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(body);
        self.number += 1;
        self.digest.update(&bytes);
        (self.send)(bytes)
    }

    /// Writes the trailer, which ends the backup.
    pub(crate) fn finish(mut self) -> Result<BackupCounts, E> {
        let mut body = self.counts.write();
        body.extend_from_slice(self.digest.finalize().as_bytes());
        self.chunk(ChunkKind::Trailer, &body)?;
        Ok(self.counts)
    }
}

/// Computes the CRC of a chunk over its number, its kind and length, and its body.
fn chunk_crc(number: u64, head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// What is called with each chunk.
pub(crate) type EachChunk<'a, E> = dyn FnMut(ChunkKind, &[u8]) -> Result<(), E> + 'a;

/// Checks the bytes of a backup in their order, in pieces of any size, and yields its chunks. It
/// holds at most one chunk.
pub(crate) struct ChunkParser {
    /// The bytes that are not parsed yet.
    pending: Vec<u8>,
    /// The offset of `pending` in the backup.
    offset: u64,
    digest: blake3::Hasher,
    /// The number of the next chunk; `None` before the prefix.
    number: Option<u64>,
    is_complete: bool,
}

impl ChunkParser {
    pub(crate) fn new() -> Self {
        let (pending, digest) = (Vec::new(), blake3::Hasher::new());
        Self { pending, offset: 0, digest, number: None, is_complete: false }
    }

    /// Adds bytes, and passes each chunk that is complete now to `each`, the trailer too.
    pub(crate) fn feed<E: From<BackupError>>(
        &mut self,
        bytes: &[u8],
        each: &mut EachChunk<'_, E>,
    ) -> Result<(), E> {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut parsed = 0;
        while let Some(len) = self.parse(&pending[parsed..], each)? {
            parsed += len;
            self.offset += len as u64;
        }
        self.pending = pending;
        self.pending.drain(..parsed);
        Ok(())
    }

    /// Parses what comes next; returns its length, or `None` if it is not complete.
    fn parse<E: From<BackupError>>(
        &mut self,
        bytes: &[u8],
        each: &mut EachChunk<'_, E>,
    ) -> Result<Option<usize>, E> {
        let Some(number) = self.number else { return Ok(self.parse_prefix(bytes)?) };
        if self.is_complete && !bytes.is_empty() {
            return Err(self.damaged("bytes follow the trailer").into());
        }
        let Some((head, rest)) = bytes.split_at_checked(CHUNK_HEAD) else { return Ok(None) };
        let [kind, z0, z1, z2, l0, l1, l2, l3, crc @ ..] = head else {
            unreachable!("invariant: the length of a head")
        };
        let len = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
        let kind = ChunkKind::from_byte(*kind).filter(|_| [*z0, *z1, *z2] == [0; 3]);
        let Some(kind) = kind.filter(|_| len <= BODY_MAX) else {
            return Err(self.damaged("the head of a chunk is not valid").into());
        };
        let Some(body) = rest.get(..len) else { return Ok(None) };
        if crc != chunk_crc(number, &head[..8], body).to_le_bytes() {
            return Err(self.damaged("a chunk does not match its CRC").into());
        }
        if kind == ChunkKind::Trailer {
            let matches =
                body.len() == TRAILER && body[TRAILER - 32..] == *self.digest.finalize().as_bytes();
            if !matches {
                return Err(self
                    .damaged("the content does not match the digest in the trailer")
                    .into());
            }
            self.is_complete = true;
        }
        self.digest.update(&bytes[..CHUNK_HEAD + len]);
        self.number = Some(number + 1);
        each(kind, body)?;
        Ok(Some(CHUNK_HEAD + len))
    }

    fn parse_prefix(&mut self, bytes: &[u8]) -> Result<Option<usize>, BackupError> {
        let begun = &bytes[..bytes.len().min(MAGIC.len())];
        if !MAGIC.starts_with(begun) {
            return Err(BackupError::NotABackup);
        }
        let Some(prefix) = bytes.get(..PREFIX) else { return Ok(None) };
        let format = u32::from_le_bytes([prefix[8], prefix[9], prefix[10], prefix[11]]);
        if format == 0 || prefix[12..] != [0; 4] {
            return Err(self.damaged("the format is not valid"));
        }
        if format > BACKUP_FORMAT {
            return Err(BackupError::Newer(format));
        }
        self.digest.update(prefix);
        self.number = Some(0);
        Ok(Some(PREFIX))
    }

    /// Returns the error for damage in what is parsed next.
    pub(crate) fn damaged(&self, why: &str) -> BackupError {
        BackupError::Damaged { at: self.offset, why: why.to_owned() }
    }

    /// Returns an error unless the bytes so far are a complete backup.
    pub(crate) fn finish(&self) -> Result<(), BackupError> {
        if self.is_complete && self.pending.is_empty() {
            return Ok(());
        }
        let end = self.offset + self.pending.len() as u64;
        if self.number.is_none() && end == 0 {
            return Err(BackupError::NotABackup);
        }
        Err(BackupError::Truncated(end))
    }
}

/// Returns the counts in the body of a trailer, or of the end of a shard.
pub(crate) fn read_trailer(body: &[u8]) -> Option<BackupCounts> {
    let (keys, rest) = body.split_first_chunk()?;
    let (batches, _) = rest.split_first_chunk()?;
    Some(BackupCounts { keys: u64::from_le_bytes(*keys), batches: u64::from_le_bytes(*batches) })
}

impl fmt::Debug for ChunkParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkParser(at byte {})", self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// Returns a backup of three chunks, and the offsets at which each part of it begins.
    fn sample() -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut edges) = (Vec::new(), Vec::new());
        let send = |part: Vec<u8>| {
            edges.push(bytes.len());
            bytes.extend(part);
            Ok::<_, Infallible>(())
        };
        let Ok(mut writer) = ChunkWriter::begin(send);
        let Ok(()) = writer.chunk(ChunkKind::Head, b"head");
        let Ok(()) = writer.chunk(ChunkKind::Rows, &[7; 300]);
        let Ok(()) = writer.chunk(ChunkKind::Batches, b"");
        writer.counts = BackupCounts { keys: 3, batches: 4 };
        let Ok(_) = writer.finish();
        (bytes, edges)
    }

    /// Parses bytes in pieces of a length; returns the chunks.
    fn parse(bytes: &[u8], piece: usize) -> Result<Vec<(ChunkKind, Vec<u8>)>, BackupError> {
        let (mut parser, mut chunks) = (ChunkParser::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            parser.feed(piece, &mut |kind, body| {
                chunks.push((kind, body.to_vec()));
                Ok::<_, BackupError>(())
            })?;
        }
        parser.finish()?;
        Ok(chunks)
    }

    #[test]
    fn a_backup_reads_back_in_pieces_of_any_length() {
        let (bytes, _) = sample();
        for piece in [1, 2, 11, 16, 100, bytes.len()] {
            let chunks = parse(&bytes, piece).expect("complete");
            let kinds: Vec<_> = chunks.iter().map(|(kind, _)| *kind).collect();
            let expected =
                [ChunkKind::Head, ChunkKind::Rows, ChunkKind::Batches, ChunkKind::Trailer];
            assert_eq!(kinds, expected);
            assert_eq!(chunks[1].1, [7; 300]);
            assert_eq!(read_trailer(&chunks[3].1), Some(BackupCounts { keys: 3, batches: 4 }));
        }
    }

    #[test]
    fn a_backup_that_is_cut_at_any_byte_is_incomplete() {
        let (bytes, edges) = sample();
        for len in 0..bytes.len() {
            let error = parse(&bytes[..len], 64).expect_err("cut");
            let expected = if len == 0 {
                matches!(error, BackupError::NotABackup)
            } else {
                matches!(error, BackupError::Truncated(at) if at == len as u64)
            };
            assert!(expected, "{len} bytes, edges {edges:?}: {error}");
        }
    }

    #[test]
    fn a_backup_with_any_flipped_bit_is_refused() {
        let (bytes, _) = sample();
        for offset in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[offset] ^= 1 << bit;
                assert!(parse(&damaged, 64).is_err(), "bit {bit} of byte {offset}");
            }
        }
    }

    /// Each chunk is intact, so only its number and the digest of the trailer can find the fault.
    #[test]
    fn a_backup_whose_chunks_are_exchanged_left_out_or_repeated_is_refused() {
        let (bytes, edges) = sample();
        let part = |index: usize| {
            &bytes[edges[index]..edges.get(index + 1).copied().unwrap_or(bytes.len())]
        };
        for order in [&[0, 2, 1, 3, 4][..], &[0, 1, 3, 4], &[0, 1, 2, 2, 3, 4], &[0, 1, 2, 4]] {
            let changed: Vec<u8> = order.iter().flat_map(|index| part(*index)).copied().collect();
            assert!(parse(&changed, 64).is_err(), "{order:?}");
        }
        assert!(parse(&[&bytes[..], b"x"].concat(), 64).is_err(), "a byte after the trailer");
        assert!(parse(&bytes.repeat(2), 64).is_err(), "two backups");
    }

    #[test]
    fn the_error_names_what_the_bytes_are() {
        let (mut bytes, _) = sample();
        assert!(matches!(parse(b"KPGB", 1), Err(BackupError::NotABackup)));
        assert!(matches!(parse(b"keypeg data directory", 64), Err(BackupError::NotABackup)));
        bytes[8] = 3;
        let error = parse(&bytes, 64).expect_err("newer");
        assert!(error.to_string().contains("format 3"), "{error}");
    }

    /// A length that no chunk has would let a file of a few bytes take gigabytes of memory.
    #[test]
    fn a_chunk_that_claims_to_be_too_long_is_refused_before_its_bytes_arrive() {
        let (bytes, edges) = sample();
        let mut damaged = bytes[..edges[1] + CHUNK_HEAD].to_vec();
        damaged[edges[1] + 4..edges[1] + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(parse(&damaged, 64), Err(BackupError::Damaged { at: 16, .. })));
    }
}

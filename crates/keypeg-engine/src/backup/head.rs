//! The first chunk of a backup: what the engine knew when the backup began. Also batches and rows
//! within their chunks.
//!
//! It encodes and parses; `copy.rs` and `restore.rs` decide what is written and read.

use super::format::BackupError;
use crate::frame::SegmentNumber;
use keypeg_core::Lsn;

/// Positions, times and counts of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackupHead {
    /// When the backup began, wall time in milliseconds.
    pub(crate) wall_ms: u64,
    /// Starts of the server so far.
    pub(crate) starts: u64,
    /// The segment of the first batch.
    pub(crate) segment: SegmentNumber,
    /// The position up to which the rows contain all changes.
    pub(crate) checkpointed: Lsn,
    /// The position of the first batch, at most one more than `checkpointed`.
    pub(crate) first: Lsn,
    /// The position of the last batch.
    pub(crate) through: Lsn,
    /// The version of the server.
    pub(crate) version: String,
}

/// Bytes of a batch before its records: position (8), lease time (8), length (4).
const BATCH_HEAD: usize = 20;
/// Bytes of a row before its key: length of the key (1), length of the value (4).
const ROW_HEAD: usize = 5;

impl BackupHead {
    pub(crate) fn write(&self) -> Vec<u8> {
        let numbers = [
            self.wall_ms,
            self.starts,
            self.segment.0,
            self.checkpointed.0,
            self.first.0,
            self.through.0,
        ];
        let mut bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        bytes.extend_from_slice(self.version.as_bytes());
        bytes
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut number = || {
            let (bytes, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            Some(u64::from_le_bytes(*bytes))
        };
        let (wall_ms, starts) = (number()?, number()?);
        let segment = SegmentNumber(number()?);
        let (checkpointed, first, through) = (Lsn(number()?), Lsn(number()?), Lsn(number()?));
        let version = std::str::from_utf8(rest).ok()?.to_owned();
        let in_order = first.0 >= 1 && first <= through && first.0 - 1 <= checkpointed.0;
        let bounded = checkpointed <= through && through.0 < u64::MAX / 2;
        (in_order && bounded && segment.0 < u64::MAX / 2).then_some(Self {
            wall_ms,
            starts,
            segment,
            checkpointed,
            first,
            through,
            version,
        })
    }
}

/// A batch of the journal in a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackupBatch<'a> {
    pub(crate) lsn: Lsn,
    /// Lease time of its turn.
    pub(crate) lease_us: u64,
    pub(crate) records: &'a [u8],
}

impl BackupBatch<'_> {
    /// Appends the batch to the body of a chunk.
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        let len = u32::try_from(self.records.len()).expect("invariant: a batch is bounded");
        body.extend_from_slice(&self.lsn.0.to_le_bytes());
        body.extend_from_slice(&self.lease_us.to_le_bytes());
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(self.records);
    }
}

/// Returns the batches in the body of a chunk; `None` where one is cut.
pub(crate) fn batches(body: &[u8]) -> impl Iterator<Item = Option<BackupBatch<'_>>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let batch = split_batch(rest).map(|(batch, after)| {
            rest = after;
            batch
        });
        if batch.is_none() {
            rest = &[];
        }
        Some(batch)
    })
}

fn split_batch(bytes: &[u8]) -> Option<(BackupBatch<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<BATCH_HEAD>()?;
    let number = |at: usize| head[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let len = u32::from_le_bytes(*head.last_chunk()?) as usize;
    let (records, rest) = rest.split_at_checked(len)?;
    Some((BackupBatch { lsn: Lsn(number(0)?), lease_us: number(8)?, records }, rest))
}

/// Appends a row to the body of a chunk.
pub(crate) fn write_row(key: &[u8], value: &[u8], body: &mut Vec<u8>) {
    let key_len = u8::try_from(key.len()).expect("invariant: the keys of rows are short");
    let value_len = u32::try_from(value.len()).expect("invariant: rows are short");
    body.push(key_len);
    body.extend_from_slice(&value_len.to_le_bytes());
    body.extend_from_slice(key);
    body.extend_from_slice(value);
}

/// A row: its key and its value.
pub(crate) type RawRow<'a> = (&'a [u8], &'a [u8]);

/// Splits the first row off; `None` if it is cut.
pub(crate) fn split_row(bytes: &[u8]) -> Option<(RawRow<'_>, &[u8])> {
    let ([key_len, value_len @ ..], rest) = bytes.split_first_chunk::<ROW_HEAD>()?;
    let (key, rest) = rest.split_at_checked(usize::from(*key_len))?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value_len) as usize)?;
    Some(((key, value), rest))
}

/// Returns the error for content that no server writes.
pub(crate) fn inconsistent(why: impl Into<String>) -> BackupError {
    BackupError::Content(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_reads_back_and_positions_out_of_order_are_refused() {
        let head = BackupHead {
            wall_ms: 1,
            starts: 2,
            segment: SegmentNumber(3),
            checkpointed: Lsn(6),
            first: Lsn(7),
            through: Lsn(9),
            version: "0.1.0".into(),
        };
        assert_eq!(BackupHead::read(&head.write()), Some(head.clone()));
        for broken in [
            BackupHead { first: Lsn(8), ..head.clone() },
            BackupHead { first: Lsn(0), ..head.clone() },
            BackupHead { through: Lsn(5), ..head.clone() },
            BackupHead { through: Lsn(u64::MAX), ..head.clone() },
        ] {
            assert_eq!(BackupHead::read(&broken.write()), None, "{broken:?}");
        }
        assert_eq!(BackupHead::read(&head.write()[..40]), None);
    }

    #[test]
    fn batches_and_rows_read_back_and_a_cut_one_is_found() {
        let mut body = Vec::new();
        let all = [(7, 70, &b"abc"[..]), (8, 80, b"")];
        for (lsn, lease_us, records) in all {
            BackupBatch { lsn: Lsn(lsn), lease_us, records }.write(&mut body);
        }
        let read: Vec<_> = batches(&body).map(|batch| batch.expect("whole")).collect();
        let read: Vec<_> = read.iter().map(|it| (it.lsn.0, it.lease_us, it.records)).collect();
        assert_eq!(read, all);
        for cut in 1..body.len() {
            let whole = cut == BATCH_HEAD + 3;
            assert_eq!(batches(&body[..cut]).all(|batch| batch.is_some()), whole, "{cut}");
        }
        let mut body = Vec::new();
        write_row(b"key", b"value", &mut body);
        assert_eq!(split_row(&body), Some(((&b"key"[..], &b"value"[..]), &[][..])));
        for cut in 0..body.len() {
            assert_eq!(split_row(&body[..cut]), None, "{cut}");
        }
    }
}

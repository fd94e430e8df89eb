//! Reads a backup into the files of a data directory: rows into a new database, batches into new
//! segments. It refuses content in another order than that of a backup.
//!
//! It does not know what rows and batches contain: a replay checks that afterwards.

use super::error::RestoreError;
use super::segments::{NewBatch, SegmentWriter};
use crate::backup::{
    BackupCounts, BackupError, BackupHead, ChunkKind, ChunkParser, batches, inconsistent,
    read_trailer, split_row,
};
use crate::disk::Disk;
use crate::keyset::{KeySetCopy, TableNumber};
use crate::meta::Meta;
use crate::start::{StartError, io};
use keypeg_core::{Fact, Lsn};
use std::io::Read;
use std::sync::Arc;

/// Bytes of rows that are inserted in one transaction.
const ROWS_FULL: usize = 4 << 20;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// What was read.
pub(super) struct ReadBackup {
    pub(super) head: BackupHead,
    /// The identity of the original directory.
    pub(super) meta: Meta,
    pub(super) segments: SegmentWriter,
    /// Lease time of the last batch.
    pub(super) lease_us: u64,
}

/// Reads the next bytes; 0 is the end.
pub(super) fn read_piece(from: &mut dyn Read, piece: &mut [u8]) -> Result<usize, BackupError> {
    loop {
        match from.read(piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.map_err(BackupError::Io),
        }
    }
}

/// The state of reading.
pub(super) struct BackupReading {
    disk: Arc<dyn Disk>,
    /// The installation of the new directory.
    installation: u128,
    head: Option<BackupHead>,
    meta: Option<Meta>,
    segments: Option<SegmentWriter>,
    lease_us: u64,
    keyset: KeySetCopy,
    /// The table being read, and its rows that are not inserted yet.
    table: Option<TableNumber>,
    rows: Vec<u8>,
    counts: BackupCounts,
    is_complete: bool,
}

impl BackupReading {
    pub(super) fn new(disk: &Arc<dyn Disk>, installation: u128) -> Result<Self, RestoreError> {
        let keyset = KeySetCopy::create(&**disk)
            .map_err(|error| RestoreError::Directory(StartError::from(error)))?;
        Ok(Self {
            disk: Arc::clone(disk),
            installation,
            head: None,
            meta: None,
            segments: None,
            lease_us: 0,
            keyset,
            table: None,
            rows: Vec::new(),
            counts: BackupCounts::default(),
            is_complete: false,
        })
    }

    /// Reads the whole backup, and makes the files durable that contain it.
    pub(super) fn read(mut self, from: &mut dyn Read) -> Result<ReadBackup, RestoreError> {
        let mut parser = ChunkParser::new();
        let mut piece = vec![0; PIECE];
        loop {
            let len = read_piece(from, &mut piece)?;
            if len == 0 {
                break;
            }
            parser.feed(&piece[..len], &mut |kind, body| self.chunk(kind, body))?;
        }
        parser.finish()?;
        self.finish()
    }

    /// Makes the files durable, after the last chunk.
    pub(super) fn finish(self) -> Result<ReadBackup, RestoreError> {
        let (Some(head), Some(meta), Some(mut segments), true) =
            (self.head, self.meta, self.segments, self.is_complete)
        else {
            return Err(inconsistent("a part is missing").into());
        };
        // The records of the segments before name segments of the original journal, so the number
        // of the first new segment is higher, and this record says that none before it is missing.
        let through = head.segment.0;
        let dropped = crate::record::encode(&Fact::SegmentsDropped { through });
        let batch = NewBatch { lease_us: self.lease_us, records: &dropped };
        segments.add(batch).and_then(|()| segments.flush()).map_err(io("writing the journal"))?;
        self.keyset.finish().map_err(StartError::from)?;
        self.disk.sync_dir().map_err(io("writing the data directory"))?;
        Ok(ReadBackup { head, meta, segments, lease_us: self.lease_us })
    }

    /// Reads the next chunk.
    pub(super) fn chunk(&mut self, kind: ChunkKind, body: &[u8]) -> Result<(), RestoreError> {
        match kind {
            ChunkKind::Head if self.head.is_none() => {
                let head = BackupHead::read(body);
                self.head = Some(head.ok_or_else(|| inconsistent("its head is not valid"))?);
            }
            ChunkKind::Meta if self.head.is_some() && self.meta.is_none() => {
                let meta = Meta::read(body).map_err(|error| inconsistent(error.to_string()))?;
                self.meta = Some(meta);
            }
            ChunkKind::Batches if self.meta.is_some() && self.table.is_none() => {
                self.read_batches(body)?;
            }
            ChunkKind::Rows if self.segments.is_some() => self.read_rows(body)?,
            ChunkKind::Trailer | ChunkKind::ShardEnd => {
                self.insert_rows()?;
                let through = self.head.as_ref().map(|head| head.through);
                let next = self.segments.as_ref().map(|it| Lsn(it.next().0 - 1));
                if read_trailer(body) != Some(self.counts) || through != next {
                    return Err(inconsistent("it does not contain what its trailer counts").into());
                }
                self.is_complete = true;
            }
            ChunkKind::Head
            | ChunkKind::Meta
            | ChunkKind::Batches
            | ChunkKind::Rows
            | ChunkKind::Shard => {
                return Err(inconsistent("its parts are out of order").into());
            }
        }
        Ok(())
    }

    fn read_batches(&mut self, body: &[u8]) -> Result<(), RestoreError> {
        let head = self.head.as_ref().expect("invariant: the head comes first");
        let segments = self.segments.get_or_insert_with(|| {
            let at = (head.segment.next(), head.first);
            SegmentWriter::new(Arc::clone(&self.disk), self.installation, head.starts, at)
        });
        for batch in batches(body) {
            let batch = batch.ok_or_else(|| inconsistent("a batch is cut"))?;
            if batch.lsn != segments.next() || batch.lsn > head.through {
                return Err(inconsistent("a batch of the journal is missing").into());
            }
            self.lease_us = self.lease_us.max(batch.lease_us);
            let batch = NewBatch { lease_us: batch.lease_us, records: batch.records };
            segments.add(batch).map_err(io("writing the journal"))?;
            self.counts.batches += 1;
        }
        Ok(())
    }

    fn read_rows(&mut self, body: &[u8]) -> Result<(), RestoreError> {
        let (number, rows) = body.split_first().ok_or_else(|| inconsistent("a table is cut"))?;
        let table = TableNumber::from_byte(*number);
        let table = table.ok_or_else(|| inconsistent("it has an unknown table"))?;
        if self.table != Some(table) {
            if self.table.is_some_and(|before| before as u8 > table as u8) {
                return Err(inconsistent("its tables are out of order").into());
            }
            self.insert_rows()?;
            self.table = Some(table);
        }
        self.rows.extend_from_slice(rows);
        if self.rows.len() >= ROWS_FULL { self.insert_rows() } else { Ok(()) }
    }

    /// Inserts the collected rows into the database.
    fn insert_rows(&mut self) -> Result<(), RestoreError> {
        let Some(table) = self.table else { return Ok(()) };
        let (mut rest, mut count) = (&self.rows[..], 0);
        let rows = std::iter::from_fn(|| {
            let (row, after) = split_row(rest)?;
            rest = after;
            count += 1;
            Some(row)
        });
        self.keyset.insert(table, rows).map_err(StartError::from)?;
        if !rest.is_empty() {
            return Err(inconsistent("a row is cut").into());
        }
        if table == TableNumber::Keys {
            self.counts.keys += count;
        }
        self.rows.clear();
        Ok(())
    }
}

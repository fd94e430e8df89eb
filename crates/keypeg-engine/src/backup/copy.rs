//! A running backup: it waits for the engine and the checkpointer, then copies batches of the
//! journal and the rows of the key set into chunks.
//!
//! It reads what is durable and never changes a file. The rows contain all changes up to one
//! position, the batches everything after it and all leases, so both together are the data at the
//! position of the last batch.

use super::channel::{ByteChannel, ByteReader, Closed};
use super::desk::{BackupDesk, Ticket};
use super::format::{ChunkKind, ChunkWriter};
use super::head::{BackupBatch, BackupHead, write_row};
use crate::disk::Disk;
use crate::frame::next_lsn;
use crate::journal_reader::{JournalReader, ReadBatch};
use crate::keyset::{KeySetSnapshot, TableNumber};
use crate::layout::META;
use crate::progress::CheckpointProgress;
use keypeg_core::Lsn;
use keypeg_store::{BackupRefused, BackupSource, BackupStream};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Bytes of a body after which a chunk is complete.
const CHUNK_FULL: usize = 64 << 10;

/// What backups read and whom they ask.
#[derive(Clone)]
pub(crate) struct BackupParts {
    pub(crate) desk: Arc<BackupDesk>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) installation: u128,
    pub(crate) progress: Arc<CheckpointProgress>,
}

/// A running backup, without its thread: a thread calls it in a loop, a test calls it by hand.
/// Dropping it ends the backup.
pub struct Backup {
    parts: BackupParts,
    stage: Stage,
}

enum Stage {
    WaitsForTicket,
    WaitsForSnapshot(Ticket),
    Ready(Ready),
}

/// What a backup copies.
struct Ready {
    ticket: Ticket,
    snapshot: KeySetSnapshot,
    /// The position of the last batch.
    through: Lsn,
}

impl Backup {
    pub(crate) fn begin(
        parts: BackupParts,
        output: Option<Arc<ByteChannel>>,
    ) -> Result<Self, BackupRefused> {
        parts.desk.begin(output)?;
        Ok(Self { parts, stage: Stage::WaitsForTicket })
    }

    /// Goes on as far as it can without waiting; returns whether [`Backup::write`] can be called.
    pub fn prepare(&mut self) -> Result<bool, BackupRefused> {
        let desk = &self.parts.desk;
        if let Stage::WaitsForTicket = self.stage
            && let Some(ticket) = desk.take_ticket()?
        {
            // The snapshot begins after the engine keeps the segments that follow it.
            desk.request_snapshot();
            self.stage = Stage::WaitsForSnapshot(ticket);
        }
        if let Stage::WaitsForSnapshot(ticket) = self.stage
            && let Some(snapshot) = desk.take_snapshot()?
        {
            // Read after the snapshot began, so that it is not behind the position of the snapshot.
            let through = self.parts.progress.synced();
            self.stage = Stage::Ready(Ready { ticket, snapshot, through });
        }
        desk.check()?;
        Ok(matches!(self.stage, Stage::Ready(_)))
    }

    /// Returns the position of the last batch that the backup contains, once it is prepared.
    pub fn through(&self) -> Option<Lsn> {
        let Stage::Ready(Ready { through, .. }) = &self.stage else { return None };
        Some(*through)
    }

    /// Passes the bytes of the backup to `send`, piece by piece. O(keys), in bounded memory.
    ///
    /// # Panics
    /// If [`Backup::prepare`] has not returned true.
    pub fn write(
        mut self,
        mut send: impl FnMut(Vec<u8>) -> Result<(), BackupRefused>,
    ) -> Result<(), BackupRefused> {
        let stage = std::mem::replace(&mut self.stage, Stage::WaitsForTicket);
        let Stage::Ready(ready) = stage else { panic!("the backup is prepared first") };
        let written = self.write_all(&ready, &mut send);
        // Why the backup must end comes before what it meets then, such as a closed database.
        written.map_err(|error| self.parts.desk.check().err().unwrap_or(error))
    }

    fn write_all(
        &self,
        ready: &Ready,
        send: &mut impl FnMut(Vec<u8>) -> Result<(), BackupRefused>,
    ) -> Result<(), BackupRefused> {
        let desk = &self.parts.desk;
        let mut out = ChunkWriter::begin(|bytes| {
            desk.check()?;
            send(bytes)
        })?;
        self.write_batches(ready, &mut out)?;
        desk.free_segments();
        for table in TableNumber::ALL {
            write_rows(&ready.snapshot, table, &mut out)?;
        }
        out.finish().map(drop)
    }

    fn write_batches<W: FnMut(Vec<u8>) -> Result<(), BackupRefused>>(
        &self,
        ready: &Ready,
        out: &mut ChunkWriter<W>,
    ) -> Result<(), BackupRefused> {
        let BackupParts { disk, installation, .. } = &self.parts;
        let Ready { ticket, snapshot, through } = ready;
        let checkpointed = snapshot.checkpointed;
        let first = ticket.first.min(next_lsn(checkpointed));
        let mut reader =
            JournalReader::open(&**disk, *installation, ticket.segment).map_err(unreadable)?;
        let mut batch = reader.next(&**disk).map_err(unreadable)?;
        while batch.lsn < first {
            batch = reader.next(&**disk).map_err(unreadable)?;
        }
        let head = BackupHead {
            wall_ms: ticket.wall_ms,
            starts: ticket.starts,
            segment: reader.segment,
            checkpointed,
            first,
            through: *through,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        out.chunk(ChunkKind::Head, &head.write())?;
        out.chunk(ChunkKind::Meta, &disk.read(META).map_err(unreadable)?)?;
        let mut body = Vec::new();
        loop {
            let ReadBatch { lsn, lease_us, records } = batch;
            BackupBatch { lsn, lease_us, records: &records }.write(&mut body);
            out.counts.batches += 1;
            let is_last = lsn >= *through;
            if body.len() >= CHUNK_FULL || is_last {
                out.chunk(ChunkKind::Batches, &body)?;
                body.clear();
            }
            if is_last {
                return Ok(());
            }
            batch = reader.next(&**disk).map_err(unreadable)?;
        }
    }
}

fn write_rows<W: FnMut(Vec<u8>) -> Result<(), BackupRefused>>(
    snapshot: &KeySetSnapshot,
    table: TableNumber,
    out: &mut ChunkWriter<W>,
) -> Result<(), BackupRefused> {
    let (mut body, mut sent) = (vec![table as u8], Ok(()));
    let mut rows = 0;
    let read = snapshot.rows(table, &mut |key, value| {
        write_row(key, value, &mut body);
        rows += 1;
        if body.len() >= CHUNK_FULL {
            sent = out.chunk(ChunkKind::Rows, &body);
            body.truncate(1);
        }
        sent.is_ok()
    });
    sent?;
    read.map_err(|error| BackupRefused::Failed(error.to_string()))?;
    if table == TableNumber::Keys {
        out.counts.keys = rows;
    }
    if body.len() > 1 { out.chunk(ChunkKind::Rows, &body) } else { Ok(()) }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unreadable(error: std::io::Error) -> BackupRefused {
    BackupRefused::Failed(format!("cannot read the data directory: {error}"))
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.parts.desk.end();
    }
}

impl fmt::Debug for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backup({:?})", self.parts.desk)
    }
}

/// The backups of a running engine.
pub(crate) struct EngineBackups(pub(crate) BackupParts);

impl EngineBackups {
    pub(crate) fn parts(&self) -> &BackupParts {
        &self.0
    }

    /// Ends the backup that runs, and refuses further ones, because the server stops.
    pub(crate) fn close(&self) {
        self.0.desk.close();
    }
}

impl BackupSource for EngineBackups {
    fn begin(&self) -> Result<Box<dyn BackupStream>, BackupRefused> {
        let output = Arc::<ByteChannel>::default();
        let backup = Backup::begin(self.0.clone(), Some(Arc::clone(&output)))?;
        let reader = ByteReader(Arc::clone(&output));
        let run = move || {
            let written = catch_unwind(AssertUnwindSafe(|| run(backup, &output)));
            let panicked = || Err(BackupRefused::Failed("the backup panicked".into()));
            output.finish(written.unwrap_or_else(|_| panicked()));
        };
        // Not a vital thread: a backup that fails ends only itself.
        let spawned = std::thread::Builder::new().name("keypeg-backup".into()).spawn(run);
        spawned
            .map_err(|error| BackupRefused::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Box::new(reader))
    }
}

fn run(mut backup: Backup, output: &ByteChannel) -> Result<(), BackupRefused> {
    let desk = Arc::clone(&backup.parts.desk);
    while !backup.prepare()? {
        desk.wait();
    }
    let left = |Closed| BackupRefused::Failed("the client has disconnected".into());
    let written = backup.write(|bytes| output.send(bytes).map_err(left));
    if let Err(why) = &written {
        tracing::warn!(error = %why, "a backup ended before it was complete");
    }
    written
}

impl fmt::Debug for EngineBackups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineBackups")
    }
}

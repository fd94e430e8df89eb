//! The log of a shard, as its engine sees it: where a batch becomes durable when one machine is not
//! enough.
//!
//! It knows neither the store behind the log nor who owns the shard. Only the log decides whether a
//! batch stands; the files of the engine are then scratch, which no start reads.

use std::io;

/// One turn of a shard: what a frame of its log contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBatch<'a> {
    /// Lease time of the turn, in microseconds.
    pub lease_us: u64,
    /// The records of the turn, in the journal's format; empty if the frame only fences another
    /// owner, carries the clock, or proves what a reply reports.
    pub records: &'a [u8],
}

/// The appending end of a shard's log.
pub trait CommitLog: Send {
    /// Appends a batch behind everything that this owner has read or appended.
    ///
    /// `Ok` means that it is durable, and that no other owner has appended anything before it. After
    /// an error the batch may stand or not: the engine acknowledges nothing of the turn, and must not
    /// be used any more.
    fn append(&mut self, batch: LogBatch<'_>) -> io::Result<()>;
}

//! The appending end of a shard's log: each batch is a frame behind the last one of this server.
//!
//! A frame whose outcome is not known is appended again, the same bytes, until the log has decided
//! or the patience ends; no other frame ever takes its place. It does not know what a batch contains.

use crate::executor::{Executor, Patience};
use crate::payload::Payload;
use crate::tails::Tails;
use keypeg_core::RandomSource;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_engine::{CommitLog, LogBatch};
use keypeg_log::{Append, Frame, FrameId, FrameKind, ServerName, Shard, SharedLog};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Another server has appended to the log: this one does not own the shard.
#[derive(Debug, thiserror::Error)]
#[error("another server has taken shard {0} over")]
pub(crate) struct Taken(Shard);

/// Appends the batches of an engine to the log of its shard. The first one is the takeover frame.
pub struct Appender<E, P> {
    pub(crate) log: Arc<dyn SharedLog>,
    pub(crate) shard: Shard,
    pub(crate) server: ServerName,
    pub(crate) tails: Tails,
    pub(crate) executor: E,
    pub(crate) patience: P,
    pub(crate) random: Box<dyn RandomSource + Send>,
    /// Whether this server has appended its takeover frame.
    pub(crate) owns: bool,
    pub(crate) payload: Vec<u8>,
}

impl<E: Executor, P: Patience> Appender<E, P> {
    fn frame(&mut self) -> io::Result<Frame> {
        let mut id = [0; 16];
        self.random.fill(&mut id);
        let kind = if self.owns { FrameKind::Turn } else { FrameKind::Takeover };
        let frame =
            Frame::new(self.shard, self.tails.last(), FrameId::new(id), kind, &self.payload);
        frame.map_err(io::Error::other)
    }
}

impl<E: Executor + Send, P: Patience + Send> CommitLog for Appender<E, P> {
    fn append(&mut self, batch: LogBatch<'_>) -> io::Result<()> {
        let server = (!self.owns).then_some(&self.server);
        Payload::write(batch, server, &mut self.payload);
        let mut frame = self.frame()?;
        let mut attempt = 0;
        loop {
            match self.executor.run(self.log.append(&frame)) {
                Append::Appended => {
                    self.tails.push(frame.tail(), self.payload.len());
                    self.owns = true;
                    return Ok(());
                }
                Append::Taken => return Err(io::Error::other(Taken(self.shard))),
                Append::Unknown(error) => {
                    if enabled(Sabotage::TrustUnknownAppend) {
                        self.tails.push(frame.tail(), self.payload.len());
                        self.owns = true;
                        return Ok(());
                    }
                    attempt += 1;
                    if !self.patience.wait(attempt, &error) {
                        return Err(io::Error::other(error));
                    }
                    if enabled(Sabotage::OtherFrameAfterUnknown) {
                        frame = self.frame()?;
                    }
                }
            }
        }
    }
}

impl<E, P> fmt::Debug for Appender<E, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("shard", &self.shard).finish_non_exhaustive()
    }
}

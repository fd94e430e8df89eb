//! The calls of a shared log on the in-memory store.

use super::MemoryLog;
use super::contents::{Change, Contents, Verdict};
use super::rules::Defect;
use super::store::Slot;
use crate::error::LogError;
use crate::frame::{Frame, Tail};
use crate::heartbeat::{Heartbeat, ServerName};
use crate::log::{Append, Call, Completed, Guarantee, ProbeReport, SharedLog};
use crate::race::race;
use crate::shard::Shard;
use crate::snapshot::{Snapshot, SnapshotId};
use bytes::Bytes;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

impl MemoryLog {
    /// Sends a request, and returns the future of its answer.
    fn call<T, A>(&self, lost: fn(LogError) -> T, apply: A) -> Call<'static, T>
    where
        T: Send + 'static,
        A: Fn(&Contents) -> (T, Option<Change>) + Clone + Send + 'static,
    {
        let (log, mut apply, mut slot) = (self.clone(), Some(apply), None);
        // A future sends its request when it is polled first.
        Box::pin(poll_fn(move |context| {
            let slot = slot.get_or_insert_with(|| {
                let slot = Arc::new(Slot::new(lost));
                if let Some(apply) = apply.take() {
                    log.store().send(&slot, log.rules, apply);
                }
                slot
            });
            slot.take(context.waker()).map_or(Poll::Pending, Poll::Ready)
        }))
    }

    /// A call that changes nothing.
    fn query<T, A>(&self, apply: A) -> Call<'static, Result<T, LogError>>
    where
        T: Send + 'static,
        A: Fn(&Contents) -> Result<T, LogError> + Clone + Send + 'static,
    {
        self.call(Err, move |contents| (apply(contents), None))
    }

    /// A call that makes one change and returns nothing.
    fn change(&self, change: Change) -> Call<'static, Result<(), LogError>> {
        self.call(Err, move |_| (Ok(()), Some(change.clone())))
    }
}

impl SharedLog for MemoryLog {
    fn guarantee(&self) -> Guarantee {
        self.rules.guarantee
    }

    fn probe(&self, nonce: [u8; 16]) -> Call<'_, Result<ProbeReport, LogError>> {
        Box::pin(async move {
            race(self, Shard::PROBE, nonce).await?;
            Ok(ProbeReport { store: "memory".to_owned(), warnings: vec![] })
        })
    }

    fn installation<'a>(&'a self, proposed: &'a [u8]) -> Call<'a, Result<Bytes, LogError>> {
        let (rules, proposed) = (self.rules, Bytes::copy_from_slice(proposed));
        self.call(Err, move |contents| match contents.installation() {
            Some(found) if !rules.has(Defect::ReplaceInstallation) => {
                (Ok(found.clone()), Some(Change::Prove))
            }
            _ => (Ok(proposed.clone()), Some(Change::Install(proposed.clone()))),
        })
    }

    fn append<'a>(&'a self, frame: &'a Frame) -> Call<'a, Append> {
        let (rules, frame) = (self.rules, frame.clone());
        self.call(Append::Unknown, move |contents| match contents.check(&frame, rules) {
            Verdict::Insert => (Append::Appended, Some(Change::Insert(frame.clone()))),
            Verdict::Own => (Append::Appended, Some(Change::Prove)),
            Verdict::Taken => (Append::Taken, None),
        })
    }

    fn tail(&self, shard: Shard) -> Call<'_, Result<Tail, LogError>> {
        let rules = self.rules;
        self.query(move |contents| Ok(contents.tail(shard, rules)))
    }

    fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Call<'_, Result<Vec<Frame>, LogError>> {
        let rules = self.rules;
        self.query(move |contents| contents.read(shard, above, bytes_max, rules))
    }

    fn put_part(
        &self,
        snapshot: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> Call<'_, Result<(), LogError>> {
        if let Err(error) = Snapshot::check_part(part, bytes.len()) {
            return Box::pin(async { Err(error) });
        }
        self.change(Change::Part(snapshot, part, bytes))
    }

    fn complete(&self, snapshot: Snapshot) -> Call<'_, Result<Completed, LogError>> {
        let rules = self.rules;
        self.call(Err, move |contents| {
            let (needs_change, completed) = contents.complete(snapshot, rules);
            let change = if needs_change { Change::Complete(snapshot) } else { Change::Prove };
            (Ok(completed), Some(change))
        })
    }

    fn snapshots(&self, shard: Shard) -> Call<'_, Result<Vec<Snapshot>, LogError>> {
        let rules = self.rules;
        self.query(move |contents| Ok(contents.snapshots(shard, rules)))
    }

    fn get_part(&self, snapshot: Snapshot, part: u32) -> Call<'_, Result<Bytes, LogError>> {
        let rules = self.rules;
        self.query(move |contents| contents.part(snapshot, part, rules))
    }

    fn trim(&self, shard: Shard, through: u64) -> Call<'_, Result<(), LogError>> {
        let rules = self.rules;
        self.call(Err, move |contents| match contents.check_trim(shard, through, rules) {
            Ok(()) => (Ok(()), Some(Change::Trim(shard, through))),
            Err(error) => (Err(error), None),
        })
    }

    fn beat<'a>(&'a self, heartbeat: &'a Heartbeat) -> Call<'a, Result<(), LogError>> {
        self.change(Change::Beat(heartbeat.clone()))
    }

    fn heartbeats(&self) -> Call<'_, Result<Vec<Heartbeat>, LogError>> {
        self.query(|contents| Ok(contents.heartbeats()))
    }

    fn forget<'a>(&'a self, server: &'a ServerName) -> Call<'a, Result<(), LogError>> {
        if self.rules.has(Defect::ForgetNothing) {
            return self.change(Change::Prove);
        }
        self.change(Change::Forget(server.clone()))
    }
}

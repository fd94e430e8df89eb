//! The engine without its thread: the thread calls it in a loop, a test calls it by hand.
//!
//! It opens a data directory and runs turns: read the clocks once, expire what is due, execute the
//! requests, commit the batch, and only then return the replies (group commit). After a failed
//! commit it must not be used any more.

mod adding;
mod admission;
mod backup;
mod disk_space;
mod due;
mod long_calls;
mod measure;
mod opening;
mod requests;
mod sealing;
mod segment_drop;
mod shared;
mod subscribe;
mod waits;
mod work;

use crate::backup::BackupParts;
use crate::batch::Batch;
use crate::checkpointer::Checkpointer;
use crate::journal::{DiskSpace, Journal, LAST_SEGMENT_RESERVE, SEGMENT_LEN, Stamp};
use crate::lookups::Lookups;
use crate::preallocator::RETRY_US;
use crate::progress::CheckpointProgress;
use crate::published::PublishedBytes;
use crate::record;
use crate::rotation::SealControl;
use crate::times::Times;
use crate::turn::EXPIRE_MAX;
use keypeg_core::RandomSource;
use keypeg_core::sabotage::{Sabotage, TestLimit, enabled, limit};
use keypeg_core::{Fact, FactSink, JournalPositions, Lsn, NextDue, Now, Pool, Pools, StepContext};
use keypeg_store::Wakeup;
use keypeg_store::{
    ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_BYTES, COMMIT_BUCKETS_US, KeyVersions, StoreMetrics,
};
use keypeg_store::{LaneItem, Reply, RequestError};
pub use long_calls::LONG_UNITS_MAX;
use long_calls::LongCalls;
pub(crate) use opening::limits_of;
pub(crate) use shared::Takeover;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
pub use work::CallId;
use work::{BackupProgress, Measured, ParkedImport, QueuedRequest, SegmentDrop, Withdrawal};

/// The most pools of a server.
pub const POOLS_MAX: usize = 10_000;
/// The greatest first token of a new directory: a wall clock that is centuries ahead must not use
/// up the tokens.
pub(crate) const FIRST_TOKEN_MAX: u64 = 1 << 52;
/// The most new requests that one turn takes.
const TURN_MAX: usize = 8_192;
/// The units of work of short calls after which a turn takes no further request: a batch of 4 096
/// grants, about four milliseconds. All of them share one sync.
const SHORT_UNITS_PER_TURN: u32 = 16_384;
/// The bytes of records after which a turn takes no further request.
const BATCH_FULL: usize = 1 << 20;

const _: () =
    assert!(LAST_SEGMENT_RESERVE >= 2 * BATCH_FULL as u64, "the reserve holds a turn of releases");

/// How long a request is carried over from turn to turn before it is refused as settling.
const SETTLE_MAX_US: u64 = 50_000;
/// How far the checkpointer may lag before new keys are refused, in full journals.
const CHECKPOINT_LAG_MAX: u64 = 4;
/// How long after the last records an empty batch is written. The frame of the empty batch proves
/// that the last records are durable: from then on, damage to them is not mistaken for a torn tail.
const PROVE_AFTER_US: u64 = 1_000_000;

/// The pools with their journal and clocks.
pub struct EngineState {
    pools: Pools,
    journal: Option<Journal>,
    times: Times,
    random: Box<dyn RandomSource + Send>,
    batch: Batch,
    /// The seal of the directory, if it is sealed.
    seal: Option<Arc<SealControl>>,
    /// One of them is notified when a request arrives.
    arrivals: Vec<Wakeup>,
    /// What the requests of this turn may end by time.
    expiries_left: u32,
    /// Requests that are carried over into the next turn, because more was due than this turn
    /// could expire.
    carried_over: VecDeque<QueuedRequest>,
    /// Imports that wait for their lookups.
    parked_imports: VecDeque<ParkedImport>,
    parked_bytes: usize,
    /// Imports whose lookups are complete.
    checked_imports: VecDeque<QueuedRequest>,
    lookups: Arc<Lookups>,
    /// Calls that cost more than a turn has for one of them, while others wait.
    long_calls: LongCalls,
    /// What refused calls have staged.
    withdrawals: VecDeque<Withdrawal>,
    /// The long calls that the last turn executed, in their order: for tests.
    executed_long_calls: Vec<CallId>,
    /// What the long calls of the last turn cost, in units: for tests.
    long_units: u32,
    /// Calls that were abandoned while their requests are carried over or queued.
    abandoned: HashSet<CallId>,
    /// Whether all waiting requests are refused, because the server stops.
    cancels_waits: bool,
    /// The checkpointer, until a thread takes it.
    checkpointer: Option<Checkpointer>,
    progress: Arc<CheckpointProgress>,
    sizes: JournalSizes,
    segment_drop: Option<SegmentDrop>,
    backup: BackupProgress,
    /// What backups read; `None` in memory.
    backup_parts: Option<BackupParts>,
    /// The average size of a record in the last snapshot, in bytes.
    snapshot_record_bytes: u64,
    /// Deleted pools whose memory another thread frees.
    deleted_pools: Vec<Pool>,
    /// Whether no later frame proves yet that the last batch's records are durable.
    unproven: bool,
    /// When the last batch was committed, lease time.
    committed_us: u64,
    now: Now,
    /// The lease time that continues while the deciding clocks are frozen.
    unfrozen_us: u64,
    /// Whether the deciding clocks are frozen in this turn, because the disk is full.
    clocks_frozen: bool,
    metrics: Arc<StoreMetrics>,
    published: PublishedBytes,
    measured: Measured,
}

/// The sizes of the journal, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSizes {
    /// The size of a segment.
    pub segment: u64,
    /// The size of all segments together, unless a snapshot of the live leases is larger.
    pub journal: u64,
}

impl Default for JournalSizes {
    fn default() -> Self {
        Self { segment: SEGMENT_LEN, journal: 256 << 20 }
    }
}

/// When the next turn must run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextWakeup {
    /// The time until the next deadline, in microseconds; 0 if something is due already.
    pub due_in_us: Option<u64>,
    /// Whether a purge deadline runs, so that serving time must be counted.
    pub counts_serving: bool,
}

/// The disk failed: no change of the turn was acknowledged, and the engine must end.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the journal: {0}")]
pub struct CommitError(#[from] pub std::io::Error);

impl From<CommitError> for std::io::Error {
    fn from(CommitError(error): CommitError) -> Self {
        error
    }
}

impl EngineState {
    /// Starts to preallocate journal segments: on a thread, or, for tests, within each turn.
    pub fn start_preallocation(&mut self, on_a_thread: bool) -> Result<(), CommitError> {
        self.journal
            .as_mut()
            .map_or(Ok(()), |journal| Ok(journal.start_preallocation(on_a_thread)?))
    }

    /// Takes the checkpointer, to be stepped by a thread or by hand.
    pub fn take_checkpointer(&mut self) -> Option<Checkpointer> {
        self.checkpointer.take()
    }

    /// Returns the progress that engine and checkpointer share.
    pub(crate) fn progress(&self) -> Arc<CheckpointProgress> {
        Arc::clone(&self.progress)
    }

    /// Returns the wakeup that the checkpointer notifies when it has the result of a lookup.
    pub(crate) fn wakeup(&self) -> Wakeup {
        self.lookups.wakeup()
    }

    /// Notes that the server refused keep-alives since the last turn, because a limit was reached.
    /// The time since that turn purges no key, and neither does the time until the clients have
    /// tried again.
    pub fn note_refused_keep_alives(&mut self, count: u64) {
        self.metrics.refused_keep_alives.fetch_add(count, Ordering::Relaxed);
        self.times.note_refused_keep_alives();
    }

    /// Runs one turn: takes requests from the front of `requests` and adds their replies to
    /// `replies` once all the turn did is durable. Requests that do not fit into the turn stay in
    /// the queue.
    pub fn turn(
        &mut self,
        requests: &mut VecDeque<(CallId, LaneItem)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> Result<NextWakeup, CommitError> {
        let replies_before = replies.len();
        let now_before = self.now;
        self.begin_step();
        if let Some(journal) = &mut self.journal {
            journal.maintain(self.unfrozen_us)?;
        }
        let is_full = self.disk_space() == DiskSpace::Full;
        if self.clocks_frozen != is_full {
            if is_full {
                // Nothing that became due since the last turn can be logged any more.
                self.now = now_before;
            }
            // There is space again, or none any more: the rest of the turn happens at the current
            // instant, or at that of the last turn.
            self.begin_step();
        }
        if self.journal.as_ref().is_some_and(|journal| journal.disk_space() < DiskSpace::NoNewKeys)
        {
            self.cancel_all_waits(&RequestError::StorageFull, replies);
        }
        self.measure_lateness();
        let has_requests = !(requests.is_empty() && self.carried_over.is_empty());
        let by_time = self.end_what_is_due(has_requests);
        self.drain_wait_outcomes(replies);
        self.take_lookup_results(replies);
        let executed = self.execute_requests(requests, replies);
        let has_answers = replies.len() > replies_before + executed.own_reads;
        let clock_matters = by_time
            | executed.ended_by_time
            | self.proof_is_due()
            | (self.answers_need_a_frame() && has_answers);
        self.continue_backup();
        let clock_matters = clock_matters | self.write_snapshot_records();
        let committed = self.commit(clock_matters);
        if let Err(error) = committed.and_then(|()| self.drop_snapshotted_segments()) {
            replies.truncate(replies_before);
            return Err(error);
        }
        self.batch.feed.publish(&self.pools);
        self.published.set(self.pools.bytes());
        self.measure_sizes();
        let answers = replies.len() - replies_before;
        if answers > 0 {
            self.metrics.answers.observe(&ANSWERS_PER_TURN_BUCKETS, answers as u64);
        }
        Ok(self.next_wakeup())
    }

    /// Returns whether the last turn happened at the instant of an earlier one, because the disk was
    /// full.
    pub fn clocks_frozen(&self) -> bool {
        self.clocks_frozen
    }

    fn begin_step(&mut self) {
        // With no space to log a purge or that a deadline has passed, none may pass: both deciding
        // clocks are frozen.
        let can_log = self.disk_space() > DiskSpace::Full;
        let now = self.times.now(can_log);
        let Now { lease_us, serving_us, .. } = if can_log { now } else { self.now };
        self.clocks_frozen = !can_log;
        self.pools.set_clocks_frozen(self.clocks_frozen);
        self.unfrozen_us = now.lease_us;
        // The displayed times of a lease freeze with it.
        let wall_us = now.wall_us.saturating_sub(now.lease_us - lease_us);
        self.now = Now { lease_us, serving_us, wall_us };
        let checkpointed = self.checkpointed_for_lookups();
        let current = self.journal.as_ref().map_or(Lsn(u64::MAX), Journal::next_lsn);
        self.pools.set_positions(JournalPositions { current, checkpointed });
        self.pools.set_bytes_elsewhere(self.published.elsewhere());
        self.batch.begin(self.now);
    }

    /// Makes the batch durable if it has records, or if `clock_matters`, since a reply then relies
    /// on a deadline that has passed.
    fn commit(&mut self, clock_matters: bool) -> Result<(), CommitError> {
        let mut records = self.batch.bytes();
        if records.is_empty() && (!clock_matters || enabled(Sabotage::ForgetTheClock)) {
            return Ok(());
        }
        let records_len = records.len() as u64;
        if let Some(journal) = &mut self.journal {
            let stamp = Stamp { lease_us: self.now.lease_us, counters: self.pools.counters() };
            let started_us = self.times.stopwatch_us();
            if enabled(Sabotage::HalfBatch)
                && let Ok(rest) = record::after_first(records)
            {
                journal.commit(&records[..records.len() - rest.len()], stamp)?;
                records = rest;
            }
            journal.commit(records, stamp)?;
            let took_us = self.times.stopwatch_us().saturating_sub(started_us);
            self.metrics.commit_us.observe(&COMMIT_BUCKETS_US, took_us);
            self.measured.commit_took = Some(took_us);
            self.metrics.commit_bytes.observe(&COMMIT_BUCKETS_BYTES, records_len);
            // What stands in the log of a shard needs no proof.
            self.unproven = !records.is_empty() && !journal.has_log();
            self.committed_us = self.now.lease_us;
        }
        Ok(())
    }

    fn proof_is_due(&self) -> bool {
        let passed_us = self.now.lease_us - self.committed_us;
        (self.unproven && passed_us >= PROVE_AFTER_US) || self.clock_frame_is_due(passed_us)
    }

    /// Writes an empty batch, whose frame proves that the one before it is durable.
    fn write_proof(&mut self) -> Result<(), CommitError> {
        self.begin_step();
        self.commit(true)
    }

    /// Logs a clean stop, so that the next start continues with the next token.
    pub fn close(&mut self) -> Result<(), CommitError> {
        self.begin_step();
        let next_token = self.pools.next_token();
        FactSink::record(&mut self.batch, &Fact::Stopped { next_token });
        self.commit(true)
    }

    fn next_wakeup(&mut self) -> NextWakeup {
        let NextDue { lease_us, serving_us } = self.pools.next_due();
        // While the clocks are frozen no deadline comes nearer.
        let clocks_run = self.disk_space() > DiskSpace::Full;
        self.measured.due_us = lease_us.filter(|_| clocks_run);
        let hold_end =
            lease_us.filter(|_| clocks_run).map(|us| us.saturating_sub(self.now.lease_us));
        let purge =
            serving_us.filter(|_| clocks_run).map(|us| us.saturating_sub(self.now.serving_us));
        // While serving time stands still no purge comes nearer.
        let purge = purge.map(|us| us + self.times.standstill_us());
        let has_backlog = hold_end == Some(0) || purge == Some(0);
        self.progress.has_backlog.store(has_backlog, Ordering::Relaxed);
        let starved = self.journal.as_ref().is_some_and(Journal::is_starved);
        let retry = starved.then_some(RETRY_US);
        let has_requests = !self.carried_over.is_empty()
            || !self.checked_imports.is_empty()
            || !self.withdrawals.is_empty()
            || self.long_calls.has_ready();
        let unfinished = (has_requests || self.segment_drop.is_some()).then_some(0);
        let proof_at_us = self.committed_us + PROVE_AFTER_US;
        let proof = self.unproven.then(|| proof_at_us.saturating_sub(self.now.lease_us));
        let clock_frame = hold_end.and_then(|_| self.clock_frame_in_us());
        let due = [hold_end, purge, unfinished, proof, clock_frame, retry];
        NextWakeup {
            due_in_us: due.into_iter().flatten().min(),
            counts_serving: serving_us.is_some(),
        }
    }

    /// Returns the number of requests that were taken and are not answered yet, except those in a
    /// wait queue.
    pub fn pending_count(&self) -> usize {
        let parked = self.parked_imports.len() + self.checked_imports.len();
        self.carried_over.len() + parked + self.long_calls.len()
    }

    /// Returns the long calls that the last turn executed, in their order: for tests.
    pub fn executed_long_calls(&self) -> &[CallId] {
        &self.executed_long_calls
    }

    /// Returns what the long calls of the last turn cost, in units: for tests.
    pub fn long_units(&self) -> u32 {
        self.long_units
    }

    /// Takes the deleted pools; freeing their memory takes O(keys).
    pub fn take_deleted_pools(&mut self) -> Vec<Pool> {
        std::mem::take(&mut self.deleted_pools)
    }

    /// Sets whether turns execute long calls, as they do at first, or leave them to a later turn.
    pub(crate) fn set_executes_long_calls(&mut self, executes: bool) {
        self.long_calls.are_postponed = !executes;
    }

    /// Takes how long the last commit took, in microseconds, if there was one since the last call.
    pub(crate) fn take_commit_time(&mut self) -> Option<u64> {
        self.measured.commit_took.take()
    }

    /// Returns a time that never goes back, in microseconds.
    pub(crate) fn stopwatch_us(&mut self) -> u64 {
        self.times.stopwatch_us()
    }

    /// Returns the engine's counters.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Returns the versions of the keys.
    pub fn key_versions(&self) -> Arc<KeyVersions> {
        self.batch.versions()
    }

    /// Returns the seal of the directory; `None` if it is not sealed.
    pub fn seal(&self) -> Option<Arc<SealControl>> {
        self.seal.clone()
    }

    /// Returns the pools, to inspect them.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }
}

fn step<'a>(now: Now, random: &'a mut dyn RandomSource, facts: &'a mut Batch) -> StepContext<'a> {
    StepContext { now, random, facts, budget: expire_max(), ended_by_time: false }
}

fn expire_max() -> u32 {
    u32::try_from(limit(TestLimit::Expire, u64::from(EXPIRE_MAX))).unwrap_or(EXPIRE_MAX)
}

impl std::fmt::Debug for EngineState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineState").field("journal", &self.journal).finish_non_exhaustive()
    }
}

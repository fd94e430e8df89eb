//! An engine but for its thread: what the thread calls in a loop, a test calls by hand.
//!
//! It opens a directory, and plays turns: read the clocks once, play, commit, and only then hand
//! the replies out. After a failed commit nothing more may be asked of it.

mod admission;
mod disk_space;
mod opening;
mod segment_drop;
mod subscribe;
mod waits;

use crate::RandomSource;
use crate::checkpointer::{CheckpointProgress, Checkpointer};
use crate::core::sabotage::{Sabotage, TestLimit, enabled, limit};
use crate::core::{Fact, FactSink, JournalPositions, Lsn, NextDue, Now, Pool, Pools, StepContext};
use crate::journal::{DiskSpace, Journal, LAST_SEGMENT_RESERVE, SEGMENT_LEN, Stamp};
use crate::lanes::Wakeup;
use crate::lookups::Lookups;
use crate::metrics::{ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_US, EngineMetrics};
use crate::preallocator::RETRY_US;
use crate::record::{self, Batch};
use crate::request::{Reply, Request, RequestError};
use crate::times::Times;
use crate::turn::{self, EXPIRE_MAX};
use admission::{Admission, Parked, QueuedRequest};
use segment_drop::SegmentDrop;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
pub use waits::CallId;

/// Pools a server keeps at most.
pub const POOLS_MAX: usize = 10_000;
/// Requests a turn plays at most.
const TURN_MAX: usize = 8_192;
/// Bytes of records after which a turn takes no further request.
const BATCH_FULL: usize = 1 << 20;

const _: () =
    assert!(LAST_SEGMENT_RESERVE >= 2 * BATCH_FULL as u64, "the reserve holds a turn of releases");

/// How long a request goes over into next turns before it is told to come again.
const SETTLE_MAX_US: u64 = 50_000;
/// How many journals of the usual bound may wait to be carried before new keys are refused.
const LAG_MAX: u64 = 4;
/// How long after the last facts an empty batch is written, whose frame proves theirs durable:
/// damage to it is from then on told from a torn tail.
const PROVE_AFTER_US: u64 = 1_000_000;

/// Pools, their journal and their clocks.
pub struct EngineState {
    pools: Pools,
    journal: Option<Journal>,
    times: Times,
    random: Box<dyn RandomSource + Send>,
    batch: Batch,
    /// Requests that go over into the next turn.
    late: VecDeque<QueuedRequest>,
    /// Imports that wait for what the database says.
    parked: VecDeque<Parked>,
    parked_bytes: usize,
    /// Imports of which the database has said what it knows.
    looked_up: VecDeque<QueuedRequest>,
    lookups: Arc<Lookups>,
    /// Tickets whose askers have gone while their requests go over.
    left: HashSet<CallId>,
    /// Whether those who wait are sent away: the server stops.
    turns_away: bool,
    /// Carries the key set into the database, until a thread takes it.
    carrier: Option<Checkpointer>,
    progress: Arc<CheckpointProgress>,
    sizes: JournalSizes,
    dropping: Option<SegmentDrop>,
    /// Bytes that one hold took when it was told anew last, on average.
    told_each: u64,
    /// Removed pools whose memory is still to be freed, elsewhere.
    gone: Vec<Pool>,
    /// Whether the last batch holds facts that no later frame proves to be durable.
    unproven: bool,
    /// When the last batch was committed, in lease time.
    committed_us: u64,
    now: Now,
    /// Lease time, also while it stands still for what is decided.
    unheld_us: u64,
    /// Whether it stands still in this turn.
    held: bool,
    metrics: Arc<EngineMetrics>,
}

/// JournalSizes of the journal, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalSizes {
    /// Of a segment.
    pub segment: u64,
    /// Of all segments together, where what lives of them is small.
    pub journal: u64,
}

impl Default for JournalSizes {
    fn default() -> Self {
        Self { segment: SEGMENT_LEN, journal: 256 << 20 }
    }
}

/// What a turn leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextWakeup {
    /// When something is due next, in microseconds from now; 0 when something is due already.
    pub due_in_us: Option<u64>,
    /// Whether a keep-alive deadline runs: serving time must be counted.
    pub counts_serving: bool,
}

/// The disk failed: nothing of the turn was acknowledged, and nothing more may be asked.
#[derive(Debug, thiserror::Error)]
#[error("the journal cannot be written: {0}")]
pub struct CommitError(#[from] pub std::io::Error);

impl From<CommitError> for std::io::Error {
    fn from(CommitError(error): CommitError) -> Self {
        error
    }
}

impl EngineState {
    /// Has journal segments made ready ahead: by a thread of their own, or, for tests, in each turn.
    pub fn start_preallocation(&mut self, on_a_thread: bool) -> Result<(), CommitError> {
        self.journal
            .as_mut()
            .map_or(Ok(()), |journal| Ok(journal.start_preallocation(on_a_thread)?))
    }

    /// Gives the carrier away, to be stepped by a thread or by hand.
    pub fn take_checkpointer(&mut self) -> Option<Checkpointer> {
        self.carrier.take()
    }

    /// How far engine and carrier have come.
    pub(crate) fn progress(&self) -> Arc<CheckpointProgress> {
        Arc::clone(&self.progress)
    }

    /// Rung when the carrier has an answer for a turn to take.
    pub(crate) fn wakeup(&self) -> Wakeup {
        self.lookups.wakeup()
    }

    /// Plays one turn: takes requests from the front of `asked` and, once all it did is durable,
    /// gives the replies. Requests that do not fit into one turn stay where they are.
    pub fn turn(
        &mut self,
        asked: &mut VecDeque<(CallId, Request)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> Result<NextWakeup, CommitError> {
        let begun = replies.len();
        self.begin_step();
        if let Some(journal) = &mut self.journal {
            journal.maintain(self.unheld_us)?;
        }
        if self.held && self.room() > DiskSpace::Full {
            // There is room again: what is played from here on is of this instant.
            self.begin_step();
        }
        if self.journal.as_ref().is_some_and(|journal| journal.disk_space() < DiskSpace::NoNewKeys)
        {
            self.cancel_all_waits(&RequestError::StorageFull, replies);
        }
        let budget = self.budget();
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = budget;
        self.pools.expire(&mut step);
        let by_time = step.ended_by_time;
        self.hand_out(replies);
        self.take_looked_up(replies);
        let clock_matters = by_time | self.play(asked, replies) | self.proof_is_due();
        self.tell_anew();
        if let Err(error) = self.commit(clock_matters).and_then(|()| self.drop_told()) {
            replies.truncate(begun);
            return Err(error);
        }
        self.batch.feed.tell(&self.pools);
        let answers = replies.len() - begun;
        if answers > 0 {
            self.metrics.answers.count(&ANSWERS_PER_TURN_BUCKETS, answers as u64);
        }
        Ok(self.next())
    }

    /// Plays what goes over from the last turn and then what is asked; true when time ended
    /// something.
    fn play(
        &mut self,
        asked: &mut VecDeque<(CallId, Request)>,
        replies: &mut Vec<(CallId, Reply)>,
    ) -> bool {
        // Also while the clocks that decide stand still nobody settles for ever.
        let now_us = self.unheld_us;
        let mut ended_by_time = false;
        let mut budget = self.budget();
        let (looked_up, late) = (self.looked_up.len(), self.late.len());
        let owed = looked_up + late;
        let room = self.room();
        let lags = self.carrier_lags();
        for played in 0..TURN_MAX.max(owed) {
            let next = if played < looked_up {
                self.looked_up.pop_front()
            } else if played < owed {
                self.late.pop_front()
            } else {
                asked.pop_front().map(|asked| QueuedRequest::new(asked, now_us))
            };
            let Some(turned) = next else { break };
            if self.has_left(turned.call_id, &turned.request, played < owed, replies) {
                continue;
            }
            let call_id = turned.call_id;
            let turned = match self.admit(turned, room, lags) {
                Admission::Parked => continue,
                Admission::Play(turned) => turned,
                Admission::Answered(reply) => {
                    replies.push((call_id, reply));
                    continue;
                }
            };
            let mut step = step(self.now, &mut *self.random, &mut self.batch);
            step.budget = budget;
            let gone = turned.looked_up.and_then(|looked_up| looked_up.gone);
            let asked = (call_id.waiter_id(), &turned.request, gone);
            let reply = turn::play(&mut self.pools, &mut step, asked, &mut self.gone);
            budget = step.budget;
            ended_by_time |= step.ended_by_time;
            self.hand_out(replies);
            match reply {
                Some(reply)
                    if turn::is_settling(&reply) && now_us - turned.since_us < SETTLE_MAX_US =>
                {
                    self.late.push_back(QueuedRequest { looked_up: None, ..turned });
                }
                reply => replies.extend(reply.map(|reply| (call_id, reply))),
            }
            if self.batch.bytes().len() >= BATCH_FULL && played + 1 >= owed {
                break;
            }
        }
        if self.late.is_empty() {
            self.left.clear();
        }
        if self.turns_away {
            self.cancel_all_waits(&RequestError::ShuttingDown, replies);
        }
        ended_by_time
    }

    /// Ends by time that may be played: none where they could not be remembered, though they were
    /// due before the clocks stood still.
    fn budget(&self) -> u32 {
        if self.room() > DiskSpace::Full { expire_max() } else { 0 }
    }

    fn begin_step(&mut self) {
        // With no room left to remember a purge or that a deadline has passed, none may pass: both
        // clocks stand still.
        let remembers = self.room() > DiskSpace::Full;
        let now = self.times.now(remembers);
        let lease_us = if remembers { now.lease_us } else { self.now.lease_us };
        self.held = !remembers;
        self.pools.set_clocks_frozen(self.held);
        self.unheld_us = now.lease_us;
        // What is shown of a lease stands still with it.
        let wall_us = now.wall_us.saturating_sub(now.lease_us - lease_us);
        self.now = Now { lease_us, wall_us, ..now };
        let checkpointed = self.taken_over();
        let current = self.journal.as_ref().map_or(Lsn(u64::MAX), Journal::next_lsn);
        self.pools.set_positions(JournalPositions { current, checkpointed });
        self.batch.begin(self.now);
    }

    /// Makes the batch durable: always where it has records, and where `clock_matters`, since an
    /// answer then rests on a deadline that has passed.
    fn commit(&mut self, clock_matters: bool) -> Result<(), CommitError> {
        let mut records = self.batch.bytes();
        if records.is_empty() && (!clock_matters || enabled(Sabotage::ForgetTheClock)) {
            return Ok(());
        }
        if let Some(journal) = &mut self.journal {
            let stamp = Stamp { lease_us: self.now.lease_us, counters: self.pools.counters() };
            let begun_us = self.times.stopwatch_us();
            if enabled(Sabotage::HalfBatch)
                && let Ok((_, rest)) = record::read(records, stamp.lease_us)
            {
                journal.commit(&records[..records.len() - rest.len()], stamp)?;
                records = rest;
            }
            journal.commit(records, stamp)?;
            let took_us = self.times.stopwatch_us().saturating_sub(begun_us);
            self.metrics.commit_us.count(&COMMIT_BUCKETS_US, took_us);
            self.unproven = !records.is_empty();
            self.committed_us = self.now.lease_us;
        }
        Ok(())
    }

    fn proof_is_due(&self) -> bool {
        self.unproven && self.now.lease_us - self.committed_us >= PROVE_AFTER_US
    }

    /// Writes an empty batch, whose frame proves the one before it.
    fn prove(&mut self) -> Result<(), CommitError> {
        self.begin_step();
        self.commit(true)
    }

    /// Remembers a clean stop: the next start goes on with the next token.
    pub fn close(&mut self) -> Result<(), CommitError> {
        self.begin_step();
        let next_token = self.pools.next_token();
        FactSink::record(&mut self.batch, &Fact::Stopped { next_token });
        self.commit(true)
    }

    fn next(&self) -> NextWakeup {
        let NextDue { lease_us: back, serving_us: purge } = self.pools.next_due();
        // Where the clocks stand still no deadline comes nearer.
        let remembers = self.room() > DiskSpace::Full;
        let back = back.filter(|_| remembers).map(|at| at.saturating_sub(self.now.lease_us));
        let life = purge.filter(|_| remembers).map(|at| at.saturating_sub(self.now.serving_us));
        let starved = self.journal.as_ref().is_some_and(Journal::is_starved);
        let retry = starved.then_some(RETRY_US);
        let owed = !self.late.is_empty() || !self.looked_up.is_empty();
        let over = (owed || self.dropping.is_some()).then_some(0);
        let proof_at = self.committed_us + PROVE_AFTER_US;
        let proof = self.unproven.then(|| proof_at.saturating_sub(self.now.lease_us));
        let due = [back, life, over, proof, retry];
        NextWakeup { due_in_us: due.into_iter().flatten().min(), counts_serving: purge.is_some() }
    }

    /// Requests that have been taken and are not answered yet, those in line aside.
    pub fn late(&self) -> usize {
        self.late.len() + self.parked.len() + self.looked_up.len()
    }

    /// Takes the removed pools, whose memory takes O(n) to free.
    pub fn take_deleted_pools(&mut self) -> Vec<Pool> {
        std::mem::take(&mut self.gone)
    }

    /// What is counted of this work.
    pub fn metrics(&self) -> Arc<EngineMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The pools, to be looked at.
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

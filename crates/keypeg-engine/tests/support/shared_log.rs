//! The log of one shard in memory, as all its servers see it, and replicas of the shard.
//!
//! An append succeeds only behind the whole log: a server that has not read the last batch is
//! fenced. An append can be made to get lost, or to stand although its server gets an error.

use super::{ManualClock, SMALL_JOURNAL, SMALL_SEGMENT, SeededRandom};
use keypeg_engine::backup::Backup;
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{EngineState, JournalSizes};
use keypeg_engine::{CommitLog, LogBatch, Replica, ReplicaConfig, ReplicaError, ShardIdentity};
use std::io;
use std::sync::{Arc, Mutex};

/// What happens to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stands if it is behind the whole log.
    Decided,
    /// It does not arrive, and its server gets an error.
    Lost,
    /// It stands, and its server gets an error.
    Unanswered,
}

/// The batches of a shard, and the newest snapshot.
#[derive(Clone, Default)]
pub(crate) struct SharedLog(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    batches: Vec<(u64, Vec<u8>)>,
    fate: Option<Fate>,
    /// A backup of the shard, and how many batches it contains.
    snapshot: Option<(Vec<u8>, usize)>,
}

impl SharedLog {
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().batches.len()
    }

    /// Sets what happens to the next append.
    pub(crate) fn set_fate(&self, fate: Fate) {
        self.0.lock().unwrap().fate = Some(fate);
    }

    /// Returns the lease time of the last batch.
    pub(crate) fn last_clock_us(&self) -> u64 {
        self.0.lock().unwrap().batches.last().map_or(0, |(lease_us, _)| *lease_us)
    }

    /// Returns the end of the log for a server that has read so many batches.
    pub(crate) fn writer(&self, read: usize) -> Box<dyn CommitLog> {
        Box::new(Writer { log: self.clone(), next: read })
    }

    pub(crate) fn batch(&self, index: usize) -> Option<(u64, Vec<u8>)> {
        self.0.lock().unwrap().batches.get(index).cloned()
    }

    pub(crate) fn put_snapshot(&self, bytes: Vec<u8>, batches: usize) {
        self.0.lock().unwrap().snapshot = Some((bytes, batches));
    }

    pub(crate) fn snapshot(&self) -> Option<(Vec<u8>, usize)> {
        self.0.lock().unwrap().snapshot.clone()
    }
}

struct Writer {
    log: SharedLog,
    /// How many batches this server has read and appended.
    next: usize,
}

impl CommitLog for Writer {
    fn append(&mut self, batch: LogBatch<'_>) -> io::Result<()> {
        let mut state = self.log.0.lock().unwrap();
        let fate = state.fate.take().unwrap_or(Fate::Decided);
        if fate == Fate::Lost {
            return Err(io::Error::other("the append was lost"));
        }
        if state.batches.len() != self.next {
            return Err(io::Error::other("another server has appended"));
        }
        state.batches.push((batch.lease_us, batch.records.to_vec()));
        self.next += 1;
        if fate == Fate::Unanswered { Err(io::Error::other("no answer")) } else { Ok(()) }
    }
}

/// A replica, and how many batches of the log it has read.
pub(crate) struct Follower {
    pub(crate) replica: Replica,
    pub(crate) read: usize,
}

pub(crate) fn replica_config() -> ReplicaConfig {
    ReplicaConfig {
        shard: 0,
        max_keys: 1_000_000,
        memory: u64::MAX,
        memory_max: u64::MAX,
        cache: 4 << 20,
        sizes: JournalSizes { segment: SMALL_SEGMENT, journal: SMALL_JOURNAL },
        seal: None,
        on_a_thread: false,
        metrics: Arc::default(),
    }
}

impl Follower {
    /// Begins at the newest snapshot, or at the beginning of the log.
    pub(crate) fn begin(
        log: &SharedLog,
        identity: &ShardIdentity,
        disk: Arc<dyn Disk>,
        config: &ReplicaConfig,
    ) -> Result<Self, ReplicaError> {
        let mut random = SeededRandom(3);
        let (replica, read) = match log.snapshot() {
            None => (Replica::create(disk, identity, config, &mut random)?, 0),
            Some((bytes, read)) => {
                let mut snapshot = &bytes[..];
                let replica =
                    Replica::from_snapshot(disk, identity, &mut snapshot, config, &mut random)?;
                (replica, read)
            }
        };
        Ok(Self { replica, read })
    }

    /// Applies all batches that the log contains by now.
    pub(crate) fn follow(&mut self, log: &SharedLog) -> Result<(), ReplicaError> {
        while let Some((lease_us, records)) = log.batch(self.read) {
            self.replica.apply(LogBatch { lease_us, records: &records })?;
            self.read += 1;
        }
        Ok(())
    }

    /// Takes the shard over, if the log ends where this replica has read to.
    pub(crate) fn take_over(
        self,
        log: &SharedLog,
        clock: &ManualClock,
        seed: u64,
        policy: keypeg_core::Policy,
    ) -> Result<Owner, ReplicaError> {
        let random = Box::new(SeededRandom(seed));
        let writer = log.writer(self.read);
        let clock = Box::new(clock.clone());
        let mut engine = self.replica.take_over(writer, clock, random, Some(policy))?;
        let checkpointer = engine.take_checkpointer();
        Ok(Owner { engine, checkpointer })
    }
}

/// The engine of a shard that this server owns.
pub(crate) struct Owner {
    pub(crate) engine: EngineState,
    pub(crate) checkpointer: Option<Checkpointer>,
}

/// Takes a snapshot of a shard: runs turns by `turn` until the backup is ready, and returns its
/// bytes and how many batches of the log it contains.
pub(crate) fn take_snapshot(
    engine: &mut EngineState,
    checkpointer: &mut Checkpointer,
    log: &SharedLog,
    mut turn: impl FnMut(&mut EngineState),
) -> (Vec<u8>, usize) {
    let mut backup: Backup = engine.begin_backup().unwrap().unwrap();
    while !backup.prepare().unwrap() {
        turn(engine);
        checkpointer.serve_backup();
        checkpointer.step().unwrap();
    }
    let behind = engine.last_batch().unwrap().0 - backup.through().unwrap().0;
    let contained = log.len() - usize::try_from(behind).unwrap();
    let mut bytes = Vec::new();
    backup
        .write(|piece| {
            bytes.extend_from_slice(&piece);
            Ok(())
        })
        .unwrap();
    (bytes, contained)
}

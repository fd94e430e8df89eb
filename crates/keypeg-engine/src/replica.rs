//! A replica of a shard: it follows the shard's log, batch by batch, so that it can take the shard
//! over.
//!
//! Its pools are a replay that goes on; its files are scratch, from which the checkpointer builds the
//! key set and backups are read, and which no start trusts. It neither reads the log nor decides who
//! owns the shard: its caller passes it what the log contains, and the log decides at the takeover.

mod identity;

use crate::checkpointer::{Checkpointer, CheckpointerOptions};
use crate::clock::{Clock, ClockReading};
use crate::commit_log::{CommitLog, LogBatch};
use crate::disk::Disk;
use crate::frame::{SegmentHead, SegmentNumber};
use crate::journal::{FreshSegment, Journal, Stamp};
use crate::keyset::KeySetDb;
use crate::progress::CheckpointProgress;
use crate::published::PublishedBytes;
use crate::record::{RecordError, RecordReader};
use crate::recover;
use crate::restore::{RestoreError, read_into};
use crate::rotation::SealControl;
use crate::seal::{Installation, SealOptions};
use crate::start::{StartError, io};
use crate::state::{EngineState, JournalSizes, Takeover, limits_of};
use crate::times::{LastClock, Times};
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{Checkpointed, Lsn, Policy, Pools, RandomSource, ReplayError, Replayer};
use keypeg_store::StoreMetrics;
use std::io::Read;
use std::sync::Arc;

pub use identity::{SHARDS_MAX, ShardIdentity};

/// The options of a replica.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// The number of the shard, below [`SHARDS_MAX`].
    pub shard: u16,
    /// The most keys of the shard.
    pub max_keys: u64,
    /// The most bytes of the pools of all shards of the server.
    pub memory: u64,
    /// Data that needs more bytes is refused.
    pub memory_max: u64,
    /// Bytes of pages that the database keeps in memory at most.
    pub cache: usize,
    /// The sizes of the scratch files of the journal.
    pub sizes: JournalSizes,
    /// The seal keys; `None` for an installation that is not sealed.
    pub seal: Option<SealOptions>,
    /// Whether a thread creates the scratch segments; otherwise, for tests, each batch does.
    pub on_a_thread: bool,
    /// The counters of all shards of the server.
    pub metrics: Arc<StoreMetrics>,
}

/// Why a replica cannot follow its shard.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The scratch directory, the identity or the memory of the server.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] RestoreError),
    /// A batch contradicts the batches before it: the log is damaged, or it is not that of this
    /// shard.
    #[error("batch {number} after the snapshot contradicts the batches before it: {why}")]
    Contradiction {
        /// The number of the batch: 1 for the first one after the snapshot.
        number: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// The scratch files cannot be written.
    #[error("cannot write the scratch files: {0}")]
    Scratch(#[from] std::io::Error),
}

/// A shard as the batches so far left it.
pub struct Replica {
    disk: Arc<dyn Disk>,
    installation: Installation,
    control: Option<Arc<SealControl>>,
    sizes: JournalSizes,
    replayer: Replayer,
    records: RecordReader,
    journal: Journal,
    checkpointer: Checkpointer,
    progress: Arc<CheckpointProgress>,
    /// Lease time of the last batch.
    lease_us: u64,
    /// The position, in the scratch files, of the last batch of the snapshot.
    base: Lsn,
    published: PublishedBytes,
}

/// What a replica begins with, before its files are open.
struct Beginning {
    installation: Installation,
    control: Option<Arc<SealControl>>,
}

impl Replica {
    /// Creates the replica of a shard whose log is empty, in an empty scratch directory. O(1).
    pub fn create(
        disk: Arc<dyn Disk>,
        identity: &ShardIdentity,
        config: &ReplicaConfig,
        random: &mut dyn RandomSource,
    ) -> Result<Self, ReplicaError> {
        let beginning = begin(&disk, identity, config, random)?;
        let replayer = new_replay(identity, config, &beginning.installation);
        let counters = replayer.pools().counters();
        let head = SegmentHead {
            installation: beginning.installation.id,
            segment: SegmentNumber::FIRST,
            starts_at: Lsn(1),
            synced_through: Lsn(0),
            starts: 1,
            boot_id: 0,
            boot_us: 0,
            lease_us: 0,
            counters,
        };
        let segment_len = config.sizes.segment;
        let fresh =
            FreshSegment { segment_len, head, unproven: &[], counters, preallocated_len: None };
        let journal = Journal::begin(&disk, fresh)?;
        let keyset = KeySetDb::open(&*disk, &beginning.installation, config.cache)
            .map_err(StartError::from)?;
        let parts = (replayer, journal, keyset, SegmentNumber::FIRST, 0);
        Self::assemble(disk, beginning, config, parts)
    }

    /// Creates a replica from a snapshot, which is a backup of the shard, in an empty scratch
    /// directory. O(keys).
    pub fn from_snapshot(
        disk: Arc<dyn Disk>,
        identity: &ShardIdentity,
        snapshot: &mut dyn Read,
        config: &ReplicaConfig,
        random: &mut dyn RandomSource,
    ) -> Result<Self, ReplicaError> {
        let beginning = begin(&disk, identity, config, random)?;
        let installation = &beginning.installation;
        let original = read_into(&disk, installation.id, snapshot)?;
        if original != installation.id {
            let why = "the snapshot belongs to another installation".to_owned();
            return Err(StartError::Corrupt(why).into());
        }
        let keyset = KeySetDb::open(&*disk, installation, config.cache);
        let keyset = keyset.map_err(StartError::from)?;
        let begun = new_replay(identity, config, installation);
        let replayed = recover::replay(&*disk, installation, begun, config.memory_max, &keyset)?;
        let (checkpointed, lease_us) = (replayed.checkpointed, replayed.last.lease_us);
        let reading = ClockReading { boot_us: 0, boot_id: 0, wall_us: 0 };
        let (journal, mut replay) =
            replayed.resume(&disk, config.sizes.segment, reading, lease_us)?;
        replay.set_truncated();
        let segment = journal.segment_with(checkpointed);
        let parts = (replay, journal, keyset, segment, lease_us);
        Self::assemble(disk, beginning, config, parts)
    }

    fn assemble(
        disk: Arc<dyn Disk>,
        beginning: Beginning,
        config: &ReplicaConfig,
        parts: (Replayer, Journal, KeySetDb, SegmentNumber, u64),
    ) -> Result<Self, ReplicaError> {
        let (replayer, mut journal, keyset, segment, lease_us) = parts;
        let Beginning { installation, control } = beginning;
        let options = CheckpointerOptions {
            disk: Arc::clone(&disk),
            keyset,
            installation: installation.clone(),
            segment,
        };
        let checkpointer = Checkpointer::new(options).map_err(StartError::from)?;
        let progress = checkpointer.progress();
        journal.set_progress(Arc::clone(&progress));
        journal.start_preallocation(config.on_a_thread)?;
        let published = PublishedBytes::new(Arc::clone(&config.metrics));
        Ok(Self {
            disk,
            control,
            sizes: config.sizes,
            replayer,
            records: RecordReader::new(installation.seal.clone()),
            installation,
            base: journal.lsn(),
            journal,
            checkpointer,
            progress,
            lease_us,
            published,
        })
    }

    /// Returns how many batches were applied since the replica began.
    pub fn applied(&self) -> u64 {
        self.journal.lsn().0 - self.base.0
    }

    /// Returns the pools as the batches so far left them. What is due by time is not ended in them,
    /// so a replica that follows for long takes more memory than its engine would: its owner makes a
    /// new one from a newer snapshot now and then.
    pub fn pools(&self) -> &Pools {
        self.replayer.pools()
    }

    /// Returns whether the last batch says that the engine has stopped: no server owns the shard then.
    pub fn is_stopped(&self) -> bool {
        self.replayer.is_stopped()
    }

    /// Returns the checkpointer, which the owner of the replica steps now and then.
    pub fn checkpointer(&mut self) -> &mut Checkpointer {
        &mut self.checkpointer
    }

    /// Counts the bytes of the pools for the other shards of this server, and returns them. O(pools).
    pub fn count_bytes(&mut self) -> u64 {
        let bytes = self.replayer.count_all_bytes();
        self.published.set(bytes);
        bytes
    }

    /// Applies the next batch of the log. After an error the replica must not be used any more.
    pub fn apply(&mut self, batch: LogBatch<'_>) -> Result<(), ReplicaError> {
        let LogBatch { lease_us, records } = batch;
        self.replayer.set_position(self.journal.next_lsn());
        let number = self.applied() + 1;
        let contradiction = |why| ReplicaError::Contradiction { number, why };
        if lease_us < self.lease_us {
            return Err(contradiction("its clock is behind"));
        }
        let mut rest = records;
        while !rest.is_empty() {
            let fact;
            (fact, rest) =
                self.records.read(rest, lease_us).map_err(|RecordError(why)| contradiction(why))?;
            let applied = self.replayer.apply(&fact, Checkpointed::No);
            applied.map_err(|ReplayError(why)| contradiction(why))?;
        }
        self.lease_us = lease_us;
        let counters = self.replayer.pools().counters();
        self.journal.write(records, Stamp { lease_us, counters })?;
        self.journal.maintain(lease_us)?;
        if self.journal.bytes() > self.sizes.journal / 2
            && let Some(through) = self.journal.droppable_through(self.progress.checkpointed())
        {
            self.journal.drop_through(through)?;
        }
        Ok(())
    }

    /// Takes the shard over: appends an empty batch behind all that was applied, and returns the
    /// engine once it stands. Every key has its full keep-alive time again, leases continue where the
    /// last batch left them, and `default_policy` is that of the default pool, in the shard that has
    /// it. O(keys).
    ///
    /// If another server has appended meanwhile, the log refuses the batch, and nothing has changed.
    pub fn take_over(
        self,
        log: Box<dyn CommitLog>,
        mut clock: Box<dyn Clock>,
        random: Box<dyn RandomSource + Send>,
        default_policy: Option<Policy>,
    ) -> Result<EngineState, ReplicaError> {
        let reading = clock.read();
        // The clock of another machine never counts, and this one's may have been stopped.
        let boot_id =
            if enabled(Sabotage::CountForeignClock) { reading.boot_id } else { !reading.boot_id };
        let last = LastClock { boot_id, boot_us: 0, lease_us: self.lease_us };
        let mut times = Times::resume(clock, reading, Some(last));
        let now = times.now(true);
        let takeover = Takeover {
            pools: self.replayer.finish(now),
            journal: self.journal,
            checkpointer: self.checkpointer,
            disk: self.disk,
            installation: self.installation,
            control: self.control,
            sizes: self.sizes,
            log,
            published: self.published,
            default_policy,
        };
        Ok(EngineState::take_over(takeover, times, random)?)
    }
}

/// Begins the replay of a shard: no replica has lower numbers than those of the identity.
fn new_replay(
    identity: &ShardIdentity,
    config: &ReplicaConfig,
    installation: &Installation,
) -> Replayer {
    let limits = limits_of(config.max_keys, config.memory);
    let mut replayer = Replayer::new(installation.ids.clone(), limits, identity.first_token());
    assert!(config.shard < identity.shards(), "a shard of this installation");
    // No two shards give a pool the same number, so ids of keys, leases and pages never collide.
    replayer.set_pool_block(config.shard);
    replayer.set_token_class(config.shard, identity.shards());
    replayer
}

/// Writes the identity into the scratch directory and opens its seal.
fn begin(
    disk: &Arc<dyn Disk>,
    identity: &ShardIdentity,
    config: &ReplicaConfig,
    random: &mut dyn RandomSource,
) -> Result<Beginning, ReplicaError> {
    if !disk.list()?.is_empty() {
        let why = "the scratch directory of a shard is not empty".to_owned();
        return Err(StartError::Corrupt(why).into());
    }
    let (meta, unlocked) = identity.unlock(config.seal.as_ref(), random)?;
    meta.replace(&**disk).map_err(io("writing meta"))?;
    let control = unlocked
        .secrets
        .and_then(|secrets| SealControl::of(Arc::clone(disk), &meta, secrets))
        .map(Arc::new);
    Ok(Beginning { installation: unlocked.installation, control })
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("journal", &self.journal).finish_non_exhaustive()
    }
}

//! The running engine of a shard: it serves the lanes of its thread until another server owns the
//! shard, or it hands the shard over. Its end ends neither the thread nor the process.
//!
//! It does not know how a server becomes the owner. Invariant: after its end no reply leaves that
//! it has not made durable, and no request is left without a reply.

use crate::backup::{Backup, EngineBackups};
use crate::checkpointer::Checkpointer;
use crate::progress::CheckpointProgress;
use crate::state::{CommitError, EngineState};
use crate::thread::{LaneEnd, Run, Signals};
use keypeg_core::Lsn;
use keypeg_store::{BackupRefused, BackupSource, EngineLane, Reply, RequestError, Wakeup};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// How the engine of a shard has ended.
#[derive(Debug)]
pub enum ShardEnd {
    /// It has handed the shard over: its last frame says that no server owns it.
    Released,
    /// It could not append a frame: another server owns the shard, or the log cannot be reached.
    Lost(CommitError),
}

/// What the thread of a shard shares with those who end its engine or back it up.
#[derive(Clone)]
pub struct ShardControl {
    stopping: Arc<AtomicBool>,
    wakeup: Wakeup,
    backups: Option<Arc<EngineBackups>>,
}

impl ShardControl {
    /// Asks the engine to hand the shard over. What waits in line is refused at once.
    pub fn hand_over(&self) {
        if let Some(backups) = &self.backups {
            backups.close();
        }
        self.stopping.store(true, Ordering::Release);
        self.wakeup.notify();
    }

    /// Returns the source of the shard's backups.
    pub fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        self.backups.clone().map(|backups| backups as Arc<dyn BackupSource>)
    }

    /// Passes a backup of the shard to `send`, piece by piece: what a snapshot of its log contains.
    /// `begin` gets the position, in the engine's own files, of the last batch that it holds, and
    /// returns what `send` writes to. O(keys); blocks.
    pub fn copy<W>(
        &self,
        begin: impl FnOnce(Lsn) -> Result<W, BackupRefused>,
        mut send: impl FnMut(&mut W, &[u8]) -> Result<(), BackupRefused>,
    ) -> Result<W, BackupRefused> {
        let parts = self.backups.as_ref().expect("invariant: a shard has files").parts();
        let mut backup = Backup::begin(parts.clone(), None)?;
        while !backup.prepare()? {
            parts.desk.wait();
        }
        let mut writer = begin(backup.through().expect("invariant: it is prepared"))?;
        backup.write(|bytes| send(&mut writer, &bytes))?;
        Ok(writer)
    }
}

impl fmt::Debug for ShardControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardControl")
    }
}

/// The engine of a shard that this server owns, with the thread of its checkpointer.
pub struct ShardEngine {
    state: EngineState,
    control: ShardControl,
    progress: Arc<CheckpointProgress>,
    checkpointer: JoinHandle<()>,
}

impl ShardEngine {
    /// Starts the engine of a shard that was taken over. `wakeup` is that of the shard's lanes.
    ///
    /// # Panics
    /// If the checkpointer was taken already.
    pub fn start(mut state: EngineState, wakeup: &Wakeup) -> io::Result<Self> {
        let backups = state.backup_parts().map(|parts| Arc::new(EngineBackups(parts)));
        let control = ShardControl { stopping: Arc::default(), wakeup: wakeup.clone(), backups };
        let progress = state.progress();
        let checkpointer = state.take_checkpointer().expect("invariant: not taken before");
        let checkpointer = spawn_checkpointer(checkpointer, control.clone())?;
        Ok(Self { state, control, progress, checkpointer })
    }

    /// Returns what can end it or back it up from another thread.
    pub fn control(&self) -> ShardControl {
        self.control.clone()
    }

    /// Returns the position of the last batch in the engine's own files.
    pub fn last_batch(&self) -> Lsn {
        self.state.last_batch().expect("invariant: a shard has files")
    }

    /// Serves the lanes until the shard is handed over or lost. Then every request is answered, and
    /// the lanes refuse what follows; `on_end` is called as soon as that is so.
    pub fn run(self, lanes: &mut Vec<EngineLane>, on_end: impl FnOnce(&ShardEnd)) -> ShardEnd {
        let Self { state, control, progress, checkpointer } = self;
        lanes.iter_mut().for_each(EngineLane::remember_taken);
        let signals = Signals {
            wakeup: control.wakeup.clone(),
            lookups: Some(state.wakeup()),
            requests: None,
            cancels_waits: Arc::clone(&control.stopping),
            stopping: control.stopping,
        };
        let mut run = Run::new(state, std::mem::take(lanes), signals, LaneEnd::Kept);
        let end = run.run().map_or_else(ShardEnd::Lost, |()| ShardEnd::Released);
        *lanes = std::mem::take(&mut run.lanes);
        for lane in lanes {
            lane.fail_taken(&Reply::Refused(RequestError::OutcomeUnknown));
            lane.refuse(&RequestError::NotOwner);
        }
        on_end(&end);
        if let Some(backups) = control.backups {
            backups.close();
        }
        progress.stopping.store(true, Ordering::Release);
        checkpointer.thread().unpark();
        drop(run);
        checkpointer.join().expect("invariant: a panic of the checkpointer aborts");
        end
    }
}

/// Starts the thread of the checkpointer. If it cannot go on, the shard is handed over: the files
/// are scratch, and no change depends on them.
fn spawn_checkpointer(
    checkpointer: Checkpointer,
    control: ShardControl,
) -> io::Result<JoinHandle<()>> {
    let run = move || {
        if let Err(error) = checkpointer.run() {
            tracing::error!(%error, "the scratch files of a shard cannot be written: the shard is \
                handed over");
            control.hand_over();
        }
    };
    std::thread::Builder::new().name("keypeg-checkpt".into()).spawn(run)
}

impl fmt::Debug for ShardEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardEngine").field("state", &self.state).finish_non_exhaustive()
    }
}

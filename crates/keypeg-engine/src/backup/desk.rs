//! What the threads of a backup share: the backup's own thread asks the engine for a ticket and the
//! checkpointer for a snapshot of the key set, and waits for both. One backup runs at a time.
//!
//! The engine looks at one atomic number in each turn, and takes the lock only while a backup
//! begins. It never waits for a backup.

use super::channel::ByteChannel;
use crate::frame::SegmentNumber;
use crate::keyset::KeySetSnapshot;
use keypeg_core::Lsn;
use keypeg_store::{BackupRefused, Wakeup};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

/// What the engine knows when it has written all that a backup needs to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// From this position on, the journal contains every lease, rest and stored answer.
    pub(crate) first: Lsn,
    /// The first segment that the engine keeps for the backup.
    pub(crate) segment: SegmentNumber,
    /// Starts of the server so far.
    pub(crate) starts: u64,
    /// Wall time in milliseconds.
    pub(crate) wall_ms: u64,
}

/// What a backup needs from the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineTask {
    /// Nothing.
    None,
    /// A ticket.
    WriteTicket,
    /// The segments since its ticket must stay.
    KeepSegments,
}

const NONE: u8 = 0;
const WRITE_TICKET: u8 = 1;
const KEEP_SEGMENTS: u8 = 2;

/// The requests of the running backup, and what it got.
#[derive(Debug)]
pub(crate) struct BackupDesk {
    /// The number of an [`EngineTask`].
    engine_task: AtomicU8,
    state: Mutex<DeskState>,
    changed: Condvar,
    engine: Wakeup,
    checkpointer: OnceLock<Thread>,
}

#[derive(Default)]
struct DeskState {
    is_running: bool,
    is_closed: bool,
    ticket: Option<Ticket>,
    wants_snapshot: bool,
    snapshot: Option<KeySetSnapshot>,
    /// Why the running backup must end.
    failure: Option<BackupRefused>,
    /// Where its bytes go, so that a stop can end the wait of its thread.
    output: Option<Arc<ByteChannel>>,
}

impl BackupDesk {
    /// Creates the desk; `engine` wakes the engine's thread.
    pub(crate) fn new(engine: Wakeup) -> Self {
        Self {
            engine_task: AtomicU8::new(NONE),
            state: Mutex::default(),
            changed: Condvar::new(),
            engine,
            checkpointer: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, DeskState> {
        // Each field is replaced as a whole: a poisoned lock is safe to use.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side of the backup.
impl BackupDesk {
    /// Begins a backup, unless one runs.
    pub(super) fn begin(&self, output: Option<Arc<ByteChannel>>) -> Result<(), BackupRefused> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(BackupRefused::ShuttingDown);
        }
        if state.is_running {
            return Err(BackupRefused::Running);
        }
        *state = DeskState { is_running: true, output, ..DeskState::default() };
        self.engine_task.store(WRITE_TICKET, Ordering::Release);
        drop(state);
        self.engine.notify();
        Ok(())
    }

    /// Takes the ticket if the engine has written it.
    pub(super) fn take_ticket(&self) -> Result<Option<Ticket>, BackupRefused> {
        let mut state = self.lock();
        state.failure.clone().map_or(Ok(()), Err)?;
        Ok(state.ticket.take())
    }

    /// Asks the checkpointer for a snapshot.
    pub(super) fn request_snapshot(&self) {
        self.lock().wants_snapshot = true;
        if let Some(checkpointer) = self.checkpointer.get() {
            checkpointer.unpark();
        }
    }

    /// Takes the snapshot if the checkpointer has begun it.
    pub(super) fn take_snapshot(&self) -> Result<Option<KeySetSnapshot>, BackupRefused> {
        let mut state = self.lock();
        state.failure.clone().map_or(Ok(()), Err)?;
        Ok(state.snapshot.take())
    }

    /// Waits until a ticket or a snapshot can be taken, or the backup must end.
    pub(crate) fn wait(&self) {
        let waits = |state: &mut DeskState| {
            state.ticket.is_none() && state.snapshot.is_none() && state.failure.is_none()
        };
        drop(self.changed.wait_while(self.lock(), waits));
    }

    /// Returns an error if the backup must end.
    pub(super) fn check(&self) -> Result<(), BackupRefused> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Lets the engine delete segments again: the journal has been read.
    pub(super) fn free_segments(&self) {
        self.engine_task.store(NONE, Ordering::Release);
    }

    /// Ends the backup, whether it is complete or not.
    pub(super) fn end(&self) {
        self.free_segments();
        let mut state = self.lock();
        let is_closed = state.is_closed;
        *state = DeskState { is_closed, ..DeskState::default() };
    }
}

/// The side of the engine and the checkpointer.
impl BackupDesk {
    /// Returns what the backup needs from the engine. O(1), without a lock.
    #[inline]
    pub(crate) fn engine_task(&self) -> EngineTask {
        match self.engine_task.load(Ordering::Acquire) {
            WRITE_TICKET => EngineTask::WriteTicket,
            KEEP_SEGMENTS => EngineTask::KeepSegments,
            _ => EngineTask::None,
        }
    }

    /// Gives the backup its ticket; the engine keeps the segments from now on. Returns false if the
    /// backup has ended.
    pub(crate) fn give_ticket(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        if !state.is_running || state.failure.is_some() {
            return false;
        }
        state.ticket = Some(ticket);
        self.engine_task.store(KEEP_SEGMENTS, Ordering::Release);
        self.changed.notify_all();
        true
    }

    /// Returns whether the backup waits for a snapshot, and takes the request.
    pub(crate) fn take_snapshot_request(&self) -> bool {
        std::mem::take(&mut self.lock().wants_snapshot)
    }

    /// Gives the backup its snapshot.
    pub(crate) fn give_snapshot(&self, snapshot: KeySetSnapshot) {
        let mut state = self.lock();
        if state.is_running && state.failure.is_none() {
            state.snapshot = Some(snapshot);
        }
        self.changed.notify_all();
    }

    /// Ends the running backup, if there is one.
    pub(crate) fn fail(&self, why: BackupRefused) {
        let mut state = self.lock();
        self.engine_task.store(NONE, Ordering::Release);
        if state.is_running && state.failure.is_none() {
            (state.ticket, state.snapshot) = (None, None);
            if let Some(output) = &state.output {
                output.fail(why.clone());
            }
            state.failure = Some(why);
        }
        self.changed.notify_all();
    }

    /// Ends the running backup and refuses further ones, because the server stops.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.fail(BackupRefused::ShuttingDown);
    }

    /// Registers the current thread as the one that begins snapshots.
    pub(crate) fn listen(&self) {
        self.checkpointer.get_or_init(std::thread::current);
    }
}

impl std::fmt::Debug for DeskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeskState")
            .field("is_running", &self.is_running)
            .field("ticket", &self.ticket)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_ends_its_backup_and_begins_no_further_one() {
        for is_running in [true, false] {
            let desk = BackupDesk::new(Wakeup::default());
            if is_running {
                assert_eq!(desk.begin(None), Ok(()));
                assert_eq!(desk.begin(None), Err(BackupRefused::Running));
            }
            desk.close();
            assert_eq!(desk.engine_task(), EngineTask::None);
            if is_running {
                assert_eq!(desk.check(), Err(BackupRefused::ShuttingDown));
                desk.end();
            }
            assert_eq!(desk.begin(None), Err(BackupRefused::ShuttingDown));
        }
    }
}

//! A thread that makes the bytes of backups, one at a time, and the stop that ends it.
//!
//! It does not know what the bytes mean.

use super::channel::{ByteChannel, ByteReader};
use keypeg_store::{BackupRefused, BackupStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the bytes of a backup go. An error ends it.
pub type SendBytes<'a> = dyn FnMut(Vec<u8>) -> Result<(), BackupRefused> + 'a;

/// Backups that a thread of their own makes, one at a time.
#[derive(Clone, Debug, Default)]
pub struct BackupThread(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    running: Option<Arc<ByteChannel>>,
}

impl BackupThread {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each field is replaced as a whole: a poisoned lock is safe to use.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a backup, whose bytes `write` makes, unless one runs.
    pub fn begin(
        &self,
        write: impl FnOnce(&mut SendBytes<'_>) -> Result<(), BackupRefused> + Send + 'static,
    ) -> Result<Box<dyn BackupStream>, BackupRefused> {
        let output = Arc::<ByteChannel>::default();
        let mut state = self.lock();
        if state.is_closed {
            return Err(BackupRefused::ShuttingDown);
        }
        if state.running.is_some() {
            return Err(BackupRefused::Running);
        }
        let (all, channel) = (self.clone(), Arc::clone(&output));
        let run = move || {
            let mut send = |bytes| {
                channel.send(bytes).map_err(|_| BackupRefused::Failed("its reader has gone".into()))
            };
            let written = catch_unwind(AssertUnwindSafe(|| write(&mut send)));
            let panicked = || Err(BackupRefused::Failed("the backup panicked".into()));
            all.lock().running = None;
            channel.finish(written.unwrap_or_else(|_| panicked()));
        };
        // Not a vital thread: a backup that fails ends only itself.
        let spawned = std::thread::Builder::new().name("keypeg-backup".into()).spawn(run);
        spawned
            .map_err(|error| BackupRefused::Failed(format!("cannot start a thread: {error}")))?;
        state.running = Some(Arc::clone(&output));
        Ok(Box::new(ByteReader(output)))
    }

    /// Ends the backup that runs, and refuses further ones, because the server stops.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        if let Some(output) = &state.running {
            output.fail(BackupRefused::ShuttingDown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};

    fn wait_for_end(stream: &mut dyn BackupStream) -> Option<BackupRefused> {
        loop {
            match stream.poll_next(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(None) => return None,
                Poll::Ready(Some(Err(why))) => return Some(why),
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Pending => std::thread::yield_now(),
            }
        }
    }

    #[test]
    fn one_backup_runs_at_a_time_and_a_stop_ends_it() {
        let thread = BackupThread::default();
        let (go, going) = mpsc::sync_channel::<()>(1);
        let mut first = thread
            .begin(move |send| {
                let _ = going.recv();
                send(vec![1])
            })
            .unwrap();
        assert_eq!(thread.begin(|_| Ok(())).err(), Some(BackupRefused::Running));
        go.send(()).unwrap();
        assert_eq!(wait_for_end(&mut *first), None);

        let mut second = thread
            .begin(|send| {
                loop {
                    send(vec![0; 10])?;
                }
            })
            .unwrap();
        thread.close();
        assert_eq!(wait_for_end(&mut *second), Some(BackupRefused::ShuttingDown));
        assert_eq!(thread.begin(|_| Ok(())).err(), Some(BackupRefused::ShuttingDown));
    }
}

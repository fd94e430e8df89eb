//! A bounded channel of bytes from the thread of a backup to an async reader.
//!
//! The thread waits while [`PIECES_MAX`] pieces are queued, so a slow reader slows the backup and
//! takes no memory. Whichever side ends first ends the other.

use keypeg_store::{BackupRefused, BackupStream};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The most pieces that are queued.
const PIECES_MAX: usize = 4;

/// The channel.
#[derive(Debug, Default)]
pub(crate) struct ByteChannel {
    queue: Mutex<Queue>,
    /// Notified when the thread can go on.
    room: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    /// How the backup ended.
    end: Option<Result<(), BackupRefused>>,
    reader_is_gone: bool,
    reader: Option<Waker>,
}

/// The reader of the channel is gone, or the backup has failed.
#[derive(Debug)]
pub(super) struct Closed;

impl ByteChannel {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is consistent where a push or a pop can panic: a poisoned lock is safe to use.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece, when there is room for it.
    pub(super) fn send(&self, piece: Vec<u8>) -> Result<(), Closed> {
        let waits = |queue: &mut Queue| {
            queue.pieces.len() >= PIECES_MAX && !queue.reader_is_gone && queue.end.is_none()
        };
        let mut queue =
            self.room.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        if queue.reader_is_gone || queue.end.is_some() {
            return Err(Closed);
        }
        queue.pieces.push_back(piece);
        wake(queue);
        Ok(())
    }

    /// Ends the channel after the pieces that are queued.
    pub(super) fn finish(&self, end: Result<(), BackupRefused>) {
        let mut queue = self.lock();
        queue.end.get_or_insert(end);
        wake(queue);
    }

    /// Ends the channel at once: the queued pieces are dropped.
    pub(super) fn fail(&self, why: BackupRefused) {
        let mut queue = self.lock();
        queue.pieces.clear();
        if !matches!(queue.end, Some(Err(_))) {
            queue.end = Some(Err(why));
        }
        self.room.notify_all();
        wake(queue);
    }
}

fn wake(mut queue: MutexGuard<'_, Queue>) {
    let reader = queue.reader.take();
    // The lock is released before the wake: a waker may run code of its executor.
    drop(queue);
    if let Some(reader) = reader {
        reader.wake();
    }
}

/// The reader's end.
#[derive(Debug)]
pub(crate) struct ByteReader(pub(super) Arc<ByteChannel>);

impl BackupStream for ByteReader {
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Vec<u8>, BackupRefused>>> {
        let mut queue = self.0.lock();
        if let Some(piece) = queue.pieces.pop_front() {
            self.0.room.notify_all();
            return Poll::Ready(Some(Ok(piece)));
        }
        match queue.end.clone() {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(why)) => Poll::Ready(Some(Err(why))),
            None => {
                queue.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for ByteReader {
    fn drop(&mut self) {
        self.0.lock().reader_is_gone = true;
        self.0.room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Arc<ByteChannel>, ByteReader) {
        let channel = Arc::<ByteChannel>::default();
        (Arc::clone(&channel), ByteReader(channel))
    }

    fn poll(reader: &mut ByteReader) -> Poll<Option<Result<Vec<u8>, BackupRefused>>> {
        reader.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn pieces_arrive_in_order_and_then_the_end() {
        let (channel, mut reader) = pair();
        assert!(poll(&mut reader).is_pending());
        channel.send(vec![1]).expect("open");
        channel.send(vec![2]).expect("open");
        channel.finish(Ok(()));
        assert_eq!(poll(&mut reader), Poll::Ready(Some(Ok(vec![1]))));
        assert_eq!(poll(&mut reader), Poll::Ready(Some(Ok(vec![2]))));
        assert_eq!(poll(&mut reader), Poll::Ready(None));
    }

    /// A client that never reads must not keep the thread of the backup, or the stop of the server.
    #[test]
    fn a_sender_that_waits_for_room_ends_when_the_reader_goes_or_the_backup_fails() {
        for fails in [false, true] {
            let (channel, mut reader) = pair();
            let sender = Arc::clone(&channel);
            let thread = std::thread::spawn(move || {
                let mut sent = 0;
                while sender.send(vec![0; 10]).is_ok() {
                    sent += 1;
                }
                sent
            });
            while poll_len(&channel) < PIECES_MAX {
                std::thread::yield_now();
            }
            if fails {
                channel.fail(BackupRefused::ShuttingDown);
                assert_eq!(poll(&mut reader), Poll::Ready(Some(Err(BackupRefused::ShuttingDown))));
            } else {
                drop(reader);
            }
            assert_eq!(thread.join().expect("no panic"), PIECES_MAX);
        }
    }

    fn poll_len(channel: &ByteChannel) -> usize {
        channel.lock().pieces.len()
    }
}

//! Segments made ready ahead: zeroed, synced and named by a thread of their own, so that a commit
//! never meets a disk that is full.
//!
//! Several are kept. When no more can be made, those left are for what gives room back: the journal
//! tells from their number what may still be asked. Also where segments that are done are removed.

use crate::core::sabotage::{Sabotage, enabled};
use crate::disk::{Disk, DiskFile};
use crate::journal::{TEMPORARY, file_name};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Segments kept ready. All but the first are kept for releases, deletions and purges.
pub(crate) const READY: usize = 3;
/// How long after a failure for want of room the next try is made, microseconds of lease time.
pub(crate) const RETRY_US: u64 = 1_000_000;
/// Orders that may wait for the thread; removals beyond stay here and are ordered later.
const ORDERS_MAX: usize = 64;

/// A segment made ready.
pub(crate) struct ReadySegment {
    pub(crate) segment: u64,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) len: u64,
}

/// The segments that are ready, and who makes more.
pub(crate) struct Preallocator {
    disk: Arc<dyn Disk>,
    segment_len: u64,
    ready: VecDeque<ReadySegment>,
    maker: Maker,
    /// Orders that have not been answered.
    pending: usize,
    /// When there was no room for the last one; tried again after a while.
    starved_us: Option<u64>,
    removals: VecDeque<u64>,
    /// The segment being written.
    last: u64,
}

/// Who makes segments ready.
enum Maker {
    /// Nobody: each is made when it is needed.
    Nobody,
    /// Whoever calls [`Preallocator::tend`]: for tests, where threads would play with random.
    Caller,
    Thread {
        orders: SyncSender<Order>,
        made: Receiver<io::Result<ReadySegment>>,
    },
}

/// What the thread does next.
enum Order {
    Make(u64, u64),
    Remove(u64),
}

impl Preallocator {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_len: u64) -> Self {
        let (ready, removals) = (VecDeque::new(), VecDeque::new());
        let maker = Maker::Nobody;
        Self { disk, segment_len, ready, maker, pending: 0, starved_us: None, removals, last: 0 }
    }

    /// Makes segments ready from now on, on a thread or in [`Preallocator::tend`].
    pub(crate) fn begin(&mut self, on_a_thread: bool) -> io::Result<()> {
        if !on_a_thread {
            self.maker = Maker::Caller;
            return Ok(());
        }
        let disk = Arc::clone(&self.disk);
        let (orders, todo) = sync_channel::<Order>(ORDERS_MAX);
        let (done, made) = sync_channel(READY);
        std::thread::Builder::new().name("keypeg-segments".into()).spawn(move || {
            // As many as the journal has segments, at most.
            let mut done_with = VecDeque::new();
            for order in todo {
                match order {
                    Order::Make(segment, len) => {
                        if done.send(ReadySegment::make(&*disk, segment, len)).is_err() {
                            return;
                        }
                    }
                    Order::Remove(segment) => {
                        done_with.push_back(segment);
                        remove_in_order(&*disk, &mut done_with);
                    }
                }
            }
        })?;
        self.maker = Maker::Thread { orders, made };
        Ok(())
    }

    /// Takes a segment in that was made ready before this start, if it follows those that are.
    pub(crate) fn adopt(&mut self, spare: ReadySegment, last: u64) {
        if spare.segment == last + 1 + self.ready.len() as u64 && spare.len >= self.segment_len {
            self.ready.push_back(spare);
        }
    }

    /// Takes in what has been made and orders more. `last` is the segment being written. An error
    /// other than want of room is final.
    pub(crate) fn tend(&mut self, last: u64, now_us: u64) -> io::Result<()> {
        self.last = last;
        while let Some(made) = self.poll()? {
            self.take_in(made, now_us)?;
        }
        let waits = self.starved_us.is_some_and(|at| now_us < at + RETRY_US);
        while !waits && self.ready.len() + self.pending < READY {
            let segment = last + 1 + (self.ready.len() + self.pending) as u64;
            match &self.maker {
                Maker::Nobody => break,
                Maker::Caller => {
                    let made = ReadySegment::make(&*self.disk, segment, self.segment_len);
                    let failed = made.is_err();
                    self.take_in(made, now_us)?;
                    if failed {
                        break;
                    }
                }
                Maker::Thread { orders, .. } => {
                    if orders.try_send(Order::Make(segment, self.segment_len)).is_err() {
                        break;
                    }
                    self.pending += 1;
                    // After a failure one at a time, until one has been made.
                    if self.starved_us.is_some() {
                        self.starved_us = Some(now_us);
                        break;
                    }
                }
            }
        }
        self.order_removals();
        Ok(())
    }

    fn poll(&mut self) -> io::Result<Option<io::Result<ReadySegment>>> {
        let Maker::Thread { made, .. } = &self.maker else { return Ok(None) };
        match made.try_recv() {
            Ok(made) => {
                self.pending -= 1;
                Ok(Some(made))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }

    fn take_in(&mut self, made: io::Result<ReadySegment>, now_us: u64) -> io::Result<()> {
        match made {
            Ok(spare) if spare.segment == self.last + 1 + self.ready.len() as u64 => {
                self.starved_us = None;
                self.ready.push_back(spare);
                Ok(())
            }
            // An order in flight behind one that failed: left there it would be a gap.
            Ok(spare) => remove(&*self.disk, spare.segment),
            Err(error) if is_full(&error) => {
                if self.starved_us.is_none() {
                    tracing::warn!("the disk is full: new keys, then leases are refused");
                }
                self.starved_us = Some(now_us);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the next segment, of at least `len` bytes; waits for the thread where one is on its
    /// way, and makes it where none is.
    pub(crate) fn take(&mut self, segment: u64, len: u64, now_us: u64) -> io::Result<ReadySegment> {
        self.last = segment - 1;
        while self.ready.is_empty() && self.pending > 0 {
            let Maker::Thread { made, .. } = &self.maker else { break };
            let made = made.recv().map_err(|_| gone())?;
            self.pending -= 1;
            self.take_in(made, now_us)?;
        }
        match self.ready.pop_front().filter(|spare| spare.segment == segment) {
            Some(spare) if spare.len >= len => Ok(spare),
            _ => ReadySegment::make(&*self.disk, segment, len.max(self.segment_len)),
        }
    }

    /// How many are ready when no more can be made; `None` while more can.
    pub(crate) fn left(&self) -> Option<usize> {
        self.starved_us.map(|_| self.ready.len())
    }

    /// Removes a segment that is done, durably.
    pub(crate) fn remove(&mut self, segment: u64) -> io::Result<()> {
        if matches!(self.maker, Maker::Thread { .. }) {
            self.removals.push_back(segment);
            self.order_removals();
            return Ok(());
        }
        remove(&*self.disk, segment)
    }

    fn order_removals(&mut self) {
        let Maker::Thread { orders, .. } = &self.maker else { return };
        while let Some(segment) = self.removals.front()
            && orders.try_send(Order::Remove(*segment)).is_ok()
        {
            self.removals.pop_front();
        }
    }
}

impl ReadySegment {
    /// Makes a segment ready: zeroed, synced, named. Where that fails nothing of it is left.
    fn make(disk: &dyn Disk, segment: u64, len: u64) -> io::Result<Self> {
        let name = file_name(segment);
        let unfinished = format!("{name}{TEMPORARY}");
        let made = disk.create(&unfinished, len).and_then(|file| {
            file.sync()?;
            disk.rename(&unfinished, &name)?;
            if !enabled(Sabotage::ForgetDirectorySync) {
                disk.sync_dir()?;
            }
            Ok(Self { segment, file, len })
        });
        if made.as_ref().is_err_and(is_full) {
            match disk.remove(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        made
    }
}

/// Removes a segment, durably. One that is gone already is fine: a start may remove it too.
fn remove(disk: &dyn Disk, segment: u64) -> io::Result<()> {
    match disk.remove(&file_name(segment)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk.sync_dir(),
    }
}

/// Removes segments, oldest first. One that cannot be removed keeps those behind it too, until it can:
/// the next start would take a gap for a loss.
fn remove_in_order(disk: &dyn Disk, done_with: &mut VecDeque<u64>) {
    while let Some(segment) = done_with.front() {
        if let Err(error) = remove(disk, *segment) {
            tracing::warn!(segment, %error, "a segment that is done stays for now");
            return;
        }
        done_with.pop_front();
    }
}

/// Whether an error says that the disk, or this user's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn gone() -> io::Error {
    io::Error::other("the thread that makes segments ready is gone")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Directory;

    /// A segment that was made behind one that failed was once left on the disk: the gap before it
    /// made the next start refuse.
    #[test]
    fn a_segment_out_of_step_is_not_left_behind() {
        let path = std::env::temp_dir().join(format!("keypeg-spares-{}", std::process::id()));
        let disk: Arc<dyn Disk> = Arc::new(Directory::open(&path).expect("a directory"));
        let mut spares = Preallocator::new(Arc::clone(&disk), 4096);
        spares.last = 1;
        spares.take_in(ReadySegment::make(&*disk, 2, 4096), 0).expect("in step");
        spares.take_in(Err(io::ErrorKind::StorageFull.into()), 0).expect("told, not final");
        spares.take_in(ReadySegment::make(&*disk, 4, 4096), 0).expect("out of step");
        assert_eq!(spares.left(), Some(1), "the disk still counts as full");
        assert_eq!(disk.list().expect("lists"), [file_name(2)]);
        drop(spares);
        std::fs::remove_dir_all(path).expect("removes");
    }

    /// One unlink that failed once left its segment behind while those after it went, and the next
    /// start refused the directory: a segment in the middle was missing.
    #[test]
    fn a_segment_that_cannot_be_removed_keeps_those_behind_it() {
        let path = std::env::temp_dir().join(format!("keypeg-removals-{}", std::process::id()));
        let disk = Directory::open(&path).expect("a directory");
        // An unlink of a directory fails.
        std::fs::create_dir(path.join(file_name(1))).expect("makes");
        for segment in [2, 3] {
            ReadySegment::make(&disk, segment, 4096).expect("makes");
        }
        let mut done_with = VecDeque::from([1, 2]);
        remove_in_order(&disk, &mut done_with);
        assert_eq!(disk.list().expect("lists").len(), 3, "none went");
        std::fs::remove_dir(path.join(file_name(1))).expect("removes");
        done_with.push_back(3);
        remove_in_order(&disk, &mut done_with);
        assert!(disk.list().expect("lists").is_empty() && done_with.is_empty());
        std::fs::remove_dir_all(path).expect("removes");
    }
}

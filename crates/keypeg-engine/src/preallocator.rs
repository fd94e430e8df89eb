//! Preallocated segments: a thread creates, zeroes and syncs them ahead, so that a commit never
//! finds the disk full.
//!
//! Several segments are kept ready. When no more can be created, the journal decides from the
//! number that is left which calls it still accepts. Dropped segments are deleted here too. This
//! file does not read or write the content of a segment.

use crate::disk::{Disk, DiskFile, is_full};
use crate::end::AbortOnPanic;
use crate::frame::SegmentNumber;
use crate::layout::{TEMPORARY, file_name};
use keypeg_core::sabotage::{Sabotage, enabled};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

/// Segments kept ready. On a full disk the server refuses new keys when two are left, and grants
/// too when one is left: that one is reserved for releases, deletions and purges.
pub(crate) const READY: usize = 3;
/// The pause before the next attempt after the disk was full, in microseconds of lease time.
pub(crate) const RETRY_US: u64 = 1_000_000;
/// Orders that the queue of the thread holds. Further deletions wait here and are sent later.
const ORDERS_MAX: usize = 64;

const _: () = assert!(ORDERS_MAX > READY, "the queue holds an order for each ready segment");

/// A preallocated segment.
pub(crate) struct ReadySegment {
    pub(crate) number: SegmentNumber,
    pub(crate) file: Box<dyn DiskFile>,
    /// Its length in bytes.
    pub(crate) len: u64,
}

/// The segment in which the journal continues.
#[derive(Clone, Copy)]
pub(crate) struct NextSegment {
    pub(crate) number: SegmentNumber,
    /// The bytes that it must have at least.
    pub(crate) min_len: u64,
    /// Lease time.
    pub(crate) now_us: u64,
}

/// The segments that are ready, and the worker that creates more.
pub(crate) struct Preallocator {
    disk: Arc<dyn Disk>,
    segment_len: u64,
    ready: VecDeque<ReadySegment>,
    worker: Worker,
    /// Orders whose result has not been received.
    pending: usize,
    /// When the disk was full last; `None` once a segment has been created since.
    starved_us: Option<u64>,
    /// Segments to delete that have not been sent to the thread, oldest first.
    removals: VecDeque<SegmentNumber>,
    /// The segment being written.
    current: SegmentNumber,
}

/// The place where segments are created.
enum Worker {
    /// None: each segment is created when the journal needs it.
    OnDemand,
    /// [`Preallocator::maintain`], for deterministic tests.
    Inline,
    /// A thread.
    Thread { orders: SyncSender<Order>, results: Receiver<io::Result<ReadySegment>> },
}

/// The next task of the thread.
enum Order {
    Create { number: SegmentNumber, len: u64 },
    Remove(SegmentNumber),
}

impl Preallocator {
    pub(crate) fn new(disk: Arc<dyn Disk>, segment_len: u64) -> Self {
        Self {
            disk,
            segment_len,
            ready: VecDeque::new(),
            worker: Worker::OnDemand,
            pending: 0,
            starved_us: None,
            removals: VecDeque::new(),
            current: SegmentNumber(0),
        }
    }

    /// Starts to create segments, on a thread or in [`Preallocator::maintain`].
    pub(crate) fn start(&mut self, on_a_thread: bool) -> io::Result<()> {
        if !on_a_thread {
            self.worker = Worker::Inline;
            return Ok(());
        }
        let disk = Arc::clone(&self.disk);
        let (orders, received) = sync_channel::<Order>(ORDERS_MAX);
        let (sender, results) = sync_channel(READY);
        std::thread::Builder::new().name("keypeg-segments".into()).spawn(move || {
            let _guard = AbortOnPanic;
            // Never longer than the number of segments of the journal.
            let mut removals = VecDeque::new();
            for order in received {
                match order {
                    Order::Create { number, len } => {
                        if sender.send(ReadySegment::create(&*disk, number, len)).is_err() {
                            return;
                        }
                    }
                    Order::Remove(number) => {
                        removals.push_back(number);
                        remove_in_order(&*disk, &mut removals);
                    }
                }
            }
        })?;
        self.worker = Worker::Thread { orders, results };
        Ok(())
    }

    /// Adds a segment that was preallocated before this start, if it follows those that are ready.
    pub(crate) fn adopt(&mut self, segment: ReadySegment, current: SegmentNumber) {
        self.current = current;
        if segment.number == self.after_ready() && segment.len >= self.segment_len {
            self.ready.push_back(segment);
        }
    }

    /// Returns the number of the segment after those that are ready.
    fn after_ready(&self) -> SegmentNumber {
        self.current.next().plus(self.ready.len() as u64)
    }

    /// Collects created segments and orders more. `current` is the segment being written. Any error
    /// is final; a full disk is not an error.
    pub(crate) fn maintain(&mut self, current: SegmentNumber, now_us: u64) -> io::Result<()> {
        self.current = current;
        while let Some(result) = self.poll()? {
            self.accept(result, now_us)?;
        }
        let pauses = self.starved_us.is_some_and(|since_us| now_us < since_us + RETRY_US);
        while !pauses && self.ready.len() + self.pending < READY {
            let number = self.after_ready().plus(self.pending as u64);
            match &self.worker {
                Worker::OnDemand => break,
                Worker::Inline => {
                    let result = ReadySegment::create(&*self.disk, number, self.segment_len);
                    let failed = result.is_err();
                    self.accept(result, now_us)?;
                    if failed {
                        break;
                    }
                }
                Worker::Thread { orders, .. } => {
                    let order = Order::Create { number, len: self.segment_len };
                    if orders.try_send(order).is_err() {
                        break;
                    }
                    self.pending += 1;
                    // After a full disk only one is ordered at a time, until one is created.
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
        let Worker::Thread { results, .. } = &self.worker else { return Ok(None) };
        match results.try_recv() {
            Ok(result) => {
                self.pending -= 1;
                Ok(Some(result))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(thread_ended()),
        }
    }

    fn accept(&mut self, result: io::Result<ReadySegment>, now_us: u64) -> io::Result<()> {
        match result {
            Ok(segment) if segment.number == self.after_ready() => {
                self.starved_us = None;
                self.ready.push_back(segment);
                Ok(())
            }
            // The order before this one failed. Left on the disk, this segment would follow a gap.
            Ok(segment) => remove(&*self.disk, segment.number),
            Err(error) if is_full(&error) => {
                if self.starved_us.is_none() {
                    tracing::warn!(
                        %error,
                        "the disk is full: the server refuses new keys first, then new leases"
                    );
                }
                self.starved_us = Some(now_us);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the next segment. Waits for the thread if it creates one at the moment; creates the
    /// segment here if none is ready or ordered.
    pub(crate) fn take(&mut self, next: NextSegment) -> io::Result<ReadySegment> {
        let NextSegment { number, min_len, now_us } = next;
        self.current = number.previous();
        while self.ready.is_empty() && self.pending > 0 {
            let Worker::Thread { results, .. } = &self.worker else { break };
            let result = results.recv().map_err(|_| thread_ended())?;
            self.pending -= 1;
            self.accept(result, now_us)?;
        }
        match self.ready.pop_front().filter(|segment| segment.number == number) {
            Some(segment) if segment.len >= min_len => Ok(segment),
            _ => ReadySegment::create(&*self.disk, number, min_len.max(self.segment_len)),
        }
    }

    /// Returns how many segments are ready while the disk is full; `None` while it is not.
    pub(crate) fn ready_when_starved(&self) -> Option<usize> {
        self.starved_us.map(|_| self.ready.len())
    }

    /// Deletes a dropped segment, durably: at once, or later on the thread.
    pub(crate) fn remove(&mut self, segment: SegmentNumber) -> io::Result<()> {
        if matches!(self.worker, Worker::Thread { .. }) {
            self.removals.push_back(segment);
            self.order_removals();
            return Ok(());
        }
        remove(&*self.disk, segment)
    }

    fn order_removals(&mut self) {
        let Worker::Thread { orders, .. } = &self.worker else { return };
        while let Some(segment) = self.removals.front()
            && orders.try_send(Order::Remove(*segment)).is_ok()
        {
            self.removals.pop_front();
        }
    }
}

impl ReadySegment {
    /// Creates a segment: zeroed, synced, named. If the disk is full, no part of it is left.
    fn create(disk: &dyn Disk, number: SegmentNumber, len: u64) -> io::Result<Self> {
        let name = file_name(number);
        let temporary = format!("{name}{TEMPORARY}");
        let created = disk.create(&temporary, len).and_then(|file| {
            file.sync()?;
            disk.rename(&temporary, &name)?;
            if !enabled(Sabotage::ForgetDirectorySync) {
                disk.sync_dir()?;
            }
            Ok(Self { number, file, len })
        });
        if created.as_ref().is_err_and(is_full) {
            match disk.remove(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        created
    }
}

/// Deletes a segment, durably. A missing file is not an error: a start may have deleted it.
fn remove(disk: &dyn Disk, segment: SegmentNumber) -> io::Result<()> {
    match disk.remove(&file_name(segment)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk.sync_dir(),
    }
}

/// Deletes segments, oldest first. While one cannot be deleted, those after it stay too: the next
/// start would report the gap as a missing segment.
fn remove_in_order(disk: &dyn Disk, removals: &mut VecDeque<SegmentNumber>) {
    while let Some(segment) = removals.front() {
        if let Err(error) = remove(disk, *segment) {
            tracing::warn!(
                file = file_name(*segment),
                %error,
                "cannot delete a segment that is no longer needed; it stays until a later attempt"
            );
            return;
        }
        removals.pop_front();
    }
}

fn thread_ended() -> io::Error {
    io::Error::other("the thread that preallocates journal segments has ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Directory;
    use keypeg_testkit::TempDir;

    fn create(disk: &dyn Disk, number: u64) -> io::Result<ReadySegment> {
        ReadySegment::create(disk, SegmentNumber(number), 4096)
    }

    /// A segment created after one that failed once stayed on the disk: the next start found a gap
    /// before it and refused the directory.
    #[test]
    fn a_segment_after_a_failed_one_is_deleted() {
        let dir = TempDir::new();
        let disk: Arc<dyn Disk> = Arc::new(Directory::open(dir.path()).expect("a directory"));
        let mut preallocator = Preallocator::new(Arc::clone(&disk), 4096);
        preallocator.current = SegmentNumber(1);
        preallocator.accept(create(&*disk, 2), 0).expect("the next segment");
        let full = io::ErrorKind::StorageFull.into();
        preallocator.accept(Err(full), 0).expect("a full disk is not final");
        preallocator.accept(create(&*disk, 4), 0).expect("a segment after a gap");
        assert_eq!(preallocator.ready_when_starved(), Some(1), "the disk still counts as full");
        assert_eq!(disk.list().expect("lists"), [file_name(SegmentNumber(2))]);
    }

    /// One failed unlink once left its segment while the later ones were deleted, and the next
    /// start refused the directory: a segment in the middle was missing.
    #[test]
    fn a_segment_that_cannot_be_deleted_keeps_the_later_ones() {
        let dir = TempDir::new();
        let disk = Directory::open(dir.path()).expect("a directory");
        // An unlink of a directory fails.
        let first = file_name(SegmentNumber(1));
        std::fs::create_dir(dir.path().join(&first)).expect("creates");
        for number in [2, 3] {
            create(&disk, number).expect("creates");
        }
        let mut removals = VecDeque::from([SegmentNumber(1), SegmentNumber(2)]);
        remove_in_order(&disk, &mut removals);
        assert_eq!(disk.list().expect("lists").len(), 3, "no segment is deleted");
        std::fs::remove_dir(dir.path().join(first)).expect("removes");
        removals.push_back(SegmentNumber(3));
        remove_in_order(&disk, &mut removals);
        assert!(disk.list().expect("lists").is_empty() && removals.is_empty());
    }
}

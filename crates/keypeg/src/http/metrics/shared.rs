//! One reading of all pools at a time, whatever the number of scrapers.
//!
//! On a server without access tokens every client can scrape, so the cost for the store must not
//! grow with the number of scrapes. A scrape that arrives during a reading shares the next one: a
//! reading never began before its scrape. The last reading is dropped when no scrape waits for one.

use crate::http::error::Problem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Mutex;

/// The last reading, shared by the scrapes that waited for it.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// The number of readings that began.
    begun: AtomicU64,
    /// The scrapes that wait for a reading or make one.
    waiting: AtomicUsize,
    /// The last complete reading; locked during a reading.
    last: Mutex<Option<Numbered<T>>>,
}

#[derive(Debug)]
struct Numbered<T> {
    /// How many readings had begun with this one.
    number: u64,
    reading: Arc<T>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            begun: AtomicU64::default(),
            waiting: AtomicUsize::default(),
            last: Mutex::default(),
        }
    }
}

impl<T> Shared<T> {
    /// Returns a reading that began after this call: that of another scrape, or of `read`.
    pub(super) async fn read(
        &self,
        read: impl Future<Output = Result<T, Problem>>,
    ) -> Result<Arc<T>, Problem> {
        let begun_before = self.begun.load(Ordering::Acquire);
        let _waiting = Waiting::new(self);
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.number > begun_before) {
            return Ok(Arc::clone(&last.reading));
        }
        let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let reading = Arc::new(read.await?);
        *last = Some(Numbered { number, reading: Arc::clone(&reading) });
        Ok(reading)
    }
}

/// A scrape that waits. The last one drops the last reading, which takes megabytes.
struct Waiting<'a, T>(&'a Shared<T>);

impl<'a, T> Waiting<'a, T> {
    fn new(shared: &'a Shared<T>) -> Self {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        // Declared before the guard of the lock, so dropped after it. A scrape that begins now
        // cannot use the reading, which is older.
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1
            && let Ok(mut last) = self.0.last.try_lock()
        {
            *last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pools::{PoolPlaces, PoolReading};
    use super::*;
    use crate::http::lanes::Lanes;
    use keypeg_core::{KeyCounts, PoolActivity, PoolName};
    use keypeg_store::{CallSlot, EngineLane, LaneItem, PoolPage, PoolView, Reply, Wakeup, lane};
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn taken(engine: &mut EngineLane) -> Vec<CallSlot> {
        let mut slots = Vec::new();
        engine.take(|slot, item| {
            if let LaneItem::Request(_) = item {
                slots.push(slot);
            }
        });
        slots
    }

    fn page(available: u64, next: Option<&str>) -> Reply {
        let pool = PoolView {
            name: PoolName::default_pool(),
            policy: keypeg_core::Policy::default(),
            counts: KeyCounts { available, ..KeyCounts::default() },
            waiting: 1,
            activity: PoolActivity::default(),
            next_hold_end_at_ms: None,
            next_purge_at_ms: None,
        };
        let next = next.map(|name| PoolName::parse(name).expect("a name"));
        Reply::Pools(PoolPage { pools: vec![pool], next })
    }

    struct Totals {
        places: PoolPlaces,
        shared: Shared<PoolReading>,
    }

    impl Totals {
        async fn read(&self, lanes: &Lanes) -> Result<(u64, u64, u64), Problem> {
            let reading = self.shared.read(self.places.read(lanes)).await?;
            Ok((reading.pools, reading.keys.available, reading.waiting))
        }
    }

    /// A hundred scrapers without a token made the engine read 10 000 pools a hundred times.
    #[test]
    fn simultaneous_scrapes_share_a_walk_that_began_after_all_of_them() {
        let (lane, mut engine) = lane(&Wakeup::default());
        let lanes = Lanes::from(lane.clone());
        let mut delivery = pin!(lane.run_delivery());
        let totals = Totals { places: PoolPlaces::new(10), shared: Shared::default() };
        let mut answer = |engine: &mut EngineLane, slot, reply| {
            engine.answer(slot, reply);
            engine.flush();
            assert!(poll(delivery.as_mut()).is_pending());
        };
        let mut first = Box::pin(totals.read(&lanes));
        assert!(poll(first.as_mut()).is_pending());
        let mut later: Vec<_> = (0..100).map(|_| Box::pin(totals.read(&lanes))).collect();
        assert!(later.iter_mut().all(|read| poll(read.as_mut()).is_pending()));
        let [slot] = taken(&mut engine)[..] else { panic!("one walk") };
        answer(&mut engine, slot, page(1, None));
        let Poll::Ready(Ok(read)) = poll(first.as_mut()) else { panic!("the first walk") };
        assert_eq!(read, (1, 1, 1));
        // The first walk began before the later scrapes: another one, of two pages, is for all.
        assert!(later.iter_mut().all(|read| poll(read.as_mut()).is_pending()));
        for (available, next) in [(2, Some("z")), (3, None)] {
            let [slot] = taken(&mut engine)[..] else { panic!("one page") };
            answer(&mut engine, slot, page(available, next));
            assert!(poll(later[0].as_mut()).is_pending() == next.is_some());
        }
        for read in &mut later[1..] {
            let Poll::Ready(Ok(read)) = poll(read.as_mut()) else { panic!("the shared walk") };
            assert_eq!(read, (2, 5, 2));
        }
        assert!(taken(&mut engine).is_empty());
        assert!(totals.shared.last.try_lock().is_ok_and(|last| last.is_none()), "memory");
    }

    /// A scraper that disconnects must not leave the others without an answer.
    #[test]
    fn a_scrape_that_is_dropped_passes_its_walk_on() {
        let (lane, mut engine) = lane(&Wakeup::default());
        let lanes = Lanes::from(lane.clone());
        let mut delivery = pin!(lane.run_delivery());
        let totals = Totals { places: PoolPlaces::new(10), shared: Shared::default() };
        let mut first = Box::pin(totals.read(&lanes));
        let mut second = Box::pin(totals.read(&lanes));
        assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
        drop(first);
        assert!(poll(second.as_mut()).is_pending());
        let slots = taken(&mut engine);
        for &slot in &slots {
            engine.answer(slot, page(7, None));
        }
        engine.flush();
        assert!(poll(delivery.as_mut()).is_pending());
        let Poll::Ready(Ok(read)) = poll(second.as_mut()) else { panic!("its own walk") };
        assert_eq!(read, (1, 7, 1));
    }
}

//! Sums over all pools for a scrape: one walk over the pools at a time, whatever the number of
//! scrapers.
//!
//! On a server without access tokens every client can scrape, so the cost for the store must not
//! grow with the number of scrapes. A scrape that arrives during a walk shares the next one: a walk
//! never began before its scrape.

use crate::http::error::Problem;
use crate::http::lanes::Lanes;
use keypeg_core::{KeyCounts, PoolListOptions};
use keypeg_store::{Answer as _, Call, Lane, PoolPage, Principal, Request, RequestError};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Mutex;

/// What all pools have together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PoolTotals {
    /// The number of pools.
    pub(super) pools: u64,
    /// Their keys by state.
    pub(super) keys: KeyCounts,
    /// Their waiting requests.
    pub(super) waiting: u64,
}

/// The sums of the last walk, shared by the scrapes that waited for it.
#[derive(Debug, Default)]
pub(crate) struct SharedPoolTotals {
    /// The number of walks that began.
    begun: AtomicU64,
    /// The last complete walk; locked during a walk.
    last: Mutex<Walk>,
}

#[derive(Debug, Default)]
struct Walk {
    /// How many walks had begun with this one.
    number: u64,
    totals: PoolTotals,
}

impl SharedPoolTotals {
    /// Returns sums that were read after this call began.
    pub(crate) async fn read(&self, lanes: &Lanes) -> Result<PoolTotals, Problem> {
        let begun_before = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().await;
        if last.number <= begun_before {
            let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let totals = walk(lanes).await?;
            *last = Walk { number, totals };
        }
        Ok(last.totals)
    }
}

/// Reads all pools of the shards that this server serves.
async fn walk(lanes: &Lanes) -> Result<PoolTotals, Problem> {
    let mut totals = PoolTotals::default();
    for lane in lanes.all() {
        match walk_shard(lane, &mut totals).await {
            Ok(()) | Err(RequestError::NotOwner) => {}
            Err(refusal) => return Err(Problem::refused(&refusal)),
        }
    }
    Ok(totals)
}

/// Reads all pools of a shard, page by page.
async fn walk_shard(lane: &Lane, totals: &mut PoolTotals) -> Result<(), RequestError> {
    let mut options = PoolListOptions::default();
    loop {
        let call = Call::list_pools(options).into_call();
        // As the server, whose calls a full lane does not refuse: metrics matter most under
        // overload.
        let reply = lane.submit(Request::new(Principal::Server, call)).await;
        let page = PoolPage::of(reply)?;
        for pool in &page.pools {
            totals.add(pool.counts, pool.waiting);
        }
        if page.next.is_none() {
            return Ok(());
        }
        options = PoolListOptions { from: page.next, ..PoolListOptions::default() };
    }
}

impl PoolTotals {
    fn add(&mut self, counts: KeyCounts, waiting: u64) {
        self.pools += 1;
        self.keys.available += counts.available;
        self.keys.leased += counts.leased;
        self.keys.resting += counts.resting;
        self.keys.quarantined += counts.quarantined;
        self.waiting += waiting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_core::{PoolActivity, PoolName};
    use keypeg_store::{CallSlot, EngineLane, PoolView, Reply, Wakeup, lane};
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn taken(engine: &mut EngineLane) -> Vec<CallSlot> {
        let mut slots = Vec::new();
        engine.take(|slot, _| slots.push(slot));
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

    /// A hundred scrapers without a token made the engine read 10 000 pools a hundred times.
    #[test]
    fn simultaneous_scrapes_share_a_walk_that_began_after_all_of_them() {
        let (lane, mut engine) = lane(&Wakeup::default());
        let mut delivery = pin!(lane.run_delivery());
        let (totals, lanes) = (SharedPoolTotals::default(), Lanes::from(lane.clone()));
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
        assert_eq!((read.pools, read.keys.available, read.waiting), (1, 1, 1));
        // The first walk began before the later scrapes: another one, of two pages, is for all.
        assert!(later.iter_mut().all(|read| poll(read.as_mut()).is_pending()));
        for (available, next) in [(2, Some("z")), (3, None)] {
            let [slot] = taken(&mut engine)[..] else { panic!("one page") };
            answer(&mut engine, slot, page(available, next));
            assert!(poll(later[0].as_mut()).is_pending() == next.is_some());
        }
        for read in &mut later[1..] {
            let Poll::Ready(Ok(read)) = poll(read.as_mut()) else { panic!("the shared walk") };
            assert_eq!((read.pools, read.keys.available, read.waiting), (2, 5, 2));
        }
        assert!(taken(&mut engine).is_empty());
    }
}

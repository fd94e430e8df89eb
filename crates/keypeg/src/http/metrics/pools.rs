//! Which pools have series of their own, and what the others add up to.
//!
//! The number of series is bounded. A pool that has lent or refused a key since the start keeps its
//! place until it is deleted, so its series have no gaps. The counters of all other pools only grow
//! too, although pools come and go: each reading adds what was added since the last one. Knows
//! nothing of text.

use crate::http::error::Problem;
use crate::http::lanes::Lanes;
use keypeg_core::{KeyCounts, PoolActivity, PoolListOptions, PoolName};
use keypeg_store::{Answer as _, Call, Lane, PoolPage, PoolView, Principal, Request, RequestError};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The value of the label `pool` for all pools without series of their own. A pool of this name
/// never has any.
pub(super) const OTHER: &str = "other";

/// The numbers of one pool, or of all others together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PoolRow {
    pub(super) name: Box<str>,
    pub(super) keys: KeyCounts,
    pub(super) waiting: u64,
    pub(super) activity: PoolActivity,
}

/// What one reading of all pools found.
#[derive(Debug, Default)]
pub(super) struct PoolReading {
    /// The number of pools.
    pub(super) pools: u64,
    /// Their keys by state.
    pub(super) keys: KeyCounts,
    /// Their waiting requests.
    pub(super) waiting: u64,
    /// The pools with series of their own, by name.
    pub(super) rows: Vec<PoolRow>,
    /// All others; `None` where there never was one.
    pub(super) other: Option<PoolRow>,
}

/// The places of the pools with series of their own.
#[derive(Debug)]
pub(super) struct PoolPlaces {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pools: BTreeMap<PoolName, Known>,
    /// The number of pools with a place.
    placed: usize,
    /// What all other pools have done, also those that are deleted.
    other: PoolActivity,
    /// The number of the last reading that began.
    reading: u64,
}

#[derive(Debug)]
struct Known {
    has_place: bool,
    /// The last reading that found the pool.
    seen: u64,
    /// The counters at that reading.
    activity: PoolActivity,
}

impl PoolPlaces {
    /// Creates places for at most `max` pools.
    pub(super) fn new(max: usize) -> Self {
        Self { max, state: Mutex::default() }
    }

    /// Reads all pools of the shards that this server serves.
    pub(super) async fn read(&self, lanes: &Lanes) -> Result<PoolReading, Problem> {
        let (mut reading, mut other) = (PoolReading::default(), PoolRow::empty());
        let number = self.begin();
        for lane in lanes.all() {
            match self.read_shard(lane, number, &mut reading, &mut other).await {
                Ok(()) | Err(RequestError::NotOwner) => {}
                Err(refusal) => return Err(Problem::refused(&refusal)),
            }
        }
        self.end(number, &mut reading, other);
        Ok(reading)
    }

    /// Reads all pools of a shard, page by page.
    async fn read_shard(
        &self,
        lane: &Lane,
        number: u64,
        reading: &mut PoolReading,
        other: &mut PoolRow,
    ) -> Result<(), RequestError> {
        let mut options = PoolListOptions::default();
        loop {
            let call = Call::list_pools(options).into_call();
            // As the server, whose calls a full lane does not refuse: metrics matter most under
            // overload.
            let reply = lane.submit(Request::new(Principal::Server, call)).await;
            let page = PoolPage::of(reply)?;
            self.add(number, &page.pools, reading, other);
            if page.next.is_none() {
                return Ok(());
            }
            options = PoolListOptions { from: page.next, ..PoolListOptions::default() };
        }
    }

    fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.reading += 1;
        state.reading
    }

    /// Adds a page. O(pools of the page).
    fn add(&self, number: u64, pools: &[PoolView], reading: &mut PoolReading, other: &mut PoolRow) {
        let mut state = self.lock();
        for pool in pools {
            reading.add(pool);
            let row = PoolRow::of(pool);
            if state.has_place(pool, number, self.max) {
                reading.rows.push(row);
            } else {
                other.add(&row);
            }
        }
    }

    /// Ends a reading: forgets pools that it did not find, and gives places to busy pools. O(pools).
    fn end(&self, number: u64, reading: &mut PoolReading, mut other: PoolRow) {
        let mut state = self.lock();
        state.pools.retain(|_, known| known.seen == number);
        state.placed = state.pools.values().filter(|known| known.has_place).count();
        let has_others = state.placed < state.pools.len();
        if has_others || state.other != PoolActivity::default() {
            other.activity = state.other;
            reading.other = Some(other);
        }
        if has_others {
            state.give_places(self.max);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave more than a reading that is incomplete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes what a reading found of a pool; returns whether the pool has a place.
    fn has_place(&mut self, pool: &PoolView, number: u64, max: usize) -> bool {
        if let Some(known) = self.pools.get_mut(&pool.name) {
            known.seen = number;
            if !known.has_place {
                self.other.add(&pool.activity.since(&known.activity));
            }
            known.activity = pool.activity;
            return known.has_place;
        }
        let has_place = self.placed < max && pool.name.as_str() != OTHER;
        self.placed += usize::from(has_place);
        if !has_place {
            self.other.add(&pool.activity);
        }
        let known = Known { has_place, seen: number, activity: pool.activity };
        self.pools.insert(pool.name.clone(), known);
        has_place
    }

    /// Gives free places, and those of idle pools, to pools that have done something. O(pools).
    fn give_places(&mut self, max: usize) {
        let is_idle = |known: &Known| known.activity == PoolActivity::default();
        let mut free = max.saturating_sub(self.placed);
        let idle = self.pools.values().filter(|known| known.has_place && is_idle(known)).count();
        let mut taken = 0;
        for (name, known) in &mut self.pools {
            let waits = !known.has_place && !is_idle(known) && name.as_str() != OTHER;
            if waits && free > 0 {
                free -= 1;
                self.placed += 1;
                known.has_place = true;
            } else if waits && taken < idle {
                taken += 1;
                known.has_place = true;
            }
        }
        let idle = self.pools.values_mut().rev().filter(|known| known.has_place && is_idle(known));
        idle.take(taken).for_each(|known| known.has_place = false);
    }
}

impl PoolReading {
    fn add(&mut self, pool: &PoolView) {
        self.pools += 1;
        add_keys(&mut self.keys, pool.counts);
        self.waiting += pool.waiting;
    }
}

impl PoolRow {
    fn empty() -> Self {
        let (keys, activity) = (KeyCounts::default(), PoolActivity::default());
        Self { name: OTHER.into(), keys, waiting: 0, activity }
    }

    fn of(pool: &PoolView) -> Self {
        let PoolView { name, counts, waiting, activity, .. } = pool;
        let name = name.as_str().into();
        Self { name, keys: *counts, waiting: *waiting, activity: *activity }
    }

    /// Adds what another pool has now; its counters count by their growth.
    fn add(&mut self, pool: &Self) {
        add_keys(&mut self.keys, pool.keys);
        self.waiting += pool.waiting;
    }
}

fn add_keys(sum: &mut KeyCounts, counts: KeyCounts) {
    sum.available += counts.available;
    sum.leased += counts.leased;
    sum.resting += counts.resting;
    sum.quarantined += counts.quarantined;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str, grants: u64) -> PoolView {
        PoolView {
            name: PoolName::parse(name).expect("a name"),
            policy: keypeg_core::Policy::default(),
            counts: KeyCounts { available: 10, leased: 1, resting: 2, quarantined: 3, draining: 0 },
            waiting: 4,
            activity: PoolActivity { grants, ..PoolActivity::default() },
            next_hold_end_at_ms: None,
            next_purge_at_ms: None,
        }
    }

    /// Reads these pools, with their grants. Returns the rows, and the grants of all others.
    fn read(places: &PoolPlaces, pools: &[(&str, u64)]) -> (Vec<(String, u64)>, Option<u64>) {
        let (mut reading, mut other) = (PoolReading::default(), PoolRow::empty());
        let number = places.begin();
        for page in pools.chunks(2) {
            let page: Vec<_> = page.iter().map(|(name, grants)| view(name, *grants)).collect();
            places.add(number, &page, &mut reading, &mut other);
        }
        places.end(number, &mut reading, other);
        assert!(reading.rows.len() <= places.max);
        assert_eq!(reading.pools, pools.len() as u64);
        let others = pools.len() - reading.rows.len();
        let counted = reading.other.as_ref().map_or(0, |other| other.keys.available);
        assert_eq!(counted, 10 * others as u64, "each pool is counted once");
        let rows = reading.rows.iter().map(|row| (row.name.to_string(), row.activity.grants));
        (rows.collect(), reading.other.map(|other| other.activity.grants))
    }

    fn rows(of: &[(&str, u64)]) -> Vec<(String, u64)> {
        of.iter().map(|(name, grants)| ((*name).to_owned(), *grants)).collect()
    }

    #[test]
    fn up_to_the_bound_each_pool_has_its_own_series_and_there_are_no_others() {
        let places = PoolPlaces::new(3);
        let pools = [("a", 1), ("b", 0), ("c", 5)];
        assert_eq!(read(&places, &pools), (rows(&pools), None));
    }

    #[test]
    fn a_pool_that_lends_takes_the_place_of_an_idle_one_and_keeps_it() {
        let places = PoolPlaces::new(2);
        assert_eq!(read(&places, &[("a", 0), ("b", 0), ("c", 0)]).0, rows(&[("a", 0), ("b", 0)]));
        let (_, other) = read(&places, &[("a", 0), ("b", 0), ("c", 7)]);
        assert_eq!(other, Some(7));
        let (own, other) = read(&places, &[("a", 0), ("b", 0), ("c", 9)]);
        assert_eq!((own, other), (rows(&[("a", 0), ("c", 9)]), Some(7)));
        // Every place has a pool that has lent: the others stay together, however busy.
        let busy = [("a", 1), ("b", 900), ("c", 9)];
        read(&places, &busy);
        let (own, other) = read(&places, &busy);
        assert_eq!((own, other), (rows(&[("a", 1), ("c", 9)]), Some(907)));
    }

    /// A counter that shrinks looks like a restart: `rate()` would count all of it again.
    #[test]
    fn the_counters_of_the_others_never_shrink_while_pools_come_and_go() {
        let places = PoolPlaces::new(1);
        let mut before = 0;
        for (pools, expected) in [
            (&[("a", 1), ("b", 5), ("c", 2)][..], 7),
            // b is deleted.
            (&[("a", 1), ("c", 2)], 7),
            (&[("a", 1), ("c", 4)], 9),
            // b is created again.
            (&[("a", 1), ("b", 1), ("c", 4)], 10),
            // a is deleted, and b gets its place.
            (&[("b", 2), ("c", 4)], 11),
            (&[("b", 9), ("c", 4)], 11),
            // The counters of c began again.
            (&[("b", 9), ("c", 3)], 14),
            (&[("b", 9)], 14),
        ] {
            let (_, other) = read(&places, pools);
            assert_eq!(other, Some(expected), "{pools:?}");
            assert!(expected >= before);
            before = expected;
        }
    }

    #[test]
    fn a_pool_that_has_the_name_of_the_others_is_one_of_them() {
        let places = PoolPlaces::new(5);
        let pools = [("a", 1), ("other", 3)];
        assert_eq!(read(&places, &pools), (rows(&[("a", 1)]), Some(3)));
        assert_eq!(read(&places, &pools), (rows(&[("a", 1)]), Some(3)));
    }

    #[test]
    fn without_places_all_pools_are_together() {
        let places = PoolPlaces::new(0);
        let pools = [("a", 1), ("b", 2)];
        assert_eq!(read(&places, &pools), (rows(&[]), Some(3)));
        assert_eq!(read(&places, &pools), (rows(&[]), Some(3)));
    }
}

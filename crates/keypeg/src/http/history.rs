//! The last 15 minutes of the pools, in memory: a point each second, for all pools together and for
//! the busiest pools.
//!
//! A walk over the pools once a second fills it, so no request does any work for it. Both the
//! number of pools and the bytes of their points are bounded: beyond a bound the least busy pools
//! have no history. Does not know how the walk gets its numbers; time is an argument.

mod series;

use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_core::{PoolActivity, PoolFilter, PoolName};
use keypeg_store::PoolView;
use series::{Columns, POINT_BYTES, Point, Series};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The most pools with a history.
const POOLS_MAX: usize = 1_000;
/// A pool loses its place to another one only if that one is busier by this factor, so that two
/// pools of equal load do not displace each other.
const HYSTERESIS: f32 = 1.25;
/// What is left of the load of a pool after a second: it halves in about 3.5 minutes.
const DECAY: f32 = 1.0 - 1.0 / 300.0;

/// The history of a server.
#[derive(Debug)]
pub(super) struct History {
    /// The instant of second 0.
    began: Instant,
    /// The most points of all pools together.
    points_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pools: HashMap<PoolName, Tracked>,
    totals: Series,
    /// The points of all pools together.
    points: usize,
    /// The pools that have a series.
    series: usize,
    /// The second of the last complete walk, and its wall time; `None` before the first.
    last: Option<(u32, u64)>,
}

/// What a walk knows of one pool.
#[derive(Debug, Default)]
struct Tracked {
    /// The counters at the last walk; the next walk counts what was added.
    before: PoolActivity,
    /// The number of changes in the last minutes; older ones count less.
    load: f32,
    /// The second of the last walk that found the pool.
    seen: u32,
    series: Option<Series>,
}

/// One walk over the pools: their numbers at a second.
#[derive(Debug)]
pub(super) struct Walk {
    second: u32,
    total: Point,
}

impl History {
    /// Creates an empty history whose points take at most about `bytes`.
    pub(super) fn new(bytes: u64, now: Instant) -> Self {
        let points_max = usize::try_from(bytes / POINT_BYTES as u64).unwrap_or(usize::MAX);
        Self { began: now, points_max, state: Mutex::default() }
    }

    /// Begins a walk; `None` if this second has one already.
    pub(super) fn begin(&self, now: Instant) -> Option<Walk> {
        let elapsed = now.saturating_duration_since(self.began).as_secs();
        let second = u32::try_from(elapsed).unwrap_or(u32::MAX);
        let is_new = self.lock().last.is_none_or(|(last, _)| last < second);
        is_new.then(|| Walk { second, total: Point::at(second) })
    }

    /// Adds a page of pools to a walk. O(pools of the page).
    pub(super) fn add(&self, walk: &mut Walk, pools: &[PoolView]) {
        let mut state = self.lock();
        for pool in pools {
            let point = state.point_of(pool, walk.second);
            walk.total.add(&point);
            state.record(&pool.name, point, self.points_max);
        }
    }

    /// Ends a walk: forgets pools that it did not find, and keeps the bounds. O(pools).
    pub(super) fn end(&self, walk: &Walk, wall_ms: u64) {
        let mut state = self.lock();
        let Walk { second, total } = *walk;
        state.totals.push(total);
        state.last = Some((second, wall_ms));
        state.pools.retain(|_, tracked| tracked.seen == second);
        state.keep_bounds(self.points_max);
        state.exchange_places(second);
    }

    /// Returns the last `seconds` of one pool; all null if the pool has no history.
    pub(super) fn of_pool(&self, pool: &PoolName, seconds: usize) -> wire::History {
        let state = self.lock();
        let series = state.pools.get(pool).and_then(|tracked| tracked.series.as_ref());
        let mut columns = state.columns(seconds);
        if let Some(series) = series {
            columns.add(series);
        }
        state.on_wire(columns, Some(pool), u64::from(series.is_some()))
    }

    /// Returns the last `seconds` of all pools together; with a filter, the sum of those pools that
    /// it allows and that have a history.
    pub(super) fn of_all(&self, filter: Option<&PoolFilter>, seconds: usize) -> wire::History {
        let state = self.lock();
        let mut columns = state.columns(seconds);
        let Some(filter) = filter.filter(|filter| !filter.allows_all()) else {
            columns.add(&state.totals);
            let pools = state.pools.len() as u64;
            return state.on_wire(columns, None, pools);
        };
        let mut pools = 0;
        for (name, tracked) in &state.pools {
            if let Some(series) = tracked.series.as_ref().filter(|_| filter.allows(name.as_str())) {
                columns.add(series);
                pools += 1;
            }
        }
        state.on_wire(columns, None, pools)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A walk that panicked leaves numbers that are old, not wrong.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the point of a pool: its counts, and what was added since the last walk.
    fn point_of(&mut self, pool: &PoolView, second: u32) -> Point {
        let is_first_walk = self.last.is_none();
        let tracked = match self.pools.get_mut(&pool.name) {
            Some(tracked) => tracked,
            None => self.pools.entry(pool.name.clone()).or_default(),
        };
        // What a pool did before the first walk belongs to no second of the history.
        let before = if is_first_walk { pool.activity } else { tracked.before };
        let added = pool.activity.since(&before);
        let walks = second.saturating_sub(tracked.seen).max(1);
        let decay = DECAY.powi(i32::try_from(walks).unwrap_or(i32::MAX));
        tracked.load = tracked.load * decay + changes(added);
        tracked.before = pool.activity;
        tracked.seen = second;
        Point::new(second, pool.counts, pool.waiting, added)
    }

    /// Adds a point to the series of a pool, and gives it a free place if it has none.
    fn record(&mut self, name: &PoolName, point: Point, points_max: usize) {
        // Close to the bound of the points, a new series would only displace another one.
        let has_place = self.series < POOLS_MAX && self.points < points_max / 8 * 7;
        let Some(tracked) = self.pools.get_mut(name) else { return };
        if tracked.series.is_none() && has_place {
            tracked.series = Some(Series::default());
            self.series += 1;
        }
        if let Some(series) = &mut tracked.series {
            self.points -= series.len();
            series.push(point);
            self.points += series.len();
        }
    }

    /// Gives the places of idle pools to busier ones, if all places are taken. O(pools log pools),
    /// every ten seconds.
    fn exchange_places(&mut self, second: u32) {
        if self.series < POOLS_MAX {
            return;
        }
        // Seldom enough that the order costs nothing, and often enough for people.
        if !second.is_multiple_of(10) {
            return;
        }
        let load = |(name, tracked): (&PoolName, &Tracked)| (tracked.load, name.clone());
        let (with, without): (Vec<_>, Vec<_>) =
            self.pools.iter().partition(|(_, tracked)| tracked.series.is_some());
        let mut with: Vec<_> = with.into_iter().map(load).collect();
        let mut without: Vec<_> = without.into_iter().map(load).collect();
        with.sort_by(|one, other| one.0.total_cmp(&other.0));
        without.sort_by(|one, other| other.0.total_cmp(&one.0));
        for ((least, idle), (load, busy)) in with.iter().zip(&without) {
            if *load <= least * HYSTERESIS {
                break;
            }
            self.drop_series(idle);
            if let Some(tracked) = self.pools.get_mut(busy) {
                tracked.series = Some(Series::default());
                self.series += 1;
            }
        }
    }

    /// Drops the series of the least busy pools until the points fit, and counts both again: pools
    /// that a walk did not find took theirs with them. O(pools).
    fn keep_bounds(&mut self, points_max: usize) {
        let series = || self.pools.values().filter_map(|tracked| tracked.series.as_ref());
        self.points = series().map(Series::len).sum();
        self.series = series().count();
        while self.points > points_max {
            let with = self.pools.iter().filter(|(_, tracked)| tracked.series.is_some());
            let least = with.min_by(|one, other| one.1.load.total_cmp(&other.1.load));
            let Some(name) = least.map(|(name, _)| name.clone()) else { return };
            self.drop_series(&name);
        }
    }

    fn drop_series(&mut self, name: &PoolName) {
        let series = self.pools.get_mut(name).and_then(|tracked| tracked.series.take());
        if let Some(series) = series {
            self.points -= series.len();
            self.series -= 1;
        }
    }

    /// Returns empty columns for the seconds up to the last walk.
    fn columns(&self, seconds: usize) -> Columns {
        let last = self.last.map_or(0, |(second, _)| second);
        Columns::new(last, if self.last.is_some() { seconds } else { 0 })
    }

    fn on_wire(&self, columns: Columns, pool: Option<&PoolName>, pools: u64) -> wire::History {
        let last_ms = self.last.map_or(0, |(_, wall_ms)| wall_ms);
        let before_ms = (columns.len() as u64).saturating_sub(1) * 1_000;
        let from_at = UnixMs(last_ms.saturating_sub(before_ms));
        columns.on_wire(pool.map(|name| name.as_str().into()), pools, from_at)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a load is an estimate")]
fn changes(added: PoolActivity) -> f32 {
    (added.grants + added.refusals() + added.expiries + added.purges) as f32
}

#[cfg(test)]
mod tests;

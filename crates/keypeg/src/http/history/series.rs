//! One series of points, and its columns.
//!
//! A series has a point only for a second that differs from the one before: a pool at rest takes no
//! memory. A second without a point has the counts of the last one and no activity.

use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_core::{KeyCounts, PoolActivity};
use keypeg_fields::HISTORY_SECONDS_MAX;
use std::collections::VecDeque;

/// The seconds of a series.
const SECONDS: u32 = HISTORY_SECONDS_MAX;
/// The bytes of a point.
pub(super) const POINT_BYTES: usize = size_of::<Point>();
/// Points by which a series grows: doubling would reserve half of its memory in vain.
const GROWTH: usize = 32;
/// The numbers of a point.
const COUNTS: usize = 5;
const CHANGES: usize = 5;

/// The numbers of a pool at a second. A number above 32 bits counts as the greatest one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    second: u32,
    /// Available, leased, resting and quarantined keys, and waiting requests.
    counts: [u32; COUNTS],
    /// Grants, refusals, expiries and purges of the second, and its waits in milliseconds.
    changes: [u32; CHANGES],
}

impl Point {
    pub(super) fn at(second: u32) -> Self {
        Self { second, ..Self::default() }
    }

    pub(super) fn new(second: u32, counts: KeyCounts, waiting: u64, added: PoolActivity) -> Self {
        let PoolActivity { grants, expiries, purges, waited_us, .. } = added;
        let changes = [grants, added.refusals(), expiries, purges, waited_us / 1_000];
        let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let KeyCounts { available, leased, resting, quarantined, draining: _ } = counts;
        let counts = [available, leased, resting, quarantined, waiting].map(number);
        Self { second, counts, changes: changes.map(number) }
    }

    /// Adds the numbers of another pool at the same second.
    pub(super) fn add(&mut self, other: &Self) {
        let sum = |to: &mut u32, from: &u32| *to = to.saturating_add(*from);
        self.counts.iter_mut().zip(&other.counts).for_each(|(to, from)| sum(to, from));
        self.changes.iter_mut().zip(&other.changes).for_each(|(to, from)| sum(to, from));
    }
}

/// The points of the last 15 minutes, and the last one before them.
#[derive(Debug, Default)]
pub(super) struct Series(VecDeque<Point>);

impl Series {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends a point, which is later than all others.
    pub(super) fn push(&mut self, point: Point) {
        let is_same = self
            .0
            .back()
            .is_some_and(|last| last.counts == point.counts && point.changes == [0; CHANGES]);
        if !is_same {
            if self.0.len() == self.0.capacity() {
                self.0.reserve_exact(GROWTH);
            }
            self.0.push_back(point);
        }
        let first = point.second.saturating_sub(SECONDS - 1);
        while self.0.get(1).is_some_and(|second| second.second <= first) {
            self.0.pop_front();
        }
    }
}

/// The columns of some seconds: sums of series. `None` is a second before a series began.
#[derive(Debug)]
pub(super) struct Columns {
    first: u32,
    rows: Vec<Option<([u64; COUNTS], [u64; CHANGES])>>,
}

impl Columns {
    /// Creates empty columns of `seconds`, of which the last is `last`.
    pub(super) fn new(last: u32, seconds: usize) -> Self {
        let first =
            last.saturating_sub(u32::try_from(seconds).unwrap_or(SECONDS).saturating_sub(1));
        let len = if seconds == 0 { 0 } else { last - first + 1 };
        Self { first, rows: vec![None; len as usize] }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds a series. O(seconds).
    pub(super) fn add(&mut self, series: &Series) {
        let mut points = series.0.iter().peekable();
        let mut counts = None;
        for (second, row) in (self.first..).zip(&mut self.rows) {
            let mut changes = [0; CHANGES];
            while let Some(point) = points.next_if(|point| point.second <= second) {
                counts = Some(point.counts);
                if point.second == second {
                    changes = point.changes;
                }
            }
            let Some(counts) = counts else { continue };
            let (to_counts, to_changes) = row.get_or_insert_default();
            to_counts.iter_mut().zip(counts).for_each(|(to, from)| *to += u64::from(from));
            to_changes.iter_mut().zip(changes).for_each(|(to, from)| *to += u64::from(from));
        }
    }

    /// Returns the columns as clients see them.
    pub(super) fn on_wire(
        self,
        pool: Option<String>,
        pools: u64,
        from_at: UnixMs,
    ) -> wire::History {
        let counts =
            |index: usize| self.rows.iter().map(|row| Some(row.as_ref()?.0[index])).collect();
        let changes =
            |index: usize| self.rows.iter().map(|row| Some(row.as_ref()?.1[index])).collect();
        let waited =
            |row: &Option<([u64; COUNTS], [u64; CHANGES])>| Some(seconds(row.as_ref()?.1[4]));
        wire::History {
            pool,
            pools,
            from_at,
            available: counts(0),
            leased: counts(1),
            resting: counts(2),
            quarantined: counts(3),
            waiting: counts(4),
            grants: changes(0),
            refusals: changes(1),
            expiries: changes(2),
            purges: changes(3),
            waited_seconds: self.rows.iter().map(waited).collect(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53 milliseconds")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

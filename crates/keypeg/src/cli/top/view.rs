//! What `keypeg top` shows, as lines: the totals with their history, and a table of pools or leases.
//!
//! Pure: the answers of the server and the size of the terminal in, lines out. Only as many rows as
//! fit are formatted, so ten thousand pools cost no more than twenty.

use super::history::{Merge, line};
use super::screen::{Line, Size, Style};
use super::snapshot::Snapshot;
use crate::cli::progress::seconds;
use crate::output::{cell_of, cut, padded};
use keypeg_client::{History, Key, Pool, UnixMs};
use std::cmp::{Ordering, Reverse};

/// The columns of a bar.
const BAR: usize = 10;
/// The widths of a label and of a number beside the history.
const LABEL: usize = 12;
const NUMBER: usize = 10;
/// The least height with the totals, and the height that they take.
const TOTALS_FROM: usize = 14;

/// What is shown, and from which row on.
#[derive(Debug)]
pub(super) struct View {
    url: String,
    /// `None` shows all pools.
    pool: Option<String>,
    snapshot: Option<Snapshot>,
    /// Why the server did not answer last.
    problem: Option<String>,
    /// The first row of the table that is shown.
    first: usize,
    is_utf8: bool,
}

/// A row of the table.
struct Row {
    cells: Vec<String>,
    style: Style,
}

/// A column: its name, and whether its cells stand at the right.
type Column = (&'static str, bool);

const POOLS: &[Column] = &[
    ("POOL", false),
    ("IN USE", false),
    ("AVAIL", true),
    ("LEASED", true),
    ("REST", true),
    ("QUAR", true),
    ("WAIT", true),
    ("ENDS IN", true),
];
const LEASES: &[Column] =
    &[("KEY", false), ("HOLDER", false), ("ENDS IN", true), ("LEASED FOR", true)];

impl View {
    pub(super) fn new(url: &str, pool: Option<String>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self { url: url.into(), pool, snapshot: None, problem: None, first: 0, is_utf8 }
    }

    /// Takes the answer of the server; after a failure the last one stays.
    pub(super) fn update(&mut self, snapshot: Result<Snapshot, String>) {
        match snapshot {
            Ok(mut snapshot) => {
                snapshot.pools.sort_by(by_need);
                snapshot.leased.retain(|key| key.lease.is_some());
                snapshot.leased.sort_by_key(|key| (end_of(key), key.id.clone()));
                (self.snapshot, self.problem) = (Some(snapshot), None);
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Scrolls down by so many rows, or up if negative.
    pub(super) fn scroll(&mut self, rows: i64) {
        let rows = isize::try_from(rows).unwrap_or(0);
        self.first = self.first.saturating_add_signed(rows);
    }

    /// Returns the lines that fill a terminal of this size.
    pub(super) fn frame(&mut self, size: Size) -> Vec<Line> {
        let Some(snapshot) = &self.snapshot else { return Vec::new() };
        let mut lines = vec![self.title(snapshot)];
        if let Some(problem) = &self.problem {
            lines.push(Line { text: cell_of(problem), style: Style::Alert });
        }
        if size.height >= TOTALS_FROM {
            lines.push(plain(String::new()));
            lines.extend(self.totals(snapshot, size.width));
            lines.push(plain(String::new()));
        }
        // The head of the table and the last line.
        let room = size.height.saturating_sub(lines.len() + 2).max(1);
        let count = self.count(snapshot);
        self.first = self.first.min(count.saturating_sub(room));
        let shown = self.first..count.min(self.first + room);
        let rows: Vec<_> = shown.clone().map(|index| self.row(snapshot, index)).collect();
        lines.extend(table(self.columns(), &rows, size.width));
        let filled = size.height.saturating_sub(1);
        while lines.len() < filled {
            lines.push(plain(String::new()));
        }
        lines.truncate(filled.max(1));
        let what = if self.pool.is_some() { "leases" } else { "pools" };
        let (from, to) = (shown.start + usize::from(count > 0), shown.end);
        let more = self.more(snapshot);
        let keys = format!("q ends, arrows scroll   {what} {from} to {to} of {count}{more}");
        lines.push(Line { text: keys, style: Style::Bold });
        lines
    }

    /// Returns the table alone, with all rows.
    pub(super) fn table(&self) -> String {
        let Some(snapshot) = &self.snapshot else { return String::new() };
        let rows: Vec<_> =
            (0..self.count(snapshot)).map(|index| self.row(snapshot, index)).collect();
        let lines = table(self.columns(), &rows, usize::MAX);
        lines.iter().fold(String::new(), |text, line| text + line.text.trim_end() + "\n")
    }

    fn columns(&self) -> &'static [Column] {
        if self.pool.is_some() { LEASES } else { POOLS }
    }

    fn count(&self, snapshot: &Snapshot) -> usize {
        if self.pool.is_some() { snapshot.leased.len() } else { snapshot.pools.len() }
    }

    fn row(&self, snapshot: &Snapshot, index: usize) -> Row {
        match self.pool {
            Some(_) => lease_row(&snapshot.leased[index], snapshot.now),
            None => pool_row(&snapshot.pools[index], snapshot.now),
        }
    }

    /// Returns what the footer adds if the server has more than was asked for.
    fn more(&self, snapshot: &Snapshot) -> String {
        let leased = snapshot.pools.first().map_or(0, |pool| pool.leased);
        if self.pool.is_some() && leased > snapshot.leased.len() as u64 {
            return format!(" ({leased} leased)");
        }
        if snapshot.has_more { " (the server has more)".into() } else { String::new() }
    }

    fn title(&self, snapshot: &Snapshot) -> Line {
        let what = match &self.pool {
            Some(pool) => {
                let total: u64 = snapshot.pools.iter().map(|pool| pool.total).sum();
                format!("pool {pool}   {total} keys")
            }
            None => format!("{} pools", snapshot.pools.len()),
        };
        let now = snapshot.now.to_string();
        let time = now.get(11..19).unwrap_or_default();
        Line {
            text: format!("keypeg top   {}   {what}   {time} UTC", self.url),
            style: Style::Bold,
        }
    }

    /// Returns the lines of the totals with the last 15 minutes.
    fn totals(&self, snapshot: &Snapshot, width: usize) -> Vec<Line> {
        let sum = |of: fn(&Pool) -> u64| snapshot.pools.iter().map(of).sum::<u64>();
        let none: &[Option<u64>] = &[];
        let of = |of: fn(&History) -> &Vec<Option<u64>>| {
            snapshot.history.as_ref().map_or(none, |history| of(history))
        };
        let last = |seconds: &[Option<u64>]| seconds.iter().rev().copied().flatten().next();
        let room = width.saturating_sub(LABEL + NUMBER + 2);
        let row = |label: &str, now: Option<u64>, seconds: &[Option<u64>], merge| {
            let number = now.map_or_else(|| "-".into(), |now| now.to_string());
            let blocks = line(seconds, room, merge, self.is_utf8);
            plain(format!("{}{number:>NUMBER$}  {blocks}", padded(label, LABEL)))
        };
        let rate =
            |label: &str, seconds: &[Option<u64>]| row(label, last(seconds), seconds, Merge::Mean);
        vec![
            row("available", Some(sum(|it| it.available)), of(|it| &it.available), Merge::Max),
            row("leased", Some(sum(|it| it.leased)), of(|it| &it.leased), Merge::Max),
            row("waiting", Some(sum(|it| it.waiting)), of(|it| &it.waiting), Merge::Max),
            rate("grants/s", of(|it| &it.grants)),
            rate("refusals/s", of(|it| &it.refusals)),
            rate("expiries/s", of(|it| &it.expiries)),
        ]
    }
}

/// Orders pools by who needs attention: waiting requests first, then the smallest free part.
fn by_need(a: &Pool, b: &Pool) -> Ordering {
    // A pool without keys lends none on purpose, so it stands behind those that ran out.
    let free = |pool: &Pool, other: &Pool| match pool.total {
        0 => u128::MAX,
        _ => u128::from(pool.available) * u128::from(other.total.max(1)),
    };
    let waiting = |pool: &Pool| Reverse(pool.waiting);
    waiting(a).cmp(&waiting(b)).then(free(a, b).cmp(&free(b, a))).then(a.pool.cmp(&b.pool))
}

fn pool_row(pool: &Pool, now: UnixMs) -> Row {
    let used = pool.total.saturating_sub(pool.available);
    let share = |of: u64| u128::from(used) * u128::from(of) / u128::from(pool.total.max(1));
    let blocks = usize::try_from(share(BAR as u64)).unwrap_or(BAR).min(BAR);
    let bar = format!("[{}{}] {:3} %", "#".repeat(blocks), ".".repeat(BAR - blocks), share(100));
    let needs_attention = pool.waiting > 0 || (pool.total > 0 && pool.available == 0);
    Row {
        cells: vec![
            if pool.draining { format!("{} (draining)", pool.pool) } else { pool.pool.clone() },
            bar,
            pool.available.to_string(),
            pool.leased.to_string(),
            pool.resting.to_string(),
            pool.quarantined.to_string(),
            pool.waiting.to_string(),
            pool.next_return_at.map_or_else(|| "-".into(), |end| until(end, now)),
        ],
        style: if needs_attention { Style::Alert } else { Style::Plain },
    }
}

fn lease_row(key: &Key, now: UnixMs) -> Row {
    let lease = key.lease.as_ref().expect("invariant: only leased keys are kept");
    let holder = lease.holder.as_deref().map_or_else(|| "-".into(), cell_of);
    Row {
        cells: vec![
            key.id.clone(),
            holder,
            until(lease.expires_at, now),
            seconds(now.0.saturating_sub(lease.granted_at.0) / 1_000),
        ],
        style: Style::Plain,
    }
}

fn end_of(key: &Key) -> u64 {
    key.lease.as_ref().map_or(u64::MAX, |lease| lease.expires_at.0)
}

/// Returns the time until an instant, rounded up to seconds.
fn until(end: UnixMs, now: UnixMs) -> String {
    seconds(end.0.saturating_sub(now.0).div_ceil(1_000))
}

fn plain(text: String) -> Line {
    Line { text, style: Style::Plain }
}

/// Returns the head and the rows of a table. If it is too wide, the texts are cut: those of the
/// second column if they are the names of holders, else those of the first.
fn table(columns: &[Column], rows: &[Row], width: usize) -> Vec<Line> {
    let mut widths: Vec<usize> = columns.iter().map(|(name, _)| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let gaps = 2 * (columns.len() - 1);
    let flexible = columns.iter().position(|(name, _)| *name == "HOLDER").unwrap_or(0);
    let others = widths.iter().sum::<usize>() - widths[flexible] + gaps;
    let room = width.saturating_sub(others).max(columns[flexible].0.len());
    widths[flexible] = widths[flexible].min(room);
    let joined = |cells: Vec<String>| {
        let cells =
            cells.iter().zip(columns).zip(&widths).map(|((cell, (_, is_right)), &width)| {
                let cell = cut(cell, width);
                if *is_right { format!("{cell:>width$}") } else { padded(&cell, width) }
            });
        cells.collect::<Vec<_>>().join("  ")
    };
    let names = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut lines = vec![Line { text: joined(names), style: Style::Bold }];
    lines.extend(
        rows.iter().map(|Row { cells, style }| Line { text: joined(cells.clone()), style: *style }),
    );
    lines
}

#[cfg(test)]
mod tests;

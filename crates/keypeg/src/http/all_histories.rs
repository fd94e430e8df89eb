//! One history of all pools from those of several servers, each of which knows its own pools.
//!
//! Pure: does not know where a history comes from. The seconds of two servers are the same if their
//! wall clocks say so.

use keypeg_client::{History, UnixMs};

/// How many seconds the history of a server can lack at its end before the sum goes on without it.
const LATE_MAX: u64 = 3;

/// A history, and the second at which it begins.
struct Placed<'a> {
    first: u64,
    history: &'a History,
}

impl Placed<'_> {
    /// Returns the second after the last one.
    fn end(&self) -> u64 {
        self.first + self.history.available.len() as u64
    }

    /// Returns the index of a second; `None` without a record of it.
    fn index(&self, second: u64) -> Option<usize> {
        let index = usize::try_from(second.checked_sub(self.first)?).ok()?;
        (index < self.history.available.len()).then_some(index)
    }
}

/// Adds histories. The sum has as many seconds as the longest one, and ends with the last second that
/// all of them have, but not long before the end of the first. A server that has no record of a second
/// counts as without pools.
pub(super) fn sum(histories: &[History]) -> Option<History> {
    let placed = |history| Placed { first: second(history), history };
    let placed: Vec<_> = histories.iter().map(placed).collect();
    let known = || placed.iter().filter(|it| !it.history.available.is_empty());
    let newest = known().map(Placed::end).max().unwrap_or(0);
    let oldest_end = known().map(Placed::end).min().unwrap_or(0);
    let end = oldest_end.max(newest.saturating_sub(LATE_MAX));
    let len = known().map(|it| it.history.available.len()).max().unwrap_or(0) as u64;
    let begin = end.saturating_sub(len);
    let whole = |column: fn(&History) -> &Vec<Option<u64>>| -> Vec<Option<u64>> {
        sums(&placed, begin..end, |it, index| column(it)[index])
    };
    let first = histories.first()?;
    let phase_ms = first.from_at.0 % 1_000;
    Some(History {
        pool: None,
        pools: histories.iter().map(|history| history.pools).sum(),
        from_at: UnixMs(if len == 0 { first.from_at.0 } else { begin * 1_000 + phase_ms }),
        available: whole(|it| &it.available),
        leased: whole(|it| &it.leased),
        resting: whole(|it| &it.resting),
        quarantined: whole(|it| &it.quarantined),
        waiting: whole(|it| &it.waiting),
        grants: whole(|it| &it.grants),
        refusals: whole(|it| &it.refusals),
        expiries: whole(|it| &it.expiries),
        purges: whole(|it| &it.purges),
        waited_seconds: sums(&placed, begin..end, |it, index| it.waited_seconds[index]),
    })
}

/// Returns the second of the first element of a history.
fn second(history: &History) -> u64 {
    history.from_at.0 / 1_000
}

fn sums<T: std::ops::Add<Output = T>>(
    placed: &[Placed<'_>],
    seconds: std::ops::Range<u64>,
    value: impl Fn(&History, usize) -> Option<T>,
) -> Vec<Option<T>> {
    let of_second = |second: u64| {
        let values = placed.iter().filter_map(|it| value(it.history, it.index(second)?));
        values.reduce(|one, other| one + other)
    };
    seconds.map(of_second).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(from_ms: u64, available: &[Option<u64>]) -> History {
        let column = || available.to_vec();
        let waited = |value: &Option<u64>| value.map(|_| 0.5);
        History {
            pool: None,
            pools: 2,
            from_at: UnixMs(from_ms),
            available: column(),
            leased: column(),
            resting: column(),
            quarantined: column(),
            waiting: column(),
            grants: column(),
            refusals: column(),
            expiries: column(),
            purges: column(),
            waited_seconds: available.iter().map(waited).collect(),
        }
    }

    #[test]
    fn the_seconds_of_several_servers_are_added() {
        let numbers = |text: &str| -> Vec<Option<u64>> {
            text.split_whitespace().map(|word| word.parse().ok()).collect()
        };
        for (histories, from_ms, expected) in [
            (vec![(5_300, "1 2 3")], 5_300, "1 2 3"),
            (vec![(5_300, "1 2 3"), (5_900, "10 20 30")], 5_300, "11 22 33"),
            // The second server has begun later, and has one second more.
            (vec![(5_300, "1 2 3"), (6_100, "10 20 30")], 5_300, "1 12 23"),
            (vec![(6_300, "1 2 3"), (5_100, "10 20 30")], 5_300, "10 21 32"),
            (vec![(5_300, "- 2 3"), (5_100, "- 20 -")], 5_300, "- 22 3"),
            // A server that is far behind does not hide what the others know.
            (vec![(5_300, "1 2 3 4 5 6 7"), (5_100, "10")], 2_300, "- - - 11 2 3 4"),
            (vec![(5_300, ""), (5_100, "4 5")], 5_300, "4 5"),
            (vec![(5_300, ""), (9_100, "")], 5_300, ""),
        ] {
            let histories: Vec<_> =
                histories.iter().map(|(from, text)| history(*from, &numbers(text))).collect();
            let sum = sum(&histories).expect("there is one");
            assert_eq!((sum.from_at.0, &sum.available), (from_ms, &numbers(expected)));
            assert_eq!((sum.purges, sum.pools), (numbers(expected), 2 * histories.len() as u64));
            assert_eq!(sum.waited_seconds.len(), sum.available.len());
        }
        assert_eq!(sum(&[]), None);
    }
}

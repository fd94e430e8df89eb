//! The metrics of each pool as text, in both formats.
//!
//! A thousand pools have 40 000 lines. So this file writes them by itself, in short steps: between
//! two steps the core answers other requests. Names of pools need no escapes. Knows neither how
//! the rows were read nor which pools have one.

use super::exposition::Format;
use super::pools::PoolRow;
use keypeg_core::{HOLD_BUCKETS_US, NoKeyCause, PoolActivity, WAIT_BUCKETS_US};
use std::fmt::Write as _;

/// About the bytes of the text of one pool.
pub(super) const POOL_BYTES: usize = 3_072;
/// The pools of one step: about 200 microseconds.
const STEP: usize = 64;
const WRITES: &str = "invariant: writing to a string never fails";

/// A metric of each pool.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    write: fn(&mut String, &str, &PoolRow),
}

const FAMILIES: [Family; 9] = [
    Family {
        name: "keypeg_pool_keys",
        kind: "gauge",
        help: "Keys of a pool, by state",
        write: write_keys,
    },
    Family {
        name: "keypeg_pool_waiting",
        kind: "gauge",
        help: "Requests of a pool waiting for a key",
        write: |to, name, row| write_number(to, name, row, row.waiting),
    },
    Family {
        name: "keypeg_pool_grants",
        kind: "counter",
        help: "Leases granted, at once or after a wait",
        write: |to, name, row| write_number(to, name, row, row.activity.grants),
    },
    Family {
        name: "keypeg_pool_releases",
        kind: "counter",
        help: "Leases ended by a release or a force-release",
        write: |to, name, row| write_number(to, name, row, row.activity.releases),
    },
    Family {
        name: "keypeg_pool_expiries",
        kind: "counter",
        help: "Leases ended by time",
        write: |to, name, row| write_number(to, name, row, row.activity.expiries),
    },
    Family {
        name: "keypeg_pool_purges",
        kind: "counter",
        help: "Keys purged because no client kept them alive",
        write: |to, name, row| write_number(to, name, row, row.activity.purges),
    },
    Family {
        name: "keypeg_pool_refusals",
        kind: "counter",
        help: "Requests refused because no key was available, at once or after a wait, by cause",
        write: write_refusals,
    },
    Family {
        name: "keypeg_pool_wait_seconds",
        kind: "histogram",
        help: "Time that a granted request waited for its key; 0 if one was available",
        write: |to, name, row| {
            let counts = row.activity.waits_of_all_grants();
            write_times(to, (name, row), &WAIT_BUCKETS_US, &counts, row.activity.waited_us);
        },
    },
    Family {
        name: "keypeg_pool_hold_seconds",
        kind: "histogram",
        help: "Time from the grant of a lease to its release or expiry",
        write: |to, name, row| {
            let PoolActivity { holds, held_us, .. } = &row.activity;
            write_times(to, (name, row), &HOLD_BUCKETS_US, holds, *held_us);
        },
    },
];

/// Returns the metrics of these pools, without an end mark.
pub(super) async fn text(rows: &[&PoolRow], format: Format) -> String {
    let mut text = String::with_capacity(1_024 + rows.len() * POOL_BYTES);
    for family in &FAMILIES {
        let Family { name, kind, help, .. } = family;
        let is_counter = *kind == "counter";
        let sample = if is_counter { format!("{name}_total") } else { (*name).to_owned() };
        // The older format names a counter by its sample.
        let described = if format == Format::Text { sample.as_str() } else { name };
        writeln!(text, "# HELP {described} {help}.\n# TYPE {described} {kind}").expect(WRITES);
        for rows in rows.chunks(STEP) {
            for row in rows {
                (family.write)(&mut text, &sample, row);
            }
            tokio::task::yield_now().await;
        }
    }
    text
}

fn write_number(to: &mut String, name: &str, row: &PoolRow, value: u64) {
    writeln!(to, "{name}{{pool=\"{}\"}} {value}", row.name).expect(WRITES);
}

fn write_keys(to: &mut String, name: &str, row: &PoolRow) {
    let keys = row.keys;
    for (state, count) in [
        ("available", keys.available),
        ("leased", keys.leased),
        ("resting", keys.resting),
        ("quarantined", keys.quarantined),
    ] {
        writeln!(to, "{name}{{pool=\"{}\",state=\"{state}\"}} {count}", row.name).expect(WRITES);
    }
}

fn write_refusals(to: &mut String, name: &str, row: &PoolRow) {
    for cause in NoKeyCause::ALL {
        let (pool, count) = (&row.name, row.activity.refused(cause));
        let cause = cause.as_str();
        writeln!(to, "{name}{{pool=\"{pool}\",cause=\"{cause}\"}} {count}").expect(WRITES);
    }
}

/// Writes a histogram of times. Each count is of the values between two bounds.
fn write_times(
    to: &mut String,
    (name, row): (&str, &PoolRow),
    bounds_us: &[u64],
    counts: &[u64],
    sum_us: u64,
) {
    let pool = &row.name;
    let mut total = 0;
    for (index, count) in counts.iter().enumerate() {
        total += count;
        write!(to, "{name}_bucket{{pool=\"{pool}\",le=\"").expect(WRITES);
        match bounds_us.get(index) {
            Some(bound) => write_bound(to, *bound),
            None => to.push_str("+Inf"),
        }
        writeln!(to, "\"}} {total}").expect(WRITES);
    }
    let (seconds, rest) = (sum_us / 1_000_000, sum_us % 1_000_000);
    writeln!(to, "{name}_sum{{pool=\"{pool}\"}} {seconds}.{rest:06}").expect(WRITES);
    writeln!(to, "{name}_count{{pool=\"{pool}\"}} {total}").expect(WRITES);
}

/// Writes an upper bound in seconds as `OpenMetrics` wants it: `0.5`, `60.0`.
fn write_bound(to: &mut String, us: u64) {
    if us.is_multiple_of(1_000_000) {
        write!(to, "{}.0", us / 1_000_000).expect(WRITES);
    } else {
        let digits = format!("{:06}", us % 1_000_000);
        write!(to, "{}.{}", us / 1_000_000, digits.trim_end_matches('0')).expect(WRITES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_core::KeyCounts;

    async fn lines(format: Format) -> Vec<String> {
        let mut activity = PoolActivity { grants: 5, ..PoolActivity::default() };
        activity.count_wait(2_000_000);
        activity.count_release(90_000_000);
        activity.count_expiry(1_500);
        activity.count_refusal(NoKeyCause::AllLeased);
        let keys = KeyCounts { available: 1, leased: 2, resting: 3, quarantined: 4, draining: 0 };
        let row = PoolRow { name: "ci".into(), keys, waiting: 6, activity };
        text(&[&row], format).await.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_pool_has_its_numbers_in_the_bucket_of_their_time() {
        let lines = lines(Format::Text).await;
        for line in [
            "keypeg_pool_keys{pool=\"ci\",state=\"quarantined\"} 4",
            "keypeg_pool_waiting{pool=\"ci\"} 6",
            "# TYPE keypeg_pool_grants_total counter",
            "keypeg_pool_grants_total{pool=\"ci\"} 5",
            "keypeg_pool_refusals_total{pool=\"ci\",cause=\"all_leased\"} 1",
            "keypeg_pool_refusals_total{pool=\"ci\",cause=\"pool_empty\"} 0",
            "keypeg_pool_wait_seconds_bucket{pool=\"ci\",le=\"0.001\"} 4",
            "keypeg_pool_wait_seconds_bucket{pool=\"ci\",le=\"1.0\"} 4",
            "keypeg_pool_wait_seconds_bucket{pool=\"ci\",le=\"5.0\"} 5",
            "keypeg_pool_wait_seconds_bucket{pool=\"ci\",le=\"+Inf\"} 5",
            "keypeg_pool_wait_seconds_sum{pool=\"ci\"} 2.000000",
            "keypeg_pool_wait_seconds_count{pool=\"ci\"} 5",
            "keypeg_pool_hold_seconds_bucket{pool=\"ci\",le=\"0.01\"} 1",
            "keypeg_pool_hold_seconds_bucket{pool=\"ci\",le=\"60.0\"} 1",
            "keypeg_pool_hold_seconds_bucket{pool=\"ci\",le=\"300.0\"} 2",
            "keypeg_pool_hold_seconds_sum{pool=\"ci\"} 90.001500",
            "keypeg_pool_hold_seconds_count{pool=\"ci\"} 2",
        ] {
            assert!(lines.iter().any(|other| other == line), "{line}: {lines:#?}");
        }
        let bytes: usize =
            lines.iter().filter(|line| !line.starts_with('#')).map(String::len).sum();
        assert!(bytes < POOL_BYTES, "{bytes}");
    }

    #[tokio::test]
    async fn the_formats_differ_only_in_the_names_of_counters() {
        let (text, open_metrics) = (lines(Format::Text).await, lines(Format::OpenMetrics).await);
        assert_eq!(text.len(), open_metrics.len());
        for (text, open) in text.iter().zip(&open_metrics) {
            let is_counter = text.starts_with('#') && text.contains("_total ");
            assert_eq!(text == open, !is_counter, "{text}");
            assert_eq!(&text.replacen("_total ", " ", usize::from(is_counter)), open);
        }
    }
}

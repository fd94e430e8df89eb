//! The time of one call as a pool grows, and the memory of one key: a Markdown table.
//!
//! Half of the keys are leased, calls name random keys, all deadlines differ. Each figure is the
//! median of rounds. `cargo bench -p keypeg-core --bench cost`; `bench/RESULTS.md` contains the
//! results. Without `--bench`, as tests run it, only a small pool is measured. With
//! `--count KEYS ROUNDS CALLS` it executes rounds and prints nothing: `bench/cost` counts the
//! instructions.

#[path = "support/world.rs"]
mod world;

use std::hint::black_box;
use std::time::{Duration, Instant};
use world::{KINDS, World};

/// Calls measured of each kind, at least, where the pool has that many keys.
const CALLS: usize = 100_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(index) = arguments.iter().position(|argument| argument == "--count") {
        return count(&arguments[index + 1..]);
    }
    let full = arguments.iter().any(|argument| argument == "--bench");
    // The largest first, while the allocator has no freed memory that would hide the growth.
    let sizes: &[u32] = if full { &[10_000_000, 100_000, 1_000] } else { &[1_000] };
    let mut columns: Vec<_> = sizes.iter().map(|&size| measure(size, size == sizes[0])).collect();
    columns.reverse();
    let heads: Vec<String> = sizes.iter().rev().map(|size| format!("{size} keys")).collect();
    print_line(&format!("| | {} |", heads.join(" | ")));
    print_line(&format!("|---|{}", "---:|".repeat(sizes.len())));
    for row in 0..columns[0].len() {
        let cells: Vec<&str> = columns.iter().map(|column| column[row].1.as_str()).collect();
        print_line(&format!("| {} | {} |", columns[0][row].0, cells.join(" | ")));
    }
}

fn count(arguments: &[String]) {
    let numbers: Vec<u32> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    let [keys, rounds, calls] = numbers[..] else { panic!("--count KEYS ROUNDS CALLS") };
    let mut world = World::new();
    world.grow(keys);
    world.lease_half(keys);
    for _ in 0..rounds {
        world.round(calls as usize, |world, calls| calls(world));
    }
}

fn measure(size: u32, fresh: bool) -> Vec<(String, String)> {
    let mut world = World::new();
    let before = fresh.then(resident);
    world.grow(size);
    let free = per_key(before, size);
    world.lease_half(size);
    let half = per_key(before, size);
    let round = (size as usize / 8).min(CALLS);
    let mut took: [Vec<Duration>; KINDS.len()] = Default::default();
    for _ in 0..(CALLS / round).max(5) {
        let mut kinds = took.iter_mut();
        world.round(round, |world, calls| {
            kinds.next().expect("one for each kind").push(timed(|| calls(world)));
        });
    }
    let calls = u32::try_from(round).expect("few");
    let timed = KINDS.iter().zip(took);
    let mut rows: Vec<_> =
        timed.map(|(kind, took)| (format!("{kind}, ns"), median(took, calls))).collect();
    rows.push(("bytes a key, all available".into(), free));
    rows.push(("bytes a key, half leased".into(), half));
    rows
}

fn median(mut took: Vec<Duration>, calls: u32) -> String {
    took.sort();
    (took[took.len() / 2] / calls).as_nanos().to_string()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn timed<T>(run: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(run());
    start.elapsed()
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split_whitespace().nth(1).expect("the second field");
    pages.parse::<u64>().expect("a number") * 4_096
}

/// Formats the growth of memory for each key, where it can be measured: reused memory does not
/// show.
fn per_key(before: Option<u64>, size: u32) -> String {
    before.map_or("–".into(), |before| {
        let tenths = (resident() - before) * 10 / u64::from(size);
        format!("{}.{}", tenths / 10, tenths % 10)
    })
}

#[expect(clippy::print_stdout, reason = "the table is the output of this program")]
fn print_line(text: &str) {
    println!("{text}");
}

//! The suite that every shared log passes: one case for each sentence of the contract.
//!
//! A case uses shards of its own, so all cases can run on one store. It repeats a call whose outcome
//! is not known, so it also runs on a log with faults. A case returns what it found instead of what
//! it expected; it knows neither a runtime nor a clock.

mod appends;
mod case;
mod reads;
mod servers;
mod snapshots;
mod steps;

use crate::log::SharedLog;
use steps::Steps;

/// The shards that the suite uses: from the first one of its caller on.
pub const SHARDS: u16 = 64;

/// A case that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The sentence that does not hold.
    pub case: &'static str,
    /// What was found.
    pub found: String,
}

/// Runs the cases on a log, which has nothing in the [`SHARDS`] shards from `first_shard` on, and
/// returns those that failed.
pub async fn run(log: &dyn SharedLog, first_shard: u16, seed: u64) -> Vec<Failure> {
    let mut failures = Vec::new();
    let groups = [appends::CASES, reads::CASES, snapshots::CASES, servers::CASES];
    for (case, number) in groups.into_iter().flatten().zip(0..) {
        if case.only.is_some_and(|only| only != log.guarantee()) {
            continue;
        }
        let mut steps = Steps::new(log, first_shard + number * 2, seed ^ u64::from(number) << 32);
        if let Err(found) = (case.run)(&mut steps).await {
            failures.push(Failure { case: case.name, found });
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_shards_of_its_own() {
        let groups = [appends::CASES, reads::CASES, snapshots::CASES, servers::CASES];
        let cases: usize = groups.iter().map(|group| group.len()).sum();
        assert!(cases * 2 <= usize::from(SHARDS), "{cases} cases");
    }
}

//! Cases in which the machine must keep up, and what shows that it did not.
//!
//! A case whose lease has to be renewed in time fails on a machine that stands still for longer than
//! the lease. A thread measures that beside the case. Only a case that fails while the machine was
//! late is repeated, a few times; a wrong answer of the server fails at once on a machine in time.

use super::{now, pause};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How often a case is tried.
const TRIES: usize = 6;
/// The time between two readings of the clock.
const EVERY: Duration = Duration::from_millis(5);

/// Runs a case; repeats it if it fails while this machine did not run a thread for longer than
/// `limit`. The limit is well below the time by which the case allows the machine to be late.
pub(crate) fn unless_late<T>(limit: Duration, case: impl Fn() -> T) -> T {
    for _ in 1..TRIES {
        let (outcome, late) = measured(&case);
        match outcome {
            Ok(value) => return value,
            Err(panic) if late <= limit => resume_unwind(panic),
            Err(_) => {
                let _ = writeln!(std::io::stderr(), "repeated: this machine was late by {late:?}");
            }
        }
    }
    case()
}

/// Runs a case; returns its result, and the longest time by which a thread beside it was late.
fn measured<T>(case: impl Fn() -> T) -> (std::thread::Result<T>, Duration) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let meter = scope.spawn(|| {
            let mut late = Duration::ZERO;
            // At least one reading, also beside a case that ends before this thread runs.
            loop {
                let start = now();
                pause(EVERY);
                late = late.max(start.elapsed().saturating_sub(EVERY));
                if ended.load(Ordering::Relaxed) {
                    break late;
                }
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(case));
        ended.store(true, Ordering::Relaxed);
        (outcome, meter.join().unwrap())
    })
}

/// Like [`unless_late`], for a case on a tokio runtime of its own.
#[cfg(feature = "cli")]
pub(crate) fn unless_late_async<F: Future>(limit: Duration, case: impl Fn() -> F) -> F::Output {
    unless_late(limit, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(case())
    })
}

#[test]
fn a_case_is_repeated_only_if_the_machine_was_late() {
    let tries = AtomicUsize::new(0);
    let case = || assert!(tries.fetch_add(1, Ordering::Relaxed) == 1, "the first try fails");
    // Any machine is late by more than no time, and none by an hour.
    unless_late(Duration::ZERO, case);
    assert_eq!(tries.load(Ordering::Relaxed), 2);
    let once = || unless_late(Duration::from_hours(1), || panic!("fails"));
    assert!(catch_unwind(once).is_err());
}

//! Whether the server works, for a supervisor that ends a process that hangs: each core gets an
//! answer from the engine through its own lane, as a client's request does.
//!
//! Knows no supervisor beyond [`supervisor::notify`]. The supervisor gets a message only after all
//! cores got an answer since the last message. So it ends the process if the engine or a core hangs.

use crate::supervisor::{self, Message};
use keypeg_core::PoolName;
use keypeg_store::{Call, Lane, Principal, Reply, Request, RequestError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Questions within the supervisor's time, so that one late answer does not end the process.
const QUESTIONS: u32 = 3;

/// The watch of all cores.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    /// Whether each core got an answer since the last message.
    answered: Box<[AtomicBool]>,
}

/// The watch of one core; `None` without a supervisor that wants it.
#[derive(Debug)]
pub(super) struct CoreWatch(Option<(Arc<Watchdog>, usize)>);

/// Returns the watch of each core, as the supervisor of this process wants it.
pub(super) fn watches(cores: usize) -> impl Iterator<Item = CoreWatch> {
    let watchdog =
        supervisor::watchdog_time().map(|time| Arc::new(Watchdog::new(time / QUESTIONS, cores)));
    (0..cores).map(move |core| CoreWatch(watchdog.clone().map(|watchdog| (watchdog, core))))
}

impl CoreWatch {
    /// Asks the engine again and again, on the core itself. Returns only if no supervisor wants it.
    pub(super) async fn run(self, lane: Lane) {
        let Some((watchdog, core)) = self.0 else { return };
        let mut ticks = interval(watchdog.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let by_server = Request::new(Principal::Server, question());
            let reply = lane.submit(by_server).await;
            if is_of_engine(&reply) && watchdog.note_answer(core) {
                supervisor::notify(Message::Alive);
            }
        }
    }
}

/// A call in constant time that changes nothing.
fn question() -> Call {
    Call::GetPool { pool: PoolName::default_pool() }
}

/// Returns whether the engine has answered, rather than its lane. A pool that does not exist is an
/// answer too.
fn is_of_engine(reply: &Reply) -> bool {
    !matches!(reply, Reply::Refused(RequestError::Overloaded | RequestError::ShuttingDown))
}

impl Watchdog {
    fn new(interval: Duration, cores: usize) -> Self {
        Self { interval, answered: (0..cores).map(|_| AtomicBool::new(false)).collect() }
    }

    /// Notes that a core got an answer. Returns whether all cores have one; then each needs another.
    fn note_answer(&self, core: usize) -> bool {
        self.answered[core].store(true, Ordering::Relaxed);
        let have_all = self.answered.iter().all(|answered| answered.load(Ordering::Relaxed));
        if have_all {
            self.answered.iter().for_each(|answered| answered.store(false, Ordering::Relaxed));
        }
        have_all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisor_gets_a_message_after_each_core_got_an_answer() {
        let watchdog = Watchdog::new(Duration::from_secs(1), 3);
        for (core, is_message) in [
            (0, false),
            (1, false),
            (0, false),
            (2, true),
            (2, false),
            // Without the second core no number of answers is enough.
            (0, false),
            (0, false),
            (2, false),
            (1, true),
        ] {
            assert_eq!(watchdog.note_answer(core), is_message, "{core}");
        }
        assert!(Watchdog::new(Duration::from_secs(1), 1).note_answer(0));
    }

    #[test]
    fn a_refusal_by_the_lane_is_no_answer_of_the_engine() {
        for error in [RequestError::Overloaded, RequestError::ShuttingDown] {
            assert!(!is_of_engine(&Reply::Refused(error)));
        }
        assert!(is_of_engine(&Reply::Refused(RequestError::StorageFull)));
        assert!(is_of_engine(&Reply::Done));
    }
}

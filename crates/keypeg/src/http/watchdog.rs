//! Whether the server works, for a supervisor that ends a process that hangs: each core gets an
//! answer from the engine through its own lane, as a client's request does.
//!
//! Knows no supervisor beyond its time and its messages. The supervisor gets a message only after
//! all cores got an answer since the last message. So it ends the process if the engine or a core
//! hangs.

use super::lanes::Lanes;
use crate::supervisor::{self, Message};
use keypeg_core::PoolName;
use keypeg_store::{Call, Lane, PendingReply, Principal, Reply, Request, RequestError};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
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
    let watchdog = supervisor::watchdog_time().map(|time| Arc::new(Watchdog::new(time, cores)));
    (0..cores).map(move |core| CoreWatch(watchdog.clone().map(|watchdog| (watchdog, core))))
}

impl CoreWatch {
    /// Asks the engine again and again, on the core itself, and calls `report` when all cores got an
    /// answer. Returns only if no supervisor wants it.
    pub(super) async fn run(self, lanes: Lanes, report: impl Fn(Message)) {
        let Some((watchdog, core)) = self.0 else { return };
        let mut ticks = interval(watchdog.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if any_answers(&lanes).await && watchdog.note_answer(core) {
                report(Message::Alive);
            }
        }
    }
}

/// Asks all shards, and returns whether one of them answers: the engine of another one may wait for
/// the shared log meanwhile, which can take long and is no defect.
async fn any_answers(lanes: &Lanes) -> bool {
    let ask = |lane: &Lane| lane.submit(Request::new(Principal::Server, question()));
    let mut pending: Vec<PendingReply> = lanes.all().map(ask).collect();
    std::future::poll_fn(|cx| {
        let mut any = false;
        pending.retain_mut(|reply| match Pin::new(reply).poll(cx) {
            Poll::Ready(reply) => {
                any |= is_of_engine(&reply);
                false
            }
            Poll::Pending => true,
        });
        if any || pending.is_empty() { Poll::Ready(any) } else { Poll::Pending }
    })
    .await
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
    /// `time` is the time after which the supervisor ends the process.
    fn new(time: Duration, cores: usize) -> Self {
        let interval = time / QUESTIONS;
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
    use keypeg_store::{CoreLanes, Wakeup, lane};

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
        for error in [RequestError::StorageFull, RequestError::NotOwner] {
            assert!(is_of_engine(&Reply::Refused(error)));
        }
        assert!(is_of_engine(&Reply::Done));
    }

    /// A shard that another server serves refuses; one whose log is out of reach does not answer.
    #[tokio::test]
    async fn one_shard_that_answers_shows_that_the_server_works() {
        let wakeup = Wakeup::default();
        let (lanes, mut engines): (Vec<_>, Vec<_>) = (0..3).map(|_| lane(&wakeup)).unzip();
        let deliveries = lanes.clone();
        let lanes = Lanes::new(CoreLanes { shards: lanes }, None);
        for lane in deliveries {
            tokio::spawn(async move { lane.run_delivery().await });
        }
        let asked = tokio::spawn({
            let lanes = lanes.clone();
            async move { any_answers(&lanes).await }
        });
        let mut refuse = |shard: usize, error: RequestError| {
            let mut slots = Vec::new();
            engines[shard].take(|slot, _| slots.push(slot));
            for &slot in &slots {
                engines[shard].answer(slot, Reply::Refused(error.clone()));
            }
            engines[shard].flush();
            slots.len()
        };
        while refuse(0, RequestError::ShuttingDown) == 0 {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        assert!(!asked.is_finished(), "a lane that refuses is no answer");
        assert_eq!(refuse(1, RequestError::NotOwner), 1);
        assert!(asked.await.unwrap(), "the third shard has not answered");
    }

    #[test]
    fn one_late_answer_does_not_end_the_process() {
        let time = Duration::from_secs(30);
        assert_eq!(Watchdog::new(time, 2).interval * QUESTIONS, time);
    }

    /// Only the number of answers counts, however many questions were sent.
    #[tokio::test]
    async fn a_core_without_an_answer_of_its_engine_sends_no_message() {
        let wakeup = Wakeup::default();
        let (questions, mut engine) = lane(&wakeup);
        let delivery = questions.clone();
        tokio::spawn(async move { delivery.run_delivery().await });
        let lanes = Lanes::new(CoreLanes { shards: vec![questions] }, None);
        let watchdog = Arc::new(Watchdog::new(Duration::from_millis(u64::from(QUESTIONS)), 1));
        let (report, messages) = std::sync::mpsc::sync_channel(8);
        let watch = CoreWatch(Some((watchdog, 0)));
        tokio::spawn(watch.run(lanes, move |message| report.try_send(message).unwrap()));
        for (messages_before, reply) in [
            (0, Reply::Refused(RequestError::Overloaded)),
            (0, Reply::Done),
            (1, Reply::Refused(RequestError::ShuttingDown)),
            (0, Reply::Done),
            (1, Reply::Done),
        ] {
            let (mut slot, mut count) = (None, 0);
            while slot.is_none() {
                tokio::task::yield_now().await;
                engine.take(|asked, _| slot = Some(asked));
                count += messages.try_iter().count();
                assert!(count <= messages_before, "before {reply:?}");
            }
            assert_eq!(count, messages_before, "before {reply:?}");
            engine.answer(slot.unwrap(), reply);
            engine.flush();
        }
    }
}

//! The long work of one core: reading large bodies, and calls whose answers are large.
//!
//! A core executes a request until the request waits, then the next one. So the long work of many
//! requests would delay the short requests of other callers by its sum. This file bounds the work in
//! progress, and admits waiting work from the callers in rotation. Knows nothing of what the work is.

use keypeg_store::CallerNumber;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The most units of work in progress on one core, about eight milliseconds. Work of more units is
/// in progress alone.
const UNITS_MAX: u32 = 32_768;

/// The long work of one core.
#[derive(Clone, Debug)]
pub(super) struct LongWork(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: u32,
    waiting: HashMap<CallerNumber, VecDeque<Waiting>>,
    /// The callers whose work waits; the first is the next to get a permit.
    rotation: VecDeque<CallerNumber>,
}

#[derive(Debug)]
struct Waiting {
    units: u32,
    permit: oneshot::Sender<WorkPermit>,
}

/// Work in progress, until this is dropped.
#[derive(Debug)]
pub(super) struct WorkPermit {
    work: LongWork,
    units: u32,
}

impl LongWork {
    pub(super) fn new() -> Self {
        let (waiting, rotation) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(State { free: UNITS_MAX, waiting, rotation })))
    }

    /// Waits until the caller gets a permit.
    pub(super) async fn permit(&self, caller: CallerNumber, units: u32) -> WorkPermit {
        let units = units.min(UNITS_MAX);
        let permit = {
            let mut state = self.state();
            if state.rotation.is_empty() && state.free >= units {
                state.free -= units;
                return WorkPermit { work: self.clone(), units };
            }
            let (permit, receiver) = oneshot::channel();
            if !state.waiting.contains_key(&caller) {
                state.rotation.push_back(caller);
            }
            state.waiting.entry(caller).or_default().push_back(Waiting { units, permit });
            receiver
        };
        permit.await.expect("invariant: a waiting permit is granted or its future is dropped")
    }

    /// Grants permits while there is room.
    fn grant(&self) {
        loop {
            let next = self.state().next();
            let Some(Waiting { units, permit }) = next else { return };
            // A permit that nothing waits for any more is dropped, which grants the next one.
            drop(permit.send(WorkPermit { work: self.clone(), units }));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot interrupt a change of the state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next work that there is room for.
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let caller = *self.rotation.front()?;
            let waiting = self.waiting.get_mut(&caller).expect(WAITS);
            while waiting.front().is_some_and(|first| first.permit.is_closed()) {
                waiting.pop_front();
            }
            let Some(first) = waiting.front() else {
                self.waiting.remove(&caller);
                self.rotation.pop_front();
                continue;
            };
            if first.units > self.free {
                return None;
            }
            let next = waiting.pop_front().expect(WAITS);
            self.rotation.pop_front();
            if waiting.is_empty() {
                self.waiting.remove(&caller);
            } else {
                self.rotation.push_back(caller);
            }
            self.free -= next.units;
            return Some(next);
        }
    }
}

impl Drop for WorkPermit {
    fn drop(&mut self) {
        self.work.state().free += self.units;
        self.work.grant();
    }
}

const WAITS: &str = "invariant: a caller in the rotation has waiting work";

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    const MANY: CallerNumber = CallerNumber(1);
    const OTHER: CallerNumber = CallerNumber(2);

    type Waits = Pin<Box<dyn Future<Output = WorkPermit>>>;

    fn wait(work: &LongWork, caller: CallerNumber, units: u32) -> Waits {
        let work = work.clone();
        let mut permit: Waits = Box::pin(async move { work.permit(caller, units).await });
        assert!(poll(&mut permit).is_none(), "there is no room");
        permit
    }

    fn poll(permit: &mut Waits) -> Option<WorkPermit> {
        match permit.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn callers_take_turns_however_much_work_one_of_them_has() {
        let work = LongWork::new();
        let first = work.permit(MANY, u32::MAX).await;
        let mut many: VecDeque<_> = (0..3).map(|_| wait(&work, MANY, UNITS_MAX)).collect();
        let mut other = wait(&work, OTHER, UNITS_MAX);
        drop(first);
        let second = poll(&mut many[0]).expect("the first of the caller that came first");
        assert!(poll(&mut many[1]).is_none() && poll(&mut other).is_none());
        drop(second);
        let third = poll(&mut other).expect("then the other caller");
        drop(third);
        assert!(poll(&mut many[1]).is_some(), "then the next of the first");
    }

    #[tokio::test]
    async fn work_that_nothing_waits_for_any_more_gets_no_permit() {
        let work = LongWork::new();
        let first = work.permit(MANY, UNITS_MAX / 2).await;
        let large = wait(&work, MANY, UNITS_MAX);
        let mut small = wait(&work, MANY, 1);
        drop(large);
        drop(first);
        drop(poll(&mut small).expect("its permit"));
        let state = work.state();
        assert!(state.free == UNITS_MAX && state.waiting.is_empty() && state.rotation.is_empty());
    }
}

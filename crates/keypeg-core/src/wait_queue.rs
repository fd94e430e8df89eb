//! Who waits for a key of a pool: first come, first served, each until a deadline in lease time.
//!
//! Joining, leaving from anywhere and the soonest deadline cost O(log n). A waiter is known by its
//! waiter_id, whatever that is to the asker; nothing of a line is ever a fact: waiting is memory only.

use crate::chunks::Chunks;
use crate::deadlines::{Deadlines, HeapIndex, NO_INDEX};
use crate::idempotency_store::IdempotentRequest;
use crate::numbers::{BorrowerId, WaiterId};
use crate::pool::AcquireOptions;

/// Who waits, and for what.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    /// What tells it from all others that wait.
    pub(crate) waiter_id: WaiterId,
    /// Since when, lease time in microseconds.
    pub(crate) since_us: u64,
    /// How long its lease is to be; the policy's length when left out.
    pub(crate) ttl_ms: Option<u64>,
    /// Who says to hold it.
    pub(crate) holder: Option<Box<str>>,
    /// In whose name: a borrower's number, or 0.
    pub(crate) borrower: BorrowerId,
    /// Under which Idempotency-Key it waits.
    pub(crate) asked: Option<Box<IdempotentRequest>>,
    ahead: u32,
    behind: u32,
    /// In the heap of deadlines.
    place: u32,
}

impl Waiter {
    pub(crate) fn new(waiter_id: WaiterId, since_us: u64, wish: &AcquireOptions<'_>) -> Self {
        let AcquireOptions { ttl_ms, holder, borrower } = *wish;
        let (holder, borrower) = (holder.map(Into::into), borrower.id);
        let (ahead, behind, place) = (NO_INDEX, NO_INDEX, NO_INDEX);
        Self { waiter_id, since_us, ttl_ms, holder, borrower, asked: None, ahead, behind, place }
    }

    /// Has it wait under an Idempotency-Key.
    pub(crate) fn under(self, asked: Option<IdempotentRequest>) -> Self {
        Self { asked: asked.map(Box::new), ..self }
    }
}

/// One pool's line.
#[derive(Clone, Debug)]
pub(crate) struct WaitQueue {
    waiters: Waiters,
    free: Vec<u32>,
    ends: Deadlines,
    first: u32,
    last: u32,
}

#[derive(Clone, Debug, Default)]
struct Waiters(Chunks<Option<Waiter>>);

impl Default for WaitQueue {
    fn default() -> Self {
        let (waiters, free, ends) = (Waiters::default(), Vec::new(), Deadlines::default());
        Self { waiters, free, ends, first: NO_INDEX, last: NO_INDEX }
    }
}

impl WaitQueue {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a waiter behind all others, until `until_us`; gives its place. O(log n).
    pub(crate) fn join(&mut self, waiter: Waiter, until_us: u64) -> u32 {
        let waiter = Some(Waiter { ahead: self.last, ..waiter });
        let at = if let Some(at) = self.free.pop() {
            self.waiters.0[at] = waiter;
            at
        } else {
            self.waiters.0.push(waiter);
            u32::try_from(self.waiters.0.len() - 1).expect("invariant: a line is bounded")
        };
        match self.last {
            NO_INDEX => self.first = at,
            last => self.waiters.get_mut(last).behind = at,
        }
        self.last = at;
        self.ends.set(at, until_us, &mut self.waiters);
        at
    }

    /// Who is first in line.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NO_INDEX).then_some(self.first)
    }

    /// Whose time is over first, and when.
    pub(crate) fn next_end(&self) -> Option<(u64, u32)> {
        self.ends.first()
    }

    /// Whether the waiter at this place has this waiter_id.
    pub(crate) fn has(&self, at: u32, waiter_id: WaiterId) -> bool {
        let len = self.waiters.0.len();
        (at as usize) < len
            && self.waiters.0[at].as_ref().is_some_and(|waiter| waiter.waiter_id == waiter_id)
    }

    /// Gives a place to another waiter_id, which waits since now and until `until_us`; gives the one
    /// that had it. O(log n).
    pub(crate) fn take_over(
        &mut self,
        at: u32,
        waiter_id: WaiterId,
        now_us: u64,
        until_us: u64,
    ) -> WaiterId {
        let waiter = self.waiters.get_mut(at);
        waiter.since_us = now_us;
        let before = std::mem::replace(&mut waiter.waiter_id, waiter_id);
        self.ends.set(at, until_us, &mut self.waiters);
        before
    }

    /// Under which Idempotency-Key the waiter at this place waits.
    pub(crate) fn asked(&self, at: u32) -> Option<&IdempotentRequest> {
        self.waiters.get(at).asked.as_deref()
    }

    /// Takes a waiter out, wherever it stands. O(log n).
    pub(crate) fn leave(&mut self, at: u32) -> Waiter {
        self.ends.cancel(at, &mut self.waiters);
        let waiter = self.waiters.0[at].take().expect("invariant: who leaves is in line");
        match waiter.ahead {
            NO_INDEX => self.first = waiter.behind,
            ahead => self.waiters.get_mut(ahead).behind = waiter.behind,
        }
        match waiter.behind {
            NO_INDEX => self.last = waiter.ahead,
            behind => self.waiters.get_mut(behind).ahead = waiter.ahead,
        }
        self.free.push(at);
        if self.is_empty() {
            // A long line's memory goes with it.
            *self = Self::default();
        }
        waiter
    }

    /// In whose names they wait, in their order. O(waiters).
    pub(crate) fn borrowers(&self) -> impl Iterator<Item = BorrowerId> {
        let mut next = self.first;
        std::iter::from_fn(move || {
            let waiter = (next != NO_INDEX).then(|| self.waiters.get(next))?;
            next = waiter.behind;
            Some(waiter.borrower)
        })
    }

    /// Panics unless the line is one line and the heap agrees with it. O(n).
    pub(crate) fn check_invariants(&self) {
        let (mut at, mut ahead, mut count) = (self.first, NO_INDEX, 0);
        while at != NO_INDEX {
            let waiter = self.waiters.get(at);
            assert_eq!(waiter.ahead, ahead, "neighbours agree");
            (ahead, at) = (at, waiter.behind);
            count += 1;
        }
        assert_eq!(self.last, ahead, "the last is nobody's front man");
        assert_eq!(self.len(), count, "everybody in line has a deadline");
        self.ends.check_invariants(&self.waiters);
    }
}

const IN_LINE: &str = "invariant: whose place is known is in line";

impl Waiters {
    fn get(&self, at: u32) -> &Waiter {
        self.0[at].as_ref().expect(IN_LINE)
    }

    fn get_mut(&mut self, at: u32) -> &mut Waiter {
        self.0[at].as_mut().expect(IN_LINE)
    }
}

impl HeapIndex for Waiters {
    fn place(&self, item: u32) -> u32 {
        self.get(item).place
    }

    fn set_place(&mut self, item: u32, place: u32) {
        self.get_mut(item).place = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A plain queue beside the line, driven by a linear congruence.
    #[test]
    fn it_agrees_with_a_queue() {
        let mut line = WaitQueue::default();
        let mut queue: VecDeque<(WaiterId, u32, u64)> = VecDeque::new();
        let mut state = 1_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        for step in 0..20_000 {
            let waiter_id = WaiterId(step);
            // It grows to some hundreds and then shrinks to nothing, again and again.
            let growing = (step / 500) % 2 == 0;
            if next(10) < if growing { 7 } else { 3 } {
                let until_us = next(1_000);
                let at = line.join(Waiter::new(waiter_id, 0, &AcquireOptions::default()), until_us);
                queue.push_back((waiter_id, at, until_us));
            } else if !queue.is_empty() {
                let any = usize::try_from(next(queue.len() as u64)).expect("small");
                let which = if next(2) == 0 { 0 } else { any };
                let (waiter_id, at, _) = queue.remove(which).expect("within");
                assert!(line.has(at, waiter_id));
                assert_eq!(line.leave(at).waiter_id, waiter_id);
                assert!(!line.has(at, waiter_id));
            }
            assert_eq!(line.first(), queue.front().map(|(_, at, _)| *at));
            let soonest = queue.iter().map(|(.., until_us)| *until_us).min();
            assert_eq!(line.next_end().map(|(until_us, _)| until_us), soonest);
            if step % 100 == 0 {
                line.check_invariants();
                assert_eq!(line.len(), queue.len());
            }
        }
    }
}

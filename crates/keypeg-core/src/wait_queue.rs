//! The wait queue of a pool: first come, first served, each waiter until a deadline in lease time.
//!
//! A doubly linked list in a slab, with an indexed heap of deadlines: appending, removing anywhere
//! and the earliest deadline cost O(log n). The caller knows a waiter by its [`WaiterId`]. Waiting
//! is in memory only and leaves no fact.

use crate::chunks::Chunks;
use crate::deadlines::{Deadlines, HeapIndex};
use crate::heap::{allocated, allocated_text};
use crate::idempotency_store::IdempotentRequest;
use crate::indices::{HeapPosition, ItemIndex, NOT_IN_HEAP, WaiterIndex};
use crate::lease::AcquireOptions;
use crate::numbers::{BorrowerId, WaiterId};

/// A waiting request, and the terms that it requests.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) id: WaiterId,
    /// The start of the wait, lease time in microseconds.
    pub(crate) since_us: u64,
    /// The duration of the lease; the policy's TTL when `None`.
    pub(crate) ttl_ms: Option<u64>,
    /// The name of the holder.
    pub(crate) holder: Option<Box<str>>,
    /// The borrower that the wait and the lease count for.
    pub(crate) borrower: BorrowerId,
    /// The request's Idempotency-Key, if it has one.
    pub(crate) request: Option<Box<IdempotentRequest>>,
    previous: WaiterIndex,
    next: WaiterIndex,
    /// The position in the heap of deadlines.
    heap_position: HeapPosition,
}

impl Waiter {
    pub(crate) fn new(
        id: WaiterId,
        since_us: u64,
        options: &AcquireOptions<'_>,
        request: Option<IdempotentRequest>,
    ) -> Self {
        let AcquireOptions { ttl_ms, holder, borrower } = *options;
        Self {
            id,
            since_us,
            ttl_ms,
            holder: holder.map(Into::into),
            borrower: borrower.id,
            request: request.map(Box::new),
            previous: WaiterIndex::NONE,
            next: WaiterIndex::NONE,
            heap_position: NOT_IN_HEAP,
        }
    }

    /// Returns the bytes that the waiter takes beside its place in the queue.
    fn text_bytes(&self) -> usize {
        let request = self.request.as_ref().map_or(0, |_| size_of::<IdempotentRequest>());
        allocated_text(self.holder.as_deref()) + allocated(request)
    }
}

/// The wait queue of one pool.
#[derive(Clone, Debug)]
pub(crate) struct WaitQueue {
    waiters: Waiters,
    free: Vec<WaiterIndex>,
    deadlines: Deadlines<WaiterIndex>,
    head: WaiterIndex,
    tail: WaiterIndex,
    /// The bytes of holders and of requests.
    text_bytes: usize,
}

#[derive(Clone, Debug, Default)]
struct Waiters(Chunks<WaiterIndex, Option<Waiter>>);

impl Default for WaitQueue {
    fn default() -> Self {
        Self {
            waiters: Waiters::default(),
            free: Vec::new(),
            deadlines: Deadlines::default(),
            head: WaiterIndex::NONE,
            tail: WaiterIndex::NONE,
            text_bytes: 0,
        }
    }
}

impl WaitQueue {
    /// Returns the bytes of all waiters. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        let free = self.free.capacity() * size_of::<WaiterIndex>();
        self.waiters.0.bytes() + free + self.deadlines.bytes() + self.text_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.deadlines.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a waiter that waits until `until_us`. O(log n).
    pub(crate) fn push_back(&mut self, waiter: Waiter, until_us: u64) -> WaiterIndex {
        self.text_bytes += waiter.text_bytes();
        let waiter = Some(Waiter { previous: self.tail, ..waiter });
        let index = if let Some(index) = self.free.pop() {
            self.waiters.0[index] = waiter;
            index
        } else {
            self.waiters.0.push(waiter)
        };
        if self.tail == WaiterIndex::NONE {
            self.head = index;
        } else {
            self.waiters.get_mut(self.tail).next = index;
        }
        self.tail = index;
        self.deadlines.set(index, until_us, &mut self.waiters);
        index
    }

    /// Returns the first waiter.
    pub(crate) fn head(&self) -> Option<WaiterIndex> {
        (self.head != WaiterIndex::NONE).then_some(self.head)
    }

    /// Returns the earliest deadline and its waiter.
    pub(crate) fn next_deadline(&self) -> Option<(u64, WaiterIndex)> {
        self.deadlines.first()
    }

    /// Returns whether the waiter at `index` is `waiter_id`.
    pub(crate) fn is_at(&self, index: WaiterIndex, waiter_id: WaiterId) -> bool {
        (index.get() as usize) < self.waiters.0.len()
            && self.waiters.0[index].as_ref().is_some_and(|waiter| waiter.id == waiter_id)
    }

    /// Gives a waiter's position in the queue to `waiter_id`, which waits from now until
    /// `until_us`. Returns the waiter before. O(log n).
    pub(crate) fn take_over(
        &mut self,
        index: WaiterIndex,
        waiter_id: WaiterId,
        now_us: u64,
        until_us: u64,
    ) -> WaiterId {
        let waiter = self.waiters.get_mut(index);
        waiter.since_us = now_us;
        let before = std::mem::replace(&mut waiter.id, waiter_id);
        self.deadlines.set(index, until_us, &mut self.waiters);
        before
    }

    /// Returns the Idempotency-Key of the waiter at `index`, if it has one.
    pub(crate) fn request(&self, index: WaiterIndex) -> Option<&IdempotentRequest> {
        self.waiters.get(index).request.as_deref()
    }

    /// Removes a waiter from any position. O(log n).
    pub(crate) fn remove(&mut self, index: WaiterIndex) -> Waiter {
        self.deadlines.cancel(index, &mut self.waiters);
        let waiter = self.waiters.0[index].take().expect(QUEUED);
        self.text_bytes -= waiter.text_bytes();
        if waiter.previous == WaiterIndex::NONE {
            self.head = waiter.next;
        } else {
            self.waiters.get_mut(waiter.previous).next = waiter.next;
        }
        if waiter.next == WaiterIndex::NONE {
            self.tail = waiter.previous;
        } else {
            self.waiters.get_mut(waiter.next).previous = waiter.previous;
        }
        self.free.push(index);
        if self.is_empty() {
            // Frees the memory of a long queue.
            *self = Self::default();
        }
        waiter
    }

    /// Returns the waiters' borrowers, in the order of the queue. O(waiters).
    pub(crate) fn borrowers(&self) -> impl Iterator<Item = BorrowerId> {
        let mut next = self.head;
        std::iter::from_fn(move || {
            let waiter = (next != WaiterIndex::NONE).then(|| self.waiters.get(next))?;
            next = waiter.next;
            Some(waiter.borrower)
        })
    }

    /// Panics unless the list is whole and the heap agrees with it. O(n).
    pub(crate) fn check_invariants(&self) {
        let (mut index, mut previous, mut count) = (self.head, WaiterIndex::NONE, 0);
        while index != WaiterIndex::NONE {
            let waiter = self.waiters.get(index);
            assert_eq!(waiter.previous, previous, "the links of neighbours agree");
            (previous, index) = (index, waiter.next);
            count += 1;
        }
        assert_eq!(self.tail, previous, "the tail has no successor");
        assert_eq!(self.len(), count, "every waiter has a deadline");
        self.deadlines.check_invariants(&self.waiters);
    }
}

const QUEUED: &str = "invariant: an index in use belongs to a waiter";

impl Waiters {
    fn get(&self, index: WaiterIndex) -> &Waiter {
        self.0[index].as_ref().expect(QUEUED)
    }

    fn get_mut(&mut self, index: WaiterIndex) -> &mut Waiter {
        self.0[index].as_mut().expect(QUEUED)
    }
}

/// The waiters' positions in the heap of deadlines.
impl HeapIndex for Waiters {
    type Item = WaiterIndex;

    fn heap_position(&self, item: WaiterIndex) -> HeapPosition {
        self.get(item).heap_position
    }

    fn set_heap_position(&mut self, item: WaiterIndex, position: HeapPosition) {
        self.get_mut(item).heap_position = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::SeededRandom;
    use std::collections::VecDeque;

    /// Random operations on the queue and on a `VecDeque`.
    #[test]
    fn it_agrees_with_a_plain_queue() {
        let mut queue = WaitQueue::default();
        let mut model: VecDeque<(WaiterId, WaiterIndex, u64)> = VecDeque::new();
        let mut random = SeededRandom(1);
        let mut next = |bound: u64| random.below(bound);
        for step in 0..20_000 {
            let waiter_id = WaiterId(step);
            // The queue grows to hundreds of waiters and becomes empty again, several times.
            let growing = (step / 500) % 2 == 0;
            if next(10) < if growing { 7 } else { 3 } {
                let until_us = next(1_000);
                let waiter = Waiter::new(waiter_id, 0, &AcquireOptions::default(), None);
                let index = queue.push_back(waiter, until_us);
                model.push_back((waiter_id, index, until_us));
            } else if !model.is_empty() {
                let any = usize::try_from(next(model.len() as u64)).expect("small");
                let which = if next(2) == 0 { 0 } else { any };
                let (waiter_id, index, _) = model.remove(which).expect("within");
                assert!(queue.is_at(index, waiter_id));
                assert_eq!(queue.remove(index).id, waiter_id);
                assert!(!queue.is_at(index, waiter_id));
            }
            assert_eq!(queue.head(), model.front().map(|(_, index, _)| *index));
            let earliest = model.iter().map(|(.., until_us)| *until_us).min();
            assert_eq!(queue.next_deadline().map(|(until_us, _)| until_us), earliest);
            if step % 100 == 0 {
                queue.check_invariants();
                assert_eq!(queue.len(), model.len());
            }
        }
    }
}

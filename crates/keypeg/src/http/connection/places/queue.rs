//! The order in which connections are displaced, as balanced trees: one over all connections and
//! one for each caller.
//!
//! A request changes no tree. A position becomes stale when its connection serves a request, and is
//! corrected when it comes first (lazy LRU). Entries of callers exist only while they have
//! connections, which bounds the memory.

use super::state::State;
use crate::share::CallerId;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tokio::task::AbortHandle;

/// How many connections an arrival examines at most to find one to displace.
const EXAMINED_MAX: usize = 64;

/// Which connections are displaced before others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// The server has admitted no request of it.
    Unproven,
    Proven,
}

/// A position in an order: rank, time since which the connection waits, index of its place.
type Position = (Rank, u64, usize);
type Order = BTreeSet<Position>;

/// The connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// Connections that stay: the open ones without the displaced ones.
    order: Order,
    callers: HashMap<CallerId, OfCaller>,
    /// The callers by their number of connections.
    sizes: BTreeSet<(usize, CallerId)>,
    /// Displaced connections that have not ended yet.
    leaving: usize,
    unproven: usize,
    /// Callers with a proven connection.
    proven_callers: usize,
}

/// The connections of one caller.
#[derive(Debug, Default)]
struct OfCaller {
    order: Order,
    proven: usize,
}

/// One connection.
#[derive(Debug)]
struct Entry {
    caller: CallerId,
    rank: Rank,
    /// The time in its positions, which can be earlier than that of its state.
    since_ms: u64,
    arrived_ms: u64,
    state: Arc<State>,
    is_leaving: bool,
    task: Option<AbortHandle>,
}

/// A displaced connection.
#[derive(Debug)]
pub(super) struct Displaced {
    pub(super) rank: Rank,
    pub(super) arrived_ms: u64,
    /// The task that serves it, once that has begun.
    pub(super) task: Option<AbortHandle>,
}

impl Entry {
    fn position(&self, index: usize) -> Position {
        (self.rank, self.since_ms, index)
    }
}

impl Queue {
    /// Returns the number of open connections.
    pub(super) fn len(&self) -> usize {
        self.order.len() + self.leaving
    }

    /// Returns the number of connections without those that are displaced.
    pub(super) fn staying(&self) -> usize {
        self.order.len()
    }

    pub(super) fn unproven(&self) -> usize {
        self.unproven
    }

    pub(super) fn insert(&mut self, caller: CallerId, now_ms: u64) -> (usize, Arc<State>) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        let state = Arc::new(State::waiting(now_ms));
        let entry = Entry {
            caller,
            rank: Rank::Unproven,
            since_ms: now_ms,
            arrived_ms: now_ms,
            state: Arc::clone(&state),
            is_leaving: false,
            task: None,
        };
        self.link(index, &entry);
        self.entries[index] = Some(entry);
        (index, state)
    }

    /// Returns whether `max` connections are open, and some of them are about to end.
    pub(super) fn is_full_until_ends(&self, max: usize) -> bool {
        self.leaving > 0 && self.len() >= max
    }

    /// Removes a connection that has ended; returns whether it was displaced.
    pub(super) fn remove(&mut self, index: usize) -> bool {
        let entry = self.entries[index].take().expect("invariant: a place is removed once");
        self.free.push(index);
        if entry.is_leaving {
            self.leaving -= 1;
        } else {
            self.unlink(index, &entry);
        }
        entry.is_leaving
    }

    /// Counts a connection as leaving.
    pub(super) fn displace(&mut self, index: usize) -> Displaced {
        let mut entry = self.entries[index].take().expect("invariant: a place that was found");
        self.unlink(index, &entry);
        self.leaving += 1;
        entry.is_leaving = true;
        let task = entry.task.take();
        let Entry { rank, arrived_ms, .. } = entry;
        self.entries[index] = Some(entry);
        Displaced { rank, arrived_ms, task }
    }

    pub(super) fn set_task(&mut self, index: usize, task: AbortHandle) {
        let entry = self.entries[index].as_mut().expect("invariant: a place in use");
        if entry.is_leaving {
            task.abort();
        } else {
            entry.task = Some(task);
        }
    }

    /// Marks a connection as proven, and as that of `caller` if one is given. Returns its caller;
    /// `None` if it is leaving.
    pub(super) fn prove(&mut self, index: usize, caller: Option<CallerId>) -> Option<CallerId> {
        let mut entry = self.entries[index].take().expect("invariant: a place in use");
        let stays = !entry.is_leaving;
        if stays {
            self.unlink(index, &entry);
            entry.rank = Rank::Proven;
            entry.caller = caller.unwrap_or(entry.caller);
            self.link(index, &entry);
        }
        let caller = stays.then(|| entry.caller.clone());
        self.entries[index] = Some(entry);
        caller
    }

    /// Returns whether a caller has its share when places run short at `short` connections.
    pub(super) fn fills_share(&self, caller: &CallerId, short: usize) -> bool {
        let Some(of_caller) = self.callers.get(caller) else { return false };
        let active = self.proven_callers + usize::from(of_caller.proven == 0);
        of_caller.order.len() >= (short / active).max(1)
    }

    /// Finds the connection to displace for one of `caller`, and marks its state: of the caller
    /// itself if it has its share, else the unproven one that has been silent longest, else the
    /// idle one that has been silent longest, first of the caller with the most connections.
    pub(super) fn find_displaced(
        &mut self,
        caller: &CallerId,
        fills_share: bool,
        now_ms: u64,
    ) -> Option<usize> {
        let mut budget = EXAMINED_MAX;
        if fills_share {
            return self.oldest(Some(caller), &mut budget, now_ms);
        }
        if self.unproven == 0
            && let Some((_, largest)) = self.sizes.last().cloned()
            && let Some(found) = self.oldest(Some(&largest), &mut budget, now_ms)
        {
            return Some(found);
        }
        self.oldest(None, &mut budget, now_ms)
    }

    /// Finds the first connection of an order that waits, and marks it as displaced. Moves those
    /// whose position is stale.
    fn oldest(
        &mut self,
        caller: Option<&CallerId>,
        budget: &mut usize,
        now_ms: u64,
    ) -> Option<usize> {
        let len = self.order_of(caller)?.len().min(*budget);
        for _ in 0..len {
            *budget -= 1;
            let order = self.order_of(caller)?;
            let &(_, since_ms, index) = order.first()?;
            let entry = self.entries[index].as_ref().expect("invariant: a listed place");
            let waits_since = entry.state.waits_since();
            if waits_since == Some(since_ms) && entry.state.displace(since_ms) {
                return Some(index);
            }
            // It has served a request since, or serves one now.
            let since_ms = waits_since.map_or(now_ms, |waits| waits.max(since_ms)).max(since_ms);
            self.move_to(index, since_ms);
        }
        None
    }

    /// Returns the order of a caller's connections, or that of all.
    fn order_of(&self, caller: Option<&CallerId>) -> Option<&Order> {
        match caller {
            Some(caller) => self.callers.get(caller).map(|of_caller| &of_caller.order),
            None => Some(&self.order),
        }
    }

    fn move_to(&mut self, index: usize, since_ms: u64) {
        let mut entry = self.entries[index].take().expect("invariant: a listed place");
        let before = entry.position(index);
        entry.since_ms = since_ms;
        let after = entry.position(index);
        let of_caller = self.callers.get_mut(&entry.caller).expect("invariant: it has a place");
        for order in [&mut self.order, &mut of_caller.order] {
            order.remove(&before);
            order.insert(after);
        }
        self.entries[index] = Some(entry);
    }

    fn link(&mut self, index: usize, entry: &Entry) {
        self.change(index, entry, |order, position| {
            order.insert(position);
        });
    }

    fn unlink(&mut self, index: usize, entry: &Entry) {
        self.change(index, entry, |order, position| {
            order.remove(&position);
        });
    }

    /// Adds a connection to the orders and counts, or removes it.
    fn change(&mut self, index: usize, entry: &Entry, change: impl Fn(&mut Order, Position)) {
        let position = entry.position(index);
        change(&mut self.order, position);
        let of_caller = self.callers.entry(entry.caller.clone()).or_default();
        let (before, proven_before) = (of_caller.order.len(), of_caller.proven);
        change(&mut of_caller.order, position);
        let after = of_caller.order.len();
        let count = match entry.rank {
            Rank::Unproven => &mut self.unproven,
            Rank::Proven => &mut of_caller.proven,
        };
        *count = *count + after - before;
        self.proven_callers += usize::from(of_caller.proven > 0);
        self.proven_callers -= usize::from(proven_before > 0);
        let size = (before, entry.caller.clone());
        self.sizes.remove(&size);
        if after == 0 {
            self.callers.remove(&entry.caller);
        } else {
            self.sizes.insert((after, size.1));
        }
    }
}

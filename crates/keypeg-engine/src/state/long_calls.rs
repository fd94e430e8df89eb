//! Long calls: each turn executes some of them, within a budget of work, callers in rotation.
//!
//! Most calls cost less than one budget and are executed whole, in one turn. A call that adds many
//! keys, or repeats such a call, takes the budgets of several turns, one call after the other, see
//! `adding.rs`. Short calls do not pass through here, and each turn executes them first. So a long
//! call delays a short one by one budget of work, and delays long calls of other callers by its own
//! cost. Knows no pools.

use super::work::QueuedRequest;
use hashbrown::HashMap;
use keypeg_core::sabotage::{TestLimit, limit};
use keypeg_store::{Call, CallerNumber};
use std::collections::VecDeque;

/// The most units of work that the long calls of one turn cost, about a millisecond.
pub const LONG_UNITS_MAX: u32 = 4_096;
/// The most long calls that are queued. A caller may have at most as many as stay free for others.
const QUEUED_MAX: usize = 4_096;
/// The most long imports that wait for a lookup or have its result: the others stay in the
/// rotation.
const IN_LOOKUP_MAX: usize = 8;
/// The most callers that one turn passes over, because their imports cannot be looked up yet.
const PASSED_OVER_MAX: usize = 64;

/// The long calls that are queued.
#[derive(Debug, Default)]
pub(super) struct LongCalls {
    by_caller: HashMap<CallerNumber, VecDeque<QueuedRequest>, foldhash::fast::RandomState>,
    /// The callers with a queued call; the first is the next to have one executed.
    rotation: VecDeque<CallerNumber>,
    len: usize,
    /// The call that adds keys over several turns.
    current: Option<QueuedRequest>,
    /// The caller of that call, if it has more: it joins the rotation again when the call is
    /// executed, behind callers that come until then.
    caller_of_current: Option<CallerNumber>,
    /// Whether the last turn ended because of a bound, not because every caller waits for a lookup.
    was_cut_short: bool,
    /// The callers passed over in a row, since a call was executed or a caller joined the rotation.
    passed_over: usize,
    /// Imports whose lookups are complete. They are executed before all others.
    checked: VecDeque<QueuedRequest>,
    /// Imports that wait for their lookups.
    pub(super) in_lookup: usize,
    /// Whether turns leave all of them to a later turn.
    pub(super) are_postponed: bool,
}

/// The work that the long calls of one turn may still cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongBudget {
    max: u32,
    spent: u32,
}

impl LongBudget {
    /// Returns the budget of a turn.
    pub(super) fn of_turn() -> Self {
        let max = limit(TestLimit::LongUnits, u64::from(LONG_UNITS_MAX));
        Self { max: u32::try_from(max).unwrap_or(LONG_UNITS_MAX), spent: 0 }
    }

    pub(super) fn spend(&mut self, units: u32) {
        self.spent = self.spent.saturating_add(units);
    }

    /// Returns the units that are spent.
    pub(super) fn spent(self) -> u32 {
        self.spent
    }

    /// Returns the units that are not spent.
    pub(super) fn left(self) -> u32 {
        self.max.saturating_sub(self.spent)
    }

    pub(super) fn allows(self, units: u32) -> bool {
        self.spent == 0 || self.spent.saturating_add(units) <= self.max
    }
}

impl LongCalls {
    /// Returns the number of queued calls.
    pub(super) fn len(&self) -> usize {
        self.len + self.checked.len() + usize::from(self.current.is_some())
    }

    /// Returns whether a turn can execute one.
    pub(super) fn has_ready(&self) -> bool {
        let may_go_on = self.in_lookup < IN_LOOKUP_MAX || self.was_cut_short;
        self.current.is_some() || !self.checked.is_empty() || self.len > 0 && may_go_on
    }

    /// Queues a call; returns false, and drops it, where its caller has its share of the queue
    /// already.
    pub(super) fn push(&mut self, queued: QueuedRequest) -> bool {
        let max = usize::try_from(limit(TestLimit::LongCalls, QUEUED_MAX as u64));
        let max = max.unwrap_or(QUEUED_MAX);
        let calls = self.by_caller.get(&queued.request.caller).map_or(0, VecDeque::len);
        let free = max.saturating_sub(self.len);
        // A caller without a queued call finds a place, and so does the server itself.
        if free == 0 || calls > 0 && calls >= free {
            return false;
        }
        let caller = queued.request.caller;
        if calls == 0 {
            self.rotation.push_back(caller);
            self.passed_over = 0;
        }
        self.by_caller.entry(caller).or_default().push_back(queued);
        self.len += 1;
        true
    }

    /// Leaves all of them to the next turn that executes some.
    pub(super) fn postpone(&mut self) {
        self.was_cut_short = true;
    }

    /// Queues an import whose lookup is complete.
    pub(super) fn push_checked(&mut self, queued: QueuedRequest) {
        self.in_lookup -= 1;
        self.checked.push_back(queued);
    }

    /// Returns the first import whose lookup is complete: its lookup is the oldest.
    pub(super) fn first_checked(&self) -> Option<&QueuedRequest> {
        self.checked.front()
    }

    /// Returns the call that adds keys over several turns.
    pub(super) fn current(&self) -> Option<&QueuedRequest> {
        self.current.as_ref()
    }

    /// Keeps a call that goes on in the next turn.
    pub(super) fn set_current(&mut self, queued: QueuedRequest) {
        self.current = Some(queued);
    }

    /// Takes the next call that the budget allows. Its cost is spent, unless it adds keys: such a
    /// call takes what is left, and goes on in the next turn.
    pub(super) fn next(&mut self, budget: &mut LongBudget) -> Option<QueuedRequest> {
        if budget.left() == 0 {
            self.was_cut_short = true;
            return None;
        }
        if let Some(current) = self.current.take() {
            return Some(current);
        }
        if let Some(caller) = self.caller_of_current.take() {
            self.rotation.push_back(caller);
            self.passed_over = 0;
        }
        if let Some(checked) = self.checked.pop_front() {
            return Some(checked);
        }
        for _ in 0..PASSED_OVER_MAX.min(self.rotation.len()) {
            let caller = *self.rotation.front()?;
            let calls = self.by_caller.get_mut(&caller).expect(HAS_CALLS);
            let first = calls.front().expect(HAS_CALLS);
            if may_need_lookup(&first.request.call) && self.in_lookup >= IN_LOOKUP_MAX {
                self.rotation.rotate_left(1);
                self.passed_over += 1;
                continue;
            }
            let adds_keys = first.keys_to_add().is_some();
            if !adds_keys && !budget.allows(first.units) {
                self.was_cut_short = true;
                return None;
            }
            let queued = calls.pop_front().expect(HAS_CALLS);
            self.rotation.pop_front();
            self.passed_over = 0;
            if calls.is_empty() {
                self.by_caller.remove(&caller);
            } else if adds_keys {
                self.caller_of_current = Some(caller);
            } else {
                self.rotation.push_back(caller);
            }
            self.len -= 1;
            if !adds_keys {
                budget.spend(queued.units);
            }
            return Some(queued);
        }
        self.was_cut_short = self.passed_over < self.rotation.len();
        None
    }
}

fn may_need_lookup(call: &Call) -> bool {
    matches!(call, Call::Import { options, .. } if !options.allow_retired)
}

const HAS_CALLS: &str = "invariant: a caller in the rotation has a queued call";

#[cfg(test)]
mod tests;

//! Turns of one engine, with calls of several callers, and what the long calls of each turn cost.

use super::{Driver, ManualClock, SentCall, engine_config};
use keypeg_engine::state::CallId;
use keypeg_store::{Call, CallerNumber, LaneItem, Principal, Reply, Request};
use std::collections::{HashMap, VecDeque};

/// An engine, and the calls that it has not answered.
pub(crate) struct Turns {
    pub(crate) driver: Driver,
    pub(crate) items: VecDeque<(CallId, LaneItem)>,
    slots: u32,
    /// The replies to calls that [`Self::reply`] did not ask for yet.
    answered: HashMap<u32, Reply>,
}

/// What one turn answered.
pub(crate) struct Turn {
    pub(crate) replies: HashMap<u32, Reply>,
    /// What its long calls cost, at most, and the number of those that it executed.
    pub(crate) long_units: u32,
    pub(crate) long_calls: usize,
}

impl Turns {
    pub(crate) fn new() -> Self {
        let driver =
            Driver::open_with(None, &ManualClock::new(), 1, &engine_config()).expect("opens");
        Self::of(driver)
    }

    /// Returns the turns of this engine.
    pub(crate) fn of(driver: Driver) -> Self {
        Self { driver, items: VecDeque::new(), slots: 0, answered: HashMap::new() }
    }

    pub(crate) fn send(&mut self, caller: CallerNumber, call: impl Into<SentCall>) -> u32 {
        self.slots += 1;
        let request = Request { caller, ..call.into().into_request(Principal::Anyone) };
        self.items.push_back((CallId { lane: 0, slot: self.slots }, request.into()));
        self.slots
    }

    pub(crate) fn run(&mut self) -> Turn {
        let mut replies = Vec::new();
        self.driver.engine.turn(&mut self.items, &mut replies).expect("no disk");
        let executed = self.driver.engine.executed_long_calls();
        Turn {
            long_calls: executed.len(),
            long_units: self.driver.engine.long_units(),
            replies: replies.into_iter().map(|(call_id, reply)| (call_id.slot, reply)).collect(),
        }
    }

    pub(crate) fn pending(&self) -> usize {
        self.driver.engine.pending_count()
    }

    /// Runs turns until a call is answered, and returns its reply.
    pub(crate) fn reply(&mut self, slot: u32) -> Reply {
        loop {
            if let Some(reply) = self.answered.remove(&slot) {
                return reply;
            }
            assert!(self.pending() + self.items.len() > 0, "{slot} is not queued");
            let replies = self.run().replies;
            self.answered.extend(replies);
        }
    }

    /// Sends a short call, runs one turn, and returns its reply.
    pub(crate) fn ask(&mut self, caller: CallerNumber, call: Call) -> Reply {
        let slot = self.send(caller, call);
        self.run().replies.remove(&slot).expect("a short call is answered in its turn")
    }
}

//! One simulation: engine, carrier, clocks, disk and clients in one thread under one seed.
//!
//! Each beat lets time pass, asks a turn of calls, and lets the carrier work; whatever can befall a
//! process or its machine may befall it at any operation of the disk. Every answer goes to the
//! model, and after every start all that is there is looked at.

mod counts;
mod starts;

use crate::calls::{AcquireOptions, Clients};
use crate::faults::{Fault, FaultInjector, Part};
use crate::guess::TOO_MANY;
use crate::model::{Checked, Instant, Model, Rules, State, Told, ensure, pool_of};
use crate::support::SeededRandom;
use crate::support::sim_disk::SimDisk;
use crate::tally::Tally;
use crate::time::SimClock;
use keypeg_engine::core::sabotage::TestLimit;
use keypeg_engine::core::{LeaseId, Policy};
use keypeg_engine::state::{CallId, EngineState, JournalSizes, NextWakeup};
use keypeg_engine::{Call, Principal, Reply, Request};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What can befall one simulation, drawn for it: some of everything, each time another part.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) beats: u64,
    pub(crate) rules: Rules,
    pub(crate) sizes: JournalSizes,
    /// Bounds made small, where the build lets them.
    pub(crate) bounds: Vec<(TestLimit, u64)>,
    pub(crate) sector: usize,
    pub(crate) policy: Policy,
    /// One beat in so many is struck; 0 none.
    pub(crate) struck_one_in: u64,
    pub(crate) fails: bool,
    pub(crate) power_cuts: bool,
    pub(crate) stops: bool,
    pub(crate) slow_one_in: u64,
    pub(crate) carries_one_in: u64,
    /// One beat in so many the carrier works between turns.
    pub(crate) carrier_one_in: u64,
    pub(crate) pauses: bool,
    pub(crate) wall_steps: bool,
    pub(crate) lost_replies: bool,
}

pub(crate) struct World {
    plan: Plan,
    random: SeededRandom,
    clock: SimClock,
    sky: FaultInjector,
    disk: SimDisk,
    works: Option<EngineState>,
    /// What may be true, each with lease time now, or at most where a reboot left it open.
    models: Vec<(Model, u64)>,
    /// Whether lease time is known.
    exact: bool,
    /// Boot time up to which lease time is counted.
    counted_ms: u64,
    clients: Clients,
    /// Serving time at the last turn, and boot time there.
    serving: (u64, u64),
    slots: u32,
    /// The greatest token that was told.
    token: u64,
    /// Grants since the last token that was passed over.
    in_a_row: u64,
    /// Grants that nobody received: to be given back in the next turn.
    undelivered: Vec<(LeaseId, Option<Call>)>,
    next: Option<NextWakeup>,
    pub(crate) tally: Tally,
    pub(crate) trace: Trace,
}

/// What happened, in words: the last of it, and a hash of all.
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) lines: VecDeque<String>,
}

const TRACE_LINES: usize = 60;
/// Models that may be true at once at most.
const MODELS_MAX: usize = 64;

impl Trace {
    fn note(&mut self, line: String) {
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.lines.len() >= TRACE_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut random = SeededRandom(seed);
        let clock = SimClock::new();
        let counted_ms = clock.boot_ms();
        let sky = FaultInjector::new(SeededRandom(random.next()), &clock);
        sky.settle(plan.slow_one_in, plan.carries_one_in);
        let disk = SimDisk::under(Arc::new(sky.clone()), plan.sector);
        let model = Model::new(plan.policy.clone(), plan.rules);
        let purges = !plan.rules.full && !plan.rules.lags;
        let wish = AcquireOptions::draw(&mut random, !plan.rules.lags, purges);
        Self {
            plan,
            random,
            clock,
            sky,
            disk,
            works: None,
            models: vec![(model, 0)],
            exact: false,
            counted_ms,
            clients: Clients::wishing(wish),
            serving: (0, 0),
            slots: 0,
            token: 0,
            in_a_row: 0,
            undelivered: Vec::new(),
            next: None,
            tally: Tally::default(),
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, lines: VecDeque::new() },
        }
    }

    /// Plays it to its end. The error is what was promised and not kept.
    pub(crate) fn run(&mut self) -> Checked {
        self.start(None)?;
        for _ in 0..self.plan.beats {
            let beaten = self.beat();
            let too_many = beaten.as_ref().is_err_and(|why| why == TOO_MANY);
            if too_many || self.models.len() > MODELS_MAX {
                // Too many lost answers at once: nothing more could be told right from wrong.
                self.tally.count("seeds ended early: too much may be true");
                return Ok(());
            }
            beaten?;
        }
        self.comes_to_rest()
    }

    fn random(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.random.below(one_in) == 0
    }

    fn note(&mut self, line: &str) {
        let at = self.clock.true_ms();
        self.trace.note(format!("{at:>9} {line}"));
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(ms);
        self.count_time();
    }

    /// KeyCounts lease time up to now.
    fn count_time(&mut self) {
        let boot = self.clock.boot_ms();
        for (_, lease) in &mut self.models {
            *lease += boot - self.counted_ms;
        }
        self.counted_ms = boot;
    }

    fn beat(&mut self) -> Checked {
        self.tally.count("beats");
        let ms = self.pass();
        self.advance(ms);
        if self.plan.wall_steps && self.random(20) {
            let by = self.random.below(20 * 365 * 86_400_000).cast_signed() - 10 * 365 * 86_400_000;
            self.clock.step_wall(by);
            self.tally.count("the wall clock was stepped");
        }
        if self.plan.rules.full && self.random(12) {
            let room = (self.random.below(3) > 0)
                .then(|| self.disk.used() + self.random.below(4_096) as usize);
            self.disk.set_capacity(room);
            self.note(&format!("the disk holds {room:?}"));
        }
        let struck = self.random(self.plan.struck_one_in);
        if struck {
            let fails = self.plan.fails && self.random(3);
            let after = self.random(2);
            let blow = if fails { Fault::Fails } else { Fault::Ends { after } };
            let within = [3, 8, 30][self.random.below(3) as usize];
            self.sky.schedule(Some((self.random.below(within), blow)));
        }
        let many = self.random.below(if self.plan.rules.lags { 9 } else { 5 });
        let keys = self.models[0].0.pools.values().map(|pool| pool.keys.len()).sum();
        let calls: Vec<_> = (0..many).map(|_| self.clients.call(&mut self.random, keys)).collect();
        self.turn(calls)?;
        if self.works.is_some() && self.random(self.plan.carrier_one_in) {
            self.sky.carry();
            self.carrier_may_have_ended()?;
        }
        self.sky.schedule(None);
        if self.works.is_some() && self.plan.stops && self.random(40) {
            self.stop()?;
        }
        if self.works.is_some() && self.random(self.plan.struck_one_in * 4) {
            self.note("killed between turns");
            self.end(None)?;
        }
        Ok(())
    }

    /// How long until the next turn: often just to a deadline, or a millisecond beside it.
    fn pass(&mut self) -> u64 {
        let drawn = self.random.below(100);
        match drawn {
            0..10 => 0,
            10..45 => self.random.below(300),
            45..85 => self.until_deadline(),
            85..97 => self.random.below(1_500),
            _ if self.plan.pauses => {
                self.tally.count("the process was stopped for long");
                self.random.below(600_000)
            }
            _ => 1,
        }
    }

    fn until_deadline(&mut self) -> u64 {
        let (model, lease) = &self.models[0];
        let lease = *lease;
        let since = self.clock.boot_ms() - self.serving.1;
        let serving = self.serving.0 + since.min(1_000);
        let mut lengths = Vec::new();
        for pool in model.pools.values() {
            lengths.extend(pool.line.iter().map(|waiter| waiter.end.saturating_sub(lease)));
            for key in &pool.keys {
                match &key.state {
                    State::Leased(lease_of) => lengths.push(lease_of.until.saturating_sub(lease)),
                    State::Resting { until, .. } => lengths.push(until.saturating_sub(lease)),
                    State::Free | State::Aside { .. } => {}
                }
                lengths.extend(key.life.map(|life| life.saturating_sub(serving)));
            }
        }
        lengths.sort_unstable();
        let near = lengths.len().min(3) as u64;
        if near == 0 {
            return 100;
        }
        let length = lengths[self.random.below(near) as usize].min(1_000);
        (length + self.random.below(3)).saturating_sub(1)
    }

    /// When a turn is played now, by each model.
    fn instants(&self) -> Vec<Instant> {
        let (serving, wall) = (self.serving.0, self.clock.wall_ms());
        self.models.iter().map(|(_, lease)| Instant { lease: *lease, serving, wall }).collect()
    }

    /// KeyCounts serving time up to the turn that begins now.
    fn serve(&mut self) {
        let boot = self.clock.boot_ms();
        let (serving, last) = self.serving;
        self.serving = (serving + (boot - last).min(1_000), boot);
    }

    fn turn(&mut self, calls: Vec<Call>) -> Checked {
        let mut asked: Vec<(u32, Principal, Call)> = Vec::new();
        let mut taken_back = Vec::new();
        for (lease, call) in std::mem::take(&mut self.undelivered) {
            taken_back.push(lease);
            asked.extend(call.map(|call| (self.slot(), Principal::Server, call)));
        }
        for call in calls {
            match call {
                // Whoever leaves is named by the slot of what was asked.
                Call::CancelWait => {
                    let waiting = self.clients.waiting.pop();
                    asked.extend(waiting.map(|slot| (slot, Principal::Server, Call::CancelWait)));
                }
                call => asked.push((self.slot(), counts::somebody(), call)),
            }
        }
        self.count_time();
        self.serve();
        let begun = self.clock.true_ms();
        let instants = self.instants();
        for (slot, _, call) in &asked {
            self.note(&format!("#{slot} {call:?}"));
            self.clients.send(*slot, call, begun);
            self.count_call(call);
        }
        let calls: Vec<_> = asked.iter().map(|(slot, _, call)| (*slot, call.clone())).collect();
        self.tally.add("calls", calls.len() as u64);
        let mut queue: VecDeque<_> = asked
            .into_iter()
            .map(|(slot, by, call)| (CallId { lane: 0, slot }, Request { by, call }))
            .collect();
        let mut replies = Vec::new();
        let works = self.works.as_mut().expect("the engine runs");
        self.sky.enter(Part::Turn);
        let played = works.turn(&mut queue, &mut replies);
        self.sky.enter(Part::Nobody);
        match played {
            Ok(next) => {
                self.next = Some(next);
                if works.pending_count() > 0 {
                    self.tally.count("a call went over into the next turn");
                }
                if works.pools().key_count() < 100 {
                    works.pools().check_invariants();
                    counts::all_is_somebodys(works)?;
                }
                ensure!(queue.is_empty(), "a turn leaves calls behind");
                self.check(&instants, &calls, replies, begun)?;
                for lease in taken_back {
                    self.is_given_back(lease)?;
                }
                self.carrier_may_have_ended()
            }
            Err(error) => {
                self.note(&format!("the turn was cut short: {error}"));
                self.tally.count("turns lost");
                self.end(Some((error.to_string(), instants, calls)))
            }
        }
    }

    fn slot(&mut self) -> u32 {
        self.slots += 1;
        self.slots
    }

    fn is_given_back(&mut self, lease: LeaseId) -> Checked {
        let runs = |(model, _): &(Model, u64)| {
            let mut keys = model.pools.values().flat_map(|pool| &pool.keys);
            keys.any(|key| matches!(&key.state, State::Leased(of) if of.id == Some(lease)))
        };
        if self.models.iter().any(|(model, _)| model.was_told_again(lease)) {
            self.tally.count("an undelivered grant was told again");
            return Ok(());
        }
        ensure!(
            !self.models.iter().all(runs),
            "nobody received {lease:?} and it is not taken back"
        );
        self.tally.count("an undelivered grant was taken back");
        Ok(())
    }

    /// Checks a turn's answers, and hands them to those that still want them.
    fn check(
        &mut self,
        instants: &[Instant],
        calls: &[(u32, Call)],
        replies: Vec<(CallId, Reply)>,
        begun: u64,
    ) -> Checked {
        let mut order = Vec::new();
        let mut by_slot = BTreeMap::new();
        for (call_id, reply) in replies {
            order.push(call_id.slot);
            if by_slot.insert(call_id.slot, reply).is_some() {
                return Err(format!("#{} is answered twice", call_id.slot));
            }
        }
        for (slot, reply) in &by_slot {
            self.trace.note(format!("          #{slot} -> {reply:?}"));
        }
        self.count_replies(&by_slot);
        let mut left = Vec::new();
        let mut why = None;
        for ((mut model, lease), now) in std::mem::take(&mut self.models).into_iter().zip(instants)
        {
            let mut answers = by_slot.clone();
            match model.turn(*now, calls, &mut Told::Seen(&mut answers)) {
                Ok(()) => left.push((model, lease)),
                Err(because) => why = why.or(Some(because)),
            }
        }
        if left.is_empty() {
            return Err(why.unwrap());
        }
        self.models = left;
        let takes = calls.iter().any(|(_, call)| {
            matches!(
                call,
                Call::ForceRelease { .. } | Call::DeleteKey { .. } | Call::DeletePool { .. }
            )
        });
        for slot in order {
            let reply = &by_slot[&slot];
            if let Reply::Granted { lease, redelivered: false, .. } = reply {
                let last = std::mem::replace(&mut self.token, lease.token);
                ensure!(lease.token > last, "tokens only grow: {} after {last}", lease.token);
                if self.plan.bounds.contains(&(TestLimit::TokenReservation, 4))
                    && lease.token == last + 1
                {
                    self.in_a_row += 1;
                    if self.in_a_row > 4 {
                        self.tally.count("a token reservation was used up");
                    }
                } else {
                    self.in_a_row = 0;
                }
            }
            if let Some((_, call)) = calls.iter().find(|(of, _)| *of == slot)
                && let Some(pool) = pool_of(call)
            {
                self.clients.learn(pool, reply);
            }
            let left =
                calls.iter().any(|(of, call)| *of == slot && matches!(call, Call::CancelWait));
            if left || (self.plan.lost_replies && self.random(12)) {
                // Who has gone is known where the server looks; an answer that is lost on its way
                // is not.
                if let Reply::Granted { lease, .. } = reply
                    && (left || self.random(2))
                {
                    self.undelivered.push((lease.id, keypeg_engine::undo_undelivered(reply)));
                }
                self.tally.count("an answer got lost");
                continue;
            }
            self.clients.receive(slot, reply, (begun, takes))?;
        }
        for (_, call) in calls {
            self.clients.give_up(call);
        }
        Ok(())
    }

    fn carrier_may_have_ended(&mut self) -> Checked {
        match self.sky.carrier_ended() {
            None if self.disk.has_crashed() => self.end(None),
            None => Ok(()),
            Some(why) => {
                self.note(&format!("the carrier ended: {why}"));
                self.end(Some((why, Vec::new(), Vec::new())))
            }
        }
    }

    /// Stops cleanly, and starts again.
    fn stop(&mut self) -> Checked {
        self.note("stops");
        let works = self.works.as_mut().expect("the engine runs");
        self.sky.enter(Part::Turn);
        let closed = works.close();
        self.sky.enter(Part::Nobody);
        match closed {
            Ok(()) => {
                self.tally.count("clean stops");
                self.works = None;
                *self.sky.carrier.lock().unwrap() = None;
                self.end(None)
            }
            Err(error) => self.end(Some((error.to_string(), Vec::new(), Vec::new()))),
        }
    }

    /// The process ends, and perhaps its machine; then all starts again. What it was about when it
    /// ended may have happened or not.
    fn end(&mut self, about: Option<(String, Vec<Instant>, Vec<(u32, Call)>)>) -> Checked {
        self.sky.enter(Part::Nobody);
        self.sky.schedule(None);
        let carrier = self.sky.carrier_ended();
        let struck = self.sky.struck();
        let mut lost = None;
        if let Some((why, instants, calls)) = about {
            let expected = struck.is_some() || self.plan.rules.full;
            ensure!(expected, "it ended though nothing befell it: {why}; carrier: {carrier:?}");
            if struck.is_none() {
                self.tally.count("it ended on a full disk");
            }
            if !instants.is_empty() {
                lost = Some((instants, calls));
            }
        }
        self.go_down();
        self.start(lost)
    }

    /// All that was counted.
    pub(crate) fn counted(&self) -> Tally {
        let mut tally = self.tally.clone();
        tally.join(&self.sky.tally());
        tally.add("simulated seconds", self.clock.true_ms() / 1_000);
        tally
    }
}

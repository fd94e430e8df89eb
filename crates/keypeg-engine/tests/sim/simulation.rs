//! One simulation: engine, checkpointer, clocks, disk and clients in one thread under one seed.
//!
//! Each step lets time pass, sends one turn of calls, and may run the checkpointer. A fault of the
//! process or of its machine can occur at any disk operation. Every reply is checked against the
//! model, and after every start all pools and keys are read and compared with it.

mod backups;
mod instants;
mod reached_states;
mod restarts;
mod restored;
mod sealing;
mod stories;

use crate::clients::{Action, ClientBehavior, Clients};
use crate::clocks::SimClock;
use crate::coverage::Coverage;
use crate::faults::{Fault, FaultInjector, Part};
use crate::lost_turns::TOO_MANY;
use crate::model::{Checked, Instant, Model, Observation, Rules, ensure, pool_of};
use crate::support::SeededRandom;
use crate::support::sim_disk::SimDisk;
use crate::trace::Trace;
use keypeg_core::sabotage::TestLimit;
use keypeg_core::{LeaseId, Policy};
use keypeg_engine::state::{CallId, EngineState, JournalSizes, NextWakeup};
use keypeg_store::{Call, CallerNumber, LaneItem, Principal, Reply, Request};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Which faults one simulation can meet and how often, drawn from its seed: each seed covers
/// another part.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) steps: u64,
    pub(crate) rules: Rules,
    pub(crate) sizes: JournalSizes,
    /// Limits made small, where the build allows it.
    pub(crate) limits: Vec<(TestLimit, u64)>,
    pub(crate) sector: usize,
    pub(crate) policy: Policy,
    /// One step in so many gets a fault; 0 for none.
    pub(crate) fault_one_in: u64,
    pub(crate) fails: bool,
    pub(crate) power_cuts: bool,
    pub(crate) stops: bool,
    pub(crate) slow_one_in: u64,
    pub(crate) checkpoint_in_turn_one_in: u64,
    /// After one step in so many the checkpointer runs between turns.
    pub(crate) checkpoint_between_turns_one_in: u64,
    pub(crate) pauses: bool,
    pub(crate) wall_steps: bool,
    pub(crate) lost_replies: bool,
}

pub(crate) struct Simulation {
    plan: Plan,
    random: SeededRandom,
    /// Draws when the server refuses keep-alives; `None` if it never does.
    refusals: Option<SeededRandom>,
    clock: SimClock,
    faults: FaultInjector,
    disk: SimDisk,
    sealing: sealing::Sealing,
    backups: backups::Backups,
    engine: Option<EngineState>,
    /// The models that can be true.
    models: Vec<Candidate>,
    /// Whether lease time is known exactly: after a reboot it is not.
    lease_time_known: bool,
    /// Boot time up to which lease time has been counted.
    counted_boot_ms: u64,
    clients: Clients,
    /// The clocks at the last turn.
    last_turn: LastTurn,
    slots: u32,
    /// The greatest token in any reply.
    token: u64,
    /// Grants with consecutive tokens since the last gap.
    consecutive_tokens: u64,
    /// Long calls that the engine has queued. The models know a long call only from the turn on that
    /// executes it, so they need not know in which order the engine does.
    queued: BTreeMap<u32, Action>,
    /// Grants that were not delivered; the next turn revokes them.
    undelivered: Vec<(LeaseId, Option<Call>)>,
    next: Option<NextWakeup>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
}

/// A model that can be true, with its lease time now; after a reboot, the latest possible one.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) model: Model,
    pub(crate) lease_ms: u64,
}

/// The clocks at a turn.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
struct LastTurn {
    serving_ms: u64,
    boot_ms: u64,
    /// The boot time until which serving time stands still.
    stands_until_ms: u64,
}

/// A turn or another operation that the end of the process interrupted.
pub(crate) struct Interrupted {
    error: String,
    /// `None` where no turn was running.
    turn: Option<SentTurn>,
}

/// A turn that was sent, with its instant for each model.
#[derive(Debug)]
pub(crate) struct SentTurn {
    pub(crate) instants: Vec<Instant>,
    /// How much later the turn can have happened, see [`Simulation::delays`].
    pub(crate) delays: Vec<u64>,
    pub(crate) actions: Vec<(u32, Action)>,
}

/// Most models that can be true at once.
const MODELS_MAX: usize = 64;

impl Simulation {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut random = SeededRandom(seed);
        let clock = SimClock::new();
        let counted_boot_ms = clock.boot_ms();
        let faults = FaultInjector::new(SeededRandom(random.next()), &clock);
        faults.set_background_rates(plan.slow_one_in, plan.checkpoint_in_turn_one_in);
        let disk = SimDisk::with_fault_policy(Arc::new(faults.clone()), plan.sector);
        let model = Model::new(plan.policy.clone(), plan.rules);
        let purges = !plan.rules.disk_can_fill && !plan.rules.expiry_can_lag;
        let behavior = ClientBehavior::draw(&mut random, !plan.rules.expiry_can_lag, purges);
        Self {
            plan,
            random,
            refusals: seed.is_multiple_of(3).then_some(SeededRandom(seed ^ 0x4ef0)),
            clock,
            faults,
            disk,
            sealing: sealing::Sealing::of(seed),
            backups: backups::Backups::of(seed),
            engine: None,
            models: vec![Candidate { model, lease_ms: 0 }],
            lease_time_known: false,
            counted_boot_ms,
            clients: Clients::new(behavior),
            last_turn: LastTurn { serving_ms: 0, boot_ms: 0, stands_until_ms: 0 },
            slots: 0,
            token: 0,
            consecutive_tokens: 0,
            queued: BTreeMap::new(),
            undelivered: Vec::new(),
            next: None,
            coverage: Coverage::default(),
            trace: Trace::new(),
        }
    }

    /// Keeps no trace: formatting it takes longer than the engine's turns.
    pub(crate) fn without_trace(mut self) -> Self {
        self.trace.is_kept = false;
        self
    }

    /// Runs the simulation to its end. The error names the broken promise.
    pub(crate) fn run(&mut self) -> Checked {
        self.start(None)?;
        for _ in 0..self.plan.steps {
            let result = self.step();
            let too_many = result.as_ref().is_err_and(|why| why == TOO_MANY);
            if too_many || self.models.len() > MODELS_MAX {
                // Too many replies were lost at once: the model can no longer decide what is
                // correct.
                self.coverage.count("seeds ended early: too many models can be true");
                return Ok(());
            }
            result?;
        }
        self.end_backups()?;
        self.check_quiescence()
    }

    fn one_in(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.random.below(one_in) == 0
    }

    fn note(&mut self, line: &str) {
        let true_ms = self.clock.true_ms();
        self.trace.note(|| format!("{true_ms:>9} {line}"));
    }

    fn advance(&mut self, ms: u64) {
        self.clock.advance(ms);
        self.count_lease_time();
    }

    /// Counts lease time up to now.
    fn count_lease_time(&mut self) {
        let boot = self.clock.boot_ms();
        for candidate in &mut self.models {
            candidate.lease_ms += boot - self.counted_boot_ms;
        }
        self.counted_boot_ms = boot;
    }

    fn step(&mut self) -> Checked {
        self.coverage.count("steps");
        let ms = self.draw_elapsed_ms();
        self.advance(ms);
        if self.plan.wall_steps && self.one_in(20) {
            let by = self.random.below(20 * 365 * 86_400_000).cast_signed() - 10 * 365 * 86_400_000;
            self.clock.step_wall(by);
            self.coverage.count("the wall clock was stepped");
        }
        if self.plan.rules.disk_can_fill && self.one_in(12) {
            let capacity = (self.random.below(3) > 0)
                .then(|| self.disk.used() + self.random.below(4_096) as usize);
            self.disk.set_capacity(capacity);
            self.note(&format!("the disk capacity is {capacity:?}"));
        }
        self.schedule_fault();
        let actions = self.draw_actions();
        self.turn(actions)?;
        if self.engine.is_some() && self.one_in(self.plan.checkpoint_between_turns_one_in) {
            self.faults.step_checkpointer();
            self.check_checkpointer()?;
        }
        self.faults.schedule(None);
        if self.engine.is_some() && self.plan.stops && self.one_in(40) {
            self.restart_cleanly()?;
        }
        if self.engine.is_some() && self.one_in(self.plan.fault_one_in * 4) {
            self.note("killed between turns");
            self.restart(None)?;
        }
        self.step_backup()
    }

    /// Sometimes schedules a fault at one of the next operations.
    fn schedule_fault(&mut self) {
        if self.one_in(self.plan.fault_one_in) {
            let fails = self.plan.fails && self.one_in(3);
            let after = self.one_in(2);
            let fault = if fails { Fault::Failure } else { Fault::Crash { after } };
            let within = [3, 8, 30][self.random.below(3) as usize];
            self.faults.schedule(Some((self.random.below(within), fault)));
        }
    }

    fn draw_actions(&mut self) -> Vec<Action> {
        let count = self.random.below(if self.plan.rules.expiry_can_lag { 9 } else { 5 });
        let key_count = self.models[0].model.pools.values().map(|pool| pool.keys.len()).sum();
        (0..count).map(|_| self.clients.new_action(&mut self.random, key_count)).collect()
    }

    fn turn(&mut self, actions: Vec<Action>) -> Checked {
        let mut sent: Vec<(u32, Principal, Action)> = Vec::new();
        let mut revoked = Vec::new();
        for (lease, call) in std::mem::take(&mut self.undelivered) {
            revoked.push(lease);
            sent.extend(
                call.map(|call| (self.slot(), Principal::Server, Action::Call(call.into()))),
            );
        }
        for action in actions {
            match action {
                // An abandoned call is named by the slot of its acquire.
                Action::Disconnect => {
                    let waiting = self.clients.waiting.pop();
                    sent.extend(waiting.map(|slot| (slot, Principal::Server, Action::Disconnect)));
                }
                call @ Action::Call(_) => {
                    sent.push((self.slot(), reached_states::principal(), call));
                }
            }
        }
        self.count_lease_time();
        self.refuse_keep_alives();
        self.count_serving_time();
        let turn_start = self.clock.true_ms();
        let instants = self.instants();
        for (slot, _, action) in &sent {
            self.trace.note(|| format!("{turn_start:>9} #{slot} {action:?}"));
            if let Some(call) = action.call() {
                self.clients.send(*slot, call, turn_start);
                self.backups.send(call);
                self.count_call(call);
            }
        }
        self.coverage.add("calls", sent.len() as u64);
        let mut actions = Vec::new();
        for (slot, _, action) in &sent {
            if let Some(call) = action.call().filter(|call| call.is_long()) {
                for candidate in &mut self.models {
                    candidate.model.note_known_values(*slot, call);
                }
                self.queued.insert(*slot, action.clone());
            } else {
                actions.push((*slot, action.clone()));
            }
        }
        let mut queue: VecDeque<_> = sent
            .into_iter()
            .map(|(slot, by, action)| {
                let item = match action {
                    Action::Call(call) => {
                        let caller = CallerNumber(u64::from(slot % 3));
                        Request { caller, ..call.into_request(by) }.into()
                    }
                    Action::Disconnect => LaneItem::Abandoned,
                };
                (CallId { lane: 0, slot }, item)
            })
            .collect();
        let mut replies = Vec::new();
        let engine = self.engine.as_mut().expect("the engine runs");
        self.clock.take_readings();
        self.faults.enter(Part::Turn);
        let played = engine.turn(&mut queue, &mut replies);
        self.faults.enter(Part::Idle);
        let delays = self.delays(turn_start);
        let instants = self.frozen(instants);
        self.take_executed(&mut actions, &replies);
        let engine = self.engine.as_mut().expect("the engine runs");
        match played {
            Ok(next) => {
                self.next = Some(next);
                if engine.pending_count() > 0 {
                    self.coverage.count("a call was deferred to the next turn");
                }
                if engine.pools().key_count() < 100 {
                    engine.pools().check_invariants();
                    reached_states::check_caller_counts(engine)?;
                }
                ensure!(queue.is_empty(), "the turn did not take every call");
                let sent = SentTurn { instants, delays, actions };
                self.check_replies(&sent, replies, turn_start)?;
                for lease in revoked {
                    self.check_revoked(lease)?;
                }
                self.check_checkpointer()
            }
            Err(error) => {
                self.note(&format!("the turn was interrupted: {error}"));
                self.coverage.count("turns lost");
                self.restart(Some(Interrupted {
                    error: error.to_string(),
                    turn: Some(SentTurn { instants, delays, actions }),
                }))
            }
        }
    }

    fn slot(&mut self) -> u32 {
        self.slots += 1;
        self.slots
    }

    /// Checks a turn's replies, and delivers them to the clients that still wait for them.
    fn check_replies(
        &mut self,
        sent: &SentTurn,
        replies: Vec<(CallId, Reply)>,
        turn_start: u64,
    ) -> Checked {
        let actions = &sent.actions;
        let mut order = Vec::new();
        let mut by_slot = BTreeMap::new();
        for (call_id, reply) in replies {
            order.push(call_id.slot);
            if by_slot.insert(call_id.slot, reply).is_some() {
                return Err(format!("#{} got two replies", call_id.slot));
            }
        }
        for (slot, reply) in &by_slot {
            self.trace.note(|| format!("          #{slot} -> {reply:?}"));
        }
        self.count_replies(&by_slot);
        self.backups.receive(by_slot.values(), self.clock.true_ms());
        let mut left = Vec::new();
        let mut why = None;
        for (candidate, now) in std::mem::take(&mut self.models).into_iter().zip(&sent.instants) {
            let mut explained: Vec<Model> = Vec::new();
            let mut before = Some(candidate.model);
            for (index, delay) in sent.delays.iter().enumerate() {
                // The last delay, usually the only one, needs no copy of the model.
                let is_last = index + 1 == sent.delays.len();
                let model = if is_last { before.take() } else { before.clone() };
                let mut model = model.expect("taken by the last delay");
                let mut unchecked = by_slot.iter().map(|(slot, reply)| (*slot, reply)).collect();
                let observed = &mut Observation::Replies(&mut unchecked);
                match model.turn(now.later(*delay), actions, observed) {
                    Ok(()) if explained.iter().any(|known| known.is_equivalent(&model)) => {}
                    Ok(()) => explained.push(model),
                    Err(error) => why = why.or(Some(error)),
                }
            }
            let lease_ms = candidate.lease_ms;
            left.extend(explained.into_iter().map(|model| Candidate { model, lease_ms }));
        }
        if left.is_empty() {
            return Err(why.unwrap());
        }
        self.models = left;
        let calls = || actions.iter().filter_map(|(_, action)| action.call());
        // A long call was sent some turns ago, and takes keys that were granted since then too.
        for call in calls().filter(|call| call.is_long()) {
            self.clients.take_keys_away(call);
        }
        for slot in order {
            let reply = &by_slot[&slot];
            if let Reply::Granted { lease, redelivered: false, .. } = reply {
                let last = std::mem::replace(&mut self.token, lease.token);
                ensure!(lease.token > last, "tokens only grow: {} after {last}", lease.token);
                if self.plan.limits.contains(&(TestLimit::TokenReservation, 4))
                    && lease.token == last + 1
                {
                    self.consecutive_tokens += 1;
                    if self.consecutive_tokens > 4 {
                        self.coverage.count("a token reservation was used up");
                    }
                } else {
                    self.consecutive_tokens = 0;
                }
            }
            let action = actions.iter().find(|(of, _)| *of == slot);
            if let Some(pool) = action.and_then(|(_, action)| pool_of(action.call()?)) {
                self.clients.learn(pool, reply);
            }
            let caller_left =
                actions.iter().any(|(of, action)| *of == slot && action.call().is_none());
            if caller_left || (self.plan.lost_replies && self.one_in(12)) {
                // The server notices a closed connection; a reply that is lost on the network it
                // does not.
                if let Reply::Granted { lease, .. } = reply
                    && (caller_left || self.one_in(2))
                {
                    self.undelivered.push((lease.id, keypeg_store::undo_undelivered(reply)));
                }
                self.coverage.count("a reply was lost");
                continue;
            }
            self.clients.receive(slot, reply, turn_start, calls())?;
        }
        for call in calls() {
            self.clients.take_keys_away(call);
        }
        Ok(())
    }

    fn check_checkpointer(&mut self) -> Checked {
        match self.faults.checkpointer_ended() {
            None if self.disk.has_crashed() => self.restart(None),
            None => Ok(()),
            Some(why) => {
                self.note(&format!("the checkpointer ended: {why}"));
                self.restart(Some(Interrupted { error: why, turn: None }))
            }
        }
    }

    /// Returns everything that was counted.
    pub(crate) fn coverage(&self) -> Coverage {
        let mut coverage = self.coverage.clone();
        coverage.join(&self.faults.coverage());
        coverage.add("simulated seconds", self.clock.true_ms() / 1_000);
        coverage
    }
}

//! Ends and starts of the simulated process: what a start recovers must match a model, and without
//! further faults everything must become quiescent.

use super::{Candidate, Interrupted, LastTurn, SentTurn, Simulation};
use crate::clients::Action;
use crate::faults::{Fault, Part};
use crate::lost_turns::{Explanation, LeaseTime, LostTurn, RecoveredData, explain};
use crate::model::{Checked, Model, State, ensure};
use crate::support::{SeededRandom, engine_config, list_pools};
use keypeg_core::{KeyRef, KeyState, KeyView, NewLabels, PoolName};
use keypeg_engine::EngineConfig;
use keypeg_engine::state::{CallId, EngineState, JournalSizes};
use keypeg_store::{Call, PoolPage, Principal, Reply, Request};
use std::collections::VecDeque;
use std::sync::Arc;

impl Simulation {
    /// Stops cleanly, and starts again.
    pub(super) fn restart_cleanly(&mut self) -> Checked {
        self.note("clean stop");
        let engine = self.engine.as_mut().expect("the engine runs");
        self.faults.enter(Part::Turn);
        let closed = engine.close();
        self.faults.enter(Part::Idle);
        match closed {
            Ok(()) => {
                self.coverage.count("clean stops");
                self.engine = None;
                *self.faults.checkpointer.lock().unwrap() = None;
                self.restart(None)
            }
            Err(error) => self.restart(Some(Interrupted { error: error.to_string(), turn: None })),
        }
    }

    /// Ends the process, and perhaps the machine with it, and starts again. The operation that was
    /// interrupted may have taken effect or not.
    pub(super) fn restart(&mut self, interrupted: Option<Interrupted>) -> Checked {
        self.faults.enter(Part::Idle);
        self.faults.schedule(None);
        let checkpointer = self.faults.checkpointer_ended();
        let faulted = self.faults.take_injected();
        let mut lost = None;
        if let Some(Interrupted { error, turn }) = interrupted {
            let expected = faulted.is_some() || self.plan.rules.disk_can_fill;
            ensure!(
                expected,
                "the engine ended without a fault: {error}; checkpointer: {checkpointer:?}"
            );
            if faulted.is_none() {
                self.coverage.count("the engine ended on a full disk");
            }
            lost = turn;
        }
        self.end_process();
        self.restore_sometimes()?;
        self.start(lost)
    }

    /// Ends the process. If the machine ends too, unsynced data is lost with it.
    pub(super) fn end_process(&mut self) {
        let machine = self.plan.power_cuts && self.one_in(2);
        self.count_lease_time();
        self.disk.end_process();
        self.end_running_backup();
        self.engine = None;
        *self.faults.checkpointer.lock().unwrap() = None;
        self.clients.forget_open_calls();
        self.queued.clear();
        self.undelivered.clear();
        if machine {
            self.disk.cut_power(&mut self.random);
            let off = [5, 3_000, 400_000][self.random.below(3) as usize] + self.random.below(100);
            self.clock.reboot(off);
            self.lease_time_known = false;
            self.counted_boot_ms = self.clock.boot_ms();
            self.note("power cut and reboot");
            self.coverage.count("power cuts");
        } else {
            self.disk.next_process(&mut self.random);
            let down = [0, 10, 2_000, 400_000][self.random.below(4) as usize];
            self.advance(down);
            self.note("the process was killed");
            self.coverage.count("kills");
        }
    }

    /// Starts until a start succeeds, and then checks everything that it recovered.
    pub(super) fn start(&mut self, lost: Option<SentTurn>) -> Checked {
        let mut attempts = 0;
        loop {
            attempts += 1;
            if self.plan.fault_one_in > 0 && attempts < 6 && self.one_in(3) {
                let after = self.one_in(2);
                let fails = self.plan.fails && self.one_in(3);
                let fault = if fails { Fault::Failure } else { Fault::Crash { after } };
                let operations = self.random.below(40);
                self.faults.schedule(Some((operations, fault)));
            }
            self.faults.enter(Part::Start);
            let opened = self.open();
            self.faults.enter(Part::Idle);
            self.faults.schedule(None);
            let faulted = self.faults.take_injected().is_some();
            match opened {
                Ok(engine) if !self.disk.has_crashed() => {
                    self.engine = Some(engine);
                    break;
                }
                Ok(_) => {}
                Err(error) if faulted => self.note(&format!("the start was interrupted: {error}")),
                Err(error) if self.plan.rules.disk_can_fill && attempts < 20 => {
                    self.note(&format!("the start met a full disk: {error}"));
                    self.coverage.count("a start met a full disk");
                    self.disk.set_capacity(None);
                }
                Err(error) => return Err(format!("a start is refused: {error}")),
            }
            self.coverage.count("interrupted starts");
            self.end_process();
        }
        self.last_turn =
            LastTurn { serving_ms: 0, boot_ms: self.clock.boot_ms(), stands_until_ms: 0 };
        self.check_recovery(lost)
    }

    /// Returns the options of a start without a seal.
    pub(super) fn config(&self) -> EngineConfig {
        EngineConfig { default_policy: self.plan.policy.clone(), ..engine_config() }
    }

    pub(super) fn open(&mut self) -> Result<EngineState, String> {
        let config = EngineConfig { seal: self.sealing.next(), ..self.config() };
        let (clock, random) =
            (Box::new(self.clock.clone()), Box::new(SeededRandom(self.random.next())));
        let disk = Arc::new(self.disk.clone());
        let opened = EngineState::open(Some(disk), self.plan.sizes, &config, clock, random);
        let (mut engine, recovered) = opened.map_err(|error| error.to_string())?;
        if recovered.batches_cut > 0 {
            self.coverage.count("a torn tail was discarded");
        }
        engine.start_preallocation(false).map_err(|error| error.to_string())?;
        *self.faults.checkpointer.lock().unwrap() = engine.take_checkpointer();
        Ok(engine)
    }

    /// Reads everything with background faults off, and compares it with the models.
    pub(super) fn check_recovery(&mut self, lost: Option<SentTurn>) -> Checked {
        self.faults.set_background_rates(0, 0);
        let can_fill = self.plan.rules.disk_can_fill;
        let recovered = self.read_all(lost.as_ref().map(|turn| turn.actions.as_slice()));
        self.faults
            .set_background_rates(self.plan.slow_one_in, self.plan.checkpoint_in_turn_one_in);
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(error) if can_fill => {
                self.note(&format!("the engine ended on a full disk while it was read: {error}"));
                self.coverage.count("the engine ended on a full disk");
                self.disk.set_capacity(None);
                self.end_process();
                return self.start(lost);
            }
            Err(error) => return Err(error),
        };
        let mut left = Vec::new();
        let mut why = None;
        for (index, candidate) in std::mem::take(&mut self.models).into_iter().enumerate() {
            let lease_time = if self.lease_time_known {
                LeaseTime::Known(candidate.lease_ms)
            } else {
                LeaseTime::AtMost(candidate.lease_ms)
            };
            let turns: Vec<_> = match &lost {
                None => vec![None],
                Some(SentTurn { instants, delays, actions }) => {
                    let later = delays.iter().map(|delay| instants[index].later(*delay));
                    later.map(|now| Some(LostTurn { now, actions: actions.clone() })).collect()
                }
            };
            let mut explained: Vec<Explanation> = Vec::new();
            for turn in turns {
                match explain(&candidate.model, turn.as_ref(), &recovered, lease_time) {
                    Ok(explanations) => {
                        for new in explanations {
                            if !explained.iter().any(|known| known.is_same(&new)) {
                                explained.push(new);
                            }
                        }
                    }
                    Err(error) => why = why.or(Some(error)),
                }
            }
            left.append(&mut explained);
        }
        if left.is_empty() {
            return Err(why.unwrap());
        }
        if lost.is_some() {
            let took_effect = |model: &Explanation| model.lost_turn_took_effect;
            self.coverage.count(
                match (left.iter().any(took_effect), left.iter().all(took_effect)) {
                    (false, _) => "a lost turn had not taken effect",
                    (_, true) => "a lost turn had taken effect",
                    (true, false) => "a lost turn changed nothing",
                },
            );
        }
        self.models = left
            .into_iter()
            .map(|Explanation { model, lease_ms, .. }| Candidate { model, lease_ms })
            .collect();
        self.lease_time_known = true;
        self.token = self
            .models
            .iter()
            .map(|candidate| candidate.model.token)
            .max()
            .unwrap()
            .max(self.token);
        self.note(&format!("started: {} models", self.models.len()));
        Ok(())
    }

    pub(super) fn read_all(&mut self, lost: Option<&[(u32, Action)]>) -> Checked<RecoveredData> {
        let Some(Reply::Pools(PoolPage { pools: views, next: None })) =
            self.query(vec![list_pools()])?.pop()
        else {
            return Err("no list of all pools".into());
        };
        let mut recovered =
            RecoveredData { wall: self.clock.wall_ms(), ..RecoveredData::default() };
        for view in views {
            let keys = self.list(&view.name, None)?;
            let by_state =
                [KeyState::Available, KeyState::Leased, KeyState::Resting, KeyState::Quarantined];
            for state in by_state {
                let listed = self.list(&view.name, Some(state))?;
                let expected = keys.iter().filter(|key| key.state == state);
                ensure!(listed.iter().eq(expected), "{state:?} keys: {listed:?}, all: {keys:?}");
            }
            recovered.pools.push((view, keys));
        }
        let mut calls: Vec<Call> = Vec::new();
        if let Some(lost) = lost {
            calls.extend(lost.iter().filter_map(|(_, action)| action.call().cloned()));
            // Imports of turns before, whose lookups were complete, belong to the lost turn too.
            let models = self.models.iter().map(|candidate| &candidate.model);
            calls.extend(models.flat_map(Model::deferred_calls).cloned());
        }
        for call in &calls {
            let Call::Import { pool, values, .. } = call else { continue };
            let show = |value| Call::GetKey { pool: pool.clone(), key: KeyRef::Value(value) };
            let shown = self.query(values.iter().cloned().map(show).collect())?;
            for (value, reply) in values.iter().zip(shown) {
                if let Reply::Key(view) = reply {
                    let pool_and_value = (pool.as_str().to_owned(), value.reveal().to_owned());
                    recovered.by_value.insert(pool_and_value, view.id);
                }
            }
        }
        Ok(recovered)
    }

    /// Lists the keys of a pool page by page.
    fn list(&mut self, pool: &PoolName, state: Option<KeyState>) -> Checked<Vec<KeyView>> {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let call =
                Call::ListKeys { pool: pool.clone(), state, limit: 1_000, cursor, label: None };
            match self.query(vec![call])?.pop() {
                Some(Reply::Page(page)) => {
                    keys.extend(page.keys);
                    cursor = page.next;
                }
                other => return Err(format!("no list of keys: {other:?}")),
            }
            if cursor.is_none() {
                return Ok(keys);
            }
        }
    }

    /// Sends calls beside the clients, while the clocks stand still.
    pub(super) fn query(&mut self, calls: Vec<Call>) -> Checked<Vec<Reply>> {
        let by = || Principal::Anyone;
        let mut queue: VecDeque<_> = calls
            .into_iter()
            .map(|call| (CallId { lane: 1, slot: self.slot() }, Request::new(by(), call).into()))
            .collect();
        let (count, mut replies) = (queue.len(), Vec::new());
        let engine = self.engine.as_mut().expect("the engine runs");
        // Each turn executes one long call at least.
        for _ in 0..=count {
            let played = engine.turn(&mut queue, &mut replies);
            played.map_err(|error| format!("a turn after a successful start fails: {error}"))?;
            if replies.len() == count {
                break;
            }
        }
        ensure!(replies.len() == count, "calls without a reply: {replies:?}");
        replies.sort_by_key(|(call_id, _)| call_id.slot);
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }

    /// Stops all faults: everything must become quiescent.
    pub(super) fn check_quiescence(&mut self) -> Checked {
        self.note("all faults end");
        self.plan.fault_one_in = 0;
        self.plan.lost_replies = false;
        self.faults.set_background_rates(0, 0);
        self.disk.set_capacity(None);
        self.advance(2_000);
        for _ in 0..400 {
            let due = self
                .next
                .take()
                .and_then(|next| next.due_in_us)
                .map_or(1_000, |us| us.div_ceil(1_000));
            self.advance(due.clamp(250, 1_000));
            self.turn(Vec::new())?;
            while self.faults.step_checkpointer() {}
            self.check_checkpointer()?;
            let model = &self.models[0].model;
            let mut keys = model.pools.values().flat_map(|pool| &pool.keys);
            let any_hold =
                keys.any(|key| matches!(key.state, State::Leased(_) | State::Resting { .. }));
            if !any_hold && model.waiting() == 0 && self.journal_is_small() {
                return self.check_still_serves();
            }
        }
        let bytes = self.disk.bytes_of("journal-");
        Err(format!("not quiescent: {bytes} bytes of journal, {:?}", self.models[0].model))
    }

    pub(super) fn journal_is_small(&self) -> bool {
        let JournalSizes { segment, journal } = self.plan.sizes;
        let pools = self.engine.as_ref().expect("the engine runs").pools();
        let answers: u64 = pools.iter().map(keypeg_core::Pool::stored_answer_count).sum();
        // A stored answer with its part of a frame; here a segment consists mostly of its header.
        let live_bytes = 112 * answers * segment / (segment - 4_096);
        // The bound does not include the preallocated segments and the current one.
        self.disk.bytes_of("journal-") <= journal.max(3 * live_bytes) + 4 * segment
    }

    /// Checks that it still serves like a new engine.
    pub(super) fn check_still_serves(&mut self) -> Checked {
        let pool = PoolName::parse("last").unwrap();
        let patch = keypeg_core::PolicyPatch::default();
        let acquire = Call::Acquire { pool: pool.clone(), ttl_ms: None, holder: None, wait_ms: 0 };
        let create = Call::PutPool { pool: pool.clone(), patch: Box::new(patch) };
        let generate = Call::Generate { pool, count: 1, labels: NewLabels::None };
        // Long calls that are queued would take the place of the new one.
        self.execute_queued()?;
        self.turn(vec![Action::Call(create.into()), Action::Call(generate.into())])?;
        self.execute_queued()?;
        self.turn(vec![Action::Call(acquire.into())])?;
        let model = &self.models[0].model;
        let served = model
            .pools
            .get("last")
            .is_some_and(|pool| pool.keys.iter().any(|key| matches!(key.state, State::Leased(_))));
        ensure!(served, "no key can be acquired any more");
        Ok(())
    }

    /// Plays the turns that all long calls may take: ten for each, and a hundred at least.
    fn execute_queued(&mut self) -> Checked {
        for _ in 0..100.max(10 * self.queued.len()) {
            // The checkpointer serves lookups.
            while self.faults.step_checkpointer() {}
            self.turn(Vec::new())?;
        }
        ensure!(self.queued.is_empty(), "long calls are never executed: {:?}", self.queued);
        Ok(())
    }
}

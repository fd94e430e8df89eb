//! Ends and starts of a simulated process, what a start is found to have, and whether all comes to
//! rest when nothing next_fault it any more.

use super::World;
use crate::faults::{Fault, Part};
use crate::guess::{Found, Lost, explain};
use crate::model::{Checked, Instant, State, ensure, itself};
use crate::support::SeededRandom;
use keypeg_engine::core::KeyRef;
use keypeg_engine::state::{CallId, EngineState, JournalSizes};
use keypeg_engine::{Call, EngineConfig, Principal, Reply, Request};
use std::collections::VecDeque;
use std::sync::Arc;

impl World {
    /// Ends the process. Where the machine goes too, what was not synced goes with it.
    pub(super) fn go_down(&mut self) {
        let machine = self.plan.power_cuts && self.random(2);
        self.count_time();
        self.disk.end_process();
        self.works = None;
        *self.sky.carrier.lock().unwrap() = None;
        self.clients.cut_off();
        self.undelivered.clear();
        if machine {
            self.disk.cut_power(&mut self.random);
            let off = [5, 3_000, 400_000][self.random.below(3) as usize] + self.random.below(100);
            self.clock.reboot(off);
            self.exact = false;
            self.counted_ms = self.clock.boot_ms();
            self.note("the power goes, and comes back");
            self.tally.count("power cuts");
        } else {
            self.disk.next_process(&mut self.random);
            let down = [0, 10, 2_000, 400_000][self.random.below(4) as usize];
            self.advance(down);
            self.note("the process is gone, the machine is not");
            self.tally.count("kills");
        }
    }

    /// Starts, as often as it takes, and looks at all there is.
    pub(super) fn start(&mut self, lost: Option<(Vec<Instant>, Vec<(u32, Call)>)>) -> Checked {
        let mut attempts = 0;
        loop {
            attempts += 1;
            if self.plan.struck_one_in > 0 && attempts < 6 && self.random(3) {
                let after = self.random(2);
                let fails = self.plan.fails && self.random(3);
                let blow = if fails { Fault::Fails } else { Fault::Ends { after } };
                let at = self.random.below(40);
                self.sky.schedule(Some((at, blow)));
            }
            self.sky.enter(Part::Start);
            let opened = self.open();
            self.sky.enter(Part::Nobody);
            self.sky.schedule(None);
            let struck = self.sky.struck().is_some();
            match opened {
                Ok(works) if !self.disk.has_crashed() => {
                    self.works = Some(works);
                    break;
                }
                Ok(_) => {}
                Err(error) if struck => self.note(&format!("the start was cut short: {error}")),
                Err(error) if self.plan.rules.full && attempts < 20 => {
                    self.note(&format!("the start met a full disk: {error}"));
                    self.tally.count("a start met a full disk");
                    self.disk.set_capacity(None);
                }
                Err(error) => return Err(format!("a start is refused: {error}")),
            }
            self.tally.count("starts cut short");
            self.go_down();
        }
        self.serving = (0, self.clock.boot_ms());
        self.audit(lost)
    }

    pub(super) fn open(&mut self) -> Result<EngineState, String> {
        let setup = EngineConfig {
            data: None,
            lanes: 1,
            default_policy: self.plan.policy.clone(),
            max_keys: 1_000_000,
            must_exist: false,
        };
        let (clock, random) =
            (Box::new(self.clock.clone()), Box::new(SeededRandom(self.random.next())));
        let disk = Arc::new(self.disk.clone());
        let opened = EngineState::open(Some(disk), self.plan.sizes, &setup, clock, random);
        let (mut works, recovered) = opened.map_err(|error| error.to_string())?;
        if recovered.batches_cut > 0 {
            self.tally.count("a torn tail was cut");
        }
        works.start_preallocation(false).map_err(|error| error.to_string())?;
        *self.sky.carrier.lock().unwrap() = works.take_checkpointer();
        Ok(works)
    }

    /// Asks for all there is, without anything befalling.
    pub(super) fn audit(&mut self, lost: Option<(Vec<Instant>, Vec<(u32, Call)>)>) -> Checked {
        self.sky.settle(0, 0);
        let capacity = self.plan.rules.full;
        let found = self.look(lost.as_ref().map(|(_, calls)| calls.as_slice()));
        self.sky.settle(self.plan.slow_one_in, self.plan.carries_one_in);
        let found = match found {
            Ok(found) => found,
            Err(error) if capacity => {
                self.note(&format!("it ended on a full disk while it was looked at: {error}"));
                self.tally.count("it ended on a full disk");
                self.disk.set_capacity(None);
                self.go_down();
                return self.start(lost);
            }
            Err(error) => return Err(error),
        };
        let mut left = Vec::new();
        let mut why = None;
        for (at, (model, latest)) in std::mem::take(&mut self.models).into_iter().enumerate() {
            let lost = lost
                .as_ref()
                .map(|(instants, calls)| Lost { now: instants[at], calls: calls.clone() });
            match explain(&model, lost.as_ref(), &found, (self.exact, latest)) {
                Ok(found) => left.extend(found),
                Err(because) => why = why.or(Some(because)),
            }
        }
        if left.is_empty() {
            return Err(why.unwrap());
        }
        if lost.is_some() {
            self.tally.count(
                match (left.iter().any(|(.., did)| *did), left.iter().all(|(.., did)| *did)) {
                    (false, _) => "a lost turn had not happened",
                    (_, true) => "a lost turn had happened",
                    (true, false) => "a lost turn changed nothing",
                },
            );
        }
        self.models = left.into_iter().map(|(model, lease, _)| (model, lease)).collect();
        self.exact = true;
        self.token =
            self.models.iter().map(|(model, _)| model.token).max().unwrap().max(self.token);
        self.note(&format!("started: {} models", self.models.len()));
        Ok(())
    }

    pub(super) fn look(&mut self, lost: Option<&[(u32, Call)]>) -> Checked<Found> {
        let Some(Reply::Pools(views)) = self.ask(vec![Call::ListPools])?.pop() else {
            return Err("lists no pools".into());
        };
        let mut found = Found { wall: self.clock.wall_ms(), ..Found::default() };
        let list = |pool| Call::ListKeys { pool, state: None, limit: 1_000, cursor: None };
        let pages = self.ask(views.iter().map(|view| list(view.name.clone())).collect())?;
        for (view, page) in views.into_iter().zip(pages) {
            let Reply::Page(page) = page else { return Err(format!("lists no keys: {page:?}")) };
            found.pools.push((view, page.keys));
        }
        for (_, call) in lost.unwrap_or_default() {
            let Call::Import { pool, values } = itself(call) else { continue };
            let show = |value| Call::GetKey { pool: pool.clone(), key: KeyRef::Value(value) };
            let shown = self.ask(values.iter().cloned().map(show).collect())?;
            for (value, reply) in values.iter().zip(shown) {
                if let Reply::Key(view) = reply {
                    let at = (pool.as_str().to_owned(), value.reveal().to_owned());
                    found.by_value.insert(at, view.id);
                }
            }
        }
        Ok(found)
    }

    /// Asks beside the clients, with the clocks standing still.
    pub(super) fn ask(&mut self, calls: Vec<Call>) -> Checked<Vec<Reply>> {
        let by = || Principal::Anyone;
        let mut queue: VecDeque<_> = calls
            .into_iter()
            .map(|call| (CallId { lane: 1, slot: self.slot() }, Request { by: by(), call }))
            .collect();
        let (many, mut replies) = (queue.len(), Vec::new());
        let works = self.works.as_mut().expect("the engine runs");
        let played = works.turn(&mut queue, &mut replies);
        played.map_err(|error| format!("a start that went well fails: {error}"))?;
        ensure!(replies.len() == many, "what was found is not told: {replies:?}");
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }

    /// Faults stop: all must come to rest.
    pub(super) fn comes_to_rest(&mut self) -> Checked {
        self.note("all faults end");
        self.plan.struck_one_in = 0;
        self.plan.lost_replies = false;
        self.sky.settle(0, 0);
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
            while self.sky.carry() {}
            self.carrier_may_have_ended()?;
            let (model, _) = &self.models[0];
            let mut keys = model.pools.values().flat_map(|pool| &pool.keys);
            let away =
                keys.any(|key| matches!(key.state, State::Leased(_) | State::Resting { .. }));
            if !away && model.waiting() == 0 && self.journal_is_small() {
                return self.serves();
            }
        }
        let bytes = self.disk.bytes_of("journal-");
        Err(format!("it does not come to rest: {bytes} bytes of journal, {:?}", self.models[0].0))
    }

    pub(super) fn journal_is_small(&self) -> bool {
        let JournalSizes { segment, journal } = self.plan.sizes;
        let pools = self.works.as_ref().expect("the engine runs").pools();
        let answers: u64 = pools.iter().map(keypeg_engine::core::Pool::stored_answer_count).sum();
        // An answer that is kept with its part of a frame; most of a segment is its header here.
        let living = 112 * answers * segment / (segment - 4_096);
        // The segments made ready, and the one being written, are beside the bound.
        self.disk.bytes_of("journal-") <= journal.max(3 * living) + 4 * segment
    }

    /// After all that it serves like a new one.
    pub(super) fn serves(&mut self) -> Checked {
        let pool = keypeg_engine::core::PoolName::parse("last").unwrap();
        let patch = keypeg_engine::core::PolicyPatch::default();
        let acquire = Call::Acquire { pool: pool.clone(), ttl_ms: None, holder: None, wait_ms: 0 };
        self.turn(vec![
            Call::PutPool { pool: pool.clone(), patch },
            Call::Generate { pool: pool.clone(), count: 1 },
            acquire,
        ])?;
        let model = &self.models[0].0;
        let served = model
            .pools
            .get("last")
            .is_some_and(|pool| pool.keys.iter().any(|key| matches!(key.state, State::Leased(_))));
        ensure!(served, "it serves nobody any more");
        Ok(())
    }
}

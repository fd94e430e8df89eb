//! The instants of turns: how much time passes before one, when the engine reads its clocks, and
//! when they are frozen. Calls at the very deadline are the interesting ones, so it often draws one.

use super::{Candidate, LastTurn, Simulation};
use crate::model::{Instant, State};
use keypeg_engine::state::EngineState;

impl Simulation {
    /// Draws the time until the next turn: often exactly up to a deadline, or a millisecond beside
    /// it.
    pub(super) fn draw_elapsed_ms(&mut self) -> u64 {
        let drawn = self.random.below(100);
        match drawn {
            0..10 => 0,
            10..45 => self.random.below(300),
            45..85 => self.draw_ms_to_deadline(),
            85..97 => self.random.below(1_500),
            _ if self.plan.pauses => {
                self.coverage.count("the process was paused for long");
                self.random.below(600_000)
            }
            _ => 1,
        }
    }

    fn draw_ms_to_deadline(&mut self) -> u64 {
        let Candidate { model, lease_ms: lease } = &self.models[0];
        let serving = self.serving_ms_now();
        let mut lengths = Vec::new();
        for pool in model.pools.values() {
            lengths.extend(pool.wait_queue.iter().map(|waiter| waiter.end.saturating_sub(*lease)));
            for key in &pool.keys {
                match &key.state {
                    State::Leased(lease_of) => lengths.push(lease_of.until.saturating_sub(*lease)),
                    State::Resting { until, .. } => lengths.push(until.saturating_sub(*lease)),
                    State::Available | State::Quarantined { .. } => {}
                }
                lengths.extend(key.purge_at.map(|purge_at| purge_at.saturating_sub(serving)));
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

    /// The instant of a turn that runs now, for each model.
    pub(super) fn instants(&self) -> Vec<Instant> {
        let (serving, wall) = (self.last_turn.serving_ms, self.clock.wall_ms());
        let instant = |candidate: &Candidate| Instant { lease: candidate.lease_ms, serving, wall };
        self.models.iter().map(instant).collect()
    }

    /// Counts serving time up to the turn that starts now.
    pub(super) fn count_serving_time(&mut self) {
        let (serving_ms, boot_ms) = (self.serving_ms_now(), self.clock.boot_ms());
        self.last_turn = LastTurn { serving_ms, boot_ms, ..self.last_turn };
    }

    /// The serving time of a turn that starts now.
    pub(super) fn serving_ms_now(&self) -> u64 {
        let boot_ms = self.clock.boot_ms();
        let LastTurn { serving_ms, boot_ms: last_ms, stands_until_ms } = self.last_turn;
        serving_ms + (boot_ms - stands_until_ms.clamp(last_ms, boot_ms)).min(1_000)
    }

    /// Sometimes refuses keep-alives since the last turn, as an overloaded server does: serving time
    /// stands still since then, and for two more seconds.
    pub(super) fn refuse_keep_alives(&mut self) {
        let Some(refusals) = &mut self.refusals else { return };
        if refusals.below(12) > 0 {
            return;
        }
        let boot_ms = self.clock.boot_ms();
        self.last_turn = LastTurn { boot_ms, stands_until_ms: boot_ms + 2_000, ..self.last_turn };
        self.note("the server refused keep-alives");
        self.coverage.count("keep-alives were refused");
        self.engine.as_mut().expect("the engine runs").note_refused_keep_alives(1);
    }

    /// Returns how much later than it began a turn can have happened. A turn that begins on a full
    /// disk, with frozen clocks, reads them again if it finds space; slow operations lie between.
    pub(super) fn delays(&self, turn_start: u64) -> Vec<u64> {
        let mut delays = vec![0];
        let frozen = self.engine.as_ref().is_some_and(EngineState::clocks_frozen);
        if self.plan.rules.disk_can_fill && !frozen {
            let later = self.clock.take_readings().into_iter().map(|at| at - turn_start);
            delays.extend(later.filter(|delay| *delay > 0));
        }
        delays
    }

    /// Returns the instants of a turn that has run: those of the last one if its clocks were frozen.
    pub(super) fn frozen(&mut self, instants: Vec<Instant>) -> Vec<Instant> {
        if !self.engine.as_ref().is_some_and(EngineState::clocks_frozen) {
            return instants;
        }
        self.coverage.count("the clocks were frozen on a full disk");
        let models = self.models.iter().map(|candidate| candidate.model.turned);
        instants.into_iter().zip(models).map(|(now, turned)| now.frozen_at(turned)).collect()
    }
}

//! The fault injector of a simulation's disk: at an operation that was drawn before, the process or
//! the machine ends, or the operation fails. Between operations time may pass and the checkpointer
//! may run.
//!
//! It knows which part of the program is running, so that coverage can say where a fault occurred.

use crate::clocks::SimClock;
use crate::coverage::Coverage;
use crate::support::SeededRandom;
use crate::support::sim_disk::{FaultPolicy, Operation, Outcome};
use keypeg_engine::checkpointer::{CheckpointError, Checkpointer};
use std::sync::{Arc, Mutex, MutexGuard};

/// Which part of the program uses the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    #[default]
    Idle,
    Start,
    Turn,
    Checkpointer,
}

/// A fault at one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process or the machine ends.
    Crash { after: bool },
    /// A write, a sync or a change of a name fails.
    Failure,
}

/// The fault policy of one simulation. Clones share it.
#[derive(Clone)]
pub(crate) struct FaultInjector {
    shared: Arc<Mutex<Shared>>,
    /// The checkpointer while it is not running.
    pub(crate) checkpointer: Arc<Mutex<Option<Checkpointer>>>,
    clock: SimClock,
}

struct Shared {
    random: SeededRandom,
    part: Part,
    /// The scheduled fault, and the number of operations before it.
    fault: Option<(u64, Fault)>,
    /// The fault that occurred since the last call of `take_injected`.
    injected: Option<(Fault, Part, Operation, String)>,
    /// One operation in so many is slow; 0 for none.
    slow_one_in: u64,
    /// After one of a turn's operations in so many the checkpointer takes a step; 0 for none.
    checkpoint_in_turn_one_in: u64,
    /// Why the checkpointer ended.
    checkpointer_ended: Option<String>,
    checkpointer_met_full: bool,
    operations: u64,
    coverage: Coverage,
}

impl FaultInjector {
    pub(crate) fn new(random: SeededRandom, clock: &SimClock) -> Self {
        let shared = Shared {
            random,
            part: Part::Idle,
            fault: None,
            injected: None,
            slow_one_in: 0,
            checkpoint_in_turn_one_in: 0,
            checkpointer_ended: None,
            checkpointer_met_full: false,
            operations: 0,
            coverage: Coverage::default(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            checkpointer: Arc::default(),
            clock: clock.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Sets how often the disk is slow and how often the checkpointer runs within a turn.
    pub(crate) fn set_background_rates(&self, slow_one_in: u64, checkpoint_in_turn_one_in: u64) {
        let mut shared = self.lock();
        (shared.slow_one_in, shared.checkpoint_in_turn_one_in) =
            (slow_one_in, checkpoint_in_turn_one_in);
    }

    /// Schedules a fault after a number of operations, or none.
    pub(crate) fn schedule(&self, fault: Option<(u64, Fault)>) {
        self.lock().fault = fault;
    }

    /// Sets the part that runs from now on.
    pub(crate) fn enter(&self, part: Part) {
        self.lock().part = part;
    }

    /// Returns the fault that occurred since the last call.
    pub(crate) fn take_injected(&self) -> Option<Fault> {
        self.lock().injected.take().map(|(fault, ..)| fault)
    }

    pub(crate) fn coverage(&self) -> Coverage {
        let shared = self.lock();
        let mut coverage = shared.coverage.clone();
        coverage.add("disk operations", shared.operations);
        coverage
    }

    /// Returns why the checkpointer ended, once.
    pub(crate) fn checkpointer_ended(&self) -> Option<String> {
        self.lock().checkpointer_ended.take()
    }

    /// Runs one step of the checkpointer; true when more is left.
    pub(crate) fn step_checkpointer(&self) -> bool {
        let Some(mut checkpointer) = self.checkpointer.lock().unwrap().take() else { return false };
        let before = std::mem::replace(&mut self.lock().part, Part::Checkpointer);
        let stepped = checkpointer.serve_lookups().and_then(|()| checkpointer.step());
        let mut shared = self.lock();
        shared.part = before;
        let more = match stepped {
            Ok(more) => more,
            Err(CheckpointError::Full) => {
                shared.coverage.count("the checkpointer met a full disk");
                shared.checkpointer_met_full = true;
                false
            }
            Err(error) => {
                shared.checkpointer_ended = Some(error.to_string());
                false
            }
        };
        drop(shared);
        *self.checkpointer.lock().unwrap() = Some(checkpointer);
        more
    }
}

impl Shared {
    fn next_fault(&mut self, operation: Operation, name: &str) -> Outcome {
        let Some((left, fault)) = self.fault else { return Outcome::Succeeds };
        if left > 0 {
            self.fault = Some((left - 1, fault));
            return Outcome::Succeeds;
        }
        self.fault = None;
        let journal = name.starts_with("journal-");
        let state = match (self.part, operation) {
            (Part::Start, _) => "a fault during recovery",
            (Part::Checkpointer, _) => "a fault during a checkpoint",
            (Part::Turn, Operation::Remove) if journal => "a fault while deleting segments",
            (Part::Turn, Operation::Create | Operation::Rename) if journal => {
                "a fault while preallocating a segment"
            }
            (Part::Turn, Operation::SyncDir) => "a fault while syncing the directory",
            (Part::Turn, Operation::Write) => "a fault while writing a batch",
            (Part::Turn, Operation::Sync) => "a fault while syncing a batch",
            _ => "a fault elsewhere",
        };
        self.coverage.count(state);
        self.injected = Some((fault, self.part, operation, name.to_owned()));
        match fault {
            Fault::Crash { after } => Outcome::Crashes { after },
            Fault::Failure => {
                self.coverage.count(match operation {
                    Operation::Sync | Operation::SyncDir => "a sync failed",
                    Operation::Write => "a write failed",
                    Operation::Create
                    | Operation::Rename
                    | Operation::Remove
                    | Operation::SetLen => "a change of a name or a length failed",
                });
                Outcome::Fails
            }
        }
    }
}

impl FaultPolicy for FaultInjector {
    fn before(&self, operation: Operation, name: &str) -> Outcome {
        let runs_checkpointer =
            {
                let mut shared = self.lock();
                shared.operations += 1;
                if shared.slow_one_in > 0 && shared.part != Part::Start {
                    let one_in = shared.slow_one_in;
                    if shared.random.below(one_in) == 0 {
                        let ms = 1 << shared.random.below(12);
                        self.clock.advance(ms);
                        shared.coverage.count("an operation was slow");
                    }
                }
                // Between a write and its sync an error is most likely.
                let one_in = shared
                    .checkpoint_in_turn_one_in
                    .min(if operation == Operation::Sync { 2 } else { 99 });
                shared.part == Part::Turn && one_in > 0 && shared.random.below(one_in) == 0
            };
        if runs_checkpointer {
            self.step_checkpointer();
            let mut shared = self.lock();
            shared.coverage.count("the checkpointer ran within a turn");
            // A checkpointer that ends takes the process with it.
            if shared.checkpointer_ended.is_some() {
                return Outcome::Crashes { after: false };
            }
        }
        self.lock().next_fault(operation, name)
    }
}

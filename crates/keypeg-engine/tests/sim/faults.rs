//! What next_fault the disk of a simulation: at an operation drawn before, the process or the machine
//! ends, or the operation fails; between operations time passes and the carrier goes on.
//!
//! It knows which part of the program is at work, so that it can be told where a fault struck.

use crate::support::SeededRandom;
use crate::support::sim_disk::{Fate, FaultPolicy, Operation};
use crate::tally::Tally;
use crate::time::SimClock;
use keypeg_engine::checkpointer::{CheckpointError, Checkpointer};
use std::sync::{Arc, Mutex, MutexGuard};

/// Which part of the program uses the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    #[default]
    Nobody,
    Start,
    Turn,
    Checkpointer,
}

/// What is to befall an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends, or the machine.
    Ends { after: bool },
    /// A write, a sync or a change of a name fails.
    Fails,
}

/// The weather of one simulation. Clones share it.
#[derive(Clone)]
pub(crate) struct FaultInjector {
    shared: Arc<Mutex<Shared>>,
    /// Where the carrier is while it is not at work.
    pub(crate) carrier: Arc<Mutex<Option<Checkpointer>>>,
    clock: SimClock,
}

struct Shared {
    random: SeededRandom,
    part: Part,
    /// What next_fault the operation after so many more.
    blow: Option<(u64, Fault)>,
    /// What struck, and where, since it was last asked.
    struck: Option<(Fault, Part, Operation, String)>,
    /// Of how many operations one takes long; 0 none.
    slow_one_in: u64,
    /// Of how many of a turn's operations one is followed by a step of the carrier; 0 none.
    carries_one_in: u64,
    /// Why the carrier cannot go on.
    carrier_ended: Option<String>,
    carrier_met_full: bool,
    operations: u64,
    tally: Tally,
}

impl FaultInjector {
    pub(crate) fn new(random: SeededRandom, clock: &SimClock) -> Self {
        let shared = Shared {
            random,
            part: Part::Nobody,
            blow: None,
            struck: None,
            slow_one_in: 0,
            carries_one_in: 0,
            carrier_ended: None,
            carrier_met_full: false,
            operations: 0,
            tally: Tally::default(),
        };
        Self { shared: Arc::new(Mutex::new(shared)), carrier: Arc::default(), clock: clock.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// Sets how often the disk is slow and how often the carrier works beside a turn.
    pub(crate) fn settle(&self, slow_one_in: u64, carries_one_in: u64) {
        let mut shared = self.lock();
        (shared.slow_one_in, shared.carries_one_in) = (slow_one_in, carries_one_in);
    }

    /// Lets a blow fall after so many operations, or none at all.
    pub(crate) fn schedule(&self, blow: Option<(u64, Fault)>) {
        self.lock().blow = blow;
    }

    /// Says which part is at work from now on.
    pub(crate) fn enter(&self, part: Part) {
        self.lock().part = part;
    }

    /// What struck since this was last asked.
    pub(crate) fn struck(&self) -> Option<Fault> {
        self.lock().struck.take().map(|(blow, ..)| blow)
    }

    pub(crate) fn tally(&self) -> Tally {
        let shared = self.lock();
        let mut tally = shared.tally.clone();
        tally.add("disk operations", shared.operations);
        tally
    }

    /// Why the carrier ended, once.
    pub(crate) fn carrier_ended(&self) -> Option<String> {
        self.lock().carrier_ended.take()
    }

    /// Lets the carrier do one step; true when more is left.
    pub(crate) fn carry(&self) -> bool {
        let Some(mut carrier) = self.carrier.lock().unwrap().take() else { return false };
        let before = std::mem::replace(&mut self.lock().part, Part::Checkpointer);
        let stepped = carrier.step();
        let mut shared = self.lock();
        shared.part = before;
        let more = match stepped {
            Ok(more) => more,
            Err(CheckpointError::Full) => {
                shared.tally.count("the carrier met a full disk");
                shared.carrier_met_full = true;
                false
            }
            Err(error) => {
                shared.carrier_ended = Some(error.to_string());
                false
            }
        };
        drop(shared);
        *self.carrier.lock().unwrap() = Some(carrier);
        more
    }
}

impl Shared {
    fn next_fault(&mut self, operation: Operation, name: &str) -> Fate {
        let Some((left, blow)) = self.blow else { return Fate::Done };
        if left > 0 {
            self.blow = Some((left - 1, blow));
            return Fate::Done;
        }
        self.blow = None;
        let journal = name.starts_with("journal-");
        let place = match (self.part, operation) {
            (Part::Start, _) => "struck while recovering",
            (Part::Checkpointer, _) => "struck while carrying",
            (Part::Turn, Operation::Remove) if journal => "struck while dropping segments",
            (Part::Turn, Operation::Create | Operation::Rename) if journal => {
                "struck while making a segment ready"
            }
            (Part::Turn, Operation::SyncDir) => "struck while syncing names",
            (Part::Turn, Operation::Write) => "struck while writing a batch",
            (Part::Turn, Operation::Sync) => "struck while syncing a batch",
            _ => "struck elsewhere",
        };
        self.tally.count(place);
        self.struck = Some((blow, self.part, operation, name.to_owned()));
        match blow {
            Fault::Ends { after } => Fate::Ends { after },
            Fault::Fails => {
                self.tally.count(match operation {
                    Operation::Sync | Operation::SyncDir => "a sync failed",
                    Operation::Write => "a write failed",
                    Operation::Create
                    | Operation::Rename
                    | Operation::Remove
                    | Operation::SetLen => "a change of a name or a length failed",
                });
                Fate::Fails
            }
        }
    }
}

impl FaultPolicy for FaultInjector {
    fn before(&self, operation: Operation, name: &str) -> Fate {
        let carries = {
            let mut shared = self.lock();
            shared.operations += 1;
            if shared.slow_one_in > 0 && shared.part != Part::Start {
                let one_in = shared.slow_one_in;
                if shared.random.below(one_in) == 0 {
                    let ms = 1 << shared.random.below(12);
                    self.clock.advance(ms);
                    shared.tally.count("an operation took long");
                }
            }
            // Between a write and its sync it is most likely to go wrong.
            let one_in =
                shared.carries_one_in.min(if operation == Operation::Sync { 2 } else { 99 });
            shared.part == Part::Turn && one_in > 0 && shared.random.below(one_in) == 0
        };
        if carries {
            self.carry();
            let mut shared = self.lock();
            shared.tally.count("the carrier worked within a turn");
            // A carrier that ends takes the process with it.
            if shared.carrier_ended.is_some() {
                return Fate::Ends { after: false };
            }
        }
        self.lock().next_fault(operation, name)
    }
}

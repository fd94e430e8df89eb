//! The arguments of a step that do not depend on its call: time, randomness, the sink of facts,
//! and how much that is due it may end.

use crate::clocks::Now;
use crate::fact::FactSink;
use crate::random::RandomSource;

/// One step of a turn: its time, its randomness, the sink of its facts.
pub struct StepContext<'a> {
    /// The instant of the whole turn.
    pub now: Now,
    /// The source of randomness.
    pub random: &'a mut dyn RandomSource,
    /// The sink of facts.
    pub facts: &'a mut dyn FactSink,
    /// How many more leases, rests and keys this turn may end because they are due.
    pub budget: u32,
    /// Whether time ended a lease or a rest. That leaves no fact, so the journal must store the
    /// clock.
    pub ended_by_time: bool,
}

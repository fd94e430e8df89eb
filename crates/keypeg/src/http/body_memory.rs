//! The memory of request bodies: what one body takes of it, and until when.
//!
//! A body's bytes become the values of a call, which the store may queue: the body has its memory
//! until that call has its reply. Does not know what is in a body.

use super::error::Problem;
use crate::share::{CallerId, Exceeded, Held, ReservedBudget};
use keypeg_client::Code;
use keypeg_store::{PendingReply, Reply, RequestError};
use std::sync::Arc;

/// The first bytes of a body, which are always accepted; most bodies are not longer.
const BODY_FREE: usize = 4 << 10;
/// The largest body that may use the reserve of the memory of bodies.
const SMALL_MAX: usize = 16 << 10;

/// The memory that one body takes, given back on drop.
#[derive(Debug, Default)]
pub(super) struct BodyMemory {
    room: Option<(Arc<ReservedBudget>, CallerId)>,
    /// What is admitted, in steps.
    held: Vec<Held>,
    bytes: usize,
}

impl BodyMemory {
    pub(super) fn new(room: Option<(Arc<ReservedBudget>, CallerId)>) -> Self {
        Self { room, ..Self::default() }
    }

    /// Reserves memory for a body that takes `capacity` bytes. A small body, such as a keep-alive's,
    /// also has the reserve.
    pub(super) fn grow(&mut self, capacity: usize) -> Result<(), Problem> {
        let more = capacity.saturating_sub(BODY_FREE).saturating_sub(self.bytes);
        let Some((bodies, caller)) = self.room.as_ref().filter(|_| more > 0) else {
            return Ok(());
        };
        let admitted = if capacity <= SMALL_MAX {
            bodies.admit_urgent(caller, more as u64)
        } else {
            bodies.admit(caller, more as u64)
        };
        self.held.push(admitted.map_err(|exceeded| no_room(exceeded, caller).closing())?);
        self.bytes += more;
        Ok(())
    }

    /// Returns whether the body takes no more than is free for every request.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// The share of a token is the token's own limit. That of an address is the server's: many clients
/// can have it.
fn no_room(exceeded: Exceeded, caller: &CallerId) -> Problem {
    match (exceeded, caller) {
        (Exceeded::Share, CallerId::Token(_)) => Problem::new(
            Code::RateLimited,
            "The request bodies of this access token use its share of the server's memory. Send \
             fewer large bodies at the same time.",
        )
        .retry_after_ms(1_000),
        (Exceeded::Share, CallerId::Network(_)) | (Exceeded::Bound, _) => {
            Problem::refused(&RequestError::Overloaded)
        }
    }
}

/// Waits for the reply to a call with values from a body, and holds the body's memory until then.
///
/// In a task of its own: the store executes a queued call also when its client has left, which
/// drops the request's future.
pub(super) async fn until_reply(pending: PendingReply, memory: Arc<BodyMemory>) -> Reply {
    let holding = tokio::spawn(async move {
        let reply = pending.await;
        drop(memory);
        reply
    });
    holding.await.expect("invariant: a reply does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bodies: &Arc<ReservedBudget>, caller: u128) -> BodyMemory {
        BodyMemory::new(Some((Arc::clone(bodies), CallerId::Network(caller))))
    }

    /// A body grows in steps, and each byte counts once. What was refused or has ended counts no
    /// more, or the server would refuse bodies until its next start.
    #[test]
    fn the_memory_of_all_bodies_is_bounded_and_returned() {
        let bodies = Arc::new(ReservedBudget::new(9 << 20, 1 << 20));
        let mut one = memory(&bodies, 1);
        for capacity in [BODY_FREE, 1 << 20, 1 << 20, 4 << 20] {
            one.grow(capacity).unwrap();
            assert_eq!(bodies.ordinary().held(), ((capacity - BODY_FREE) as u64));
        }
        let held = bodies.ordinary().held();
        assert!(one.grow(6 << 20).is_err(), "half of the memory is for other callers");
        let mut other = memory(&bodies, 2);
        assert!(other.grow(6 << 20).is_err(), "more than there is");
        assert_eq!(bodies.ordinary().held(), held, "a refusal takes nothing");
        other.grow(3 << 20).unwrap();
        memory(&bodies, 3).grow(BODY_FREE).unwrap();
        drop((one, other));
        assert_eq!(bodies.ordinary().held(), 0);
    }

    /// Slow uploads of one token once filled the memory, and the keep-alives of others were refused.
    #[test]
    fn a_small_body_has_room_when_large_ones_take_all_the_rest() {
        let bodies = Arc::new(ReservedBudget::new(9 << 20, 1 << 20));
        let mut large: Vec<_> = (1..200).map(|caller| memory(&bodies, caller)).collect();
        for body in &mut large {
            let _ = body.grow(1 << 20);
        }
        assert!(memory(&bodies, 500).grow(1 << 20).is_err());
        let mut small = memory(&bodies, 500);
        small.grow(SMALL_MAX).unwrap();
        assert!(small.grow(1 << 20).is_err(), "the reserve is for small bodies");
    }
}

//! What all pools share: the counters that never go back, the server's bounds, the hash key, and
//! a bounded memory of how leases ended.

use crate::borrowers::Borrowers;
use crate::fact::{Fact, FactSink};
use crate::ids::{IdHashKey, TOKEN_MAX};
use crate::numbers::{KeyNumber, Lsn, PoolId, WaiterId};
use crate::pool::GrantedLease;
use crate::refusal::{EndCause, Refusal};
use crate::sabotage::{TestLimit, limit};
use hashbrown::HashMap;

/// Tokens reserved at a time: what an unclean start skips at most.
pub const TOKEN_RESERVATION: u64 = 1 << 20;
/// Ended leases whose cause is remembered.
const ENDED_MAX: usize = 1 << 16;

/// Waiters in all pools together: whoever would be one more is refused.
pub const WAITERS_MAX: usize = 100_000;

/// The server's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most pools.
    pub pools: usize,
    /// The most keys in all pools together.
    pub keys: u64,
}

/// Counters a journal must never let go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The next key's number.
    pub next_key: KeyNumber,
    /// The next pool's number.
    pub next_pool: PoolId,
    /// Tokens below this may have been granted.
    pub tokens_reserved: u64,
}

/// Where the journal stands: under which position the facts of this turn are kept, and up to which
/// one the database has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalPositions {
    /// The position of the batch that the next facts go into; never decreases.
    pub current: Lsn,
    /// The last position whose changes to the set of keys are in the database.
    pub checkpointed: Lsn,
}

/// What the pools share.
#[derive(Clone, Debug)]
pub struct SharedState {
    pub(crate) ids: IdHashKey,
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
    pub(crate) next_token: u64,
    pub(crate) keys: u64,
    /// Tells this run's cursors from those of others, which may have had keys in other slots.
    pub(crate) run: u64,
    pub(crate) ended: Ended,
    /// Who waits, by waiter_id: the pool's seat and the place in its line.
    pub(crate) waiters: HashMap<WaiterId, (u32, u32), foldhash::fast::RandomState>,
    /// What the answers of all pools count of [`ANSWERS_MAX`](crate::ANSWERS_MAX).
    pub(crate) answers: usize,
    /// Answers of ended leases in all pools.
    pub(crate) ended_answers: usize,
    /// Under which mark the facts of this turn are kept, from 1 on, and up to which a database has
    /// them.
    pub(crate) positions: JournalPositions,
    /// Whether nothing can be remembered: what is due is over, and stays until it can.
    pub(crate) held: bool,
    /// Leases by borrower, those that are waited for among them.
    pub(crate) borrowers: Borrowers,
    /// What those who waited got, until it is taken.
    pub(crate) handed: Vec<WaitOutcome>,
}

/// What somebody who waited got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitOutcome {
    /// Who.
    pub waiter_id: WaiterId,
    /// A lease, or why not.
    pub outcome: Result<GrantedLease, Refusal>,
}

impl SharedState {
    /// Begins a ledger whose first token is at least `first_token`.
    pub(crate) fn new(ids: IdHashKey, limits: Limits, first_token: u64) -> Self {
        let first = first_token.max(1);
        Self {
            ids,
            limits,
            counters: Counters {
                next_key: KeyNumber(1),
                next_pool: PoolId(1),
                tokens_reserved: first,
            },
            next_token: first,
            keys: 0,
            run: 0,
            ended: Ended::default(),
            waiters: HashMap::default(),
            answers: 0,
            ended_answers: 0,
            positions: JournalPositions { current: Lsn(1), checkpointed: Lsn(0) },
            held: false,
            borrowers: Borrowers::default(),
            handed: Vec::new(),
        }
    }

    /// Takes the next fencing token, reserving a block first where the last one is used up.
    pub(crate) fn take_token(&mut self, facts: &mut dyn FactSink) -> u64 {
        if self.next_token >= self.counters.tokens_reserved {
            assert!(
                self.next_token < TOKEN_MAX,
                "fencing tokens are used up: that takes centuries"
            );
            let until = (self.next_token + limit(TestLimit::TokenReservation, TOKEN_RESERVATION))
                .min(TOKEN_MAX);
            self.counters.tokens_reserved = until;
            facts.record(&Fact::TokensReserved { until });
        }
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// Takes `count` key numbers and gives the first.
    pub(crate) fn take_numbers(&mut self, count: u32) -> KeyNumber {
        let first = self.counters.next_key;
        self.counters.next_key = first.plus(u64::from(count));
        self.keys += u64::from(count);
        first
    }
}

/// How the last leases ended: one place for each of the latest tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ended {
    ring: Vec<EndedLease>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedLease {
    pub(crate) token: u64,
    /// The key it lent.
    pub(crate) number: KeyNumber,
    pub(crate) slot: u32,
    pub(crate) cause: EndCause,
}

impl Ended {
    pub(crate) fn note(&mut self, lease: EndedLease) {
        let at = place(lease.token);
        if at >= self.ring.len() {
            // Grows as tokens come, so that many small rings cost little in tests.
            let none =
                EndedLease { token: 0, number: KeyNumber(0), slot: 0, cause: EndCause::Expired };
            self.ring.resize((at + 1).next_power_of_two(), none);
        }
        self.ring[at] = lease;
    }

    pub(crate) fn find(&self, token: u64) -> Option<EndedLease> {
        self.ring.get(place(token)).copied().filter(|lease| lease.token == token)
    }
}

fn place(token: u64) -> usize {
    usize::try_from(token % ENDED_MAX as u64).expect("invariant: below 2^16")
}

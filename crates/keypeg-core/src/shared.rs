//! The state that all pools share: the counters that never decrease, the server's limits, the hash
//! key of ids, and a bounded record of how leases ended.

use crate::borrowers::Borrowers;
use crate::fact::{Fact, FactSink};
use crate::idempotency_store::AnswerCounts;
use crate::ids::{IdHashKey, TOKEN_MAX};
use crate::indices::{PoolIndex, SlotIndex, WaiterIndex};
use crate::numbers::{KeyNumber, Lsn, PoolId, WaiterId};
use crate::refusal::{EndCause, Refusal};
use crate::sabotage::{TestLimit, limit};
use crate::wait_outcome::WaitOutcome;
use hashbrown::HashMap;

/// Tokens reserved at a time: a start after an unclean stop skips at most that many.
pub const TOKEN_RESERVATION: u64 = 1 << 20;
/// Ended leases whose cause is remembered.
const ENDED_MAX: usize = 1 << 16;

/// The most waiting requests in all pools together.
pub const WAITERS_MAX: usize = 100_000;

/// The server's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most pools.
    pub pools: usize,
    /// The most keys in all pools together.
    pub keys: u64,
    /// The most bytes of all pools together. New keys and pools get three quarters of it; the rest
    /// is for the leases on them.
    pub bytes: u64,
    /// The most stored answers of all pools together, see [`answers_max`](crate::answers_max).
    pub answers: usize,
}

/// The counters that never decrease, not even across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The next key's number.
    pub next_key: KeyNumber,
    /// The next pool's number.
    pub next_pool: PoolId,
    /// The end of the reservation: tokens below this may have been granted.
    pub tokens_reserved: u64,
}

/// Where the journal and the database stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalPositions {
    /// The position of the batch that contains the next facts; never decreases.
    pub current: Lsn,
    /// The last position whose changes to the key set are in the database.
    pub checkpointed: Lsn,
}

/// The state that all pools share.
#[derive(Clone, Debug)]
pub struct SharedState {
    pub(crate) ids: IdHashKey,
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
    /// The block of the numbers that new pools get; `None` for any. A restore into another number of
    /// shards leaves pools with numbers of other blocks in a shard.
    pub(crate) pool_block: Option<u16>,
    pub(crate) token_class: TokenClass,
    pub(crate) next_token: u64,
    /// Keys in all pools together.
    pub(crate) key_count: u64,
    /// Leases and rests of all pools together.
    pub(crate) hold_count: u64,
    /// The bytes of all pools, as last counted.
    pub(crate) pool_bytes: usize,
    /// The bytes of `waiters`, as last counted.
    pub(crate) waiter_bytes: usize,
    /// What the other shards of this server take of `limits.bytes`.
    pub(crate) bytes_elsewhere: u64,
    /// Distinguishes this run's cursors from those of other runs, whose slots may differ.
    pub(crate) run_id: u64,
    pub(crate) ended_leases: EndedLeases,
    /// Where each waiting request is.
    pub(crate) waiters: HashMap<WaiterId, WaiterLocation, foldhash::fast::RandomState>,
    /// The stored answers of all pools.
    pub(crate) answers: AnswerCounts,
    /// Where the journal and the database stand; the current position starts at 1.
    pub(crate) positions: JournalPositions,
    /// Whether no fact can be stored: nothing expires in memory then, but requests still treat
    /// due leases and keys as ended.
    pub(crate) clocks_frozen: bool,
    /// Leases by borrower; waiting requests count as leases.
    pub(crate) borrowers: Borrowers,
    /// Outcomes of waiting requests, until the caller drains them.
    pub(crate) wait_outcomes: Vec<WaitOutcome>,
}

/// Which tokens a server grants: those that leave this remainder when they are divided by the number of
/// shards, so that no two shards grant the same token. A server without shards grants all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenClass {
    pub(crate) remainder: u64,
    pub(crate) divisor: u64,
}

impl Default for TokenClass {
    /// All tokens.
    fn default() -> Self {
        Self { remainder: 0, divisor: 1 }
    }
}

impl TokenClass {
    /// Returns the first token of the class from this number on.
    fn first_from(self, token: u64) -> u64 {
        token + (self.remainder + self.divisor - token % self.divisor) % self.divisor
    }
}

/// The wait queue and the position in it of a waiting request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaiterLocation {
    pub(crate) pool: PoolIndex,
    pub(crate) waiter: WaiterIndex,
}

impl SharedState {
    /// Creates the state of a server without pools; its first token is at least `first_token`.
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
            pool_block: None,
            token_class: TokenClass::default(),
            next_token: first,
            key_count: 0,
            hold_count: 0,
            pool_bytes: 0,
            waiter_bytes: 0,
            bytes_elsewhere: 0,
            run_id: 0,
            ended_leases: EndedLeases::default(),
            waiters: HashMap::default(),
            answers: AnswerCounts::new(limits.answers),
            positions: JournalPositions { current: Lsn(1), checkpointed: Lsn(0) },
            clocks_frozen: false,
            borrowers: Borrowers::default(),
            wait_outcomes: Vec::new(),
        }
    }

    /// Gives new pools numbers from here on, if this is a number that new pools can get.
    pub(crate) fn raise_next_pool(&mut self, next: PoolId) {
        if self.pool_block.is_none_or(|block| next.block() == block) {
            self.counters.next_pool = self.counters.next_pool.max(next);
        }
    }

    /// Returns the next fencing token, and first reserves more tokens when none is left.
    pub(crate) fn take_token(&mut self, facts: &mut dyn FactSink) -> u64 {
        // Without shards, an acquire is not to pay for a division.
        if self.token_class.divisor > 1 {
            self.next_token = self.token_class.first_from(self.next_token);
        }
        if self.next_token >= self.counters.tokens_reserved {
            assert!(
                self.next_token < TOKEN_MAX,
                "fencing tokens are exhausted, which takes centuries"
            );
            self.reserve_tokens(facts);
        }
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// Reserves more tokens, whether or not some are left, so that a fact names all that can have been
    /// granted.
    pub(crate) fn reserve_tokens(&mut self, facts: &mut dyn FactSink) {
        let reserved = self.counters.tokens_reserved.max(self.next_token);
        let tokens = limit(TestLimit::TokenReservation, TOKEN_RESERVATION);
        let until = (reserved + tokens * self.token_class.divisor).min(TOKEN_MAX);
        if until > self.counters.tokens_reserved {
            self.counters.tokens_reserved = until;
            facts.record(&Fact::TokensReserved { until });
        }
    }

    /// Returns the bytes of all pools, of the table of waiters and of the record of ended leases. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        (self.pool_bytes + self.waiter_bytes + self.ended_leases.bytes()) as u64
    }

    /// Returns whether `more` bytes fit into the memory.
    #[inline]
    pub(crate) fn has_memory(&self, more: usize) -> bool {
        self.bytes() + self.bytes_elsewhere + more as u64 <= self.limits.bytes
    }

    /// Returns the most bytes with which keys and pools may still be added.
    pub(crate) fn key_bytes_max(&self) -> u64 {
        self.limits.bytes - self.limits.bytes / 4
    }

    /// Returns whether keys or pools that take `more` bytes may be added.
    pub(crate) fn has_memory_for_keys(&self, more: usize) -> bool {
        let taken = self.bytes() + self.bytes_elsewhere;
        taken.saturating_add(more as u64) <= self.key_bytes_max()
    }

    /// Refuses a lease, a waiting request or a stored answer that takes `more` bytes, where the
    /// memory is used up.
    #[inline]
    pub(crate) fn check_memory_for_lease(&self, more: usize) -> Result<(), Refusal> {
        let max = self.limits.bytes;
        if self.has_memory(more) { Ok(()) } else { Err(Refusal::MemoryFull { max }) }
    }

    /// Allocates `count` key numbers, counts that many keys, and returns the first number.
    pub(crate) fn allocate_keys(&mut self, count: u32) -> KeyNumber {
        let first = self.counters.next_key;
        self.counters.next_key = first.plus(u64::from(count));
        self.key_count += u64::from(count);
        first
    }
}

/// How the latest leases ended: a ring buffer with one entry for each of the latest tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndedLeases {
    ring: Vec<EndedLease>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct EndedLease {
    pub(crate) token: u64,
    /// The key that was leased.
    pub(crate) number: KeyNumber,
    pub(crate) slot: SlotIndex,
    pub(crate) cause: EndCause,
}

impl EndedLeases {
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.ring.capacity() * size_of::<EndedLease>()
    }

    pub(crate) fn add(&mut self, lease: EndedLease) {
        let index = ring_index(lease.token);
        if index >= self.ring.len() {
            // Grows with the tokens, so that the many small servers of the tests take little
            // memory.
            let unused = EndedLease {
                token: 0,
                number: KeyNumber(0),
                slot: SlotIndex::default(),
                cause: EndCause::Expired,
            };
            self.ring.resize((index + 1).next_power_of_two(), unused);
        }
        self.ring[index] = lease;
    }

    pub(crate) fn find(&self, token: u64) -> Option<EndedLease> {
        self.ring.get(ring_index(token)).copied().filter(|lease| lease.token == token)
    }
}

fn ring_index(token: u64) -> usize {
    usize::try_from(token % ENDED_MAX as u64).expect("invariant: below 2^16")
}

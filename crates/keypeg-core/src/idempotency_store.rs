//! Stored answers: the results of requests with an Idempotency-Key, so that a repeat gets the same
//! result.
//!
//! An answer with a lease is stored while the lease runs, and afterwards among the latest ended
//! ones, so that a repeat learns that the lease ended. An answer with keys is stored for an hour.
//! The caller keeps the number bounded with [`IdempotencyStore::check_room`]: no borrower has more
//! than all borrowers leave free (the dynamic threshold of shared switch buffers), so one alone gets
//! half, and none can take what another needs. Knows nothing of leases and keys but their numbers.

use crate::borrowers::Borrowers;
use crate::chunks::Chunks;
use crate::clocks::{US_PER_S, is_due};
use crate::fact::{IdempotencyRecord, IdempotentResult};
use crate::heap::allocated;
use crate::holds::hash_token;
use crate::ids::{BodyDigest, IdempotencyId};
use crate::index::Index;
use crate::indices::{AnswerIndex, ItemIndex, SlotIndex, WaiterIndex};
use crate::numbers::BorrowerId;
use crate::refusal::Refusal;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// About the most bytes of a stored answer without ranges of slots, its places in the lists included.
pub(crate) const STORED_ANSWER_BYTES: usize = 256;
/// How long an answer with keys is stored: an hour. Also the least for an answer with a lease,
/// while there is room.
pub(crate) const KEPT_US: u64 = 3_600 * US_PER_S;
/// The most stored answers in all pools together, however much memory there is; each range of slots
/// with its keys counts as one more.
pub const ANSWERS_MAX: usize = 1 << 20;
/// Stored answers for each one that can be of an ended lease.
const ANSWERS_PER_ENDED: usize = 4;
/// Stored answers of ended leases that each pool keeps, however many the other pools have.
const ENDED_ANSWERS_MIN: usize = 64;
/// Expired answers of each kind that a request which needs room removes, at most.
const REMOVED_MAX: usize = 1_024;

/// Returns the most stored answers of pools that may take `bytes` of memory: they take half of it, so
/// that callers reach their shares of the answers before the memory for leases is used up.
pub fn answers_max(bytes: u64) -> usize {
    let answers = bytes / 2 / STORED_ANSWER_BYTES as u64;
    usize::try_from(answers).unwrap_or(usize::MAX).min(ANSWERS_MAX)
}

/// An Idempotency-Key and the request that it belongs to.
#[derive(Clone, Copy, Debug)]
pub struct IdempotencyKey<'a> {
    /// The caller: the same key of another caller is a different one.
    pub caller: &'a str,
    /// The key.
    pub key: &'a str,
    /// The digest of the body: the same key with a different body is refused.
    pub body: BodyDigest,
    /// The borrower that the stored answer counts for.
    pub borrower: BorrowerId,
    /// The network of a client without a borrower, for which the stored answer counts then; 0 is
    /// unknown.
    pub network: u128,
}

/// A request with an Idempotency-Key: the id of its answer, and the digest of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdempotentRequest {
    pub(crate) id: IdempotencyId,
    pub(crate) body: BodyDigest,
    /// The borrower that the answer counts for.
    pub(crate) borrower: BorrowerId,
}

/// A stored answer.
#[derive(Clone, Debug)]
pub(crate) struct StoredAnswer {
    pub(crate) record: IdempotencyRecord,
    /// The slots of the keys in the answer, in order.
    pub(crate) slots: Box<[SlotRange]>,
    /// Whether a repeat received the answer: then its lease must not be revoked.
    pub(crate) redelivered: bool,
}

/// Adjacent slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotRange {
    pub(crate) first: SlotIndex,
    pub(crate) count: u32,
}

/// A waiting request with an Idempotency-Key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitingRequest {
    pub(crate) waiter: WaiterIndex,
    pub(crate) body: BodyDigest,
}

/// How many answers all pools together store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AnswerCounts {
    /// The limit of `weight`.
    pub(crate) max: usize,
    /// The weight of the stored answers.
    weight: usize,
    /// Their weight by borrower.
    borrowers: Borrowers,
    /// Stored answers of ended leases.
    ended: usize,
    /// All stored answers.
    all: usize,
}

impl AnswerCounts {
    /// Returns the counts of no answers, with this limit of their weight.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, weight: 0, borrowers: Borrowers::default(), ended: 0, all: 0 }
    }

    /// Subtracts what the answers of deleted pools counted, for at most `max` borrowers.
    pub(crate) fn settle_removed(&mut self, max: usize) {
        self.borrowers.settle(max);
    }

    /// Returns the number of stored answers.
    pub(crate) fn len(&self) -> usize {
        self.all
    }

    /// Returns the most stored answers of ended leases.
    fn ended_max(&self) -> usize {
        self.max / ANSWERS_PER_ENDED
    }
}

/// The stored answers of one pool: a slab with a free list.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyStore {
    answers: Chunks<AnswerIndex, Option<StoredAnswer>>,
    free: Vec<AnswerIndex>,
    /// The total weight, which counts against the limit of all pools.
    weight: usize,
    /// The weight by borrower.
    borrowers: Borrowers,
    /// The bytes of the ranges of slots.
    range_bytes: usize,
    by_id: Index<AnswerIndex>,
    /// Answers whose lease runs, by its token.
    by_token: Index<AnswerIndex>,
    /// Answers with keys, in the order of their expiry; may contain removed ones.
    with_keys: VecDeque<AnswerIndex>,
    /// Answers whose lease ended, oldest first; may contain removed ones.
    ended: VecDeque<AnswerIndex>,
    /// The waiting requests that have an Idempotency-Key.
    pub(crate) waiting: HashMap<IdempotencyId, WaitingRequest, foldhash::fast::RandomState>,
}

impl IdempotencyStore {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.len() == 0
    }

    /// Returns whether no list has an answer that could have expired.
    pub(crate) fn has_nothing_due(&self) -> bool {
        self.with_keys.is_empty() && self.ended.is_empty()
    }

    /// Returns the bytes of all answers. O(1).
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.free.capacity() + self.with_keys.capacity() + self.ended.capacity();
        let indices = self.by_id.bytes() + self.by_token.bytes();
        let other = self.range_bytes + self.waiting.allocation_size();
        self.answers.bytes() + lists * size_of::<AnswerIndex>() + indices + other
    }

    /// Refuses a request whose answer has no room: in all pools together, or in the share of its
    /// borrower. Answers without a borrower have no share.
    pub(crate) fn check_room(
        &mut self,
        counts: &mut AnswerCounts,
        now_us: u64,
        borrower: BorrowerId,
    ) -> Result<(), Refusal> {
        self.remove_due(counts, now_us, &mut { REMOVED_MAX });
        let max = counts.max;
        let left = max.saturating_sub(counts.weight);
        if left == 0 {
            return Err(Refusal::TooManyAnswers { max, is_share: false });
        }
        if counts.borrowers.count(borrower) >= left as u64 {
            return Err(Refusal::TooManyAnswers { max, is_share: true });
        }
        Ok(())
    }

    /// Finds an answer that has not expired.
    pub(crate) fn find(&self, id: IdempotencyId, now_us: u64) -> Option<AnswerIndex> {
        let answer = self.find_stored(id)?;
        let until_us = self.get(answer).record.until_us;
        (!is_due(until_us, now_us) || self.lease_runs(answer)).then_some(answer)
    }

    fn find_stored(&self, id: IdempotencyId) -> Option<AnswerIndex> {
        self.by_id.find(id.hash(), |answer| self.get(answer).record.id == id)
    }

    pub(crate) fn get(&self, answer: AnswerIndex) -> &StoredAnswer {
        self.answers[answer].as_ref().expect(STORED)
    }

    /// Notes that a repeat receives the answer.
    pub(crate) fn set_redelivered(&mut self, answer: AnswerIndex) {
        self.answers[answer].as_mut().expect(STORED).redelivered = true;
    }

    /// Finds the answer whose running lease has this token.
    pub(crate) fn find_by_token(&self, token: u64) -> Option<AnswerIndex> {
        if self.by_token.len() == 0 {
            return None;
        }
        let has_token = |answer| token_of(self.get(answer)) == Some(token);
        self.by_token.find(hash_token(token), has_token)
    }

    /// Returns whether the answer's lease runs.
    fn lease_runs(&self, answer: AnswerIndex) -> bool {
        let token = token_of(self.get(answer));
        token.is_some_and(|token| self.find_by_token(token) == Some(answer))
    }

    /// Stores an answer, in place of any answer with the same id. `lease_runs` applies to an answer
    /// with a lease.
    pub(crate) fn store(
        &mut self,
        counts: &mut AnswerCounts,
        stored: StoredAnswer,
        lease_runs: bool,
    ) {
        self.remove_by_id(counts, stored.record.id);
        let (weight, borrower) = (weight(&stored), stored.record.borrower);
        counts.all += 1;
        counts.weight += weight;
        counts.borrowers.add_many(borrower, weight as u64);
        self.weight += weight;
        self.borrowers.add_many(borrower, weight as u64);
        self.range_bytes += range_bytes(&stored);
        let (id, token) = (stored.record.id, token_of(&stored));
        let answer = if let Some(answer) = self.free.pop() {
            self.answers[answer] = Some(stored);
            answer
        } else {
            self.answers.push(Some(stored))
        };
        let all = &self.answers;
        self.by_id.insert(id.hash(), answer, |answer| hash_of_id(all, answer));
        match token {
            None => self.with_keys.push_back(answer),
            Some(token) if lease_runs => {
                self.by_token
                    .insert(hash_token(token), answer, |answer| hash_of_token(all, answer));
            }
            Some(_) => self.push_ended(counts, answer),
        }
    }

    /// Notes that a lease ended: its answer stays, while there is room, so that a repeat learns it.
    pub(crate) fn lease_ended(&mut self, counts: &mut AnswerCounts, token: u64) {
        let Some(answer) = self.find_by_token(token) else { return };
        let all = &self.answers;
        self.by_token.remove(hash_token(token), answer, |answer| hash_of_token(all, answer));
        self.push_ended(counts, answer);
    }

    fn push_ended(&mut self, counts: &mut AnswerCounts, answer: AnswerIndex) {
        self.ended.push_back(answer);
        counts.ended += 1;
        // No pool has more than all pools leave free, so one pool does not evict what others need.
        while self.ended.len() > counts.ended_max().saturating_sub(counts.ended)
            && self.ended.len() > ENDED_ANSWERS_MIN
            && self.remove_oldest_ended(counts)
        {}
    }

    fn remove_oldest_ended(&mut self, counts: &mut AnswerCounts) -> bool {
        let Some(answer) = self.ended.pop_front() else { return false };
        counts.ended -= 1;
        let stored = self.answers[answer].as_ref();
        let has_lease = stored.is_some_and(|stored| token_of(stored).is_some());
        if has_lease && !self.lease_runs(answer) {
            self.remove(counts, answer);
        }
        true
    }

    fn remove(&mut self, counts: &mut AnswerCounts, answer: AnswerIndex) {
        let all = &self.answers;
        let stored = self.get(answer);
        let (id, token, weight) = (stored.record.id, token_of(stored), weight(stored));
        let borrower = stored.record.borrower;
        self.range_bytes -= range_bytes(stored);
        counts.all -= 1;
        counts.weight -= weight;
        counts.borrowers.remove_many(borrower, weight as u64);
        self.weight -= weight;
        self.borrowers.remove_many(borrower, weight as u64);
        if let Some(token) = token.filter(|token| self.find_by_token(*token) == Some(answer)) {
            self.by_token.remove(hash_token(token), answer, |answer| hash_of_token(all, answer));
        }
        self.by_id.remove(id.hash(), answer, |answer| hash_of_id(all, answer));
        self.answers[answer] = None;
        self.free.push(answer);
    }

    /// Removes the answer with that id, if it is stored.
    pub(crate) fn remove_by_id(&mut self, counts: &mut AnswerCounts, id: IdempotencyId) {
        if let Some(answer) = self.find_stored(id) {
            self.remove(counts, answer);
        }
    }

    /// Removes expired answers, at most `max` of each kind, and subtracts from it. Returns whether
    /// more may be expired. Amortised O(1) for each answer.
    pub(crate) fn remove_due(
        &mut self,
        counts: &mut AnswerCounts,
        now_us: u64,
        max: &mut usize,
    ) -> bool {
        while *max > 0 {
            let with_keys = self.first_due(&self.with_keys, now_us);
            let ended = self.first_due(&self.ended, now_us);
            if with_keys.is_none() && ended.is_none() {
                return false;
            }
            *max -= 1;
            if let Some(answer) = with_keys {
                self.with_keys.pop_front();
                if self.answers[answer].is_some() && !self.lease_runs(answer) {
                    self.remove(counts, answer);
                }
            }
            if ended.is_some() {
                self.remove_oldest_ended(counts);
            }
        }
        true
    }

    fn first_due(&self, queue: &VecDeque<AnswerIndex>, now_us: u64) -> Option<AnswerIndex> {
        let is_removable = |answer: &AnswerIndex| {
            let stored = self.answers[*answer].as_ref();
            stored.is_none_or(|stored| is_due(stored.record.until_us, now_us))
        };
        queue.front().copied().filter(is_removable)
    }

    /// Restores the order of the queues after a replay, which stores answers in the order of their
    /// snapshot records: an expired answer would stay behind one that has not expired. O(n log n).
    pub(crate) fn finish_replay(&mut self) {
        let Self { answers, with_keys, ended, .. } = self;
        for queue in [with_keys, ended] {
            let until_us = |answer: &AnswerIndex| {
                answers[*answer].as_ref().map_or(0, |stored| stored.record.until_us)
            };
            queue.make_contiguous().sort_by_key(until_us);
        }
    }

    /// Adds the answers to counts: for tests, since the shared counts change with each answer.
    pub(crate) fn add_to(&self, counts: &mut AnswerCounts) {
        counts.all += self.len();
        counts.weight += self.weight;
        counts.borrowers.add_all(&self.borrowers);
        counts.ended += self.ended.len();
    }

    /// Subtracts the answers from the shared counts, because their pool is deleted.
    pub(crate) fn uncount(&mut self, counts: &mut AnswerCounts) {
        counts.all -= self.len();
        counts.weight -= self.weight;
        counts.borrowers.remove_all(std::mem::take(&mut self.borrowers));
        counts.ended -= self.ended.len();
    }

    /// Returns the end of the range of indices in use.
    pub(crate) fn end(&self) -> AnswerIndex {
        AnswerIndex::of(self.answers.len())
    }

    /// Returns the answer at an index below [`IdempotencyStore::end`].
    pub(crate) fn get_any(&self, answer: AnswerIndex) -> Option<&StoredAnswer> {
        self.answers[answer].as_ref()
    }
}

const STORED: &str = "invariant: an answer that is found is stored";

fn hash_of_id(all: &Chunks<AnswerIndex, Option<StoredAnswer>>, answer: AnswerIndex) -> u64 {
    all[answer].as_ref().expect(STORED).record.id.hash()
}

fn hash_of_token(all: &Chunks<AnswerIndex, Option<StoredAnswer>>, answer: AnswerIndex) -> u64 {
    all[answer].as_ref().and_then(token_of).map_or(0, hash_token)
}

fn token_of(stored: &StoredAnswer) -> Option<u64> {
    match stored.record.result {
        IdempotentResult::Lease { token, .. } => Some(token),
        IdempotentResult::Keys { .. } => None,
    }
}

fn range_bytes(stored: &StoredAnswer) -> usize {
    allocated(size_of_val(&*stored.slots))
}

/// Returns how much an answer counts against the limit.
fn weight(stored: &StoredAnswer) -> usize {
    1 + stored.slots.len()
}

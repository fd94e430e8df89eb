//! What an Idempotency-Key was answered, so that asking again gives the same answer.
//!
//! An answer that lent a key is kept while its lease runs, and then among the last that ended, so
//! that a repeat is told so; one that made keys is kept for an hour. Bounded by whoever asks
//! [`IdempotencyStore::has_room`] first. Knows nothing of leases and keys but their numbers.

use crate::chunks::Chunks;
use crate::clocks::US_PER_S;
use crate::fact::{IdempotencyRecord, IdempotentResult};
use crate::holds::spread;
use crate::ids::{BodyDigest, IdempotencyId};
use crate::index::Index;
use crate::shared::SharedState;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// How long an answer is kept, at least where it made keys: an hour.
pub(crate) const KEPT_US: u64 = 3_600 * US_PER_S;
/// Answers that all pools together keep, each counted with the ranges of slots its keys lie in.
pub const ANSWERS_MAX: usize = 1 << 20;
/// Answers of ended leases that all pools together keep.
pub(crate) const ENDED_ANSWERS_MAX: usize = 1 << 18;
/// Answers of ended leases that each pool keeps, however many others have.
const ENDED_ANSWERS_MIN: usize = 64;

/// What somebody asks under an Idempotency-Key: which answer it is, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdempotentRequest {
    pub(crate) id: IdempotencyId,
    pub(crate) body: BodyDigest,
}

/// An answer that is kept.
#[derive(Clone, Debug)]
pub(crate) struct StoredAnswer {
    pub(crate) answer: IdempotencyRecord,
    /// Where the keys it made lie: a slot and how many from there on, in order.
    pub(crate) slots: Box<[(u32, u32)]>,
    /// Whether it was given again: whoever has it now must keep it.
    pub(crate) again: bool,
}

/// The answers of one pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct IdempotencyStore {
    kept: Chunks<Option<StoredAnswer>>,
    free: Vec<u32>,
    /// What all of them count of [`ANSWERS_MAX`].
    weight: usize,
    by_id: Index,
    /// Those whose lease runs, by its token.
    by_token: Index,
    /// Those that made keys, in the order they are forgotten; some may be forgotten already.
    made: VecDeque<u32>,
    /// Those whose lease ended, the oldest first; some may be forgotten already.
    ended: VecDeque<u32>,
    /// Who waits under an Idempotency-Key: the place in line, and for what.
    pub(crate) waiting: HashMap<IdempotencyId, (u32, BodyDigest), foldhash::fast::RandomState>,
}

impl IdempotencyStore {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether one more answer may be kept.
    pub(crate) fn has_room(&mut self, ledger: &mut SharedState, now_us: u64) -> bool {
        self.forget_due(ledger, now_us, usize::MAX);
        ledger.answers < ANSWERS_MAX
    }

    /// Finds an answer that is still kept.
    pub(crate) fn find(&self, id: IdempotencyId, now_us: u64) -> Option<u32> {
        let at = self.find_any(id)?;
        let kept = self.get(at);
        (kept.answer.until_us > now_us || self.runs(at)).then_some(at)
    }

    fn find_any(&self, id: IdempotencyId) -> Option<u32> {
        self.by_id.find(id.hash(), |at| self.get(at).answer.id == id)
    }

    pub(crate) fn get(&self, at: u32) -> &StoredAnswer {
        self.kept[at].as_ref().expect(KEPT)
    }

    /// Notes that an answer is given again.
    pub(crate) fn give_again(&mut self, at: u32) {
        self.kept[at].as_mut().expect(KEPT).again = true;
    }

    /// The answer whose lease of this token runs.
    pub(crate) fn of_token(&self, token: u64) -> Option<u32> {
        if self.by_token.len() == 0 {
            return None;
        }
        self.by_token.find(spread(token), |at| token_of(self.get(at)) == Some(token))
    }

    /// Whether the answer's lease runs.
    fn runs(&self, at: u32) -> bool {
        token_of(self.get(at)).is_some_and(|token| self.of_token(token) == Some(at))
    }

    /// Keeps an answer; `runs` says of one that lent a key whether its lease runs. One that was
    /// kept under the same id is replaced.
    pub(crate) fn keep(&mut self, ledger: &mut SharedState, kept: StoredAnswer, runs: bool) {
        if let Some(at) = self.find_any(kept.answer.id) {
            self.forget(ledger, at);
        }
        ledger.answers += weight(&kept);
        self.weight += weight(&kept);
        let (id, token) = (kept.answer.id, token_of(&kept));
        let at = if let Some(at) = self.free.pop() {
            self.kept[at] = Some(kept);
            at
        } else {
            self.kept.push(Some(kept));
            u32::try_from(self.kept.len() - 1).expect("invariant: answers are bounded")
        };
        let all = &self.kept;
        self.by_id.insert(id.hash(), at, |at| all[at].as_ref().expect(KEPT).answer.id.hash());
        match token {
            None => self.made.push_back(at),
            Some(token) if runs => self.by_token.insert(spread(token), at, |at| spread_of(all, at)),
            Some(_) => self.note_ended(ledger, at),
        }
    }

    /// Notes that a lease ended: a repeat of what lent it is told so for as long as there is room.
    pub(crate) fn lease_ended(&mut self, ledger: &mut SharedState, token: u64) {
        let Some(at) = self.of_token(token) else { return };
        let all = &self.kept;
        self.by_token.remove(spread(token), at, |at| spread_of(all, at));
        self.note_ended(ledger, at);
    }

    fn note_ended(&mut self, ledger: &mut SharedState, at: u32) {
        self.ended.push_back(at);
        ledger.ended_answers += 1;
        while ledger.ended_answers > ENDED_ANSWERS_MAX
            && self.ended.len() > ENDED_ANSWERS_MIN
            && self.forget_oldest_ended(ledger)
        {}
    }

    fn forget_oldest_ended(&mut self, ledger: &mut SharedState) -> bool {
        let Some(at) = self.ended.pop_front() else { return false };
        ledger.ended_answers -= 1;
        let over = self.kept[at].as_ref().is_some_and(|kept| token_of(kept).is_some());
        if over && !self.runs(at) {
            self.forget(ledger, at);
        }
        true
    }

    /// Forgets an answer, wherever it stands.
    pub(crate) fn forget(&mut self, ledger: &mut SharedState, at: u32) {
        let all = &self.kept;
        let kept = self.get(at);
        let (id, token, weight) = (kept.answer.id, token_of(kept), weight(kept));
        ledger.answers -= weight;
        self.weight -= weight;
        if let Some(token) = token.filter(|token| self.of_token(*token) == Some(at)) {
            self.by_token.remove(spread(token), at, |at| spread_of(all, at));
        }
        self.by_id.remove(id.hash(), at, |at| all[at].as_ref().expect(KEPT).answer.id.hash());
        self.kept[at] = None;
        self.free.push(at);
    }

    /// Forgets the answer of that id, if it is kept.
    pub(crate) fn forget_id(&mut self, ledger: &mut SharedState, id: IdempotencyId) {
        if let Some(at) = self.find_any(id) {
            self.forget(ledger, at);
        }
    }

    /// Forgets what has been kept long enough, at most `max` answers of either kind; true when more
    /// is to be forgotten. Each answer costs this once.
    pub(crate) fn forget_due(&mut self, ledger: &mut SharedState, now_us: u64, max: usize) -> bool {
        for _ in 0..max {
            let (made, ended) =
                (self.first_due(&self.made, now_us), self.first_due(&self.ended, now_us));
            if made.is_none() && ended.is_none() {
                return false;
            }
            if let Some(at) = made {
                self.made.pop_front();
                if self.kept[at].is_some() && !self.runs(at) {
                    self.forget(ledger, at);
                }
            }
            if ended.is_some() {
                self.forget_oldest_ended(ledger);
            }
        }
        true
    }

    fn first_due(&self, line: &VecDeque<u32>, now_us: u64) -> Option<u32> {
        let is_due =
            |at: &u32| self.kept[*at].as_ref().is_none_or(|kept| kept.answer.until_us <= now_us);
        line.front().copied().filter(is_due)
    }

    /// KeyCounts them no more: their pool is removed, and their memory goes with it.
    pub(crate) fn leave(&self, ledger: &mut SharedState) {
        ledger.answers -= self.weight;
        ledger.ended_answers -= self.ended.len();
    }

    /// One more than the greatest place of an answer.
    pub(crate) fn end(&self) -> u32 {
        u32::try_from(self.kept.len()).expect("invariant: answers are bounded")
    }

    /// The answer at a place below [`IdempotencyStore::end`].
    pub(crate) fn at(&self, at: u32) -> Option<&StoredAnswer> {
        self.kept[at].as_ref()
    }
}

const KEPT: &str = "invariant: an answer that is found is kept";

fn spread_of(all: &Chunks<Option<StoredAnswer>>, at: u32) -> u64 {
    all[at].as_ref().and_then(token_of).map_or(0, spread)
}

fn token_of(kept: &StoredAnswer) -> Option<u64> {
    match kept.answer.result {
        IdempotentResult::Lease { token, .. } => Some(token),
        IdempotentResult::Keys { .. } => None,
    }
}

/// What an answer counts of [`ANSWERS_MAX`].
fn weight(kept: &StoredAnswer) -> usize {
    1 + kept.slots.len()
}

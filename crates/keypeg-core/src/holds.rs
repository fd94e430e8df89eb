//! Holds: the keys that are away for a time, leased or resting, found by slot or by token.
//!
//! A hold is a dense record beside its slot, so a free key costs nothing for it. When it ends is
//! in the pool's heap of returns, whose items are holds.

use crate::chunks::Chunks;
use crate::deadlines::{HeapIndex, NO_INDEX};
use crate::ids::TOKEN_MAX;
use crate::index::Index;
use crate::numbers::BorrowerId;

/// A key that is away.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) slot: u32,
    /// Its place in the heap of returns.
    place: u32,
    /// The fencing token; of the lease before, while the key rests.
    pub(crate) token: u64,
    pub(crate) granted_us: u64,
    /// The latest end that renewing can give it.
    pub(crate) latest_us: u64,
    /// How long the key rests after the lease.
    pub(crate) rest_us: u64,
    /// In whose name it is lent: a borrower's number, or 0.
    pub(crate) borrower: BorrowerId,
    /// Who said to hold it; while the key rests, why it does.
    pub(crate) words: Option<Box<str>>,
}

/// All holds of a pool. Indices are stable while a hold lasts and reused after.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    records: Chunks<Hold>,
    free: Chunks<u32>,
    by_token: Index,
}

impl Holds {
    pub(crate) fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    /// One more than the greatest index of a hold.
    pub(crate) fn end(&self) -> u32 {
        u32::try_from(self.records.len()).expect("invariant: keys are bounded")
    }

    /// Whether there is a hold at an index below [`Holds::end`].
    pub(crate) fn is_in(&self, at: u32) -> bool {
        self.records[at].slot != NO_INDEX
    }

    /// Puts a hold in; `leased` says whether it can be found by its token.
    pub(crate) fn add(&mut self, hold: Hold) -> u32 {
        let token = hold.token;
        let at = if let Some(at) = self.free.pop() {
            self.records[at] = hold;
            at
        } else {
            self.records.push(hold);
            u32::try_from(self.records.len() - 1).expect("invariant: keys are bounded")
        };
        self.by_token.insert(spread(token), at, |at| spread(self.records[at].token));
        at
    }

    /// Takes a hold out.
    pub(crate) fn remove(&mut self, at: u32) -> Hold {
        let token = self.records[at].token;
        self.by_token.remove(spread(token), at, |at| spread(self.records[at].token));
        self.free.push(at);
        std::mem::replace(&mut self.records[at], Hold::none())
    }

    pub(crate) fn find(&self, token: u64) -> Option<u32> {
        self.by_token.find(spread(token), |at| self.records[at].token == token)
    }

    /// Notes that the key is back and rests, and why where that was said.
    pub(crate) fn rest(&mut self, at: u32, reason: Option<&str>) {
        self.records[at].words = reason.map(Into::into);
    }

    /// Sets what a grant that is told anew says of the hold.
    pub(crate) fn set_grant(&mut self, at: u32, lease: &crate::Grant<'_>) {
        let Hold { slot, place, token, .. } = self.records[at];
        self.records[at] = Hold { place, ..Hold::new(slot, token, lease) };
    }

    pub(crate) fn get(&self, at: u32) -> &Hold {
        &self.records[at]
    }
}

impl Hold {
    pub(crate) fn new(slot: u32, token: u64, lease: &crate::Grant<'_>) -> Self {
        Self {
            slot,
            place: NO_INDEX,
            token,
            granted_us: lease.granted_us,
            latest_us: lease.hold_until_us,
            rest_us: lease.rest_us,
            borrower: lease.borrower,
            words: lease.holder.map(Into::into),
        }
    }

    fn none() -> Self {
        Self {
            slot: NO_INDEX,
            place: NO_INDEX,
            token: TOKEN_MAX + 1,
            granted_us: 0,
            latest_us: 0,
            rest_us: 0,
            borrower: BorrowerId::NONE,
            words: None,
        }
    }
}

/// Tokens are counted, so their bits must be spread before they place anything.
pub(crate) fn spread(token: u64) -> u64 {
    let mixed = (token ^ (token >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Holds in the heap of returns.
impl HeapIndex for Holds {
    fn place(&self, item: u32) -> u32 {
        self.records[item].place
    }

    fn set_place(&mut self, item: u32, place: u32) {
        self.records[item].place = place;
    }
}

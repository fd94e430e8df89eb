//! What a pool emits and a journal must remember.
//!
//! A fact is past and complete: replaying all facts in order gives the pools back. What time alone
//! decides (the end of a lease, the end of a rest) is no fact, since the clock in the journal
//! tells it; a purge is one, since no key may come back from it. Facts carry numbers, not names.

use crate::event::Event;
use crate::ids::{BodyDigest, IdempotencyId};
use crate::numbers::{BorrowerId, KeyNumber, PoolId};
use crate::policy::Policy;

/// Something that happened to a pool or a key. Key numbers are the server's and never used twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// A pool was made.
    PoolCreated {
        /// Its number, never used twice.
        pool: PoolId,
        /// Its name.
        name: &'a str,
        /// Its policy.
        policy: Policy,
    },
    /// A pool's policy was changed.
    PolicyChanged {
        /// The pool.
        pool: PoolId,
        /// What it is now.
        policy: Policy,
    },
    /// A pool was removed with all its keys.
    PoolDeleted {
        /// The pool.
        pool: PoolId,
    },
    /// Keys came to be: numbers `first`, `first + 1`, …, one for each value.
    KeysCreated {
        /// The pool.
        pool: PoolId,
        /// The first key's number.
        first: KeyNumber,
        /// When, wall time in milliseconds: shown, decides nothing.
        at_ms: u64,
        /// Whether they were brought in: their values are then never used again.
        imported: bool,
        /// Their values.
        values: PackedValues<'a>,
    },
    /// A key was deleted by a call.
    KeyDeleted {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// A key was purged by time.
    KeyPurged {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// A key was lent.
    Granted {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The fencing token.
        token: u64,
        /// The lease itself.
        lease: Grant<'a>,
    },
    /// A lease runs: told anew, so that what was written of it before can be forgotten.
    LeaseSnapshot {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The fencing token.
        token: u64,
        /// The lease as it is now.
        lease: Grant<'a>,
    },
    /// A key rests after the lease of this token: told anew, like [`Fact::LeaseSnapshot`].
    RestSnapshot {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The fencing token of the lease it rests after.
        token: u64,
        /// Until when, lease time in microseconds.
        until_us: u64,
        /// Why, where that was said.
        reason: Option<&'a str>,
    },
    /// A lease was given more time.
    Renewed {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The lease's fencing token.
        token: u64,
        /// Its new end, lease time in microseconds.
        until_us: u64,
    },
    /// A lease was ended by a call.
    Released {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The lease's fencing token.
        token: u64,
        /// Until when the key rests, lease time in microseconds; 0 for not at all.
        rest_until_us: u64,
        /// Why it rests, where that was said.
        reason: Option<&'a str>,
    },
    /// A key was taken out of rotation by a call, which ended the lease on it.
    Quarantined {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// Why, where that was said.
        reason: Option<&'a str>,
    },
    /// A key that rested or was out of rotation was put back.
    KeyFreed {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// What an Idempotency-Key was answered: in the same batch as what it tells of, and told anew,
    /// like [`Fact::LeaseSnapshot`].
    AnswerStored {
        /// The pool.
        pool: PoolId,
        /// The answer.
        answer: IdempotencyRecord,
    },
    /// An answer was never received and what it gave has been taken back: it is forgotten.
    AnswerRevoked {
        /// The pool.
        pool: PoolId,
        /// Which answer.
        id: IdempotencyId,
    },
    /// Tokens below `until` may be granted; a start that is not clean goes on from there.
    TokensReserved {
        /// The bound.
        until: u64,
    },
    /// All that still counts of the segments up to this one has been told anew: they can go.
    SegmentsDropped {
        /// The last segment that can go.
        through: u64,
    },
    /// The server stopped cleanly: the next token is this one.
    Stopped {
        /// The next token to grant.
        next_token: u64,
    },
}

/// The times of a lease, its holder and in whose name it is. Lease time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// When it was granted.
    pub granted_us: u64,
    /// When it ends.
    pub until_us: u64,
    /// The latest end that renewing can give it.
    pub hold_until_us: u64,
    /// How long the key rests after it, a length.
    pub rest_us: u64,
    /// Who said to hold it.
    pub holder: Option<&'a str>,
    /// The borrower it counts for.
    pub borrower: BorrowerId,
}

/// What an Idempotency-Key was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// Which answer it is.
    pub id: IdempotencyId,
    /// What was asked.
    pub body: BodyDigest,
    /// How long it is kept at least, lease time in microseconds.
    pub until_us: u64,
    /// What it told.
    pub result: IdempotentResult,
}

/// What an answer told that is not to be found elsewhere later. Instants that end in `_ms` are wall
/// time, as they were shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdempotentResult {
    /// A key was lent.
    Lease {
        /// The key.
        key: KeyNumber,
        /// The fencing token.
        token: u64,
        /// When the lease was to end, lease time in microseconds: another end is a renewal's.
        until_us: u64,
        /// When it was granted.
        granted_at_ms: u64,
        /// When it was to end.
        expires_at_ms: u64,
        /// When its key was to be purged; `None` never.
        key_expires_at_ms: Option<u64>,
    },
    /// Keys were made or brought in: numbers `first`, `first + 1`, ….
    Keys {
        /// The first key's number.
        first: KeyNumber,
        /// How many.
        count: u32,
        /// When they were to be purged; `None` never.
        expires_at_ms: Option<u64>,
    },
}

/// Who takes facts: a journal's batch, a feed, a test.
pub trait FactSink {
    /// Takes one fact; it stands once the batch it is part of is durable.
    fn record(&mut self, fact: &Fact<'_>);

    /// Tells whether somebody follows this pool: only then are its events made.
    fn has_subscribers(&self, _pool: PoolId) -> bool {
        false
    }

    /// Takes an event of a followed pool; it stands once the facts told with it do.
    fn emit(&mut self, _pool: PoolId, _event: &Event<'_>) {}
}

impl<F: FnMut(&Fact<'_>)> FactSink for F {
    fn record(&mut self, fact: &Fact<'_>) {
        self(fact);
    }
}

/// PackedValues laid end to end, each behind its length (two bytes, little-endian).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedValues<'a> {
    packed: &'a [u8],
    count: u32,
}

impl<'a> PackedValues<'a> {
    /// Takes packed bytes; `None` when they are not whole values of 1 to 4096 bytes of UTF-8.
    pub fn parse(packed: &'a [u8]) -> Option<Self> {
        let mut values = Self { packed, count: 0 };
        let mut rest = packed;
        while !rest.is_empty() {
            let value;
            (value, rest) = split(rest)?;
            if value.is_empty() || value.len() > crate::key::VALUE_MAX {
                return None;
            }
            std::str::from_utf8(value).ok()?;
            values.count += 1;
        }
        Some(values)
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The bytes as they can be kept.
    pub fn packed(&self) -> &'a [u8] {
        self.packed
    }

    /// Each value in turn.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.packed;
        std::iter::from_fn(move || {
            let value;
            (value, rest) = split(rest)?;
            Some(value)
        })
    }
}

impl std::fmt::Debug for PackedValues<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedValues({} of them)", self.count)
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

/// PackedValues being laid end to end.
#[derive(Default)]
pub(crate) struct PackedValuesBuilder {
    packed: Vec<u8>,
    count: u32,
}

impl PackedValuesBuilder {
    pub(crate) fn with_capacity(count: usize, value_len: usize) -> Self {
        Self { packed: Vec::with_capacity(count * (value_len + 2)), count: 0 }
    }

    pub(crate) fn push(&mut self, value: &[u8]) {
        let len = u16::try_from(value.len()).expect("invariant: values are at most 4096 bytes");
        self.packed.extend_from_slice(&len.to_le_bytes());
        self.packed.extend_from_slice(value);
        self.count += 1;
    }

    pub(crate) fn values(&self) -> PackedValues<'_> {
        PackedValues { packed: &self.packed, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_and_damage_is_refused() {
        let mut builder = PackedValuesBuilder::default();
        for value in ["a", "bc", &"x".repeat(4096)] {
            builder.push(value.as_bytes());
        }
        let packed = builder.packed.clone();
        let values = PackedValues::parse(&packed).expect("whole");
        assert_eq!(values.count(), 3);
        assert_eq!(values.iter().map(<[u8]>::len).collect::<Vec<_>>(), [1, 2, 4096]);
        for cut in 1..packed.len() {
            let whole = [3, 7, packed.len()].contains(&cut);
            assert_eq!(PackedValues::parse(&packed[..cut]).is_some(), whole, "cut at {cut}");
        }
        assert!(PackedValues::parse(&[0, 0]).is_none(), "an empty value");
        assert!(PackedValues::parse(&[1, 0, 0xff]).is_none(), "not UTF-8");
    }
}

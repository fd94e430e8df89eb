//! Facts: what the pools emit and the journal must store.
//!
//! A fact is past and complete: replaying all facts in order rebuilds the pools. The end of a
//! lease or a rest by time is not a fact, because the journal's clock implies it; a purge is a
//! fact, because a purged key must never reappear. Facts contain numbers, not names.

use crate::event::Event;
use crate::ids::{BodyDigest, IdempotencyId};
use crate::labels::RecordedLabels;
use crate::numbers::{BorrowerId, KeyNumber, PoolId};
use crate::policy::Policy;
use crate::sabotage::{Sabotage, enabled};
use zeroize::Zeroize as _;

/// A change to a pool or a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// A pool was created.
    PoolCreated {
        /// The pool's number, never used twice.
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
        /// The new policy.
        policy: Policy,
    },
    /// A pool was deleted with all its keys.
    PoolDeleted {
        /// The pool.
        pool: PoolId,
    },
    /// Keys were created: numbers `first`, `first + 1`, …, one for each value.
    KeysCreated {
        /// The pool.
        pool: PoolId,
        /// The first key's number.
        first: KeyNumber,
        /// The time of creation, wall time in milliseconds: only shown.
        at_ms: u64,
        /// Whether they were imported.
        imported: bool,
        /// Whether they are purged unless they are kept alive.
        keepalive: bool,
        /// Their labels.
        labels: RecordedLabels<'a>,
        /// Their values.
        values: PackedValues<'a>,
    },
    /// A call gave a key a label, or removed it.
    KeyLabelled {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The label, which is not empty; `None` for no label.
        label: Option<&'a str>,
    },
    /// A call deleted a key.
    KeyDeleted {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// A key was purged.
    KeyPurged {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// A lease was granted.
    Granted {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The fencing token.
        token: u64,
        /// The lease.
        lease: Grant<'a>,
    },
    /// A lease runs: logged again, so that segments with its earlier records can be deleted.
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
    /// A key rests after the lease of this token: logged again, like [`Fact::LeaseSnapshot`].
    RestSnapshot {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The fencing token of the lease before the rest.
        token: u64,
        /// The end of the rest, lease time in microseconds.
        until_us: u64,
        /// The reason, where the release gave one.
        reason: Option<&'a str>,
    },
    /// A lease was renewed.
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
    /// A call ended a lease.
    Released {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The lease's fencing token.
        token: u64,
        /// The end of the key's rest, lease time in microseconds; 0 when it does not rest.
        rest_until_us: u64,
        /// The reason of the rest, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A call quarantined a key, which ended the lease on it.
    Quarantined {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The reason, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A call quarantined a key from the end of its lease on: at once where no lease runs.
    QuarantinedWhenFree {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
        /// The reason, where the call gave one.
        reason: Option<&'a str>,
    },
    /// A call ended the draining of a key: its lease continues.
    DrainCancelled {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// A call made a resting or quarantined key available.
    KeyFreed {
        /// The pool.
        pool: PoolId,
        /// The key.
        key: KeyNumber,
    },
    /// The result of a request with an Idempotency-Key was stored: in the same batch as the change
    /// it describes, and logged again, like [`Fact::LeaseSnapshot`].
    AnswerStored {
        /// The pool.
        pool: PoolId,
        /// The stored answer.
        answer: IdempotencyRecord,
    },
    /// A stored answer was removed, because the client never received it and its lease is released.
    AnswerRevoked {
        /// The pool.
        pool: PoolId,
        /// The id of the stored answer.
        id: IdempotencyId,
    },
    /// Tokens below `until` may be granted; a start after an unclean stop continues from there.
    TokensReserved {
        /// The end of the reservation.
        until: u64,
    },
    /// Everything that still counts in the segments up to this one has been logged again: they can
    /// be deleted.
    SegmentsDropped {
        /// The last segment that can be deleted.
        through: u64,
    },
    /// The server stopped cleanly.
    Stopped {
        /// The next token to grant.
        next_token: u64,
    },
}

/// Which views of keys a fact changes, apart from what time changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedViews {
    /// None that existed before.
    None,
    /// That of one key.
    Key(KeyNumber),
    /// Those of all keys of a pool.
    Pool,
}

impl Fact<'_> {
    /// Returns which [views of keys](crate::KeyView) the fact changes.
    pub fn changed_views(&self) -> ChangedViews {
        match *self {
            Self::PolicyChanged { .. } | Self::PoolDeleted { .. } => ChangedViews::Pool,
            Self::KeyLabelled { key, .. }
            | Self::KeyDeleted { key, .. }
            | Self::KeyPurged { key, .. }
            | Self::Granted { key, .. }
            | Self::Renewed { key, .. }
            | Self::Released { key, .. }
            | Self::Quarantined { key, .. }
            | Self::QuarantinedWhenFree { key, .. }
            | Self::DrainCancelled { key, .. }
            | Self::KeyFreed { key, .. } => ChangedViews::Key(key),
            Self::PoolCreated { .. }
            | Self::KeysCreated { .. }
            | Self::LeaseSnapshot { .. }
            | Self::RestSnapshot { .. }
            | Self::AnswerStored { .. }
            | Self::AnswerRevoked { .. }
            | Self::TokensReserved { .. }
            | Self::SegmentsDropped { .. }
            | Self::Stopped { .. } => ChangedViews::None,
        }
    }
}

/// The terms of a lease. Instants are lease time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// The instant of the grant.
    pub granted_us: u64,
    /// The end of the lease.
    pub until_us: u64,
    /// The latest end that renewals can give it.
    pub hold_until_us: u64,
    /// How long the key rests after the lease, a duration.
    pub rest_us: u64,
    /// The holder, as the request named it.
    pub holder: Option<&'a str>,
    /// The borrower that the lease counts for.
    pub borrower: BorrowerId,
}

/// The stored answer of a request with an Idempotency-Key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The id of the stored answer.
    pub id: IdempotencyId,
    /// The digest of the request's body.
    pub body: BodyDigest,
    /// The borrower that it counts for; none in journals of earlier versions.
    pub borrower: BorrowerId,
    /// The instant until which it is kept at least, lease time in microseconds.
    pub until_us: u64,
    /// The result of the request.
    pub result: IdempotentResult,
}

/// The parts of a result that cannot be read from the pool later. Instants that end in `_ms` are
/// wall time, as the client received them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdempotentResult {
    /// A lease was granted.
    Lease {
        /// The key.
        key: KeyNumber,
        /// The fencing token.
        token: u64,
        /// The end of the lease, lease time in microseconds: a different end is due to a renewal.
        until_us: u64,
        /// The instant of the grant.
        granted_at_ms: u64,
        /// The end of the lease.
        expires_at_ms: u64,
        /// When the key was to be purged; `None` never.
        key_expires_at_ms: Option<u64>,
    },
    /// Keys were generated or imported: numbers `first`, `first + 1`, ….
    Keys {
        /// The first key's number.
        first: KeyNumber,
        /// The number of keys.
        count: u32,
        /// When they were to be purged; `None` never.
        expires_at_ms: Option<u64>,
    },
}

/// A consumer of facts: the journal's batch, a test.
pub trait FactSink {
    /// Records one fact; it is durable once the batch that contains it is.
    fn record(&mut self, fact: &Fact<'_>);

    /// Returns whether the pool has subscribers: only then are its events created.
    fn has_subscribers(&self, _pool: PoolId) -> bool {
        false
    }

    /// Emits an event of a pool that has subscribers; it is durable once the facts of its step are.
    fn emit(&mut self, _pool: PoolId, _event: &Event<'_>) {}
}

impl<F: FnMut(&Fact<'_>)> FactSink for F {
    fn record(&mut self, fact: &Fact<'_>) {
        self(fact);
    }
}

/// Keys that one call created, as [`Fact::KeysCreated`] without its pool.
#[derive(Clone, Copy)]
pub(crate) struct CreatedKeys<'a> {
    pub(crate) first: KeyNumber,
    pub(crate) at_ms: u64,
    pub(crate) imported: bool,
    pub(crate) keepalive: bool,
    pub(crate) labels: RecordedLabels<'a>,
    pub(crate) values: PackedValues<'a>,
}

impl CreatedKeys<'_> {
    /// Records the keys as one fact, so that no batch can contain only some of them.
    pub(crate) fn record(self, pool: PoolId, facts: &mut dyn FactSink) {
        let Self { first, at_ms, imported, keepalive, labels, values } = self;
        if enabled(Sabotage::HalfBatch) {
            let labelled = values.iter().zip(labels.iter());
            for (first, (value, label)) in first.range(values.count()).zip(labelled) {
                let mut single = PackedValuesBuilder::default();
                single.push(value);
                let values = single.values();
                let labels = label.map_or(RecordedLabels::None, RecordedLabels::All);
                facts.record(&Fact::KeysCreated {
                    pool,
                    first,
                    at_ms,
                    imported,
                    keepalive,
                    labels,
                    values,
                });
            }
            return;
        }
        facts.record(&Fact::KeysCreated {
            pool,
            first,
            at_ms,
            imported,
            keepalive,
            labels,
            values,
        });
    }
}

/// Values in one buffer, each after its length (two bytes, little-endian).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedValues<'a> {
    packed: &'a [u8],
    count: u32,
}

impl<'a> PackedValues<'a> {
    /// Parses a buffer; `None` unless it consists of whole values of 1 to 4096 bytes of UTF-8.
    pub fn parse(packed: &'a [u8]) -> Option<Self> {
        let mut values = Self { packed, count: 0 };
        let mut rest = packed;
        while !rest.is_empty() {
            let value;
            (value, rest) = split(rest)?;
            if value.is_empty() || value.len() > crate::secret::VALUE_MAX {
                return None;
            }
            std::str::from_utf8(value).ok()?;
            values.count += 1;
        }
        Some(values)
    }

    /// Returns the number of values.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the buffer.
    pub fn packed(&self) -> &'a [u8] {
        self.packed
    }

    /// Returns the values in order.
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
        write!(f, "PackedValues({})", self.count)
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

/// Builds [`PackedValues`].
#[derive(Clone, Default)]
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

impl Drop for PackedValuesBuilder {
    fn drop(&mut self) {
        self.packed.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_parse_back_and_damaged_ones_are_rejected() {
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

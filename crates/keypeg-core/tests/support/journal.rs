//! A journal in memory: keeps every fact as a real one would and gives the pools back from them.
//!
//! Facts borrow, so what they borrow is kept beside them. Knows nothing of bytes on a disk.

use keypeg_core::{Fact, Grant, IdKey, Limits, Misfit, Now, Pools, Rebuild, Sink, Values};

/// Every fact so far, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// The fact with nothing in the place of what it borrows.
    fact: Fact<'static>,
    /// What it borrows: a name, packed values, a holder, a reason.
    borrowed: Option<Vec<u8>>,
}

impl Journal {
    /// Gives the pools that these facts make, as they are at a start.
    pub(crate) fn rebuild(
        &self,
        (ids, limits, first_token): (IdKey, Limits, u64),
        now: Now,
    ) -> Result<Pools, Misfit> {
        let mut rebuild = Rebuild::new(ids, limits, first_token);
        for entry in &self.entries {
            rebuild.apply(&entry.whole(), keypeg_core::Carried::No)?;
        }
        Ok(rebuild.finish(now))
    }
}

impl Sink for Journal {
    fn fact(&mut self, fact: &Fact<'_>) {
        self.entries.push(Entry::of(fact));
    }
}

impl Entry {
    fn of(fact: &Fact<'_>) -> Self {
        let mut borrowed = None;
        let fact = match fact.clone() {
            Fact::PoolMade { pool, name, policy } => {
                borrowed = Some(name.as_bytes().to_vec());
                Fact::PoolMade { pool, name: "", policy }
            }
            Fact::Born { pool, first, at_ms, imported, values } => {
                borrowed = Some(values.packed().to_vec());
                let values = Values::parse(&[]).expect("no values");
                Fact::Born { pool, first, at_ms, imported, values }
            }
            Fact::Granted { pool, key, token, lease } => {
                borrowed = lease.holder.map(|holder| holder.as_bytes().to_vec());
                let lease = Grant { holder: None, ..lease };
                Fact::Granted { pool, key, token, lease }
            }
            Fact::Held { .. } | Fact::Resting { .. } | Fact::Dropped { .. } => {
                unreachable!("these stories drop no segment")
            }
            Fact::PolicySet { pool, policy } => Fact::PolicySet { pool, policy },
            Fact::PoolGone { pool } => Fact::PoolGone { pool },
            Fact::Deleted { pool, key } => Fact::Deleted { pool, key },
            Fact::Purged { pool, key } => Fact::Purged { pool, key },
            Fact::Renewed { pool, key, token, until_us } => {
                Fact::Renewed { pool, key, token, until_us }
            }
            Fact::Released { pool, key, token, rest_until_us, reason } => {
                borrowed = reason.map(|reason| reason.as_bytes().to_vec());
                Fact::Released { pool, key, token, rest_until_us, reason: None }
            }
            Fact::Quarantined { pool, key, reason } => {
                borrowed = reason.map(|reason| reason.as_bytes().to_vec());
                Fact::Quarantined { pool, key, reason: None }
            }
            Fact::Restored { pool, key } => Fact::Restored { pool, key },
            Fact::Answered { pool, answer } => Fact::Answered { pool, answer },
            Fact::Unanswered { pool, id } => Fact::Unanswered { pool, id },
            Fact::TokensReserved { until } => Fact::TokensReserved { until },
            Fact::Stopped { next_token } => Fact::Stopped { next_token },
        };
        Self { fact, borrowed }
    }

    fn whole(&self) -> Fact<'_> {
        let text = || self.borrowed.as_deref().map(|b| std::str::from_utf8(b).expect("text"));
        let mut fact: Fact<'_> = self.fact.clone();
        match &mut fact {
            Fact::PoolMade { name, .. } => *name = text().expect("a pool has a name"),
            Fact::Born { values, .. } => {
                let packed = self.borrowed.as_deref().expect("a birth has values");
                *values = Values::parse(packed).expect("whole values");
            }
            Fact::Granted { lease, .. } => lease.holder = text(),
            Fact::Released { reason, .. } | Fact::Quarantined { reason, .. } => *reason = text(),
            Fact::PolicySet { .. }
            | Fact::PoolGone { .. }
            | Fact::Deleted { .. }
            | Fact::Purged { .. }
            | Fact::Renewed { .. }
            | Fact::Restored { .. }
            | Fact::Answered { .. }
            | Fact::Unanswered { .. }
            | Fact::TokensReserved { .. }
            | Fact::Held { .. }
            | Fact::Resting { .. }
            | Fact::Dropped { .. }
            | Fact::Stopped { .. } => {}
        }
        fact
    }
}

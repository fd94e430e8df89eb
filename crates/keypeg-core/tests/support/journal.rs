//! A journal in memory: stores every fact, as the real journal does, and replays them.
//!
//! Facts borrow, so their borrowed parts are stored beside them. Knows nothing of bytes on a disk.

use keypeg_core::{
    Fact, FactSink, Grant, IdHashKey, Limits, Now, PackedLabels, PackedValues, Pools,
    RecordedLabels, ReplayError, Replayer,
};

/// All facts so far, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// The fact with its borrowed parts empty.
    fact: Fact<'static>,
    /// The borrowed part: a name, packed values, a holder, a reason, a label.
    borrowed: Option<Vec<u8>>,
    /// The labels of created keys, packed.
    packed_labels: Vec<u8>,
}

impl Journal {
    /// Rebuilds the pools from these facts, as a start does.
    pub(crate) fn replay(
        &self,
        (ids, limits, first_token): (IdHashKey, Limits, u64),
        now: Now,
    ) -> Result<Pools, ReplayError> {
        let mut replayer = Replayer::new(ids, limits, first_token);
        self.replay_from(0, &mut replayer)?;
        Ok(replayer.finish(now))
    }

    /// Applies the facts behind the first `applied` ones. Returns how many facts there are.
    pub(crate) fn replay_from(
        &self,
        applied: usize,
        replayer: &mut Replayer,
    ) -> Result<usize, ReplayError> {
        for entry in &self.entries[applied..] {
            replayer.apply(&entry.whole(), keypeg_core::Checkpointed::No)?;
        }
        Ok(self.entries.len())
    }
}

impl FactSink for Journal {
    fn record(&mut self, fact: &Fact<'_>) {
        self.entries.push(Entry::of(fact));
    }
}

impl Entry {
    fn of(fact: &Fact<'_>) -> Self {
        let (mut borrowed, mut packed_labels) = (None, Vec::new());
        let fact = match fact.clone() {
            Fact::PoolCreated { pool, name, policy } => {
                borrowed = Some(name.as_bytes().to_vec());
                Fact::PoolCreated { pool, name: "", policy }
            }
            Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels: of, values } => {
                borrowed = Some(values.packed().to_vec());
                for label in of.iter().take(values.count() as usize) {
                    let label = label.unwrap_or_default().as_bytes();
                    let len = u16::try_from(label.len()).expect("short");
                    packed_labels.extend_from_slice(&len.to_le_bytes());
                    packed_labels.extend_from_slice(label);
                }
                let (labels, values) = (RecordedLabels::None, PackedValues::parse(&[]));
                let values = values.expect("no values");
                Fact::KeysCreated { pool, first, at_ms, imported, keepalive, labels, values }
            }
            Fact::KeyLabelled { pool, key, label } => {
                borrowed = label.map(|label| label.as_bytes().to_vec());
                Fact::KeyLabelled { pool, key, label: None }
            }
            Fact::Granted { pool, key, token, lease } => {
                borrowed = lease.holder.map(|holder| holder.as_bytes().to_vec());
                let lease = Grant { holder: None, ..lease };
                Fact::Granted { pool, key, token, lease }
            }
            Fact::LeaseSnapshot { .. }
            | Fact::RestSnapshot { .. }
            | Fact::SegmentsDropped { .. } => {
                unreachable!("these tests delete no segment")
            }
            Fact::PolicyChanged { pool, policy } => Fact::PolicyChanged { pool, policy },
            Fact::PoolDeleted { pool } => Fact::PoolDeleted { pool },
            Fact::KeyDeleted { pool, key } => Fact::KeyDeleted { pool, key },
            Fact::KeyPurged { pool, key } => Fact::KeyPurged { pool, key },
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
            Fact::QuarantinedWhenFree { pool, key, reason } => {
                borrowed = reason.map(|reason| reason.as_bytes().to_vec());
                Fact::QuarantinedWhenFree { pool, key, reason: None }
            }
            Fact::DrainCancelled { pool, key } => Fact::DrainCancelled { pool, key },
            Fact::KeyFreed { pool, key } => Fact::KeyFreed { pool, key },
            Fact::AnswerStored { pool, answer } => Fact::AnswerStored { pool, answer },
            Fact::AnswerRevoked { pool, id } => Fact::AnswerRevoked { pool, id },
            Fact::TokensReserved { until } => Fact::TokensReserved { until },
            Fact::Stopped { next_token } => Fact::Stopped { next_token },
        };
        Self { fact, borrowed, packed_labels }
    }

    fn whole(&self) -> Fact<'_> {
        let text = || self.borrowed.as_deref().map(|b| std::str::from_utf8(b).expect("text"));
        let mut fact: Fact<'_> = self.fact.clone();
        match &mut fact {
            Fact::PoolCreated { name, .. } => *name = text().expect("a pool has a name"),
            Fact::KeysCreated { values, labels, .. } => {
                let packed = self.borrowed.as_deref().expect("created keys have values");
                *values = PackedValues::parse(packed).expect("whole values");
                if !self.packed_labels.is_empty() {
                    let packed = PackedLabels::parse(&self.packed_labels, values.count());
                    *labels = RecordedLabels::Each(packed.expect("whole labels"));
                }
            }
            Fact::KeyLabelled { label, .. } => *label = text(),
            Fact::Granted { lease, .. } => lease.holder = text(),
            Fact::Released { reason, .. }
            | Fact::Quarantined { reason, .. }
            | Fact::QuarantinedWhenFree { reason, .. } => *reason = text(),
            Fact::PolicyChanged { .. }
            | Fact::PoolDeleted { .. }
            | Fact::KeyDeleted { .. }
            | Fact::KeyPurged { .. }
            | Fact::Renewed { .. }
            | Fact::DrainCancelled { .. }
            | Fact::KeyFreed { .. }
            | Fact::AnswerStored { .. }
            | Fact::AnswerRevoked { .. }
            | Fact::TokensReserved { .. }
            | Fact::LeaseSnapshot { .. }
            | Fact::RestSnapshot { .. }
            | Fact::SegmentsDropped { .. }
            | Fact::Stopped { .. } => {}
        }
        fact
    }
}

//! Keys of one call that enter a pool over several steps, before any other call sees one of them.
//!
//! Plain data. A staged value has a slot and a place in the index, and no state: it is in no count,
//! no listing and no lease, and no fact contains it. So the last step creates all keys of the call
//! at once, and a crash before it leaves none.

use crate::fact::PackedValuesBuilder;
use crate::idempotency_store::IdempotencyKey;
use crate::ids::KeyId;
use crate::incoming::ImportOptions;
use crate::indices::SlotIndex;
use crate::key::NewKey;
use crate::labels::{NO_LABELS, NewLabels};
use crate::numbers::KeyNumber;
use crate::policy::Policy;
use crate::prepared::{KeysToAdd, PreparedKeys};
use crate::refusal::Refusal;
use crate::symbols::Symbols;
use hashbrown::HashSet;

/// A call that adds keys.
#[derive(Clone, Copy, Debug)]
pub struct AddKeys<'a> {
    /// The keys.
    pub keys: KeysToAdd<'a>,
    /// The options of an import.
    pub options: ImportOptions,
    /// The labels of the keys.
    pub labels: &'a NewLabels,
    /// Of an import: the indices of values that the database knows to be retired, in their order. It
    /// has the first ones, [`KNOWN_MAX`] at most.
    pub retired: &'a [u32],
    /// What is prepared of the keys.
    pub prepared: Option<&'a PreparedKeys>,
    /// The Idempotency-Key of the call. Its answer is not stored when the first step begins.
    pub idempotency: Option<&'a IdempotencyKey<'a>>,
}

impl<'a> AddKeys<'a> {
    /// Returns a call with default options: nothing is prepared, no key has a label.
    pub fn new(keys: KeysToAdd<'a>) -> Self {
        let options = ImportOptions::default();
        let (retired, prepared, idempotency) = (&[], None, None);
        Self { keys, options, labels: &NO_LABELS, retired, prepared, idempotency }
    }
}

/// The most values of a refused import that are listed as known.
pub const KNOWN_MAX: usize = 1_000;

/// The values of an import that the pool has or had, or that occur twice in the import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownValues {
    /// Their indices in the request, in their order; the first is the reason of the refusal.
    pub indices: Vec<u32>,
    /// Whether values after the last of them were not examined.
    pub more: bool,
}

/// How far a step came with the keys of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageOutcome {
    /// More steps follow.
    Incomplete,
    /// All keys exist.
    Complete(Vec<NewKey>),
    /// The call is refused. What it staged is to be withdrawn.
    Refused(Refusal),
    /// The pool has changed in a way that matters to the call. What it staged is to be withdrawn;
    /// then the call is executed in one step.
    PoolChanged,
}

/// The keys of a stored answer that are collected so far, for a repeat of the call that added them.
#[derive(Clone, Debug, Default)]
pub struct RepeatedKeys {
    /// The number of the first key of the answer.
    pub(crate) first: KeyNumber,
    pub(crate) keys: Vec<NewKey>,
}

/// The staged keys of a pool: those of one call at most.
#[derive(Clone)]
pub(crate) struct StagedKeys {
    /// The slot of each value, in their order; [`SlotIndex::NONE`] for one that another call took.
    pub(crate) slots: Vec<SlotIndex>,
    /// The number of values that have a slot.
    pub(crate) slot_count: u64,
    /// What the call returns, except for the times.
    pub(crate) keys: Vec<NewKey>,
    pub(crate) values: PackedValuesBuilder,
    pub(crate) symbols: Symbols,
    /// The places of the values that other calls imported meanwhile.
    pub(crate) taken: Vec<u32>,
    /// Why there is no room for the keys. Then the values are only checked: a value that exists is
    /// the reason that a client gets first.
    pub(crate) no_room: Option<Refusal>,
    /// The ids of the values that are checked, where there is no room for them.
    pub(crate) checked: HashSet<KeyId, foldhash::fast::RandomState>,
    /// Whether the call has ended, and the values are only to be removed.
    pub(crate) is_withdrawn: bool,
    prefix: Box<str>,
    key_length: u16,
}

impl StagedKeys {
    /// Begins to stage keys for a pool with this policy.
    pub(crate) fn new(policy: &Policy, no_room: Option<Refusal>) -> Self {
        Self {
            slots: Vec::new(),
            slot_count: 0,
            keys: Vec::new(),
            values: PackedValuesBuilder::default(),
            symbols: Symbols::default(),
            taken: Vec::new(),
            no_room,
            checked: HashSet::default(),
            is_withdrawn: false,
            prefix: policy.key_prefix.clone(),
            key_length: policy.key_length,
        }
    }

    /// Returns whether a pool with this policy still generates values of the same form.
    pub(crate) fn has_form_of(&self, policy: &Policy) -> bool {
        let Self { prefix, key_length, .. } = self;
        (&policy.key_prefix, policy.key_length) == (prefix, *key_length)
    }
}

/// Shows only the number: values are secret.
impl std::fmt::Debug for StagedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StagedKeys({})", self.slots.len())
    }
}

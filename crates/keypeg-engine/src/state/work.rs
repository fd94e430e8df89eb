//! What the engine has taken and not completed: calls, queued requests, parked imports, and a drop
//! of segments in progress; and what its measurements remember. Plain data; the files beside this one act on it.

use crate::frame::SegmentNumber;
use crate::turn::TurnRequest;
use keypeg_core::{
    IdsToCheck, KeysToAdd, Lsn, PoolId, PoolName, PreparedKeys, RepeatedKeys, SnapshotCursor,
    WaiterId,
};
use keypeg_store::{Call, Reply, Request};

/// The address of a call, to which its reply is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CallId {
    /// The index of the lane.
    pub lane: u32,
    /// The call's slot in that lane.
    pub slot: u32,
}

impl CallId {
    pub(super) fn waiter_id(self) -> WaiterId {
        WaiterId(u64::from(self.lane) << 32 | u64::from(self.slot))
    }

    pub(super) fn of(WaiterId(bits): WaiterId) -> Self {
        let low = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).expect("32 bits");
        Self { lane: low(bits >> 32), slot: low(bits) }
    }
}

/// A request that the engine has taken and not answered yet.
#[derive(Debug)]
pub(super) struct QueuedRequest {
    pub(super) call_id: CallId,
    pub(super) request: Request,
    /// When it was taken, lease time in microseconds.
    pub(super) since_us: u64,
    /// The result of an import's lookup.
    pub(super) checked: Option<CheckedImport>,
    /// What is prepared of the keys that it adds.
    pub(super) prepared: Option<Box<PreparedKeys>>,
    /// How far a long call that adds keys has come beyond that.
    pub(super) adding: Adding,
    /// What it costs.
    pub(super) units: u32,
    /// Whether it is a long call.
    pub(super) is_long: bool,
}

impl QueuedRequest {
    /// Wraps a new request; `since_us` is the lease time at which it was taken.
    pub(super) fn new(call_id: CallId, request: Request, since_us: u64) -> Self {
        let (units, is_long) = (request.call.units(), request.call.is_long());
        let adding = Adding::NotBegun;
        Self { call_id, request, since_us, checked: None, prepared: None, adding, units, is_long }
    }

    /// Returns what was checkpointed when the retired values were last known that the call must not
    /// import.
    pub(super) fn checkpointed(&self) -> Option<Lsn> {
        let checked = self.checked.as_ref().map(|checked| checked.checkpointed);
        match self.adding {
            Adding::Staged { checkpointed, .. } => Some(checkpointed),
            Adding::NotBegun | Adding::Settles | Adding::Repeats(_) | Adding::InOneStep => checked,
        }
    }

    /// Returns the indices of the values of an import that the database knows to be retired.
    pub(super) fn retired(&self) -> &[u32] {
        self.checked.as_ref().map_or(&[], |checked| &checked.retired)
    }

    /// Returns the request as a turn executes it in one step.
    pub(super) fn in_one_step(&self) -> TurnRequest<'_> {
        TurnRequest {
            waiter_id: self.call_id.waiter_id(),
            request: &self.request,
            prepared: self.prepared.as_deref(),
            retired: self.retired(),
        }
    }

    /// Returns the keys that a call adds, and their pool.
    pub(super) fn keys_to_add(&self) -> Option<(&PoolName, KeysToAdd<'_>)> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "only these two add keys")]
        match &self.request.call {
            Call::Generate { pool, count, .. } => Some((pool, KeysToAdd::Generated(*count))),
            Call::Import { pool, values, .. } => Some((pool, KeysToAdd::Imported(values))),
            _ => None,
        }
    }
}

/// How far a long call that adds keys has come.
#[derive(Debug)]
pub(super) enum Adding {
    /// It is being prepared, or waits for a lookup.
    NotBegun,
    /// It was refused because much is due, and is tried again in the next turn.
    Settles,
    /// Some of its keys are staged.
    Staged {
        /// The pool, from the first step on.
        pool: Option<PoolId>,
        /// What was checkpointed when it began: a value that is retired later stays in memory.
        checkpointed: Lsn,
    },
    /// It is a repeat, and some keys of its stored answer are collected.
    Repeats(RepeatedKeys),
    /// Its pool changed while it was staged: it is executed in one step.
    InOneStep,
}

/// What a refused call left in a pool, to be removed within the budgets of turns.
#[derive(Debug)]
pub(super) struct Withdrawal {
    pub(super) name: PoolName,
    pub(super) pool: PoolId,
}

/// The result of an import's lookup, with what it is valid for.
#[derive(Clone, Debug)]
pub(super) struct CheckedImport {
    /// The indices of its retired values.
    pub(super) retired: Box<[u32]>,
    /// The pool that was searched.
    pub(super) pool: PoolId,
    /// What was checkpointed when the lookup was requested.
    pub(super) checkpointed: Lsn,
}

/// The decision about a request before it is executed.
pub(super) enum Admission {
    /// It waits for a lookup of these ids; its values have so many bytes.
    NeedsLookup { ids: IdsToCheck, bytes: usize },
    /// It is executed.
    Execute,
    /// It is answered without being executed.
    Answered(Reply),
}

/// An import that waits for its lookup.
#[derive(Debug)]
pub(super) struct ParkedImport {
    pub(super) queued: QueuedRequest,
    /// The pool that is searched.
    pub(super) pool: PoolId,
    /// What was checkpointed when the lookup was requested.
    pub(super) checkpointed: Lsn,
    /// The size of its values.
    pub(super) bytes: usize,
}

/// What the engine does for a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackupProgress {
    /// Nothing: no backup runs, or it has read the journal.
    None,
    /// It writes snapshot records as soon as no drop is in progress.
    Requested,
    /// It writes snapshot records, the first of them at this position or later.
    Writes { first: Lsn },
    /// It keeps the segments from `segment` on.
    Keeps {
        segment: SegmentNumber,
        /// The bytes of all segments above which the backup ends.
        journal_max: u64,
    },
}

/// A drop in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentDrop {
    pub(super) cursor: SnapshotCursor,
    /// The last segment to delete.
    pub(super) through: SegmentNumber,
    /// The bytes written so far.
    pub(super) bytes: u64,
    /// The number of snapshot records written so far.
    pub(super) records: u64,
    /// Whether all snapshot records are written; the last of them may still be in the batch.
    pub(super) complete: bool,
}

/// What the measurements for metrics remember.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// When the sizes of the journal were read, in lease time.
    pub(super) sizes_us: Option<u64>,
    /// The first deadline that was left at the end of the last turn, in lease time.
    pub(super) due_us: Option<u64>,
    /// How long the last commit took in microseconds, until it is asked for.
    pub(super) commit_took: Option<u64>,
}

//! Admission: whether a request is executed, answered at once, or waits for a lookup.
//!
//! An import waits until the database was searched for retired keys with its values. The
//! checkpointer does that off the engine's thread. A key that is retired after the lookup was
//! requested stays in memory until the import is executed, so no retired key is missed.

use super::work::{Admission, CallId, CheckedImport, ParkedImport, QueuedRequest};
use super::{EngineState, disk_space};
use crate::journal::DiskSpace;
use crate::lookups::{Lookup, LookupResult};
use crate::turn;
use keypeg_core::{IdempotentCall, IdsToCheck, Lsn, Pool};
use keypeg_store::{Call, Reply, Request, RequestError};

/// The most imports that wait for a lookup.
const PARKED_MAX: usize = 256;
/// The most bytes of their values.
const PARKED_BYTES_MAX: usize = 64 << 20;

impl EngineState {
    /// Returns up to where every lookup that is still in use has surely seen the database. Keys
    /// retired after that stay in memory.
    pub(super) fn checkpointed_for_lookups(&self) -> Lsn {
        let parked = self.parked_imports.front().map(|import| import.checkpointed);
        let checked = [self.checked_imports.front(), self.long_calls.first_checked()];
        let checked = checked.map(|queued| Some(queued?.checked.as_ref()?.checkpointed));
        let current = self.long_calls.current().and_then(QueuedRequest::checkpointed);
        let lookups = [parked, checked[0], checked[1], current];
        lookups.into_iter().flatten().fold(self.progress.checkpointed(), Lsn::min)
    }

    /// Takes the results of lookups; their imports are executed in this turn, long ones within its
    /// budget.
    pub(super) fn take_lookup_results(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        while let Some(result) = self.lookups.next_result() {
            let parked = self.parked_imports.pop_front();
            let parked = parked.expect("invariant: results have the order of the lookups");
            self.parked_bytes -= parked.bytes;
            let ParkedImport { queued, pool, checkpointed, .. } = parked;
            match result {
                LookupResult::StorageFull => {
                    self.long_calls.in_lookup -= usize::from(queued.is_long);
                    replies.push((queued.call_id, Reply::Refused(RequestError::StorageFull)));
                }
                LookupResult::Retired(retired) => {
                    let checked = Some(CheckedImport { retired, pool, checkpointed });
                    let queued = QueuedRequest { checked, ..queued };
                    if queued.is_long {
                        self.long_calls.push_checked(queued);
                    } else {
                        self.checked_imports.push_back(queued);
                    }
                }
            }
        }
    }

    /// Decides whether a request is executed, answered at once, or parked for a lookup.
    pub(super) fn admit(
        &mut self,
        queued: &mut QueuedRequest,
        available: DiskSpace,
        checkpointer_lags: bool,
    ) -> Admission {
        match self.answer_at_once(&queued.request, available, checkpointer_lags) {
            Some(reply) => Admission::Answered(reply),
            None => self.admit_import(queued),
        }
    }

    /// Returns the answer of a request that is not executed on the pools.
    pub(super) fn answer_at_once(
        &mut self,
        request: &Request,
        available: DiskSpace,
        checkpointer_lags: bool,
    ) -> Option<Reply> {
        if let Call::Subscribe { pool } = &request.call {
            return Some(self.subscribe(pool));
        }
        let refusal = disk_space::refusal(&request.call, available, checkpointer_lags)?;
        // Returning a stored answer needs no disk space.
        (!self.has_stored_answer(request)).then_some(Reply::Refused(refusal))
    }

    /// Returns whether there is a stored answer for this request's Idempotency-Key.
    pub(super) fn has_stored_answer(
        &self,
        Request { by, idempotency, call, .. }: &Request,
    ) -> bool {
        let Some(idempotency) = idempotency else { return false };
        #[expect(clippy::wildcard_enum_match_arm, reason = "only these three can be idempotent")]
        let (pool, kind) = match call {
            Call::Acquire { pool, .. } => (pool, IdempotentCall::Acquire),
            Call::Generate { pool, .. } | Call::Import { pool, .. } => {
                (pool, IdempotentCall::AddKeys)
            }
            _ => return false,
        };
        let key = turn::idempotency_key(by, idempotency);
        self.pools.has_stored_answer(pool, kind, &key, self.now.lease_us)
    }

    /// Asks for a lookup when the database may have retired keys with the values of an import and the
    /// import does not allow them; admits all other requests.
    fn admit_import(&self, queued: &mut QueuedRequest) -> Admission {
        let Call::Import { pool, values, options, .. } = &queued.request.call else {
            return Admission::Execute;
        };
        // Returning a stored answer needs no lookup.
        if options.allow_retired || self.has_stored_answer(&queued.request) {
            return Admission::Execute;
        }
        let pool_id = self.pools.get(pool).map(Pool::id);
        if queued.checked.as_ref().is_some_and(|checked| Some(checked.pool) == pool_id) {
            return Admission::Execute;
        }
        let prepared = queued.prepared.as_deref();
        let Some(ids) = self.pools.ids_to_check(pool, values, prepared) else {
            // An earlier lookup's result is of a deleted pool with the same name.
            queued.checked = None;
            return Admission::Execute;
        };
        let bytes = values.iter().map(|value| value.bytes().len()).sum();
        if self.parked_imports.len() >= PARKED_MAX || self.parked_bytes + bytes > PARKED_BYTES_MAX {
            return Admission::Answered(Reply::Refused(RequestError::Overloaded));
        }
        Admission::NeedsLookup { ids, bytes }
    }

    /// Parks an import until the database was searched for these ids.
    pub(super) fn park(
        &mut self,
        queued: QueuedRequest,
        IdsToCheck { pool, ids }: IdsToCheck,
        bytes: usize,
    ) {
        self.parked_bytes += bytes;
        self.long_calls.in_lookup += usize::from(queued.is_long);
        let checkpointed = self.progress.checkpointed();
        self.parked_imports.push_back(ParkedImport { queued, pool, checkpointed, bytes });
        self.lookups.request(Lookup { pool, ids });
    }
}

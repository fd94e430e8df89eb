//! Imports that wait until the database was asked whether a value was there before.
//!
//! The carrier asks it, off the engine's thread. What went for ever since the question was asked is
//! kept in memory until it is answered and the import is played, so nothing falls in between.

use super::{CallId, EngineState, disk_space};
use crate::core::{IdempotencyKey, IdempotentCall, IdsToCheck, Lsn, Pool, PoolId};
use crate::journal::DiskSpace;
use crate::lookups::{Found, Lookup};
use crate::request::{Call, Reply, Request, RequestError};

/// Imports that may wait, and bytes of their values.
const PARKED_MAX: usize = 256;
const PARKED_BYTES_MAX: usize = 64 << 20;

/// A request on its way through the turns.
#[derive(Debug)]
pub(super) struct QueuedRequest {
    pub(super) call_id: CallId,
    pub(super) request: Request,
    /// When it came, lease time in microseconds.
    pub(super) since_us: u64,
    /// What the database said of an import.
    pub(super) looked_up: Option<LookedUp>,
}

/// What the database said of an import.
#[derive(Clone, Copy, Debug)]
pub(super) struct LookedUp {
    /// The first value that was there before.
    pub(super) gone: Option<usize>,
    /// The number of the pool that was asked about.
    pool: PoolId,
    /// What was carried when it was asked.
    carried: Lsn,
}

impl QueuedRequest {
    /// A request that has just come.
    pub(super) fn new((call_id, request): (CallId, Request), since_us: u64) -> Self {
        Self { call_id, request, since_us, looked_up: None }
    }
}

/// What becomes of a request before it is played.
pub(super) enum Admission {
    /// It waits for the database.
    Parked,
    /// It is played.
    Play(QueuedRequest),
    /// It needs no playing.
    Answered(Reply),
}

/// An import that waits for its answer.
#[derive(Debug)]
pub(super) struct Parked {
    turned: QueuedRequest,
    /// The number of the pool it is for.
    pool: PoolId,
    carried: Lsn,
    bytes: usize,
}

impl EngineState {
    /// What a database has surely taken over, whoever still waits for its answer.
    pub(super) fn taken_over(&self) -> Lsn {
        let waits = self.parked.front().map(|parked| parked.carried);
        let played = self.looked_up.front().and_then(|turned| turned.looked_up);
        let asked = [waits, played.map(|looked_up| looked_up.carried)];
        asked.into_iter().flatten().fold(self.progress.checkpointed(), Lsn::min)
    }

    /// Takes the database's answers: those imports are played in this turn.
    pub(super) fn take_looked_up(&mut self, replies: &mut Vec<(CallId, Reply)>) {
        while let Some(found) = self.lookups.found() {
            let parked = self.parked.pop_front().expect("invariant: answers come in order");
            self.parked_bytes -= parked.bytes;
            let Parked { turned, pool, carried, .. } = parked;
            match found {
                Found::Full => {
                    replies.push((turned.call_id, Reply::Refused(RequestError::StorageFull)));
                }
                Found::First(gone) => {
                    let looked_up = Some(LookedUp { gone, pool, carried });
                    self.looked_up.push_back(QueuedRequest { looked_up, ..turned });
                }
            }
        }
    }

    /// Lets a request be played, answers it without, or has it wait for the database.
    pub(super) fn admit(
        &mut self,
        turned: QueuedRequest,
        room: DiskSpace,
        lags: bool,
    ) -> Admission {
        if let Call::Subscribe { pool } = &turned.request.call {
            return Admission::Answered(self.follow(pool));
        }
        // Telling again what was told needs no room, and no database.
        if self.was_told(&turned.request) {
            return Admission::Play(turned);
        }
        match disk_space::refusal(&turned.request.call, room, lags) {
            Some(refusal) => Admission::Answered(Reply::Refused(refusal)),
            None => self.park(turned),
        }
    }

    /// Whether this was asked before under its Idempotency-Key, and its answer is kept.
    fn was_told(&self, Request { by, call }: &Request) -> bool {
        let Call::Idempotent { key, body, call } = call else { return false };
        let once = IdempotencyKey { caller: by.name(), key, body: *body };
        #[expect(clippy::wildcard_enum_match_arm, reason = "these three alone are asked once")]
        match &**call {
            Call::Acquire { pool, .. } => self.pools.has_stored_answer(
                pool,
                IdempotentCall::Acquire,
                &once,
                self.now.lease_us,
            ),
            Call::Generate { pool, .. } | Call::Import { pool, .. } => self
                .pools
                .has_stored_answer(pool, IdempotentCall::AddKeys, &once, self.now.lease_us),
            _ => false,
        }
    }

    /// Has an import wait, where the database may know of values it would bring back.
    fn park(&mut self, turned: QueuedRequest) -> Admission {
        let Call::Import { pool, values } = turned.request.call.itself() else {
            return Admission::Play(turned);
        };
        let number = self.pools.get(pool).map(Pool::id);
        if turned.looked_up.is_some_and(|looked_up| Some(looked_up.pool) == number) {
            return Admission::Play(turned);
        }
        let Some(IdsToCheck { pool, ids }) = self.pools.ids_to_check(pool, values) else {
            // What was looked up is of a pool of this name that has been removed meanwhile.
            return Admission::Play(QueuedRequest { looked_up: None, ..turned });
        };
        let bytes = values.iter().map(|value| value.bytes().len()).sum();
        if self.parked.len() >= PARKED_MAX || self.parked_bytes + bytes > PARKED_BYTES_MAX {
            return Admission::Answered(Reply::Refused(RequestError::Overloaded));
        }
        self.parked_bytes += bytes;
        self.parked.push_back(Parked {
            turned,
            pool,
            carried: self.progress.checkpointed(),
            bytes,
        });
        self.lookups.ask(Lookup { pool, ids });
        Admission::Parked
    }
}

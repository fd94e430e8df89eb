//! Execution of one request of a turn on the pools.
//!
//! The functions are pure: pools, the instant, randomness and a request go in; records go to the
//! batch and a reply comes out. They do not know whether or when the batch becomes durable.
//! Requests are executed in the order of their arrival, after what is due has expired.

use keypeg_core::{
    AcquireOptions, AddKeys, ForceReleased, Granted, GrantedLease, IdempotencyKey, KeptAlive,
    KeptAliveMany, KeyQuarantined, KeysToAdd, ListOptions, Policy, Pool, PoolListOptions, PoolName,
    Pools, PreparedKeys, Refusal, Released, SharedState, StepContext, WaitOptions, WaiterId,
};
use keypeg_store::{
    Call, Idempotency, PoolPage, PoolView, Principal, Reply, Request, RequestError,
};

/// The most leases, rests and keys that a turn ends by time before its requests; during the
/// requests it ends at most as many again. `state/due.rs` ends fewer while requests wait.
pub(crate) const EXPIRE_MAX: u32 = 4_096;

/// A request with what its execution needs besides the pools.
#[derive(Clone, Copy)]
pub(crate) struct TurnRequest<'a> {
    /// The id under which the request waits for a key, if it must.
    pub(crate) waiter_id: WaiterId,
    pub(crate) request: &'a Request,
    /// Of an import: the indices of the values that the database knows as retired.
    pub(crate) retired: &'a [u32],
    /// What is prepared of the keys that the request adds.
    pub(crate) prepared: Option<&'a PreparedKeys>,
}

/// Executes one request; returns `None` when it now waits in a wait queue.
///
/// A deleted pool is moved to `deleted_pools`, since freeing it takes O(keys).
pub(crate) fn execute(
    pools: &mut Pools,
    step: &mut StepContext<'_>,
    request: TurnRequest<'_>,
    deleted_pools: &mut Vec<Pool>,
) -> Option<Reply> {
    let TurnRequest { waiter_id, request, retired, prepared } = request;
    let Request { by, idempotency, call, .. } = request;
    let key = idempotency.as_deref().map(|idempotency| idempotency_key(by, idempotency));
    let key = key.as_ref();
    let reply = match call {
        Call::ListPools { from, limit, filter } => {
            let options =
                PoolListOptions { from: from.clone(), limit: *limit, filter: filter.clone() };
            Ok(list_pools(pools, step, &options))
        }
        Call::PutPool { pool, patch } => pools
            .create_or_update(step, pool, &Policy::default(), (**patch).clone())
            .and_then(|created| pool_reply(pools, step, pool, created)),
        Call::PutPoolIf { pool, patch, exists } => {
            let found = pools.with_pool(pool, step, |_, _, _| Ok(()));
            match (found, exists) {
                (Ok(()), true) | (Err(Refusal::UnknownPool), false) => pools
                    .create_or_update(step, pool, &Policy::default(), (**patch).clone())
                    .and_then(|created| pool_reply(pools, step, pool, created)),
                (Ok(()), false) => pool_reply(pools, step, pool, false),
                (Err(refusal), _) => Err(refusal),
            }
        }
        Call::GetPool { pool } => pools
            .with_pool(pool, step, |pool, shared, step| {
                pool.expire(shared, step);
                Ok(())
            })
            .and_then(|()| pool_reply(pools, step, pool, false)),
        Call::DeletePool { pool } => pools.remove(step, pool).map(|pool| {
            deleted_pools.push(pool);
            Reply::Done
        }),
        Call::Acquire { pool, ttl_ms, holder, wait_ms } => {
            let (holder, borrower) = (holder.as_deref(), by.borrower());
            let options = AcquireOptions { ttl_ms: *ttl_ms, holder, borrower };
            let wait = WaitOptions { waiter_id, wait_ms: *wait_ms };
            let granted = pools.with_pool(pool, step, |pool, shared, step| match key {
                None => pool.acquire_or_wait(shared, step, &options, wait),
                Some(key) => pool.acquire_idempotent(shared, step, &options, wait, key),
            });
            match granted {
                Ok(None) => return None,
                Ok(Some(granted)) => Ok(granted_reply(pool.clone(), granted)),
                Err(refusal) => Err(refusal),
            }
        }
        Call::Generate { pool, count, labels } => {
            let keys = KeysToAdd::Generated(*count);
            let add = AddKeys { labels, prepared, ..AddKeys::new(keys) };
            add_keys(pools, step, pool, key, &add)
        }
        Call::Import { pool, values, options, labels } => {
            let (keys, options) = (KeysToAdd::Imported(values), *options);
            let add = AddKeys { keys, options, labels, retired, prepared, idempotency: None };
            add_keys(pools, step, pool, key, &add)
        }
        Call::Subscribe { .. } => {
            unreachable!("invariant: a subscription is not executed on the pools")
        }
        Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::QuarantineKey { pool, .. }
        | Call::EndQuarantine { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::GetKey { pool, .. }
        | Call::SetLabel { pool, .. }
        | Call::Reveal { pool, .. } => pools
            .with_pool(pool, step, |pool, shared, step| execute_on_pool(pool, shared, step, call)),
    };
    Some(reply.unwrap_or_else(Reply::from))
}

/// Returns the Idempotency-Key of a request in the form that the pools know.
pub(crate) fn idempotency_key<'a>(
    by: &'a Principal,
    Idempotency { key, body, network }: &'a Idempotency,
) -> IdempotencyKey<'a> {
    let borrower = by.borrower().id();
    IdempotencyKey { caller: by.name(), key, body: *body, borrower, network: *network }
}

/// Creates keys, at most once under an Idempotency-Key.
fn add_keys(
    pools: &mut Pools,
    step: &mut StepContext<'_>,
    pool: &PoolName,
    key: Option<&IdempotencyKey<'_>>,
    add: &AddKeys<'_>,
) -> Result<Reply, Refusal> {
    let keys = pools.with_pool(pool, step, |pool, shared, step| match key {
        None => pool.add_keys(shared, step, add),
        Some(key) => pool.add_idempotent(shared, step, key, |pool, shared, step| {
            pool.add_keys(shared, step, add)
        }),
    });
    keys.map(Reply::Keys)
}

/// Returns the reply to a request that has left its wait queue.
pub(crate) fn wait_reply(outcome: Result<GrantedLease, Refusal>) -> Reply {
    match outcome {
        Ok(GrantedLease { pool, lease, value, waited_ms }) => {
            Reply::Granted { pool, lease: Box::new(lease), value, waited_ms, redelivered: false }
        }
        Err(refusal) => Reply::from(refusal),
    }
}

fn granted_reply(pool: PoolName, Granted { lease, value, redelivered }: Granted) -> Reply {
    Reply::Granted { pool, lease: Box::new(lease), value, waited_ms: 0, redelivered }
}

fn execute_on_pool(
    pool: &mut Pool,
    shared: &mut SharedState,
    step: &mut StepContext<'_>,
    call: &Call,
) -> Result<Reply, Refusal> {
    match call {
        Call::RevokeUndelivered { lease, .. } => {
            pool.revoke_undelivered(shared, step, *lease).map(|()| Reply::Done)
        }
        Call::Release { lease, options, .. } => {
            let Released { holder } = pool.release(shared, step, *lease, options)?;
            Ok(Reply::Released { holder })
        }
        Call::Renew { lease, ttl_ms, .. } => {
            let lease = pool.renew(shared, step, *lease, *ttl_ms)?;
            Ok(Reply::Renewed(Box::new(lease)))
        }
        Call::ForceRelease { key, .. } => {
            let ForceReleased { released, holder } = pool.force_release(shared, step, key)?;
            Ok(Reply::KeyReleased { released, holder })
        }
        Call::DeleteKey { key, .. } => {
            let Released { holder } = pool.delete(shared, step, key)?;
            Ok(Reply::Released { holder })
        }
        Call::KeepAlive { key, .. } => {
            let KeptAlive { id, expires_at_ms } = pool.keep_alive(shared, step, key)?;
            Ok(Reply::KeptAlive { id, expires_at_ms })
        }
        Call::KeepAliveMany { keys, .. } => {
            let KeptAliveMany { kept, missing } = pool.keep_alive_many(shared, step, keys)?;
            Ok(Reply::KeptAliveMany { kept, missing })
        }
        Call::KeepAliveAll { .. } => {
            let kept = pool.keep_alive_all(shared, step)?;
            Ok(Reply::KeptAliveMany { kept, missing: Vec::new() })
        }
        Call::ListKeys { state, label, limit, cursor, .. } => {
            let (label, limit, cursor) = (label.clone(), *limit, *cursor);
            let options = ListOptions { state: *state, label, limit, cursor };
            pool.list_keys(shared, step, options).map(Reply::Page)
        }
        Call::GetKey { key, .. } => Ok(Reply::Key(Box::new(pool.get_key(shared, step, key)?))),
        Call::SetLabel { key, label, .. } => {
            let key = pool.set_label(shared, step, key, label.as_deref())?;
            Ok(Reply::Key(Box::new(key)))
        }
        Call::QuarantineKey { key, options, .. } => {
            let KeyQuarantined { key, holder } = pool.quarantine_key(shared, step, key, options)?;
            Ok(Reply::KeyQuarantined { key: Box::new(key), holder })
        }
        Call::EndQuarantine { key, .. } => {
            Ok(Reply::Key(Box::new(pool.end_quarantine(shared, step, key)?)))
        }
        Call::Reveal { key, .. } => {
            let (id, value) = pool.reveal(shared, step, key)?;
            Ok(Reply::Revealed { id, value })
        }
        Call::ListPools { .. }
        | Call::PutPool { .. }
        | Call::PutPoolIf { .. }
        | Call::GetPool { .. }
        | Call::DeletePool { .. }
        | Call::Generate { .. }
        | Call::Import { .. }
        | Call::Acquire { .. }
        | Call::Subscribe { .. } => {
            unreachable!("invariant: these are not executed on one pool's keys")
        }
    }
}

fn list_pools(pools: &Pools, step: &StepContext<'_>, options: &PoolListOptions) -> Reply {
    let mut views = Vec::new();
    let next = pools.list(options, |pool| views.push(view(pool, step)));
    Reply::Pools(PoolPage { pools: views, next })
}

fn pool_reply(
    pools: &Pools,
    step: &StepContext<'_>,
    name: &PoolName,
    created: bool,
) -> Result<Reply, Refusal> {
    let pool = pools.get(name).ok_or(Refusal::UnknownPool)?;
    Ok(Reply::Pool { pool: Box::new(view(pool, step)), created })
}

fn view(pool: &Pool, step: &StepContext<'_>) -> PoolView {
    PoolView {
        name: pool.name().clone(),
        policy: pool.policy().clone(),
        counts: pool.counts(),
        waiting: pool.waiter_count(),
        activity: pool.activity(),
        next_hold_end_at_ms: pool.next_hold_end_us().map(|us| step.now.lease_to_wall_ms(us)),
        next_purge_at_ms: pool.next_purge_us().and_then(|us| step.now.serving_to_wall_ms(us)),
    }
}

/// Returns whether a request must be retried in another turn, because more was due than this turn
/// could expire.
pub(crate) fn is_settling(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(RequestError::Refused(Refusal::Settling)))
}

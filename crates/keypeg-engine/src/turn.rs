//! One turn: what is due ends, then the requests are played, in the order they came.
//!
//! Pure: pools, the instant, random and requests go in; facts go to the batch and replies come
//! out. Whether and when the batch is durable is not known here.

use crate::core::{
    AcquireOptions, Granted, GrantedLease, IdempotencyKey, KeptAlive, KeptAliveMany, LeaseView,
    ListOptions, NewKey, Policy, Pool, PoolName, Pools, Refusal, Secret, SharedState, StepContext,
    WaitOptions, WaiterId,
};
use crate::request::{Call, PoolView, Reply, Request, RequestError};

/// Ends by time that a turn plays before its requests, and as many again within them.
pub(crate) const EXPIRE_MAX: u32 = 4_096;

/// Plays one request; `None` where its asker, known by `waiter_id`, now waits in line. Of an import it
/// comes with the first value that a database knows was there before. `gone` takes a pool that was
/// removed: freeing it is O(n) and not for here.
pub(crate) fn play(
    pools: &mut Pools,
    step: &mut StepContext<'_>,
    (waiter_id, request, gone_before): (WaiterId, &Request, Option<usize>),
    gone: &mut Vec<Pool>,
) -> Option<Reply> {
    let reply = match &request.call {
        Call::ListPools => Ok(list(pools, step)),
        Call::PutPool { pool, patch } => pools
            .create_or_update(step, pool, &Policy::default(), patch.clone())
            .and_then(|made| shown(pools, step, pool, made)),
        Call::GetPool { pool } => pools
            .with_pool(pool, step, |pool, ledger, step| {
                pool.expire(ledger, step);
                Ok(())
            })
            .and_then(|()| shown(pools, step, pool, false)),
        Call::DeletePool { pool } => pools.remove(step, pool).map(|pool| {
            gone.push(pool);
            Reply::Done
        }),
        Call::Acquire { pool: name, ttl_ms, holder, wait_ms } => {
            let wish = wish(*ttl_ms, holder.as_deref(), request);
            let lent = pools.with_pool(name, step, |pool, ledger, step| {
                pool.acquire_or_wait(
                    ledger,
                    step,
                    &wish,
                    WaitOptions { waiter_id, wait_ms: *wait_ms },
                )
            });
            match lent {
                Ok(None) => return None,
                Ok(Some(Granted { lease, value, .. })) => {
                    Ok(granted(name.clone(), lease, value, 0))
                }
                Err(refusal) => Err(refusal),
            }
        }
        Call::Idempotent { key, body, call } => {
            let once = IdempotencyKey { caller: request.by.name(), key, body: *body };
            match play_once(pools, step, (waiter_id, gone_before), (call, request), &once) {
                Ok(None) => return None,
                Ok(Some(reply)) => Ok(reply),
                Err(refusal) => Err(refusal),
            }
        }
        Call::CancelWait | Call::Subscribe { .. } => {
            unreachable!("invariant: these are not played on the pools")
        }
        Call::Generate { pool, .. }
        | Call::Import { pool, .. }
        | Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::GetKey { pool, .. }
        | Call::Reveal { pool, .. } => pools.with_pool(pool, step, |pool, ledger, step| {
            on_pool(pool, ledger, step, (&request.call, gone_before))
        }),
    };
    Some(reply.unwrap_or_else(Reply::from))
}

fn wish<'a>(ttl_ms: Option<u64>, holder: Option<&'a str>, request: &Request) -> AcquireOptions<'a> {
    AcquireOptions { ttl_ms, holder, borrower: request.by.borrower() }
}

/// Plays a call under an Idempotency-Key.
fn play_once(
    pools: &mut Pools,
    step: &mut StepContext<'_>,
    (waiter_id, gone_before): (WaiterId, Option<usize>),
    (call, request): (&Call, &Request),
    once: &IdempotencyKey<'_>,
) -> Result<Option<Reply>, Refusal> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "these three alone are asked once")]
    match call {
        Call::Acquire { pool: name, ttl_ms, holder, wait_ms } => {
            let wish = wish(*ttl_ms, holder.as_deref(), request);
            let wait = WaitOptions { waiter_id, wait_ms: *wait_ms };
            let lent = pools.with_pool(name, step, |pool, ledger, step| {
                pool.acquire_idempotent(ledger, step, &wish, wait, once)
            })?;
            Ok(lent.map(|Granted { lease, value, redelivered }| Reply::Granted {
                pool: name.clone(),
                lease: Box::new(lease),
                value,
                waited_ms: 0,
                redelivered,
            }))
        }
        Call::Generate { pool, .. } | Call::Import { pool, .. } => {
            let keys = pools.with_pool(pool, step, |pool, ledger, step| {
                pool.add_idempotent(ledger, step, once, |pool, ledger, step| {
                    add(pool, ledger, step, (call, gone_before))
                })
            })?;
            Ok(Some(Reply::Keys(keys)))
        }
        _ => unreachable!("invariant: no other call is asked once"),
    }
}

fn add(
    pool: &mut Pool,
    ledger: &mut SharedState,
    step: &mut StepContext<'_>,
    (call, gone_before): (&Call, Option<usize>),
) -> Result<Vec<NewKey>, Refusal> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "these two alone make keys")]
    match call {
        Call::Generate { count, .. } => pool.generate(ledger, step, *count),
        Call::Import { values, .. } => pool.import(ledger, step, values, gone_before),
        _ => unreachable!("invariant: no other call makes keys"),
    }
}

/// What somebody who waited is answered.
pub(crate) fn handed(outcome: Result<GrantedLease, Refusal>) -> Reply {
    match outcome {
        Ok(GrantedLease { pool, lease, value, waited_ms }) => {
            granted(pool, lease, value, waited_ms)
        }
        Err(denied) => Reply::from(denied),
    }
}

fn granted(pool: PoolName, lease: LeaseView, value: Secret, waited_ms: u64) -> Reply {
    Reply::Granted { pool, lease: Box::new(lease), value, waited_ms, redelivered: false }
}

fn on_pool(
    pool: &mut Pool,
    ledger: &mut SharedState,
    step: &mut StepContext<'_>,
    (call, gone_before): (&Call, Option<usize>),
) -> Result<Reply, Refusal> {
    match call {
        Call::Generate { .. } | Call::Import { .. } => {
            add(pool, ledger, step, (call, gone_before)).map(Reply::Keys)
        }
        Call::RevokeUndelivered { lease, .. } => {
            pool.revoke_undelivered(ledger, step, *lease).map(|()| Reply::Done)
        }
        Call::Release { lease, verdict, .. } => {
            pool.release(ledger, step, *lease, verdict).map(|()| Reply::Done)
        }
        Call::Renew { lease, ttl_ms, .. } => {
            let lease = pool.renew(ledger, step, *lease, *ttl_ms)?;
            Ok(Reply::Renewed(Box::new(lease)))
        }
        Call::ForceRelease { key, .. } => {
            let released = pool.force_release(ledger, step, key)?;
            Ok(Reply::KeyReleased { released })
        }
        Call::DeleteKey { key, .. } => pool.delete(ledger, step, key).map(|()| Reply::Done),
        Call::KeepAlive { key, .. } => {
            let KeptAlive { id, expires_at_ms } = pool.keep_alive(ledger, step, key)?;
            Ok(Reply::KeptAlive { id, expires_at_ms })
        }
        Call::KeepAliveMany { keys, .. } => {
            let KeptAliveMany { kept, missing } = pool.keep_alive_many(ledger, step, keys);
            Ok(Reply::KeptAliveMany { kept, missing })
        }
        Call::KeepAliveAll { .. } => {
            let kept = pool.keep_alive_all(ledger, step)?;
            Ok(Reply::KeptAliveMany { kept, missing: Vec::new() })
        }
        Call::ListKeys { state, limit, cursor, .. } => {
            let options = ListOptions { state: *state, limit: *limit, cursor: *cursor };
            pool.list_keys(ledger, step, options).map(Reply::Page)
        }
        Call::GetKey { key, .. } => Ok(Reply::Key(Box::new(pool.get_key(ledger, step, key)?))),
        Call::Reveal { key, .. } => {
            let (id, value) = pool.reveal(ledger, step, key)?;
            Ok(Reply::Revealed { id, value })
        }
        Call::ListPools
        | Call::PutPool { .. }
        | Call::GetPool { .. }
        | Call::DeletePool { .. }
        | Call::Acquire { .. }
        | Call::Idempotent { .. }
        | Call::Subscribe { .. }
        | Call::CancelWait => {
            unreachable!("invariant: these are not played on one pool's keys")
        }
    }
}

fn list(pools: &Pools, step: &StepContext<'_>) -> Reply {
    let mut views: Vec<_> = pools.iter().map(|pool| view(pool, step)).collect();
    views.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Reply::Pools(views)
}

fn shown(
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
        next_hold_end_at_ms: pool.next_hold_end_us().map(|at| step.now.lease_to_wall_ms(at)),
        next_purge_at_ms: pool.next_purge_us().and_then(|at| step.now.serving_to_wall_ms(at)),
    }
}

/// Whether a reply asks for another turn: more was due than this one could settle.
pub(crate) fn is_settling(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(RequestError::Refused(Refusal::Settling)))
}

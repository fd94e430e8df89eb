//! One turn: what is due ends, then the requests are played, in the order they came.
//!
//! Pure: pools, the instant, chance and requests go in; facts go to the batch and replies come
//! out. Whether and when the batch is durable is not known here.

use crate::core::{
    LeaseView, Ledger, Lent, NewKey, Once, Policy, Pool, PoolName, Pools, Refusal as Denied,
    Secret, Step, Wish,
};
use crate::request::{Call, PoolView, Refusal, Reply, Request};

/// Ends by time that a turn plays before its requests, and as many again within them.
pub(crate) const EXPIRE_MAX: u32 = 4_096;

/// Plays one request; `None` where its asker, known by `ticket`, now waits in line. Of an import it
/// comes with the first value that a database knows was there before. `gone` takes a pool that was
/// removed: freeing it is O(n) and not for here.
pub(crate) fn play(
    pools: &mut Pools,
    step: &mut Step<'_>,
    (ticket, request, gone_before): (u64, &Request, Option<usize>),
    gone: &mut Vec<Pool>,
) -> Option<Reply> {
    let reply = match &request.call {
        Call::ListPools => Ok(list(pools, step)),
        Call::PutPool { pool, patch } => pools
            .put(step, pool, &Policy::default(), patch.clone())
            .and_then(|made| shown(pools, step, pool, made)),
        Call::ShowPool { pool } => pools
            .on(pool, step, |pool, ledger, step| {
                pool.expire(ledger, step);
                Ok(())
            })
            .and_then(|()| shown(pools, step, pool, false)),
        Call::DropPool { pool } => pools.remove(step, pool).map(|pool| {
            gone.push(pool);
            Reply::Done
        }),
        Call::Acquire { pool: name, ttl_ms, holder, wait_ms } => {
            let wish = wish(*ttl_ms, holder.as_deref(), request);
            let lent = pools.on(name, step, |pool, ledger, step| {
                pool.acquire_or_wait(ledger, step, &wish, (ticket, *wait_ms))
            });
            match lent {
                Ok(None) => return None,
                Ok(Some((lease, value))) => Ok(granted(name.clone(), lease, value, 0)),
                Err(refusal) => Err(refusal),
            }
        }
        Call::Once { key, body, call } => {
            let once = Once { by: request.by.name(), key, body: *body };
            match play_once(pools, step, (ticket, gone_before), (call, request), &once) {
                Ok(None) => return None,
                Ok(Some(reply)) => Ok(reply),
                Err(refusal) => Err(refusal),
            }
        }
        Call::Leave | Call::Follow { .. } => {
            unreachable!("invariant: these are not played on the pools")
        }
        Call::Generate { pool, .. }
        | Call::Import { pool, .. }
        | Call::Release { pool, .. }
        | Call::TakeBack { pool, .. }
        | Call::Renew { pool, .. }
        | Call::ReleaseKey { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::ShowKey { pool, .. }
        | Call::Reveal { pool, .. } => pools.on(pool, step, |pool, ledger, step| {
            on_pool(pool, ledger, step, (&request.call, gone_before))
        }),
    };
    Some(reply.unwrap_or_else(Reply::from))
}

fn wish<'a>(ttl_ms: Option<u64>, holder: Option<&'a str>, request: &Request) -> Wish<'a> {
    Wish { ttl_ms, holder, by: request.by.borrower() }
}

/// Plays a call under an Idempotency-Key.
fn play_once(
    pools: &mut Pools,
    step: &mut Step<'_>,
    (ticket, gone_before): (u64, Option<usize>),
    (call, request): (&Call, &Request),
    once: &Once<'_>,
) -> Result<Option<Reply>, Denied> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "these three alone are asked once")]
    match call {
        Call::Acquire { pool: name, ttl_ms, holder, wait_ms } => {
            let wish = wish(*ttl_ms, holder.as_deref(), request);
            let wait = (ticket, *wait_ms);
            let lent = pools.on(name, step, |pool, ledger, step| {
                pool.acquire_once(ledger, step, &wish, wait, once)
            })?;
            Ok(lent.map(|(lease, value, again)| Reply::Granted {
                pool: name.clone(),
                lease: Box::new(lease),
                value,
                waited_ms: 0,
                again,
            }))
        }
        Call::Generate { pool, .. } | Call::Import { pool, .. } => {
            let keys = pools.on(pool, step, |pool, ledger, step| {
                pool.add_once(ledger, step, once, |pool, ledger, step| {
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
    ledger: &mut Ledger,
    step: &mut Step<'_>,
    (call, gone_before): (&Call, Option<usize>),
) -> Result<Vec<NewKey>, Denied> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "these two alone make keys")]
    match call {
        Call::Generate { count, .. } => pool.generate(ledger, step, *count),
        Call::Import { values, .. } => pool.import(ledger, step, values, gone_before),
        _ => unreachable!("invariant: no other call makes keys"),
    }
}

/// What somebody who waited is answered.
pub(crate) fn handed(outcome: Result<Lent, Denied>) -> Reply {
    match outcome {
        Ok(Lent { pool, lease, value, waited_ms }) => granted(pool, lease, value, waited_ms),
        Err(denied) => Reply::from(denied),
    }
}

fn granted(pool: PoolName, lease: LeaseView, value: Secret, waited_ms: u64) -> Reply {
    Reply::Granted { pool, lease: Box::new(lease), value, waited_ms, again: false }
}

fn on_pool(
    pool: &mut Pool,
    ledger: &mut Ledger,
    step: &mut Step<'_>,
    (call, gone_before): (&Call, Option<usize>),
) -> Result<Reply, Denied> {
    match call {
        Call::Generate { .. } | Call::Import { .. } => {
            add(pool, ledger, step, (call, gone_before)).map(Reply::Keys)
        }
        Call::TakeBack { lease, .. } => pool.take_back(ledger, step, *lease).map(|()| Reply::Done),
        Call::Release { lease, verdict, .. } => {
            pool.release(ledger, step, *lease, verdict).map(|()| Reply::Done)
        }
        Call::Renew { lease, ttl_ms, .. } => {
            let lease = pool.renew(ledger, step, *lease, *ttl_ms)?;
            Ok(Reply::Renewed(Box::new(lease)))
        }
        Call::ReleaseKey { key, .. } => {
            let released = pool.release_key(ledger, step, key)?;
            Ok(Reply::Freed { released })
        }
        Call::DeleteKey { key, .. } => pool.delete(ledger, step, key).map(|()| Reply::Done),
        Call::KeepAlive { key, .. } => {
            let (id, expires_at_ms) = pool.keep_alive(ledger, step, key)?;
            Ok(Reply::Kept { id, expires_at_ms })
        }
        Call::KeepAliveMany { keys, .. } => {
            let (kept, missing) = pool.keep_alive_many(ledger, step, keys);
            Ok(Reply::KeptMany { kept, missing })
        }
        Call::KeepAliveAll { .. } => {
            let kept = pool.keep_alive_all(ledger, step)?;
            Ok(Reply::KeptMany { kept, missing: Vec::new() })
        }
        Call::ListKeys { state, limit, cursor, .. } => {
            pool.page(ledger, step, (*state, *limit), *cursor).map(Reply::Page)
        }
        Call::ShowKey { key, .. } => Ok(Reply::Key(Box::new(pool.show(ledger, step, key)?))),
        Call::Reveal { key, .. } => {
            let (id, value) = pool.reveal(ledger, step, key)?;
            Ok(Reply::Revealed { id, value })
        }
        Call::ListPools
        | Call::PutPool { .. }
        | Call::ShowPool { .. }
        | Call::DropPool { .. }
        | Call::Acquire { .. }
        | Call::Once { .. }
        | Call::Follow { .. }
        | Call::Leave => {
            unreachable!("invariant: these are not played on one pool's keys")
        }
    }
}

fn list(pools: &Pools, step: &Step<'_>) -> Reply {
    let mut views: Vec<_> = pools.iter().map(|pool| view(pool, step)).collect();
    views.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Reply::Pools(views)
}

fn shown(pools: &Pools, step: &Step<'_>, name: &PoolName, made: bool) -> Result<Reply, Denied> {
    let pool = pools.get(name).ok_or(Denied::UnknownPool)?;
    Ok(Reply::Pool { pool: Box::new(view(pool, step)), made })
}

fn view(pool: &Pool, step: &Step<'_>) -> PoolView {
    PoolView {
        name: pool.name().clone(),
        policy: pool.policy().clone(),
        counts: pool.counts(),
        waiting: pool.waiting(),
        next_return_at_ms: pool.next_return_us().map(|at| step.now.wall_ms_of_lease(at)),
        next_purge_at_ms: pool.next_purge_us().and_then(|at| step.now.wall_ms_of_serving(at)),
    }
}

/// Whether a reply asks for another turn: more was due than this one could settle.
pub(crate) fn is_settling(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(Refusal::Denied(Denied::Settling)))
}

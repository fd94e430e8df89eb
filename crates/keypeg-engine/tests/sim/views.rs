//! What is shown must be what is there: answers compared with the model, field by field.

use crate::model::{Checked, Ended, Instant, Key, Lease, Pool, State, ensure};
use keypeg_engine::core::{
    EndCause, KeyState, KeyView, LeaseView, NewKey, NoKeyCause, Policy, Refusal,
};
use keypeg_engine::{PoolView, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet};

/// Wall time when lease time is `lease`.
fn wall_of_lease(now: Instant, lease: u64) -> u64 {
    (now.wall + lease).saturating_sub(now.lease)
}

pub(crate) fn life(told: Option<u64>, life: Option<u64>, now: Instant) -> Checked {
    let expected = life.map(|life| now.wall + life - now.serving);
    ensure!(told == expected, "the key's end is {expected:?}");
    Ok(())
}

pub(crate) fn born(key: &NewKey, policy: &Policy, now: Instant) -> Checked {
    ensure!(key.created_at_ms == now.wall, "made at {}", now.wall);
    life(key.expires_at_ms, policy.keepalive_ttl_ms.map(|ttl| now.serving + ttl), now)
}

pub(crate) fn lease(view: &LeaseView, lease: &Lease, key: &Key, now: Instant) -> Checked {
    ensure!(Some(view.key_id) == key.id, "a lease on another key");
    ensure!(lease.id.is_none_or(|id| id == view.id), "another lease: {:?} is {:?}", lease, key);
    ensure!(lease.token.is_none_or(|token| token == view.token), "its token was {lease:?}");
    ensure!(view.holder.as_deref() == lease.holder.as_deref(), "its holder is {lease:?}");
    ensure!(view.granted_at_ms == wall_of_lease(now, lease.granted), "granted at {lease:?}");
    ensure!(view.expires_at_ms == wall_of_lease(now, lease.until), "ends at {lease:?}");
    ensure!(view.expires_in_ms == lease.until - now.lease, "ends at {lease:?}, now {now:?}");
    life(view.key_expires_at_ms, key.life, now)
}

pub(crate) fn key(view: &KeyView, key: &Key, now: Instant) -> Checked {
    ensure!(Some(view.id) == key.id, "another key");
    let (rests_until, why) = match (&key.state, view.state) {
        (State::Free, KeyState::Available) | (State::Leased(_), KeyState::Leased) => (None, None),
        (State::Resting { until, reason }, KeyState::Resting) => {
            (Some(wall_of_lease(now, *until)), reason.clone())
        }
        (State::Aside { reason }, KeyState::Quarantined) => (None, reason.clone()),
        (state, told) => return Err(format!("key {} is {state:?}, not {told:?}", view.id)),
    };
    ensure!(view.rests_until_ms == rests_until, "{} rests until {rests_until:?}", view.id);
    ensure!(view.reason.as_deref() == why.as_deref(), "{}: for the reason {why:?}", view.id);
    life(view.expires_at_ms, key.life, now)?;
    match (&key.state, &view.lease) {
        (State::Leased(running), Some(view)) => lease(view, running, key, now),
        (State::Leased(_), None) | (_, Some(_)) => Err("leased or not".into()),
        (_, None) => Ok(()),
    }
}

fn counts(pool: &Pool) -> [u64; 4] {
    let mut counts = [0; 4];
    for key in &pool.keys {
        counts[match key.state {
            State::Free => 0,
            State::Leased(_) => 1,
            State::Resting { .. } => 2,
            State::Aside { .. } => 3,
        }] += 1;
    }
    counts
}

/// When a key comes back by itself, in lease time.
fn next_return(pool: &Pool) -> Option<u64> {
    let ends = pool.keys.iter().filter_map(|key| match &key.state {
        State::Leased(lease) => Some(lease.until),
        State::Resting { until, .. } => Some(*until),
        State::Free | State::Aside { .. } => None,
    });
    ends.min()
}

pub(crate) fn no_key(reply: &Reply, pool: &Pool, now: Instant) -> Checked {
    let Reply::Refused(RequestError::Refused(Refusal::NoKey {
        cause,
        counts: told,
        next_hold_end_in_ms,
    })) = reply
    else {
        return Err("none is free".into());
    };
    let counts = counts(pool);
    let told = [told.available, told.leased, told.resting, told.quarantined];
    ensure!(told == counts && counts[0] == 0, "counts are {counts:?}");
    let expected = match counts {
        [_, 0, 0, 0] => NoKeyCause::PoolEmpty,
        [_, _, 0, 0] => NoKeyCause::AllLeased,
        [_, 0, _, 0] => NoKeyCause::AllResting,
        [_, 0, 0, _] => NoKeyCause::AllQuarantined,
        _ => NoKeyCause::NoneFree,
    };
    ensure!(*cause == expected, "the cause is {expected:?}");
    let back = next_return(pool).map(|at| at - now.lease);
    ensure!(*next_hold_end_in_ms == back, "the first comes back in {back:?}");
    Ok(())
}

pub(crate) fn pool(
    view: &PoolView,
    (name, pool): (&str, &Pool),
    now: Instant,
    lags: bool,
) -> Checked {
    ensure!(view.name.as_str() == name, "pool {name}");
    ensure!(view.policy == pool.policy, "{name}'s policy is {:?}", pool.policy);
    ensure!(view.waiting == pool.line.len() as u64, "{} wait for {name}", pool.line.len());
    if lags {
        // What is due may be counted for a while.
        return Ok(());
    }
    let told = view.counts;
    let told = [told.available, told.leased, told.resting, told.quarantined];
    ensure!(told == counts(pool), "{name}'s counts are {:?}", counts(pool));
    let back = next_return(pool).map(|at| wall_of_lease(now, at));
    ensure!(view.next_hold_end_at_ms == back, "{name}'s next return is {back:?}");
    let purge = pool.keys.iter().filter_map(|key| key.life).min();
    let purge = purge.map(|life| now.wall + life - now.serving);
    ensure!(view.next_purge_at_ms == purge, "{name}'s next purge is {purge:?}");
    Ok(())
}

pub(crate) fn shown(
    reply: &Reply,
    named: (&str, &Pool),
    now: Instant,
    (made, lags): (bool, bool),
) -> Checked {
    let Reply::Pool { pool: view, created: told } = reply else {
        return Err("the pool is there".into());
    };
    ensure!(*told == made, "made is {made}");
    pool(view, named, now, lags)
}

pub(crate) fn pools(
    reply: &Reply,
    pools: &BTreeMap<String, Pool>,
    now: Instant,
    lags: bool,
) -> Checked {
    let Reply::Pools(views) = reply else { return Err("lists pools".into()) };
    let names: Vec<_> = pools.keys().collect();
    ensure!(views.len() == pools.len(), "there are {names:?}");
    views
        .iter()
        .zip(pools)
        .try_for_each(|(view, (name, there))| pool(view, (name, there), now, lags))
}

pub(crate) fn page(
    reply: &Reply,
    pool: &Pool,
    (state, limit, goes_on): (Option<KeyState>, usize, bool),
    now: Instant,
) -> Checked {
    let page = match reply {
        Reply::Page(page) => page,
        // A cursor of another pool or another run.
        Reply::Refused(RequestError::Refused(Refusal::BadCursor)) if goes_on => return Ok(()),
        _ => return Err("a page of keys".into()),
    };
    ensure!(page.keys.len() <= limit, "at most {limit}");
    let mut seen = BTreeSet::new();
    for view in &page.keys {
        ensure!(seen.insert(view.id), "{} is listed twice", view.id);
        ensure!(state.is_none_or(|state| state == view.state), "{} is no {state:?}", view.id);
        let known = pool.keys.iter().find(|key| key.id == Some(view.id));
        key(view, known.ok_or_else(|| format!("{} is not there", view.id))?, now)?;
    }
    let wanted = |key: &&Key| match (&key.state, state) {
        (_, None)
        | (State::Free, Some(KeyState::Available))
        | (State::Leased(_), Some(KeyState::Leased))
        | (State::Resting { .. }, Some(KeyState::Resting))
        | (State::Aside { .. }, Some(KeyState::Quarantined)) => true,
        (_, Some(_)) => false,
    };
    let all = pool.keys.iter().filter(wanted).count();
    let whole = page.next.is_none() && !goes_on;
    ensure!(!whole || all == page.keys.len(), "{all} are to be listed");
    ensure!(page.next.is_some() || !page.keys.is_empty() || all == 0 || goes_on, "an empty end");
    Ok(())
}

pub(crate) fn lease_ended(reply: &Reply, ended: Option<Ended>, pool: &Pool) -> Checked {
    let Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { cause })) = reply else {
        return Err("the lease has ended".into());
    };
    let Some(cause) = cause else { return Ok(()) };
    let Some(Ended { serial, by_call }) = ended else {
        // Its answer was lost, or it never was.
        return Ok(());
    };
    let key = pool.keys.iter().find(|key| key.serial == serial);
    let expected = match key.map(|key| &key.state) {
        None => EndCause::KeyGone,
        Some(_) if by_call => EndCause::Released,
        Some(State::Leased(_)) => EndCause::Superseded,
        Some(_) => EndCause::Expired,
    };
    ensure!(*cause == expected, "it ended thus: {expected:?}");
    Ok(())
}

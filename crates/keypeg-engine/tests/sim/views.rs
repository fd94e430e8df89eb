//! Compares what replies show with the model, field by field.

use crate::model::{Checked, Ended, Instant, Key, Lease, Pool, State, ensure};
use keypeg_core::{
    EndCause, KeyState, KeyView, LeaseView, NewKey, NoKeyCause, Policy, PoolFilter, PoolName,
    Refusal,
};
use keypeg_store::{PoolView, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the wall time when lease time is `lease`.
fn wall_of_lease(now: Instant, lease: u64) -> u64 {
    (now.wall + lease).saturating_sub(now.lease)
}

pub(crate) fn purge_time(shown: Option<u64>, purge_at: Option<u64>, now: Instant) -> Checked {
    let expected = purge_at.map(|at| now.wall + at - now.serving);
    ensure!(shown == expected, "the key expires at {expected:?}");
    Ok(())
}

pub(crate) fn new_key(key: &NewKey, (policy, keepalive): (&Policy, bool), now: Instant) -> Checked {
    ensure!(key.created_at_ms == now.wall, "created at {}", now.wall);
    let ttl = policy.keepalive_ttl_ms.filter(|_| keepalive);
    purge_time(key.expires_at_ms, ttl.map(|ttl| now.serving + ttl), now)
}

pub(crate) fn lease(view: &LeaseView, lease: &Lease, key: &Key, now: Instant) -> Checked {
    ensure!(Some(view.key_id) == key.id, "a lease on another key");
    ensure!(lease.id.is_none_or(|id| id == view.id), "another lease: {:?} is {:?}", lease, key);
    ensure!(lease.token.is_none_or(|token| token == view.token), "expected the token of {lease:?}");
    ensure!(view.holder.as_deref() == lease.holder.as_deref(), "expected the holder of {lease:?}");
    ensure!(view.label.as_deref() == key.label.as_deref(), "expected the label of {key:?}");
    ensure!(view.granted_at_ms == wall_of_lease(now, lease.granted), "granted as in {lease:?}");
    ensure!(view.expires_at_ms == wall_of_lease(now, lease.until), "expires as in {lease:?}");
    ensure!(view.expires_in_ms == lease.until - now.lease, "expires as in {lease:?}, now {now:?}");
    purge_time(view.key_expires_at_ms, key.purge_at, now)
}

pub(crate) fn key(view: &KeyView, key: &Key, now: Instant) -> Checked {
    ensure!(Some(view.id) == key.id, "another key");
    let (rests_until, why) = match (&key.state, view.state) {
        (State::Available, KeyState::Available) => (None, None),
        (State::Leased(_), KeyState::Leased) => (None, key.drain.clone().flatten()),
        (State::Resting { until, reason }, KeyState::Resting) => {
            (Some(wall_of_lease(now, *until)), reason.clone())
        }
        (State::Quarantined { reason }, KeyState::Quarantined) => (None, reason.clone()),
        (state, shown) => return Err(format!("key {} is {state:?}, not {shown:?}", view.id)),
    };
    ensure!(view.draining == key.drain.is_some(), "{}: draining as in {key:?}", view.id);
    ensure!(view.rests_until_ms == rests_until, "{} rests until {rests_until:?}", view.id);
    ensure!(view.reason.as_deref() == why.as_deref(), "{}: the reason is {why:?}", view.id);
    ensure!(
        view.label.as_deref() == key.label.as_deref(),
        "{}: not the label {:?}",
        view.id,
        key.label
    );
    ensure!(view.keepalive == key.keepalive, "{}: keep-alive is {}", view.id, key.keepalive);
    purge_time(view.expires_at_ms, key.purge_at, now)?;
    match (&key.state, &view.lease) {
        (State::Leased(running), Some(view)) => lease(view, running, key, now),
        (State::Leased(_), None) | (_, Some(_)) => {
            Err("a lease is shown if and only if the key is leased".into())
        }
        (_, None) => Ok(()),
    }
}

fn counts(pool: &Pool) -> [u64; 4] {
    let mut counts = [0; 4];
    for key in &pool.keys {
        counts[match key.state {
            State::Available => 0,
            State::Leased(_) => 1,
            State::Resting { .. } => 2,
            State::Quarantined { .. } => 3,
        }] += 1;
    }
    counts
}

/// Returns when the next hold of a key ends by itself, in lease time.
fn next_hold_end(pool: &Pool) -> Option<u64> {
    let ends = pool.keys.iter().filter_map(|key| match &key.state {
        State::Leased(lease) => Some(lease.until),
        State::Resting { until, .. } => Some(*until),
        State::Available | State::Quarantined { .. } => None,
    });
    ends.min()
}

pub(crate) fn no_key(reply: &Reply, pool: &Pool, now: Instant) -> Checked {
    let Reply::Refused(RequestError::Refused(Refusal::NoKey {
        cause,
        counts: shown,
        next_hold_end_in_ms,
    })) = reply
    else {
        return Err("no key is available".into());
    };
    let counts = counts(pool);
    let shown = [shown.available, shown.leased, shown.resting, shown.quarantined];
    ensure!(shown == counts && (counts[0] == 0 || pool.policy.draining), "counts are {counts:?}");
    let cause_expected = match counts {
        _ if pool.policy.draining => NoKeyCause::Draining,
        [_, 0, 0, 0] => NoKeyCause::PoolEmpty,
        [_, _, 0, 0] => NoKeyCause::AllLeased,
        [_, 0, _, 0] => NoKeyCause::AllResting,
        [_, 0, 0, _] => NoKeyCause::AllQuarantined,
        _ => NoKeyCause::NoneFree,
    };
    ensure!(*cause == cause_expected, "the cause is {cause_expected:?}");
    let next_end = next_hold_end(pool).filter(|_| !pool.policy.draining);
    let expected = next_end.map(|end| end - now.lease);
    ensure!(*next_hold_end_in_ms == expected, "the next hold ends in {expected:?}");
    Ok(())
}

pub(crate) fn pool(
    view: &PoolView,
    (name, pool): (&str, &Pool),
    now: Instant,
    expiry_can_lag: bool,
) -> Checked {
    ensure!(view.name.as_str() == name, "pool {name}");
    ensure!(view.policy == pool.policy, "{name}'s policy is {:?}", pool.policy);
    ensure!(
        view.waiting == pool.wait_queue.len() as u64,
        "{} calls wait for {name}",
        pool.wait_queue.len()
    );
    if expiry_can_lag {
        // Due leases, rests and keys may still be counted for a while.
        return Ok(());
    }
    let shown = view.counts;
    let shown = [shown.available, shown.leased, shown.resting, shown.quarantined];
    ensure!(shown == counts(pool), "{name}'s counts are {:?}", counts(pool));
    let draining = pool.keys.iter().filter(|key| key.drain.is_some()).count() as u64;
    ensure!(view.counts.draining == draining, "{draining} keys of {name} are draining");
    let expected = next_hold_end(pool).map(|at| wall_of_lease(now, at));
    ensure!(view.next_hold_end_at_ms == expected, "{name}'s next hold ends at {expected:?}");
    let purge = pool.keys.iter().filter_map(|key| key.purge_at).min();
    let purge = purge.map(|purge_at| now.wall + purge_at - now.serving);
    ensure!(view.next_purge_at_ms == purge, "{name}'s next purge is {purge:?}");
    Ok(())
}

pub(crate) fn pool_reply(
    reply: &Reply,
    named: (&str, &Pool),
    now: Instant,
    (created, expiry_can_lag): (bool, bool),
) -> Checked {
    let Reply::Pool { pool: view, created: shown_created } = reply else {
        return Err("the pool exists".into());
    };
    ensure!(*shown_created == created, "expected created = {created}");
    pool(view, named, now, expiry_can_lag)
}

pub(crate) fn pools(
    reply: &Reply,
    pools: &BTreeMap<String, Pool>,
    (from, limit, filter): (Option<&PoolName>, usize, Option<&PoolFilter>),
    (now, expiry_can_lag): (Instant, bool),
) -> Checked {
    let Reply::Pools(page) = reply else { return Err("expected a list of pools".into()) };
    let is_listed = |name: &str| {
        from.is_none_or(|from| from.as_str() <= name)
            && filter.is_none_or(|filter| filter.allows(name))
    };
    let listed: Vec<_> = pools.iter().filter(|(name, _)| is_listed(name)).collect();
    let names: Vec<_> = listed.iter().map(|(name, _)| name).collect();
    let (shown, rest) = listed.split_at(limit.min(listed.len()));
    ensure!(page.pools.len() == shown.len(), "at most {limit} of the pools {names:?}");
    let next = page.next.as_ref().map(PoolName::as_str);
    let expected = rest.first().map(|(name, _)| name.as_str());
    ensure!(next == expected, "the next page starts at {next:?}, of the pools {names:?}");
    page.pools
        .iter()
        .zip(shown)
        .try_for_each(|(view, (name, known))| pool(view, (name, known), now, expiry_can_lag))
}

pub(crate) fn page(
    reply: &Reply,
    pool: &Pool,
    (state, label, limit, has_cursor): (Option<KeyState>, Option<&str>, usize, bool),
    now: Instant,
) -> Checked {
    let page = match reply {
        Reply::Page(page) => page,
        // The cursor belongs to another pool or another run.
        Reply::Refused(RequestError::Refused(Refusal::BadCursor)) if has_cursor => return Ok(()),
        _ => return Err("expected a page of keys".into()),
    };
    ensure!(page.keys.len() <= limit, "at most {limit} keys");
    let mut seen = BTreeSet::new();
    for view in &page.keys {
        ensure!(seen.insert(view.id), "{} is listed twice", view.id);
        ensure!(state.is_none_or(|state| state == view.state), "{} is not {state:?}", view.id);
        let has_label = label.is_none() || view.label.as_deref() == label;
        ensure!(has_label, "{} has not the label {label:?}", view.id);
        let known = pool.keys.iter().find(|key| key.id == Some(view.id));
        key(view, known.ok_or_else(|| format!("{} does not exist", view.id))?, now)?;
    }
    let matches = |key: &&Key| match (&key.state, state) {
        (_, None)
        | (State::Available, Some(KeyState::Available))
        | (State::Leased(_), Some(KeyState::Leased))
        | (State::Resting { .. }, Some(KeyState::Resting))
        | (State::Quarantined { .. }, Some(KeyState::Quarantined)) => true,
        (_, Some(_)) => false,
    };
    let has_label = |key: &&Key| label.is_none() || key.label.as_deref() == label;
    let all = pool.keys.iter().filter(matches).filter(has_label).count();
    let is_complete = page.next.is_none() && !has_cursor;
    ensure!(!is_complete || all == page.keys.len(), "expected {all} keys");
    ensure!(
        page.next.is_some() || !page.keys.is_empty() || all == 0 || has_cursor,
        "an empty last page"
    );
    Ok(())
}

pub(crate) fn lease_ended(reply: &Reply, ended: Option<Ended>, pool: &Pool) -> Checked {
    let Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { cause })) = reply else {
        return Err("the lease has ended".into());
    };
    let Some(cause) = cause else { return Ok(()) };
    let Some(Ended { serial, by_call }) = ended else {
        // Its reply was lost, or the lease never existed.
        return Ok(());
    };
    let key = pool.keys.iter().find(|key| key.serial == serial);
    let expected = match key.map(|key| &key.state) {
        None => EndCause::KeyGone,
        Some(_) if by_call => EndCause::Released,
        Some(State::Leased(_)) => EndCause::Superseded,
        Some(_) => EndCause::Expired,
    };
    ensure!(*cause == expected, "expected the cause {expected:?}");
    Ok(())
}

//! A turn that a crash cut short: nobody knows whether it was. What was found after the crash tells:
//! either all of the turn happened or nothing of it, and which of the keys its grants drew is one
//! of those that were free.
//!
//! Every way it can have gone is played; those that do not lead to what was found are left.

use crate::model::{Checked, Instant, Key, Model, State, Told, ensure, itself};
use crate::views;
use keypeg_engine::core::{KeyId, KeyRef, KeyState, KeyView, LeaseId};
use keypeg_engine::{Call, PoolView};
use std::collections::{BTreeMap, BTreeSet};

/// Ways that one lost turn is played in at most.
const WAYS_MAX: usize = 20_000;
/// What is said of a lost turn that could have gone in more ways.
pub(crate) const TOO_MANY: &str = "a lost turn can have gone in too many ways";

/// What a start was found to have.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) pools: Vec<(PoolView, Vec<KeyView>)>,
    /// Ids of imported values of the lost turn, by pool and value.
    pub(crate) by_value: BTreeMap<(String, String), KeyId>,
    pub(crate) wall: u64,
    pub(crate) serving: u64,
}

/// A turn whose answers nobody got.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    pub(crate) now: Instant,
    pub(crate) calls: Vec<(u32, Call)>,
}

/// One way it can have gone: what was chosen where there was a choice.
pub(crate) struct Guess<'a> {
    found: &'a Found,
    named: &'a [KeyRef],
    script: Vec<usize>,
    widths: Vec<usize>,
    full: bool,
    lags: bool,
    /// What there was room for: 3 for all, 2 for grants, 1 for giving back, 0 for nothing.
    room: usize,
    overloaded: bool,
}

impl<'a> Guess<'a> {
    fn new(found: &'a Found, named: &'a [KeyRef], script: Vec<usize>, model: &Model) -> Self {
        let (full, lags) = (model.rules.full, model.rules.lags);
        let widths = Vec::new();
        let mut guess =
            Self { found, named, script, widths, full, lags, room: 3, overloaded: false };
        if full {
            guess.room = 3 - guess.choose(4);
        }
        guess.overloaded = guess.choose(2) == 1;
        guess
    }

    pub(crate) fn choose(&mut self, width: usize) -> usize {
        let at = self.widths.len();
        self.widths.push(width);
        if at == self.script.len() {
            self.script.push(0);
        }
        self.script[at]
    }

    /// The next way to try, if any is left.
    fn next_script(mut self) -> Option<Vec<usize>> {
        self.script.truncate(self.widths.len());
        while let (Some(last), Some(width)) = (self.script.pop(), self.widths.pop()) {
            if last + 1 < width {
                self.script.push(last + 1);
                return Some(self.script);
            }
        }
        None
    }

    pub(crate) fn grants_nothing(&self) -> bool {
        self.room < 2
    }

    /// Whether the call was refused for want of room.
    pub(crate) fn had_no_room(&self, call: &Call) -> bool {
        match itself(call) {
            Call::Generate { .. } | Call::Import { .. } => self.room < 3 || self.overloaded,
            Call::PutPool { .. } => self.room < 3,
            Call::Acquire { .. } | Call::Renew { .. } => self.room < 2,
            Call::Release { .. }
            | Call::RevokeUndelivered { .. }
            | Call::ForceRelease { .. }
            | Call::DeleteKey { .. }
            | Call::DeletePool { .. } => self.room < 1,
            _ => false,
        }
    }

    /// The id of a value that was imported, where it is still there.
    pub(crate) fn imported(&self, pool: &str, value: &str) -> Option<KeyId> {
        self.found.by_value.get(&(pool.to_owned(), value.to_owned())).copied()
    }

    /// The key that a grant drew, and its lease where that still runs; `None` where it was not
    /// granted in this turn after all.
    pub(crate) fn granted(
        &mut self,
        holder: Option<&str>,
        keys: &mut [Key],
        (rests, once): (bool, bool),
    ) -> Checked<Option<(usize, Option<(LeaseId, u64)>)>> {
        let views = self.found.pools.iter().flat_map(|(_, keys)| keys);
        let leases = views.filter_map(|view| view.lease.as_ref());
        let held = leases.clone().find(|lease| lease.holder.as_deref() == holder);
        if let Some(lease) = held {
            let free = |key: &Key| key.state == State::Free;
            let known = keys.iter().position(|key| key.id == Some(lease.key_id) && free(key));
            let unnamed =
                || keys.iter().position(|key| key.id.is_none() && key.value.is_none() && free(key));
            let at = known.or_else(unnamed).ok_or("it holds a key that was not free")?;
            keys[at].id = Some(lease.key_id);
            return Ok(Some((at, Some((lease.id, lease.token)))));
        }
        let held: BTreeSet<_> = leases.map(|lease| lease.key_id).collect();
        let open = keys.iter().enumerate().filter(|(_, key)| {
            key.state == State::Free && !key.id.is_some_and(|id| held.contains(&id))
        });
        let named = |key: &Key| {
            self.named.iter().any(|named| match named {
                KeyRef::Id(id) => key.id == Some(*id),
                KeyRef::Value(value) => key.value.as_deref() == Some(value.reveal()),
            })
        };
        let rests = |key: &Key| {
            let mut views = self.found.pools.iter().flat_map(|(_, keys)| keys);
            rests && views.any(|view| Some(view.id) == key.id && view.state == KeyState::Resting)
        };
        // Keys that nothing tells apart are one choice; where it need not have been granted, that
        // it was not is the same, but for an answer that is kept.
        let may_not = self.lags || self.full;
        let mut ways: Vec<Option<usize>> = if may_not { vec![None] } else { Vec::new() };
        let mut plain = may_not && !once;
        for (at, key) in open {
            if rests(key) || named(key) || !std::mem::replace(&mut plain, true) {
                ways.push(Some(at));
            }
        }
        ensure!(!ways.is_empty(), "no key was free for it");
        let way = self.choose(ways.len());
        Ok(ways[way].map(|at| (at, None)))
    }
}

/// All models that what was found leaves: the one before the lost turn or those after it, at lease
/// time `latest`, where that is known exactly, or after a reboot at any from the last that no crash
/// could take back up to it. The error is what spoke against the first of them.
pub(crate) fn explain(
    model: &Model,
    lost: Option<&Lost>,
    found: &Found,
    (exact, latest): (bool, u64),
) -> Checked<Vec<(Model, u64, bool)>> {
    let mut ways = vec![(model.clone(), false)];
    if let Some(lost) = lost {
        ways.extend(ways_of(model, lost, found)?.into_iter().map(|after| (after, true)));
    }
    let (mut left, mut why_not) = (Vec::new(), Vec::new());
    for (way, happened) in ways {
        match explained(&way, found, (exact, latest)) {
            Ok((model, lease)) => {
                let same =
                    |(known, at, _): &(Model, u64, bool)| *at == lease && known.is_like(&model);
                if !left.iter().any(same) {
                    left.push((model, lease, happened));
                }
            }
            Err(why) => why_not.push(format!("if it happened is {happened}: {why}")),
        }
    }
    why_not.truncate(6);
    ensure!(!left.is_empty(), "a start's finds are not explained: {why_not:#?}\n{found:#?}");
    Ok(left)
}

/// The models after a lost turn, each way it can have gone.
fn ways_of(model: &Model, lost: &Lost, found: &Found) -> Checked<Vec<Model>> {
    let named: Vec<KeyRef> = lost.calls.iter().filter_map(|(_, call)| named_in(call)).collect();
    let (mut ways, mut script) = (Vec::new(), Vec::new());
    for _ in 0..WAYS_MAX {
        let mut after = model.clone();
        let mut guess = Guess::new(found, &named, script, model);
        let played = after.turn(lost.now, &lost.calls, &mut Told::Unseen(&mut guess));
        if played.is_ok() {
            // All that it did rests on its clock, and is durable with it.
            after.durable = after.durable.max(lost.now.lease);
            ways.push(after);
        }
        match guess.next_script() {
            None => return Ok(ways),
            Some(next) => script = next,
        }
    }
    Err(TOO_MANY.into())
}

fn named_in(call: &Call) -> Option<KeyRef> {
    match call {
        Call::ForceRelease { key, .. } | Call::DeleteKey { key, .. } => Some(key.clone()),
        _ => None,
    }
}

/// The model and the lease time that what was found agrees with.
fn explained(model: &Model, found: &Found, (exact, latest): (bool, u64)) -> Checked<(Model, u64)> {
    let times = if exact { vec![latest] } else { lease_times(model, found, latest) };
    let mut why = format!("no lease time from {} to {latest} fits", model.durable);
    for lease in times {
        let mut model = model.clone();
        model.restart();
        let now = Instant { lease, serving: found.serving, wall: found.wall };
        match agrees(&mut model, now, found) {
            Ok(()) => return Ok((model, lease)),
            Err(because) => why = because,
        }
    }
    Err(why)
}

/// Lease times after a reboot, as each running lease and rest tells them.
fn lease_times(model: &Model, found: &Found, latest: u64) -> Vec<u64> {
    let mut times = BTreeSet::from([latest, model.durable]);
    for (pool, views) in &found.pools {
        let Some(known) = model.pools.get(pool.name.as_str()) else { continue };
        for view in views {
            let Some(key) = known.keys.iter().find(|key| key.id == Some(view.id)) else { continue };
            let rests = view.rests_until_ms.map(|at| at.saturating_sub(found.wall));
            let left = view.lease.as_ref().map(|lease| lease.expires_in_ms).or(rests);
            let end = match &key.state {
                State::Leased(lease) if rests.is_some() => Some(lease.until + lease.rest),
                State::Leased(lease) => Some(lease.until),
                State::Resting { until, .. } => Some(*until),
                State::Free | State::Aside { .. } => None,
            };
            times.extend(end.zip(left).and_then(|(end, left)| end.checked_sub(left)));
        }
    }
    times.into_iter().filter(|time| (model.durable..=latest).contains(time)).rev().collect()
}

fn is_like(seen: KeyState, known: &State) -> bool {
    match known {
        State::Free => seen == KeyState::Available,
        State::Leased(_) => seen == KeyState::Leased,
        State::Resting { .. } => seen == KeyState::Resting,
        State::Aside { .. } => seen == KeyState::Quarantined,
    }
}

fn agrees(model: &mut Model, now: Instant, found: &Found) -> Checked {
    let nothing = Found::default();
    let mut silent = Guess::new(&nothing, &[], Vec::new(), model);
    model.settle(now, &mut Told::Unseen(&mut silent))?;
    let names: Vec<_> = found.pools.iter().map(|(pool, _)| pool.name.as_str()).collect();
    ensure!(model.pools.keys().eq(names.iter()), "pools are {:?}", model.pools.keys());
    for (view, keys) in &found.pools {
        let name = view.name.as_str();
        if let Some(back) = keys.iter().find(|view| model.is_gone(view.id)) {
            return Err(format!("{} was gone and is back", back.id));
        }
        let pool = model.pools.get_mut(name).expect("just compared");
        let known: BTreeSet<_> = pool.keys.iter().filter_map(|key| key.id).collect();
        let mut new: Vec<_> = keys.iter().filter(|view| !known.contains(&view.id)).collect();
        for key in pool.keys.iter_mut().filter(|key| key.id.is_none()) {
            // Nobody was told which of them was lent before it came back: their states tell.
            let alike = new.iter().position(|view| is_like(view.state, &key.state));
            ensure!(!new.is_empty(), "fewer keys than there should be");
            key.id = Some(new.remove(alike.unwrap_or(0)).id);
        }
        if let Some(view) = new.first() {
            return Err(format!("{} should not be there", view.id));
        }
        for key in &pool.keys {
            let view = keys.iter().find(|view| Some(view.id) == key.id);
            let view = view.ok_or_else(|| format!("a key is lost: {key:?}"))?;
            views::key(view, key, now)?;
        }
        views::pool(view, (name, pool), now, model.rules.lags)?;
        for lease in keys.iter().filter_map(|view| view.lease.as_ref()) {
            model.token = model.token.max(lease.token);
        }
    }
    Ok(())
}

//! A turn whose replies were lost in a crash: no client knows whether it took effect. What the next
//! start recovers decides: either the whole turn took effect or none of it, and each of its grants
//! drew one of the keys that were available.
//!
//! Every hypothesis is tried; those that do not lead to the recovered state are dropped.

use crate::clients::Action;
use crate::model::{Checked, Instant, Key, Model, Observation, State, ensure};
use crate::views;
use keypeg_core::{KeyId, KeyRef, KeyState, KeyView, LeaseId};
use keypeg_store::{Call, PoolView};
use std::collections::{BTreeMap, BTreeSet};

/// Most hypotheses that are tried for one lost turn.
const HYPOTHESES_MAX: usize = 20_000;
/// The error when a lost turn has more hypotheses than that.
pub(crate) const TOO_MANY: &str = "a lost turn has too many hypotheses";

/// Everything a start recovered, as a client can read it.
#[derive(Debug, Default)]
pub(crate) struct RecoveredData {
    pub(crate) pools: Vec<(PoolView, Vec<KeyView>)>,
    /// Ids of the lost turn's imported values, by pool and value.
    pub(crate) by_value: BTreeMap<(String, String), KeyId>,
    pub(crate) wall: u64,
    pub(crate) serving: u64,
}

/// A turn whose replies no client received.
#[derive(Clone, Debug)]
pub(crate) struct LostTurn {
    pub(crate) now: Instant,
    pub(crate) actions: Vec<(u32, Action)>,
}

/// Lease time at a start.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeaseTime {
    Known(u64),
    /// After a reboot.
    AtMost(u64),
}

/// A model that explains what a start recovered.
#[derive(Debug)]
pub(crate) struct Explanation {
    pub(crate) model: Model,
    pub(crate) lease_ms: u64,
    pub(crate) lost_turn_took_effect: bool,
}

impl Explanation {
    /// Returns whether no observation can distinguish the two.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.lease_ms == other.lease_ms && self.model.is_equivalent(&other.model)
    }
}

/// What the model knows of a grant before a key is drawn for it.
pub(crate) struct GrantQuery<'a> {
    pub(crate) holder: Option<&'a str>,
    /// Whether the key rests when the lease ends.
    pub(crate) rests: bool,
    /// Whether its answer is stored under an Idempotency-Key.
    pub(crate) has_idempotency_key: bool,
}

/// The key that a grant drew.
pub(crate) struct DrawnKey {
    pub(crate) index: usize,
    /// The lease, with its token, if it is still running.
    pub(crate) lease: Option<(LeaseId, u64)>,
}

/// One hypothesis of how a lost turn ran: one option for each choice.
pub(crate) struct Hypothesis<'a> {
    recovered: &'a RecoveredData,
    named: &'a [KeyRef],
    script: Vec<usize>,
    widths: Vec<usize>,
    disk_can_fill: bool,
    expiry_can_lag: bool,
    /// What the disk had space for: 3 for everything, 2 for grants, 1 for releases, 0 for nothing.
    space: usize,
    overloaded: bool,
}

impl<'a> Hypothesis<'a> {
    fn new(
        recovered: &'a RecoveredData,
        named: &'a [KeyRef],
        script: Vec<usize>,
        model: &Model,
    ) -> Self {
        let (disk_can_fill, expiry_can_lag) =
            (model.rules.disk_can_fill, model.rules.expiry_can_lag);
        let widths = Vec::new();
        let mut hypothesis = Self {
            recovered,
            named,
            script,
            widths,
            disk_can_fill,
            expiry_can_lag,
            space: 3,
            overloaded: false,
        };
        if disk_can_fill {
            hypothesis.space = 3 - hypothesis.choose(4);
        }
        hypothesis.overloaded = hypothesis.choose(2) == 1;
        hypothesis
    }

    pub(crate) fn choose(&mut self, width: usize) -> usize {
        let index = self.widths.len();
        self.widths.push(width);
        if index == self.script.len() {
            self.script.push(0);
        }
        self.script[index]
    }

    /// Returns the next script to try, if any is left.
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

    pub(crate) fn refuses_grants(&self) -> bool {
        self.space < 2
    }

    /// Returns whether the call was refused because of disk space or load.
    pub(crate) fn was_refused(&self, call: &Call) -> bool {
        match call {
            Call::Generate { .. } | Call::Import { .. } => self.space < 3 || self.overloaded,
            Call::PutPool { .. } | Call::PutPoolIf { .. } | Call::SetLabel { .. } => self.space < 3,
            Call::Acquire { .. }
            | Call::Renew { .. }
            | Call::QuarantineKey { .. }
            | Call::EndQuarantine { .. } => self.space < 2,
            Call::Release { .. }
            | Call::RevokeUndelivered { .. }
            | Call::ForceRelease { .. }
            | Call::DeleteKey { .. }
            | Call::DeletePool { .. } => self.space < 1,
            _ => false,
        }
    }

    /// Returns the id of an imported value, if the start recovered it.
    pub(crate) fn imported(&self, pool: &str, value: &str) -> Option<KeyId> {
        self.recovered.by_value.get(&(pool.to_owned(), value.to_owned())).copied()
    }

    /// Returns the key that a grant drew, and its lease if that is still running; `None` if this
    /// turn did not grant it.
    pub(crate) fn granted(
        &mut self,
        query: &GrantQuery<'_>,
        keys: &mut [Key],
    ) -> Checked<Option<DrawnKey>> {
        let views = self.recovered.pools.iter().flat_map(|(_, keys)| keys);
        let leases = views.filter_map(|view| view.lease.as_ref());
        let held = leases.clone().find(|lease| lease.holder.as_deref() == query.holder);
        if let Some(lease) = held {
            let is_available = |key: &Key| key.state == State::Available;
            let known =
                keys.iter().position(|key| key.id == Some(lease.key_id) && is_available(key));
            let unnamed = || {
                keys.iter()
                    .position(|key| key.id.is_none() && key.value.is_none() && is_available(key))
            };
            let index = known.or_else(unnamed).ok_or("a lease on a key that was not available")?;
            keys[index].id = Some(lease.key_id);
            let lease = Some((lease.id, lease.token));
            return Ok(Some(DrawnKey { index, lease }));
        }
        let held: BTreeSet<_> = leases.map(|lease| lease.key_id).collect();
        let named = |key: &Key| {
            self.named.iter().any(|named| match named {
                KeyRef::Id(id) => key.id == Some(*id),
                KeyRef::Value(value) => key.value.as_deref() == Some(value.reveal()),
            })
        };
        // A key that another call of this turn took away can have been granted again.
        let candidates = keys.iter().enumerate().filter(|(_, key)| {
            key.state == State::Available
                && (!key.id.is_some_and(|id| held.contains(&id)) || named(key))
        });
        let known: BTreeSet<_> = keys.iter().filter_map(|key| key.id).collect();
        // The lease has ended, and its key rests. It can be a key that this turn generated.
        let rests = |key: &Key| {
            let mut views = self.recovered.pools.iter().flat_map(|(_, keys)| keys);
            query.rests
                && views.any(|view| {
                    view.state == KeyState::Resting
                        && key.id.map_or(!known.contains(&view.id), |id| id == view.id)
                })
        };
        // Keys that cannot be distinguished are one option. Where the grant is optional, not
        // granting has the same effect, except on a stored answer.
        let is_optional = self.expiry_can_lag || self.disk_can_fill;
        let mut options: Vec<Option<usize>> = if is_optional { vec![None] } else { Vec::new() };
        let mut has_plain = is_optional && !query.has_idempotency_key;
        let mut has_unnamed = false;
        for (index, key) in candidates {
            let is_like_another = key.id.is_none() && std::mem::replace(&mut has_unnamed, true);
            if rests(key) && !is_like_another
                || named(key)
                || !std::mem::replace(&mut has_plain, true)
            {
                options.push(Some(index));
            }
        }
        ensure!(!options.is_empty(), "no key was available for the grant");
        let option = self.choose(options.len());
        Ok(options[option].map(|index| DrawnKey { index, lease: None }))
    }
}

/// Returns every model that the recovered state allows: the one before the lost turn, or those
/// after it. After a reboot lease time is any time from the last that no crash can undo up to
/// `LeaseTime::AtMost`. The error says why the first models were rejected.
pub(crate) fn explain(
    model: &Model,
    lost: Option<&LostTurn>,
    recovered: &RecoveredData,
    lease_time: LeaseTime,
) -> Checked<Vec<Explanation>> {
    let mut options = vec![(model.clone(), false)];
    if let Some(lost) = lost {
        options
            .extend(hypotheses_of(model, lost, recovered)?.into_iter().map(|after| (after, true)));
    }
    let (mut left, mut rejections) = (Vec::new(), Vec::new());
    for (option, lost_turn_took_effect) in options {
        match agreeing_model(option, recovered, lease_time) {
            Ok((model, lease_ms)) => {
                let new = Explanation { model, lease_ms, lost_turn_took_effect };
                if !left.iter().any(|known: &Explanation| known.is_same(&new)) {
                    left.push(new);
                }
            }
            Err(why) => {
                rejections.push(format!("lost turn took effect: {lost_turn_took_effect}: {why}"));
            }
        }
    }
    rejections.truncate(6);
    ensure!(
        !left.is_empty(),
        "no model explains the recovered state: {rejections:#?}\n{recovered:#?}"
    );
    Ok(left)
}

/// Returns the models after a lost turn, one for each hypothesis.
fn hypotheses_of(model: &Model, lost: &LostTurn, recovered: &RecoveredData) -> Checked<Vec<Model>> {
    let named: Vec<KeyRef> =
        lost.actions.iter().filter_map(|(_, action)| named_in(action.call()?)).collect();
    let (mut options, mut script) = (Vec::new(), Vec::new());
    for _ in 0..HYPOTHESES_MAX {
        let mut after = model.clone();
        let mut hypothesis = Hypothesis::new(recovered, &named, script, model);
        let played = after.turn(lost.now, &lost.actions, &mut Observation::Lost(&mut hypothesis));
        if played.is_ok() {
            // Every change of the turn relies on its lease time, which is durable with it.
            after.durable = after.durable.max(lost.now.lease);
            options.push(after);
        }
        match hypothesis.next_script() {
            None => return Ok(options),
            Some(next) => script = next,
        }
    }
    Err(TOO_MANY.into())
}

fn named_in(call: &Call) -> Option<KeyRef> {
    match call {
        Call::ForceRelease { key, .. }
        | Call::QuarantineKey { key, .. }
        | Call::EndQuarantine { key, .. }
        | Call::DeleteKey { key, .. } => Some(key.clone()),
        _ => None,
    }
}

/// Returns the model and the lease time that agree with the recovered state.
fn agreeing_model(
    model: Model,
    recovered: &RecoveredData,
    lease_time: LeaseTime,
) -> Checked<(Model, u64)> {
    let (times, latest) = match lease_time {
        LeaseTime::Known(ms) => (vec![ms], ms),
        LeaseTime::AtMost(ms) => (lease_times(&model, recovered, ms), ms),
    };
    let mut why = format!("no lease time from {} to {latest} fits", model.durable);
    let (mut before, count) = (Some(model), times.len());
    for (index, lease) in times.into_iter().enumerate() {
        // The last time, often the only one, needs no copy of the model.
        let model = if index + 1 == count { before.take() } else { before.clone() };
        let mut model = model.expect("taken by the last time");
        model.restart();
        model.turned = lease;
        let now = Instant { lease, serving: recovered.serving, wall: recovered.wall };
        match check_recovered(&mut model, now, recovered) {
            Ok(()) => return Ok((model, lease)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Returns the possible lease times after a reboot, from each running lease and rest.
fn lease_times(model: &Model, recovered: &RecoveredData, latest: u64) -> Vec<u64> {
    let mut times = BTreeSet::from([latest, model.durable]);
    for (pool, views) in &recovered.pools {
        let Some(known) = model.pools.get(pool.name.as_str()) else { continue };
        for view in views {
            let Some(key) = known.keys.iter().find(|key| key.id == Some(view.id)) else { continue };
            let rests = view.rests_until_ms.map(|at| at.saturating_sub(recovered.wall));
            let left = view.lease.as_ref().map(|lease| lease.expires_in_ms).or(rests);
            let end = match &key.state {
                State::Leased(lease) if rests.is_some() => Some(lease.until + lease.rest),
                State::Leased(lease) => Some(lease.until),
                State::Resting { until, .. } => Some(*until),
                State::Available | State::Quarantined { .. } => None,
            };
            times.extend(end.zip(left).and_then(|(end, left)| end.checked_sub(left)));
        }
    }
    times.into_iter().filter(|time| (model.durable..=latest).contains(time)).rev().collect()
}

fn has_state(seen: KeyState, known: &State) -> bool {
    match known {
        State::Available => seen == KeyState::Available,
        State::Leased(_) => seen == KeyState::Leased,
        State::Resting { .. } => seen == KeyState::Resting,
        State::Quarantined { .. } => seen == KeyState::Quarantined,
    }
}

fn check_recovered(model: &mut Model, now: Instant, recovered: &RecoveredData) -> Checked {
    let empty = RecoveredData::default();
    let mut no_choices = Hypothesis::new(&empty, &[], Vec::new(), model);
    model.apply_expiry(now, &mut Observation::Lost(&mut no_choices))?;
    let names: Vec<_> = recovered.pools.iter().map(|(pool, _)| pool.name.as_str()).collect();
    ensure!(model.pools.keys().eq(names.iter()), "pools are {:?}", model.pools.keys());
    for (view, keys) in &recovered.pools {
        let name = view.name.as_str();
        if let Some(returned) = keys.iter().find(|view| model.was_removed(view.id)) {
            return Err(format!("{} was removed and appears again", returned.id));
        }
        let pool = model.pools.get_mut(name).expect("just compared");
        let known: BTreeSet<_> = pool.keys.iter().filter_map(|key| key.id).collect();
        let mut new: Vec<_> = keys.iter().filter(|view| !known.contains(&view.id)).collect();
        for key in pool.keys.iter_mut().filter(|key| key.id.is_none()) {
            // No reply said which of these keys was granted: match them by their states.
            let same_state = new.iter().position(|view| has_state(view.state, &key.state));
            ensure!(!new.is_empty(), "fewer keys than expected");
            key.id = Some(new.remove(same_state.unwrap_or(0)).id);
        }
        if let Some(view) = new.first() {
            return Err(format!("{} should not exist", view.id));
        }
        for key in &pool.keys {
            let view = keys.iter().find(|view| Some(view.id) == key.id);
            let view = view.ok_or_else(|| format!("a key is lost: {key:?}"))?;
            views::key(view, key, now)?;
        }
        views::pool(view, (name, pool), now, model.rules.expiry_can_lag)?;
        for lease in keys.iter().filter_map(|view| view.lease.as_ref()) {
            model.token = model.token.max(lease.token);
        }
    }
    Ok(())
}

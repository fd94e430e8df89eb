//! What every answer must be: pools as lists that are searched from one end to the other, in whole
//! milliseconds, played beside the engine call by call.
//!
//! It shares no code with the engine. RandomSource it takes from the answer (which key was drawn, which
//! value was made) and checks that it was possible. A turn whose answers nobody got is played as
//! far as what was found after the crash tells: see `guess.rs`.

use crate::guess::Guess;
use crate::idempotency::{Answers, Once};
use keypeg_engine::core::{KeyId, KeyRef, LeaseId, Policy, PoolName, ReleaseOptions, Secret};
use keypeg_engine::{Call, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What was wrong, or nothing.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Fails with a message unless something holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}
pub(crate) use ensure;

/// When a turn is played, in milliseconds on each clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instant {
    pub(crate) lease: u64,
    pub(crate) serving: u64,
    pub(crate) wall: u64,
}

/// All pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) pools: BTreeMap<String, Pool>,
    /// Who waited for a pool that is gone.
    orphans: Vec<u32>,
    /// Calls that go over into the next turn.
    late: Vec<(u32, Call)>,
    /// Ids that must never be seen again.
    gone: BTreeSet<KeyId>,
    ended: BTreeMap<u128, Ended>,
    pub(crate) token: u64,
    next_key: u64,
    next_lease: u64,
    /// Lease time that no crash may take back: something rests on it.
    pub(crate) durable: u64,
    pub(crate) rules: Rules,
}

/// What a simulation may meet that others may not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// The disk can be full.
    pub(crate) full: bool,
    /// More can be due than a turn ends.
    pub(crate) lags: bool,
    /// Most waiters there can be.
    pub(crate) waiters: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) policy: Policy,
    pub(crate) keys: Vec<Key>,
    pub(crate) line: VecDeque<Waiter>,
    retired: BTreeSet<String>,
    /// What Idempotency-Keys were answered.
    pub(crate) answers: Answers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Ours, to tell it from all others.
    pub(crate) serial: u64,
    /// Not known where the answer was lost.
    pub(crate) id: Option<KeyId>,
    pub(crate) value: Option<String>,
    imported: bool,
    pub(crate) life: Option<u64>,
    pub(crate) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Leased(Lease),
    Resting { until: u64, reason: Option<String> },
    Aside { reason: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Not known where the answer was lost.
    pub(crate) id: Option<LeaseId>,
    pub(crate) token: Option<u64>,
    pub(crate) granted: u64,
    pub(crate) until: u64,
    pub(crate) latest: u64,
    pub(crate) rest: u64,
    pub(crate) holder: Option<String>,
    /// Ours, to tell it from all others.
    pub(crate) serial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) slot: u32,
    since: u64,
    pub(crate) end: u64,
    ttl: Option<u64>,
    holder: Option<String>,
    pub(crate) once: Option<Once>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) serial: u64,
    pub(crate) by_call: bool,
}

/// Where answers come from.
pub(crate) enum Told<'a, 'f> {
    /// They were got, by slot.
    Seen(&'a mut BTreeMap<u32, Reply>),
    /// Nobody got them.
    Unseen(&'a mut Guess<'f>),
}

impl Told<'_, '_> {
    /// Checks the answer of a call, if it was got; there must be one.
    pub(crate) fn check(&mut self, slot: u32, check: impl FnOnce(&Reply) -> Checked) -> Checked {
        let Told::Seen(replies) = self else { return Ok(()) };
        let reply = replies.remove(&slot).ok_or_else(|| format!("#{slot} got no answer"))?;
        check(&reply).map_err(|why| format!("#{slot}: {why}; it was answered {reply:?}"))
    }

    pub(crate) fn refusal(&mut self, slot: u32, refusal: &Refusal) -> Checked {
        self.check(slot, |reply| match reply {
            Reply::Refused(RequestError::Refused(told)) if told == refusal => Ok(()),
            _ => Err(format!("should be refused: {refusal:?}")),
        })
    }

    pub(crate) fn done(&mut self, slot: u32) -> Checked {
        self.check(slot, |reply| match reply {
            Reply::Done => Ok(()),
            _ => Err("should be done".into()),
        })
    }
}

use keypeg_engine::core::Refusal;

impl Model {
    /// Plays a turn: what time ends, then the calls in their order.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        calls: &[(u32, Call)],
        told: &mut Told<'_, '_>,
    ) -> Checked {
        self.settle(now, told)?;
        let mut late = std::mem::take(&mut self.late);
        // Imports whose values were looked up come first.
        late.sort_by_key(|(_, call)| !matches!(itself(call), Call::Import { .. }));
        for (slot, call) in late.iter().chain(calls) {
            if self.goes_over(*slot, call, told) {
                self.late.push((*slot, call.clone()));
            } else if !self.refused_for_room(*slot, call, told)? {
                self.play(now, *slot, call, told)?;
            }
        }
        if let Told::Seen(replies) = told {
            ensure!(replies.is_empty(), "answers to nobody: {replies:?}");
        }
        Ok(())
    }

    /// Whether a call was not answered in this turn: more was due than it ends, or values to be
    /// brought in are looked up in the database first.
    fn goes_over(&self, slot: u32, call: &Call, told: &mut Told<'_, '_>) -> bool {
        let import = matches!(itself(call), Call::Import { .. });
        match told {
            Told::Unseen(guess) => import && guess.choose(2) == 1,
            Told::Seen(replies) => {
                let may = import || self.rules.lags && matches!(itself(call), Call::Acquire { .. });
                may && !replies.contains_key(&slot)
            }
        }
    }

    /// Whether a call was refused for want of room, which must be possible. Whoever waits is sent
    /// away too.
    fn refused_for_room(
        &mut self,
        slot: u32,
        call: &Call,
        told: &mut Told<'_, '_>,
    ) -> Checked<bool> {
        let full = self.rules.full;
        match told {
            Told::Unseen(guess) => Ok(guess.had_no_room(call)),
            Told::Seen(replies) => match replies.get(&slot) {
                Some(Reply::Refused(RequestError::StorageFull)) => {
                    ensure!(full, "#{slot}: the disk is not full");
                    replies.remove(&slot);
                    Ok(true)
                }
                Some(Reply::Refused(RequestError::Refused(Refusal::Settling))) => {
                    ensure!(self.rules.lags, "#{slot}: not so much is due");
                    replies.remove(&slot);
                    Ok(true)
                }
                Some(Reply::Refused(RequestError::Overloaded)) => {
                    let makes = matches!(itself(call), Call::Generate { .. } | Call::Import { .. });
                    ensure!(makes, "#{slot}: only new keys wait for the carrier");
                    replies.remove(&slot);
                    Ok(true)
                }
                _ => Ok(false),
            },
        }
    }

    /// Ends what is over.
    pub(crate) fn settle(&mut self, now: Instant, told: &mut Told<'_, '_>) -> Checked {
        match told {
            Told::Seen(replies) => self.send_away(replies)?,
            Told::Unseen(guess) if guess.grants_nothing() => {
                self.pools.values_mut().for_each(|pool| pool.line.clear());
            }
            Told::Unseen(_) => {}
        }
        for slot in std::mem::take(&mut self.orphans) {
            told.refusal(slot, &Refusal::UnknownPool)?;
        }
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in names {
            self.settle_pool(now, &name, told)?;
        }
        Ok(())
    }

    /// Takes those out of line whom the engine sent away because the disk is full: all or none.
    fn send_away(&mut self, replies: &mut BTreeMap<u32, Reply>) -> Checked {
        let lines = self.pools.values().flat_map(|pool| &pool.line).map(|waiter| waiter.slot);
        let waiting: Vec<u32> = lines.chain(self.orphans.iter().copied()).collect();
        let full = |slot: &&u32| {
            matches!(replies.get(slot), Some(Reply::Refused(RequestError::StorageFull)))
        };
        let away = waiting.iter().filter(full).count();
        if away == 0 {
            return Ok(());
        }
        ensure!(self.rules.full, "the disk is not full, and {away} are sent away");
        ensure!(away == waiting.len(), "only {away} of {} are sent away", waiting.len());
        for slot in waiting {
            replies.remove(&slot);
        }
        self.orphans.clear();
        self.pools.values_mut().for_each(|pool| pool.line.clear());
        Ok(())
    }

    fn settle_pool(&mut self, now: Instant, name: &str, told: &mut Told<'_, '_>) -> Checked {
        let pool = self.pools.get_mut(name).expect("just listed");
        let mut changed = false;
        for key in &mut pool.keys {
            if let State::Leased(lease) = &key.state
                && lease.until <= now.lease
            {
                if let Some(id) = lease.id {
                    let ended = Ended { serial: key.serial, by_call: false };
                    self.ended.insert(id.0, ended);
                }
                key.state = match lease.rest {
                    0 => State::Free,
                    rest => State::Resting { until: lease.until + rest, reason: None },
                };
                changed = true;
            }
            if let State::Resting { until, .. } = key.state
                && until <= now.lease
            {
                key.state = State::Free;
                changed = true;
            }
        }
        let over = |key: &Key| key.life.is_some_and(|life| life <= now.serving);
        for key in pool.keys.extract_if(.., |key| over(key)) {
            if key.imported {
                pool.retired.extend(key.value);
            }
            self.gone.extend(key.id);
            changed = true;
        }
        if changed {
            self.durable = now.lease;
        }
        self.serve_line(now, name, told)?;
        self.settle_waits(now, name, told)
    }

    fn settle_waits(&mut self, now: Instant, name: &str, told: &mut Told<'_, '_>) -> Checked {
        let pool = self.pools.get_mut(name).expect("listed");
        let over: Vec<_> =
            pool.line.iter().filter(|waiter| waiter.end <= now.lease).cloned().collect();
        pool.line.retain(|waiter| waiter.end > now.lease);
        for waiter in over {
            self.no_key(now, waiter.slot, name, told)?;
        }
        Ok(())
    }

    /// Gives free keys to those in line: the first must get one.
    fn serve_line(&mut self, now: Instant, name: &str, told: &mut Told<'_, '_>) -> Checked {
        loop {
            let Some(pool) = self.pools.get_mut(name) else { return Ok(()) };
            if !pool.keys.iter().any(|key| key.state == State::Free) {
                return Ok(());
            }
            let Some(waiter) = pool.line.pop_front() else { return Ok(()) };
            let most = pool.policy.lease_ttl_ms;
            let ttl = waiter.ttl.map_or(most, |ttl| ttl.min(most));
            let wish = AcquireOptions {
                ttl,
                holder: waiter.holder,
                since: waiter.since,
                once: waiter.once,
            };
            self.grant(now, (waiter.slot, name), wish, told)?;
        }
    }

    fn grant(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        AcquireOptions { ttl, holder, since, once }: AcquireOptions,
        told: &mut Told<'_, '_>,
    ) -> Checked {
        self.next_lease += 1;
        let serial = self.next_lease;
        let pool = self.pools.get_mut(name).expect("it has a key");
        let hold = pool.policy.max_hold_ms.unwrap_or(pool.policy.lease_ttl_ms);
        let mut lease = Lease {
            id: None,
            token: None,
            granted: now.lease,
            until: now.lease + ttl,
            latest: now.lease + hold,
            rest: pool.policy.rest_ms,
            holder: holder.clone(),
            serial,
        };
        self.durable = now.lease;
        match told {
            Told::Unseen(guess) => {
                let Some((at, known)) = guess.granted(
                    holder.as_deref(),
                    &mut pool.keys,
                    (lease.rest > 0, once.is_some()),
                )?
                else {
                    return Ok(());
                };
                if let Some((id, token)) = known {
                    (lease.id, lease.token) = (Some(id), Some(token));
                    self.token = self.token.max(token);
                }
                if let Some(once) = once {
                    pool.answers.lent(once, &pool.keys[at], &lease, now);
                }
                pool.keys[at].state = State::Leased(lease);
                Ok(())
            }
            Told::Seen(_) => {
                let (top, ended) = (&mut self.token, &self.ended);
                told.check(slot, |reply| {
                    let Reply::Granted {
                        pool: of,
                        lease: view,
                        value,
                        waited_ms,
                        redelivered: again,
                    } = reply
                    else {
                        return Err("a key is free and it is its turn".into());
                    };
                    ensure!(of.as_str() == name && !again, "a new lease on a key of its pool");
                    ensure!(*waited_ms == now.lease - since, "waited since {since}");
                    ensure!(!ended.contains_key(&view.id.0), "a lease's id comes again");
                    *top = view.token.max(*top);
                    let key = pool.keys.iter_mut().find(|key| key.id == Some(view.key_id));
                    let key = key.ok_or("a key that is not there")?;
                    ensure!(key.state == State::Free, "its key is not free: {:?}", key.state);
                    let value = value.reveal();
                    let known = key.value.get_or_insert_with(|| value.to_owned());
                    ensure!(known == value, "its value is another key's");
                    (lease.id, lease.token) = (Some(view.id), Some(view.token));
                    crate::views::lease(view, &lease, key, now)?;
                    if let Some(once) = once {
                        pool.answers.lent(once, key, &lease, now);
                    }
                    key.state = State::Leased(lease);
                    Ok(())
                })
            }
        }
    }

    fn no_key(&mut self, now: Instant, slot: u32, name: &str, told: &mut Told<'_, '_>) -> Checked {
        let pool = &self.pools[name];
        told.check(slot, |reply| crate::views::no_key(reply, pool, now))
    }

    fn play(&mut self, now: Instant, slot: u32, call: &Call, told: &mut Told<'_, '_>) -> Checked {
        let Some(name) = pool_of(call) else {
            return match call {
                Call::CancelWait => self.leave(slot, told),
                Call::ListPools => {
                    let (pools, lags) = (&self.pools, self.rules.lags);
                    told.check(slot, |reply| crate::views::pools(reply, pools, now, lags))
                }
                _ => unreachable!("all others are about one pool"),
            };
        };
        let name = name.as_str();
        if let Call::PutPool { patch, .. } = call {
            return self.put(now, slot, (name, patch), told);
        }
        if !self.pools.contains_key(name) {
            return told.refusal(slot, &Refusal::UnknownPool);
        }
        match call {
            Call::DeletePool { .. } => self.drop_pool(now, slot, name, told)?,
            Call::GetPool { .. } => {
                let (pool, lags) = (&self.pools[name], self.rules.lags);
                told.check(slot, |reply| {
                    crate::views::shown(reply, (name, pool), now, (false, lags))
                })?;
            }
            Call::Generate { count, .. } => self.generate(now, (slot, name), *count, told)?,
            Call::Import { values, .. } => {
                let values: Vec<_> = values.iter().map(Secret::reveal).collect();
                self.import(now, (slot, name), &values, told)?;
            }
            Call::Acquire { ttl_ms, holder, wait_ms, .. } => {
                let wish = (*ttl_ms, holder.as_deref(), *wait_ms);
                self.acquire(now, (slot, name), wish, None, told)?;
            }
            Call::Release { lease, verdict, .. } => {
                self.release(now, (slot, name), (*lease, verdict), told)?;
            }
            Call::RevokeUndelivered { lease, .. } => {
                self.undo_undelivered(now, (slot, name), *lease, told)?
            }
            Call::Idempotent { key, body, call } => {
                self.once(now, (slot, name), (key, *body, call), told)?;
            }
            Call::Renew { lease, ttl_ms, .. } => {
                self.renew(now, (slot, name), (*lease, *ttl_ms), told)?;
            }
            Call::KeepAliveMany { keys, .. } => self.keep_many(now, (slot, name), keys, told)?,
            Call::KeepAliveAll { .. } => self.keep_all(now, (slot, name), told)?,
            Call::ListKeys { state, limit, cursor, .. } => {
                let pool = &self.pools[name];
                let asked = (*state, *limit, cursor.is_some());
                told.check(slot, |reply| crate::views::page(reply, pool, asked, now))?;
            }
            Call::ForceRelease { key, .. }
            | Call::DeleteKey { key, .. }
            | Call::KeepAlive { key, .. }
            | Call::Reveal { key, .. }
            | Call::GetKey { key, .. } => self.on_key(now, (slot, name), (call, key), told)?,
            _ => unreachable!("played above"),
        }
        self.serve_line(now, name, told)
    }

    fn leave(&mut self, slot: u32, told: &mut Told<'_, '_>) -> Checked {
        for pool in self.pools.values_mut() {
            let before = pool.line.len();
            pool.line.retain(|waiter| waiter.slot != slot);
            if pool.line.len() < before {
                return told.done(slot);
            }
        }
        Ok(())
    }

    fn put(
        &mut self,
        now: Instant,
        slot: u32,
        (name, patch): (&str, &keypeg_engine::core::PolicyPatch),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let made = !self.pools.contains_key(name);
        let base = self.pools.get(name).map_or_else(Policy::default, |pool| pool.policy.clone());
        let policy = Policy {
            lease_ttl_ms: patch.lease_ttl_ms.unwrap_or(base.lease_ttl_ms),
            max_hold_ms: patch.max_hold_ms.unwrap_or(base.max_hold_ms),
            keepalive_ttl_ms: patch.keepalive_ttl_ms.unwrap_or(base.keepalive_ttl_ms),
            rest_ms: patch.rest_ms.unwrap_or(base.rest_ms),
            key_length: patch.key_length.unwrap_or(base.key_length),
            key_prefix: patch.key_prefix.clone().unwrap_or(base.key_prefix),
            max_keys: patch.max_keys.unwrap_or(base.max_keys),
        };
        if policy.max_hold_ms.is_some_and(|hold| hold < policy.lease_ttl_ms) {
            return told.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("its hold is shorter than its lease".into()),
            });
        }
        self.durable = now.lease;
        let empty = Pool {
            policy: policy.clone(),
            keys: Vec::new(),
            line: VecDeque::new(),
            retired: BTreeSet::new(),
            answers: Answers::default(),
        };
        let pool = self.pools.entry(name.to_owned()).or_insert(empty);
        pool.policy = policy;
        let lags = self.rules.lags;
        told.check(slot, |reply| crate::views::shown(reply, (name, pool), now, (made, lags)))
    }

    fn drop_pool(
        &mut self,
        now: Instant,
        slot: u32,
        name: &str,
        told: &mut Told<'_, '_>,
    ) -> Checked {
        if name == PoolName::DEFAULT {
            return told.refusal(slot, &Refusal::DefaultPool);
        }
        let pool = self.pools.remove(name).expect("it is there");
        self.durable = now.lease;
        self.orphans.extend(pool.line.iter().map(|waiter| waiter.slot));
        self.gone.extend(pool.keys.iter().filter_map(|key| key.id));
        told.done(slot)
    }

    fn has_room(&self, name: &str, count: usize) -> bool {
        let pool = &self.pools[name];
        pool.policy.max_keys.is_none_or(|max| (pool.keys.len() + count) as u64 <= max)
    }

    fn born(
        &mut self,
        now: Instant,
        name: &str,
        (id, value, imported): (Option<KeyId>, Option<String>, bool),
    ) {
        self.durable = now.lease;
        self.next_key += 1;
        let pool = self.pools.get_mut(name).expect("it is there");
        let life = pool.policy.keepalive_ttl_ms.map(|ttl| now.serving + ttl);
        let serial = self.next_key;
        pool.keys.push(Key { serial, id, value, imported, life, state: State::Free });
    }

    pub(crate) fn is_new(&self, id: KeyId) -> bool {
        let mut keys = self.pools.values().flat_map(|pool| &pool.keys);
        !self.gone.contains(&id) && !keys.any(|key| key.id == Some(id))
    }

    pub(crate) fn is_gone(&self, id: KeyId) -> bool {
        self.gone.contains(&id)
    }

    /// Begins with the default pool.
    pub(crate) fn new(policy: Policy, rules: Rules) -> Self {
        let mut model = Self { rules, ..Self::default() };
        let (keys, line, retired) = (Vec::new(), VecDeque::new(), BTreeSet::new());
        let answers = Answers::default();
        let pool = Pool { policy, keys, line, retired, answers };
        model.pools.insert(PoolName::DEFAULT.into(), pool);
        model
    }

    pub(crate) fn generate(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        count: u32,
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let count = count as usize;
        if !self.has_room(name, count) {
            return self.pool_full(slot, name, told);
        }
        let mut made: Vec<(Option<KeyId>, Option<String>)> = vec![(None, None); count];
        let this = &*self;
        told.check(slot, |reply| {
            let Reply::Keys(keys) = reply else { return Err("there is room".into()) };
            ensure!(keys.len() == count, "{count} were asked for");
            for (key, made) in keys.iter().zip(&mut made) {
                let value = key.value.reveal();
                let policy = &this.pools[name].policy;
                let symbols = value.strip_prefix(&*policy.key_prefix);
                let fits = symbols.is_some_and(|rest| rest.len() == usize::from(policy.key_length));
                ensure!(fits, "its value has another form");
                ensure!(this.is_new(key.id), "key {} comes again", key.id);
                crate::views::born(key, policy, now)?;
                *made = (Some(key.id), Some(value.to_owned()));
            }
            Ok(())
        })?;
        for (id, value) in made {
            self.born(now, name, (id, value, false));
        }
        Ok(())
    }

    fn pool_full(&self, slot: u32, name: &str, told: &mut Told<'_, '_>) -> Checked {
        let max = self.pools[name].policy.max_keys.unwrap_or_default();
        told.refusal(slot, &Refusal::PoolFull { max, of_server: false })
    }

    pub(crate) fn import(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        values: &[&str],
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        let known = |at: usize, value: &str| {
            pool.retired.contains(value)
                || pool.keys.iter().any(|key| key.value.as_deref() == Some(value))
                || values[..at].contains(&value)
        };
        if let Some(at) = values.iter().enumerate().position(|(at, value)| known(at, value)) {
            return told.refusal(slot, &Refusal::KeyExists { index: at });
        }
        if !self.has_room(name, values.len()) {
            return self.pool_full(slot, name, told);
        }
        let mut ids = vec![None; values.len()];
        if let Told::Unseen(guess) = told {
            ids = values.iter().map(|value| guess.imported(name, value)).collect();
        }
        let this = &*self;
        told.check(slot, |reply| {
            let Reply::Keys(keys) = reply else { return Err("these values are new".into()) };
            ensure!(keys.len() == values.len(), "all of them come in");
            for ((key, value), id) in keys.iter().zip(values).zip(&mut ids) {
                ensure!(key.value.reveal() == *value, "its value is {value}");
                ensure!(this.is_new(key.id), "key {} comes again", key.id);
                crate::views::born(key, &this.pools[name].policy, now)?;
                *id = Some(key.id);
            }
            Ok(())
        })?;
        for (id, value) in ids.into_iter().zip(values) {
            self.born(now, name, (id, Some((*value).to_owned()), true));
        }
        Ok(())
    }

    pub(crate) fn acquire(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (ttl, holder, wait): (Option<u64>, Option<&str>, u64),
        once: Option<Once>,
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        let length = ttl.unwrap_or(pool.policy.lease_ttl_ms);
        if length == 0 || length > pool.policy.lease_ttl_ms {
            return told.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("longer than the policy says".into()),
            });
        }
        let free = pool.keys.iter().any(|key| key.state == State::Free);
        if free && pool.line.is_empty() {
            let holder = holder.map(Into::into);
            let wish = AcquireOptions { ttl: length, holder, since: now.lease, once };
            return self.grant(now, (slot, name), wish, told);
        }
        if wait == 0 {
            return self.no_key(now, slot, name, told);
        }
        let waiters: usize = self.pools.values().map(|pool| pool.line.len()).sum();
        let max = self.rules.waiters;
        if waiters + self.orphans.len() >= max {
            return told.refusal(slot, &Refusal::WaitQueueFull { max });
        }
        let pool = self.pools.get_mut(name).expect("it is there");
        let holder = holder.map(Into::into);
        let (since, end) = (now.lease, now.lease + wait);
        pool.line.push_back(Waiter { slot, since, end, ttl, holder, once });
        Ok(())
    }

    /// Where a running lease's key is.
    pub(crate) fn running(&self, name: &str, lease: LeaseId) -> Option<usize> {
        self.pools[name].keys.iter().position(
            |key| matches!(&key.state, State::Leased(running) if running.id == Some(lease)),
        )
    }

    pub(crate) fn lease_ended(
        &self,
        slot: u32,
        (name, lease): (&str, LeaseId),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let ended = self.ended.get(&lease.0).copied();
        let pool = &self.pools[name];
        told.check(slot, |reply| crate::views::lease_ended(reply, ended, pool))
    }

    fn release(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (lease, verdict): (LeaseId, &ReleaseOptions),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let Some(at) = self.running(name, lease) else {
            return self.lease_ended(slot, (name, lease), told);
        };
        let reason = verdict.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = reason.map(ToOwned::to_owned);
        if verdict.quarantine {
            self.end(now, (name, at), State::Aside { reason });
        } else {
            self.give_back(now, (name, at), verdict.rest_ms, reason);
        }
        told.done(slot)
    }

    /// Ends a lease by a call: the key rests as long as that says, or as its grant said.
    pub(crate) fn give_back(
        &mut self,
        now: Instant,
        (name, at): (&str, usize),
        rest: Option<u64>,
        reason: Option<String>,
    ) {
        let State::Leased(lease) = &self.pools[name].keys[at].state else { unreachable!("leased") };
        let state = match rest.unwrap_or(lease.rest) {
            0 => State::Free,
            rest => State::Resting { until: now.lease + rest, reason },
        };
        self.end(now, (name, at), state);
    }

    fn end(&mut self, now: Instant, (name, at): (&str, usize), state: State) {
        self.durable = now.lease;
        let key = &mut self.pools.get_mut(name).expect("it is there").keys[at];
        if let State::Leased(Lease { id: Some(id), .. }) = key.state {
            self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
        }
        key.state = state;
    }

    fn renew(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (lease, ttl): (LeaseId, Option<u64>),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let Some(at) = self.running(name, lease) else {
            return self.lease_ended(slot, (name, lease), told);
        };
        let pool = self.pools.get_mut(name).expect("it is there");
        let most = pool.policy.lease_ttl_ms;
        let length = ttl.unwrap_or(most);
        let key = &mut pool.keys[at];
        let snapshot = key.clone();
        let State::Leased(running) = &mut key.state else { unreachable!("it runs") };
        if length == 0 || length > most {
            return told.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("longer than the policy says".into()),
            });
        }
        let until = (now.lease + length).min(running.latest);
        if until <= running.until {
            let expires_at_ms = now.wall + running.until - now.lease;
            return told.refusal(slot, &Refusal::MaxHoldReached { expires_at_ms });
        }
        running.until = until;
        self.durable = now.lease;
        told.check(slot, |reply| match reply {
            Reply::Renewed(view) => crate::views::lease(view, running, &snapshot, now),
            _ => Err("it runs and can run longer".into()),
        })
    }

    fn keep_many(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        ids: &[KeyId],
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("it is there");
        let life = pool.policy.keepalive_ttl_ms.map(|ttl| now.serving + ttl);
        let (mut there, mut not_there) = (BTreeSet::new(), BTreeSet::new());
        for id in ids {
            match pool.keys.iter_mut().find(|key| key.id == Some(*id)) {
                Some(key) => {
                    key.life = life;
                    there.insert(*id);
                }
                None => drop(not_there.insert(*id)),
            }
        }
        told.check(slot, |reply| {
            let Reply::KeptAliveMany { kept, missing } = reply else {
                return Err("it keeps".into());
            };
            let told: BTreeSet<_> = missing.iter().copied().collect();
            ensure!(*kept == there.len() as u64, "{} are there", there.len());
            ensure!(told == not_there && told.len() == missing.len(), "missing: {not_there:?}");
            Ok(())
        })
    }

    fn keep_all(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("it is there");
        for key in &mut pool.keys {
            key.life = pool.policy.keepalive_ttl_ms.map(|ttl| now.serving + ttl);
        }
        let total = pool.keys.len() as u64;
        told.check(slot, |reply| match reply {
            Reply::KeptAliveMany { kept, missing } if *kept == total && missing.is_empty() => {
                Ok(())
            }
            _ => Err(format!("keeps all {total}")),
        })
    }

    fn on_key(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (call, key): (&Call, &KeyRef),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let named = |known: &Key| match key {
            KeyRef::Id(id) => known.id == Some(*id),
            KeyRef::Value(value) => known.value.as_deref() == Some(value.reveal()),
        };
        let pool = self.pools.get_mut(name).expect("it is there");
        let Some(at) = pool.keys.iter().position(named) else {
            return told.refusal(slot, &Refusal::UnknownKey);
        };
        match call {
            Call::GetKey { .. } => {
                let key = &pool.keys[at];
                told.check(slot, |reply| match reply {
                    Reply::Key(view) => crate::views::key(view, key, now),
                    _ => Err("it is there".into()),
                })
            }
            Call::Reveal { .. } => {
                let key = &pool.keys[at];
                told.check(slot, |reply| match reply {
                    Reply::Revealed { id, value } => {
                        ensure!(Some(*id) == key.id, "another key");
                        let known = key.value.as_deref();
                        ensure!(known.is_none_or(|known| known == value.reveal()), "another value");
                        Ok(())
                    }
                    _ => Err("it is there".into()),
                })
            }
            Call::KeepAlive { .. } => {
                let life = pool.policy.keepalive_ttl_ms.map(|ttl| now.serving + ttl);
                let key = &mut pool.keys[at];
                key.life = life;
                told.check(slot, |reply| match reply {
                    Reply::KeptAlive { id, expires_at_ms } => {
                        ensure!(Some(*id) == key.id, "another key");
                        crate::views::life(*expires_at_ms, life, now)
                    }
                    _ => Err("it is there".into()),
                })
            }
            Call::DeleteKey { .. } => {
                let key = pool.keys.remove(at);
                if key.imported {
                    pool.retired.extend(key.value);
                }
                self.gone.extend(key.id);
                if let State::Leased(Lease { id: Some(id), .. }) = key.state {
                    self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
                }
                self.durable = now.lease;
                told.done(slot)
            }
            Call::ForceRelease { .. } => {
                let released = pool.keys[at].state != State::Free;
                match &pool.keys[at].state {
                    State::Free => {}
                    State::Leased(_) => self.give_back(now, (name, at), None, None),
                    State::Resting { .. } | State::Aside { .. } => {
                        self.end(now, (name, at), State::Free);
                    }
                }
                told.check(slot, |reply| match reply {
                    Reply::KeyReleased { released: told } if *told == released => Ok(()),
                    _ => Err(format!("released is {released}")),
                })
            }
            _ => unreachable!("these are about one key"),
        }
    }

    /// What a start makes of it: nobody waits, and every key has its full time again.
    pub(crate) fn restart(&mut self) {
        self.orphans.clear();
        self.late.clear();
        for pool in self.pools.values_mut() {
            pool.line.clear();
            pool.answers.restart();
            for key in &mut pool.keys {
                key.life = pool.policy.keepalive_ttl_ms;
            }
        }
    }

    /// Whether nothing can tell the two apart.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.pools == other.pools
            && self.ended == other.ended
            && self.gone == other.gone
            && self.durable == other.durable
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pools.values().map(|pool| pool.line.len()).sum()
    }
}

impl Waiter {
    /// Waits from now on.
    pub(crate) fn take_time(&mut self, now: u64, wait: u64) {
        (self.since, self.end) = (now, now + wait);
    }
}

/// What is wished of a grant.
struct AcquireOptions {
    ttl: u64,
    holder: Option<String>,
    since: u64,
    once: Option<Once>,
}

/// What is asked, whether or not under an Idempotency-Key.
pub(crate) fn itself(call: &Call) -> &Call {
    if let Call::Idempotent { call, .. } = call { call } else { call }
}

/// The pool a call is about.
pub(crate) fn pool_of(call: &Call) -> Option<&PoolName> {
    match itself(call) {
        Call::ListPools | Call::CancelWait | Call::Idempotent { .. } | Call::Subscribe { .. } => {
            None
        }
        Call::PutPool { pool, .. }
        | Call::GetPool { pool }
        | Call::DeletePool { pool }
        | Call::Generate { pool, .. }
        | Call::Import { pool, .. }
        | Call::Acquire { pool, .. }
        | Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::Reveal { pool, .. }
        | Call::GetKey { pool, .. } => Some(pool),
    }
}

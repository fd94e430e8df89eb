//! A pool of the naive store: its keys, their states, and the events of each transition.
//!
//! Keys are in the order of their creation. The numbers of keys only grow, so that a position in
//! this order stays valid when keys are removed.

use super::Waiter;
use super::feed::Feed;
use super::idempotency::StoredAnswer;
use keypeg_core::{
    EndCause, ImportOptions, KeyId, KeyRef, KeyState, LeaseId, LeaseView, NewKey, NewLabels,
    Policy, PoolActivity, QuarantineOptions, Refusal, ReleaseOptions, Secret,
};
use keypeg_store::{FeedEventKind, Principal, Reply};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// The most keys of one event.
const EVENT_KEYS_MAX: usize = 100;

pub(super) struct NaivePool {
    /// Differs from that of every other pool, also of a deleted one.
    pub(super) number: u64,
    pub(super) policy: Policy,
    pub(super) keys: Vec<Key>,
    pub(super) waiters: VecDeque<Waiter>,
    /// Values whose keys are removed, with the ids of those keys.
    pub(super) retired: HashMap<Secret, KeyId>,
    pub(super) answers: Vec<StoredAnswer>,
    /// Leases that ended, with their key.
    pub(super) ended: Vec<(LeaseId, KeyId, EndCause)>,
    pub(super) feed: Arc<Feed>,
    /// Events that are not published yet.
    pub(super) events: Vec<FeedEventKind>,
    pub(super) activity: PoolActivity,
}

/// How many keys a store may still add.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) left: u64,
    pub(super) max: u64,
}

pub(super) struct Key {
    /// Its position in the order of creation.
    pub(super) number: u64,
    pub(super) id: KeyId,
    pub(super) value: Secret,
    /// Whether the key is purged unless it is kept alive.
    pub(super) keepalive: bool,
    pub(super) created_at: u64,
    pub(super) purge_at: Option<u64>,
    pub(super) state: State,
    /// Whether it is leased, and is quarantined when its lease ends, with `reason`.
    pub(super) draining: bool,
    pub(super) reason: Option<Box<str>>,
    pub(super) label: Option<Box<str>>,
}

#[derive(Clone)]
pub(super) enum State {
    Available,
    Leased(Lease),
    Resting(u64),
    Quarantined,
}

#[derive(Clone)]
pub(super) struct Lease {
    /// Known only to the holder.
    pub(super) id: LeaseId,
    pub(super) token: u64,
    pub(super) holder: Option<Box<str>>,
    pub(super) by: Principal,
    pub(super) granted_at: u64,
    pub(super) until: u64,
    pub(super) hold_until: u64,
    pub(super) rest: u64,
}

/// Returns the id of the lease that runs on a key.
pub(super) fn lease_id(key: &Key) -> Option<LeaseId> {
    if let State::Leased(lease) = &key.state { Some(lease.id) } else { None }
}

impl Key {
    pub(super) fn state(&self) -> KeyState {
        match self.state {
            State::Available => KeyState::Available,
            State::Leased(_) => KeyState::Leased,
            State::Resting(_) => KeyState::Resting,
            State::Quarantined => KeyState::Quarantined,
        }
    }
}

impl NaivePool {
    pub(super) fn new(number: u64, policy: Policy, feed: Feed) -> Self {
        Self {
            number,
            policy,
            keys: Vec::new(),
            waiters: VecDeque::new(),
            retired: HashMap::new(),
            answers: Vec::new(),
            ended: Vec::new(),
            feed: Arc::new(feed),
            events: Vec::new(),
            activity: PoolActivity::default(),
        }
    }

    /// Applies all that is due.
    pub(super) fn expire(&mut self, now: u64) {
        for index in 0..self.keys.len() {
            if let State::Leased(lease) = &self.keys[index].state
                && lease.until <= now
            {
                let held_ms = lease.until - lease.granted_at;
                let rest_until = Some(lease.until + lease.rest).filter(|until| *until > now);
                self.activity.count_expiry(held_ms * 1_000);
                self.end_lease(index, true, rest_until, None);
            }
            if matches!(self.keys[index].state, State::Resting(until) if until <= now) {
                self.free(index);
            }
        }
        let is_due = |key: &Key| key.purge_at.is_some_and(|at| at <= now);
        while let Some(index) = self.keys.iter().position(is_due) {
            self.activity.purges += 1;
            self.remove_key(index, true);
        }
        self.remove_expired_answers(now);
    }

    /// Returns all values that a new key must not have.
    pub(super) fn used_values(&self, allow_retired: bool) -> HashSet<Secret> {
        let present = self.keys.iter().map(|key| &key.value);
        let retired = self.retired.keys().filter(|_| !allow_retired);
        present.chain(retired).cloned().collect()
    }

    /// Restarts the keep-alive time of a key, unless it has none.
    pub(super) fn keep_alive(&mut self, index: usize, now: u64) {
        let key = &mut self.keys[index];
        if key.keepalive {
            key.purge_at = self.policy.keepalive_ttl_ms.map(|ms| now + ms);
        }
    }

    /// Refuses when the policy or the store does not allow that many more keys.
    pub(super) fn check_room(&self, count: usize, of_store: Room) -> Result<(), Refusal> {
        let total = (self.keys.len() + count) as u64;
        match self.policy.max_keys {
            Some(max) if total > max => Err(Refusal::PoolFull { max, of_server: false }),
            _ if count as u64 > of_store.left => {
                Err(Refusal::PoolFull { max: of_store.max, of_server: true })
            }
            _ => Ok(()),
        }
    }

    /// Adds keys, numbered after `last_number`; `import` has the options of an import.
    pub(super) fn add_keys(
        &mut self,
        (values, labels): (Vec<Secret>, &NewLabels),
        import: Option<ImportOptions>,
        last_number: &mut u64,
        now: u64,
    ) -> Vec<NewKey> {
        let (imported, keepalive) = (import.is_some(), import.unwrap_or_default().keepalive);
        let ttl_ms = self.policy.keepalive_ttl_ms.filter(|_| keepalive);
        let purge_at = ttl_ms.map(|ms| now + ms);
        let mut created = Vec::new();
        for (place, value) in values.into_iter().enumerate() {
            let label: Option<Box<str>> = labels.get(place).map(Into::into);
            *last_number += 1;
            let number = *last_number;
            // A value that comes back has its old id.
            let id = self.retired.get(&value).copied().unwrap_or(KeyId(number.into()));
            created.push(NewKey {
                id,
                value: value.clone(),
                created_at_ms: now,
                expires_at_ms: purge_at,
                label: label.clone(),
            });
            let (state, reason) = (State::Available, None);
            let created_at = now;
            self.keys.push(Key {
                number,
                id,
                value,
                keepalive,
                created_at,
                purge_at,
                state,
                draining: false,
                reason,
                label,
            });
        }
        for chunk in created.chunks(EVENT_KEYS_MAX) {
            let keys = chunk.iter().map(|key| key.id).collect();
            let labels: Arc<[_]> = chunk.iter().map(|key| key.label.clone()).collect();
            let labels = Some(labels).filter(|labels| labels.iter().any(Option::is_some));
            self.events.push(FeedEventKind::KeysCreated {
                imported,
                keys,
                labels,
                expires_at_ms: purge_at,
            });
        }
        created
    }

    /// Gives a key a label; an empty one is none.
    pub(super) fn set_label(&mut self, index: usize, label: Option<Box<str>>) {
        let label = label.filter(|label| !label.is_empty());
        let key = &mut self.keys[index];
        if key.label != label {
            let event_label = label.as_deref().map(Arc::from);
            self.events.push(FeedEventKind::Labelled { key: key.id, label: event_label });
            key.label = label;
        }
    }

    /// Leases an available key.
    pub(super) fn start_lease(&mut self, index: usize, lease: Lease, now: u64) -> LeaseView {
        let key = &mut self.keys[index];
        self.events.push(FeedEventKind::Granted {
            key: key.id,
            token: lease.token,
            holder: lease.holder.as_deref().map(Arc::from),
            label: key.label.as_deref().map(Arc::from),
            expires_at_ms: lease.until,
        });
        key.state = State::Leased(lease);
        key.lease_view(now).expect("just leased")
    }

    fn end_lease(
        &mut self,
        index: usize,
        by_time: bool,
        rest_until: Option<u64>,
        reason: Option<Box<str>>,
    ) {
        let cause = if by_time { EndCause::Expired } else { EndCause::Released };
        let (id, token) = self.note_lease_end(index, cause);
        let key = &mut self.keys[index];
        let rest_until = rest_until.filter(|_| !key.draining);
        let drained = key.draining.then(|| key.reason.take());
        key.draining = false;
        key.state = rest_until.map_or(State::Available, State::Resting);
        key.reason = reason.filter(|_| rest_until.is_some());
        self.events.push(FeedEventKind::LeaseEnded {
            by_time,
            key: id,
            token,
            rests_until_ms: rest_until,
            reason: key.reason.as_deref().map(Arc::from),
        });
        if let Some(reason) = drained {
            self.set_quarantined(index, None, reason);
        }
    }

    fn note_lease_end(&mut self, index: usize, cause: EndCause) -> (KeyId, u64) {
        let Key { id, state: State::Leased(lease), .. } = &self.keys[index] else {
            unreachable!("only a leased key has a lease")
        };
        self.ended.push((lease.id, *id, cause));
        (*id, lease.token)
    }

    /// Quarantines a key; `token` is that of the lease that this ends.
    fn set_quarantined(&mut self, index: usize, token: Option<u64>, reason: Option<Box<str>>) {
        let key = &mut self.keys[index];
        let event_reason = reason.as_deref().map(Arc::from);
        let was = key.state();
        self.events.push(FeedEventKind::Quarantined {
            key: key.id,
            was,
            token,
            reason: event_reason,
        });
        (key.state, key.draining, key.reason) = (State::Quarantined, false, reason);
    }

    /// Quarantines a key, or lets it drain; returns the holder of the lease that this ends.
    pub(super) fn quarantine(
        &mut self,
        index: usize,
        options: QuarantineOptions,
        now: u64,
    ) -> Option<Box<str>> {
        let key = &self.keys[index];
        let had_one = key.draining || matches!(key.state, State::Quarantined);
        let old = key.reason.clone().filter(|_| had_one);
        let reason = options.reason.filter(|reason| !reason.is_empty()).or_else(|| old.clone());
        let stays = had_one && reason == old;
        let State::Leased(lease) = &key.state else {
            if !stays {
                self.set_quarantined(index, None, reason);
            }
            return None;
        };
        let token = lease.token;
        if !options.when_free {
            let holder = self.holder(index);
            self.count_release(index, now);
            self.note_lease_end(index, EndCause::Released);
            self.set_quarantined(index, Some(token), reason);
            return holder;
        }
        if !stays {
            let event_reason = reason.as_deref().map(Arc::from);
            let key = &mut self.keys[index];
            self.events.push(FeedEventKind::Draining { key: key.id, token, reason: event_reason });
            (key.draining, key.reason) = (true, reason);
        }
        None
    }

    /// Puts a quarantined key back, or cancels the draining of a leased one.
    pub(super) fn end_quarantine(&mut self, index: usize) {
        let key = &mut self.keys[index];
        if let State::Leased(lease) = &key.state {
            if key.draining {
                let event = FeedEventKind::DrainCancelled { key: key.id, token: lease.token };
                self.events.push(event);
                (key.draining, key.reason) = (false, None);
            }
        } else if matches!(key.state, State::Quarantined) {
            self.free(index);
        }
    }

    /// Makes a resting or quarantined key available.
    fn free(&mut self, index: usize) {
        let key = &mut self.keys[index];
        self.events.push(FeedEventKind::KeyFreed { key: key.id, was: key.state() });
        (key.state, key.reason) = (State::Available, None);
    }

    pub(super) fn remove_key(&mut self, index: usize, by_time: bool) {
        if matches!(self.keys[index].state, State::Leased(_)) {
            self.note_lease_end(index, EndCause::KeyGone);
        }
        let key = self.keys.remove(index);
        self.events.push(FeedEventKind::KeyRemoved { by_time, key: key.id, was: key.state() });
        // Later keys with this value are other keys.
        let of_key = self.ended.iter_mut().filter(|(_, id, _)| *id == key.id);
        of_key.for_each(|(_, _, cause)| *cause = EndCause::KeyGone);
        self.retired.insert(key.value, key.id);
    }

    pub(super) fn find(&self, key: &KeyRef) -> Result<usize, Refusal> {
        let is_it = |found: &Key| match key {
            KeyRef::Id(id) => found.id == *id,
            KeyRef::Value(value) => found.value == *value,
        };
        self.keys.iter().position(is_it).ok_or(Refusal::UnknownKey)
    }

    /// Returns the index of the key with this running lease, or how the lease ended.
    pub(super) fn leased(&self, id: LeaseId) -> Result<usize, Refusal> {
        if let Some(index) = self.keys.iter().position(|key| lease_id(key) == Some(id)) {
            return Ok(index);
        }
        let ended = self.ended.iter().find(|(lease, ..)| *lease == id);
        let cause = ended.map(|(_, key, cause)| match self.find(&KeyRef::Id(*key)) {
            _ if *cause == EndCause::KeyGone => EndCause::KeyGone,
            Err(_) => EndCause::KeyGone,
            Ok(index) if lease_id(&self.keys[index]).is_some() && *cause == EndCause::Expired => {
                EndCause::Superseded
            }
            Ok(_) => *cause,
        });
        Err(Refusal::LeaseEnded { cause })
    }

    /// Returns the holder of a key's lease, if one runs.
    pub(super) fn holder(&self, index: usize) -> Option<Box<str>> {
        let State::Leased(lease) = &self.keys[index].state else { return None };
        lease.holder.clone()
    }

    pub(super) fn release(
        &mut self,
        id: LeaseId,
        options: &ReleaseOptions,
        now: u64,
    ) -> Result<Reply, Refusal> {
        options.check().map_err(Refusal::Invalid)?;
        let index = self.leased(id)?;
        let holder = self.holder(index);
        let reason = options.reason.clone().filter(|reason| !reason.is_empty());
        if options.quarantine {
            self.count_release(index, now);
            let (_, token) = self.note_lease_end(index, EndCause::Released);
            self.set_quarantined(index, Some(token), reason);
        } else {
            self.end_by_call(index, options.rest_ms, reason, now);
        }
        Ok(Reply::Released { holder })
    }

    /// Ends a lease by a call; the key rests as the lease's terms say unless `rest_ms` is given.
    fn end_by_call(
        &mut self,
        index: usize,
        rest_ms: Option<u64>,
        reason: Option<Box<str>>,
        now: u64,
    ) {
        let State::Leased(lease) = &self.keys[index].state else { unreachable!("it is leased") };
        let rest = rest_ms.unwrap_or(lease.rest);
        self.count_release(index, now);
        self.end_lease(index, false, (rest > 0).then_some(now + rest), reason);
    }

    fn count_release(&mut self, index: usize, now: u64) {
        let State::Leased(lease) = &self.keys[index].state else { unreachable!("it is leased") };
        self.activity.count_release((now - lease.granted_at) * 1_000);
    }

    /// Counts a refusal because no key was available.
    pub(super) fn count_refusal(&mut self, refusal: &Refusal) {
        if let Refusal::NoKey { cause, .. } = refusal {
            self.activity.count_refusal(*cause);
        }
    }

    /// Makes a key available, or lets it rest after a lease. Returns whether its state changed.
    pub(super) fn force_release(&mut self, index: usize, now: u64) -> bool {
        match self.keys[index].state {
            State::Available => return false,
            State::Leased(_) => self.end_by_call(index, None, None, now),
            State::Resting(_) | State::Quarantined => self.free(index),
        }
        true
    }

    pub(super) fn renew(
        &mut self,
        id: LeaseId,
        ttl_ms: Option<u64>,
        now: u64,
    ) -> Result<Reply, Refusal> {
        let index = self.leased(id)?;
        let ttl = self.policy.lease_ttl(ttl_ms).map_err(Refusal::Invalid)?;
        let key = &mut self.keys[index];
        let State::Leased(lease) = &mut key.state else { unreachable!("it is leased") };
        let until = (now + ttl).min(lease.hold_until);
        if now + ttl <= lease.until {
            return Ok(Reply::Renewed(Box::new(key.lease_view(now).expect("it is leased"))));
        }
        if until <= lease.until {
            return Err(Refusal::MaxHoldReached { expires_at_ms: lease.until });
        }
        lease.until = until;
        let (token, expires_at_ms) = (lease.token, until);
        self.events.push(FeedEventKind::Renewed { key: key.id, token, expires_at_ms });
        Ok(Reply::Renewed(Box::new(key.lease_view(now).expect("it is leased"))))
    }
}

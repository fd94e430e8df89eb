//! The clients of a simulation: they draw calls from what earlier replies contained. They lose
//! replies, cancel waits, use leases that ended long ago, and often act at the very instant of a
//! deadline.

use crate::support::{SeededRandom, SentCall};
use keypeg_core::{
    BodyDigest, ImportOptions, KeyId, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch,
    PoolFilter, PoolName, PoolPattern, QuarantineOptions, ReleaseOptions, Secret,
};
use keypeg_store::{Call, Reply};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What all clients together know.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    leases: Vec<(PoolName, LeaseId, KeyId)>,
    keys: Vec<(PoolName, KeyId, Secret)>,
    holders: u64,
    idempotency_keys: u64,
    /// Calls sent with an Idempotency-Key.
    idempotent_calls: Vec<SentCall>,
    /// Slots of acquires that may be in the wait queue.
    pub(crate) waiting: Vec<u32>,
    /// What each key's holder believes, by key.
    held: BTreeMap<KeyId, HeldKey>,
    /// When each call was sent, in true time, until its reply arrives.
    sent: BTreeMap<u32, u64>,
    pub(crate) behavior: ClientBehavior,
}

/// What a holder believes of its key, in true time.
#[derive(Debug)]
struct HeldKey {
    lease: LeaseId,
    value: Secret,
    /// The start of the turn that granted it.
    since_ms: u64,
    until_ms: u64,
}

/// What the clients of one simulation prefer to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientBehavior {
    /// The weight of each kind of call.
    pub(crate) weights: [u64; KINDS],
    pub(crate) waits: bool,
    /// One call in so many repeats a call that was sent with an Idempotency-Key.
    pub(crate) repeat_one_in: u64,
    /// Whether keys may be purged.
    pub(crate) purges: bool,
    pub(crate) keys_max: usize,
}

/// Kinds of calls.
pub(crate) const KINDS: usize = 20;
/// Most items of each kind that clients remember.
const KNOWN_MAX: usize = 40;

impl ClientBehavior {
    /// Draws weights: some calls are frequent, some never occur.
    pub(crate) fn draw(random: &mut SeededRandom, waits: bool, purges: bool) -> Self {
        // In the order of `Clients::new_call`.
        let usual = [10, 4, 30, 16, 8, 5, 4, 8, 3, 2, 3, 2, 2, 2, 1, 6, 4, 2];
        let weights = usual.map(|weight: u64| weight * [0, 1, 1, 2][random.below(4) as usize]);
        let repeat_one_in = [8, 20, 1 << 40][random.below(3) as usize];
        let keys_max = 4 + random.below(10) as usize;
        // Not drawn, so that the seeds of the stories draw the rest as before.
        let quarantines = [4, 2].map(|weight| weight * [0, 1, 1, 2][keys_max % 4]);
        let mut weights = [&weights[..], &quarantines].concat();
        for required in [0, 2] {
            weights[required] = weights[required].max(usual[required]);
        }
        let weights = weights.try_into().expect("a weight for each kind of call");
        Self { weights, waits, repeat_one_in, purges, keys_max }
    }
}

fn pick<T: Clone>(random: &mut SeededRandom, all: &[T]) -> Option<T> {
    // The latest items are the most interesting.
    let len = all.len() as u64;
    let distance = if random.below(2) == 0 {
        random.below(3.min(len.max(1)))
    } else {
        random.below(len.max(1))
    };
    all.len().checked_sub(1 + usize::try_from(distance).unwrap()).map(|index| all[index].clone())
}

fn pool(random: &mut SeededRandom) -> PoolName {
    let name = ["default", "default", "default", "a", "a", "b"][random.below(6) as usize];
    PoolName::parse(name).unwrap()
}

fn patch(random: &mut SeededRandom, purges: bool) -> PolicyPatch {
    let mut patch = PolicyPatch::default();
    let lease = 200 + random.below(40) * 50;
    if random.below(2) == 0 {
        patch.lease_ttl_ms = Some(lease);
    }
    if random.below(2) == 0 {
        patch.max_hold_ms = Some([None, Some(lease), Some(lease * 3)][random.below(3) as usize]);
    }
    if random.below(3) == 0 {
        patch.rest_ms = Some([0, 0, 100, 900][random.below(4) as usize]);
    }
    if random.below(2) == 0 && purges {
        patch.keepalive_ttl_ms =
            Some([None, Some(700 + random.below(30) * 100)][random.below(2) as usize]);
    } else if !purges {
        patch.keepalive_ttl_ms = Some(None);
    }
    if random.below(4) == 0 {
        patch.max_keys = Some([None, Some(6)][random.below(2) as usize]);
    }
    patch.draining = [None, None, Some(false), Some(true)][random.below(4) as usize];
    if random.below(6) == 0 {
        patch.key_prefix = Some(["", "k_"][random.below(2) as usize].into());
        patch.key_length = Some([20, 24][random.below(2) as usize]);
    }
    patch
}

fn label(random: &mut SeededRandom) -> Option<Box<str>> {
    [None, Some("a".into()), Some("a".into()), Some("b".into())][random.below(4) as usize].clone()
}

/// Returns the labels of new keys: mostly none.
fn labels(random: &mut SeededRandom) -> NewLabels {
    match random.below(4) {
        0 => NewLabels::Each(vec![label(random), None, label(random)]),
        1 => NewLabels::All("all".into()),
        _ => NewLabels::None,
    }
}

/// What a client does in a turn.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Call(SentCall),
    /// The client of a call that waits disconnects.
    Disconnect,
}

impl Action {
    /// Returns the call, if the action is one.
    pub(crate) fn call(&self) -> Option<&Call> {
        match self {
            Self::Call(sent) => Some(&sent.call),
            Self::Disconnect => None,
        }
    }
}

impl Clients {
    pub(crate) fn new(behavior: ClientBehavior) -> Self {
        Self { behavior, ..Self::default() }
    }

    /// Draws an action. `key_count` is the number of keys in all pools.
    pub(crate) fn new_action(&mut self, random: &mut SeededRandom, key_count: usize) -> Action {
        if random.below(self.behavior.repeat_one_in) == 0
            && let Some(mut sent) = pick(random, &self.idempotent_calls)
        {
            if random.below(12) == 0
                && let Some(idempotency) = &mut sent.idempotency
            {
                idempotency.body = BodyDigest(7);
            }
            return Action::Call(sent);
        }
        let Some(call) = self.fresh(random, key_count) else { return Action::Disconnect };
        let takes_idempotency_key =
            matches!(call, Call::Acquire { .. } | Call::Generate { .. } | Call::Import { .. });
        if !takes_idempotency_key || random.below(self.behavior.repeat_one_in / 2) > 0 {
            return Action::Call(call.into());
        }
        self.idempotency_keys += 1;
        let key = format!("i{}", self.idempotency_keys);
        let body = BodyDigest(u128::from(1_000 + self.idempotency_keys));
        let call = SentCall::with_key(&key, body, call);
        self.idempotent_calls.push(call.clone());
        let excess = self.idempotent_calls.len().saturating_sub(KNOWN_MAX);
        self.idempotent_calls.drain(..excess);
        Action::Call(call)
    }

    /// Draws a call; returns `None` for a disconnect.
    fn fresh(&mut self, random: &mut SeededRandom, key_count: usize) -> Option<Call> {
        let total: u64 = self.behavior.weights.iter().sum();
        let mut drawn = random.below(total);
        let kind = self.behavior.weights.iter().position(|weight| {
            let found = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            found
        });
        let (pool, name) = (pool(random), PoolName::parse("default").unwrap());
        Some(match kind.unwrap() {
            0 if key_count < self.behavior.keys_max => {
                let count = 1 + u32::try_from(random.below(4)).unwrap();
                Call::Generate { pool, count, labels: NewLabels::None }
            }
            1 if key_count < self.behavior.keys_max => {
                let (keepalive, allow_retired) = (random.below(3) > 0, random.below(4) == 0);
                let options = ImportOptions { keepalive, allow_retired };
                if random.below(3) == 0
                    && let Some((of, _, value)) = pick(random, &self.keys)
                {
                    // Any value that a client knows, also of a key that is gone.
                    let pool = if random.below(8) == 0 { pool } else { of };
                    let (values, labels) = (vec![value], labels(random));
                    return Some(Call::Import { pool, values, options, labels });
                }
                let value = |random: &mut SeededRandom| {
                    Secret::new(&format!("value-{}", random.below(12))).unwrap()
                };
                let values = (0..=random.below(3)).map(|_| value(random)).collect();
                Call::Import { pool, values, options, labels: labels(random) }
            }
            0..=2 => self.acquire(random, pool),
            3 => self.release(random, pool),
            4 => {
                let (pool, lease, _) = self.lease(random, pool);
                let ttl_ms = [None, Some(50), Some(400), Some(200 + random.below(40) * 50)];
                Call::Renew { pool, lease, ttl_ms: ttl_ms[random.below(4) as usize] }
            }
            5 => {
                let (pool, key) = self.key(random, pool);
                Call::ForceRelease { pool, key }
            }
            6 => {
                let (pool, key) = self.key(random, pool);
                Call::DeleteKey { pool, key }
            }
            7 => {
                let (pool, key) = self.key(random, pool);
                Call::KeepAlive { pool, key }
            }
            8 => {
                let keys = (0..random.below(5)).map(|_| self.any_key(random)).collect();
                Call::KeepAliveMany { pool, keys }
            }
            9 => Call::KeepAliveAll { pool },
            10 => {
                let patch = patch(random, self.behavior.purges);
                Call::PutPool { pool, patch: Box::new(patch) }
            }
            11 => Call::GetPool { pool },
            12 => {
                let limit = [1, 2, 1_000][random.below(3) as usize];
                let from = (random.below(3) == 0).then(|| pool.clone());
                let pattern = ["default", "b*", "c*", "*"][random.below(4) as usize];
                let pattern = PoolPattern::parse(pattern).expect("a pattern");
                let filter = PoolFilter::new(vec![pattern, PoolPattern::Exact(pool)]);
                let filter = (random.below(3) == 0).then(|| Arc::new(filter));
                Call::ListPools { from, limit, filter }
            }
            13 => {
                let states = [
                    None,
                    Some(KeyState::Available),
                    Some(KeyState::Leased),
                    Some(KeyState::Resting),
                    Some(KeyState::Quarantined),
                ];
                let state = states[random.below(5) as usize];
                let limit = [1, 3, 1_000][random.below(3) as usize];
                let label = if random.below(3) == 0 { label(random) } else { None };
                Call::ListKeys { pool, state, label, limit, cursor: None }
            }
            14 => Call::DeletePool {
                pool: if pool == name { PoolName::parse("b").unwrap() } else { pool },
            },
            15 => {
                let (pool, key) = self.key(random, pool);
                Call::GetKey { pool, key }
            }
            16 => {
                let (pool, key) = self.key(random, pool);
                Call::SetLabel { pool, key, label: label(random) }
            }
            18 => {
                let (pool, key) = self.key(random, pool);
                let (when_free, reason) = (random.below(4) > 0, label(random));
                Call::QuarantineKey { pool, key, options: QuarantineOptions { when_free, reason } }
            }
            19 => {
                let (pool, key) = self.key(random, pool);
                Call::EndQuarantine { pool, key }
            }
            _ => return None,
        })
    }

    fn acquire(&mut self, random: &mut SeededRandom, pool: PoolName) -> Call {
        self.holders += 1;
        let holder = Some(format!("h{}", self.holders).into());
        let ttl_ms =
            [None, None, Some(100), Some(300 + random.below(10) * 100)][random.below(4) as usize];
        let waits = self.behavior.waits && random.below(2) == 0;
        let wait_ms = if waits { 1 + random.below(40) * 50 } else { 0 };
        Call::Acquire { pool, ttl_ms, holder, wait_ms }
    }

    fn release(&mut self, random: &mut SeededRandom, pool: PoolName) -> Call {
        let (pool, lease, _) = self.lease(random, pool);
        let rest_ms = [None, None, Some(0), Some(300)][random.below(4) as usize];
        let quarantine = random.below(8) == 0;
        let reason = (random.below(3) == 0).then(|| "429".into());
        Call::Release { pool, lease, options: ReleaseOptions { rest_ms, quarantine, reason } }
    }

    /// Draws a lease that an earlier reply contained or, rarely, one that never existed.
    fn lease(&self, random: &mut SeededRandom, pool: PoolName) -> (PoolName, LeaseId, KeyId) {
        let known = if random.below(30) == 0 { None } else { pick(random, &self.leases) };
        let (of, lease, key) =
            known.unwrap_or((pool.clone(), LeaseId(u128::from(random.next())), KeyId(1)));
        // Occasionally through another pool.
        (if random.below(40) == 0 { pool } else { of }, lease, key)
    }

    fn key(&self, random: &mut SeededRandom, pool: PoolName) -> (PoolName, KeyRef) {
        match pick(random, &self.keys) {
            Some((of, id, value)) => {
                let key = if random.below(3) == 0 { KeyRef::Value(value) } else { KeyRef::Id(id) };
                (if random.below(40) == 0 { pool } else { of }, key)
            }
            None => (pool, KeyRef::Id(KeyId(u128::from(random.next())))),
        }
    }

    fn any_key(&self, random: &mut SeededRandom) -> KeyId {
        pick(random, &self.keys).map_or(KeyId(7), |(_, id, _)| id)
    }

    /// Records a call that is sent: a client that releases a key, or has it taken away, must no
    /// longer use it.
    pub(crate) fn send(&mut self, slot: u32, call: &Call, true_ms: u64) {
        self.sent.insert(slot, true_ms);
        if matches!(call, Call::Acquire { wait_ms: 1.., .. }) {
            self.waiting.push(slot);
        }
        self.take_keys_away(call);
    }

    /// Records that a call takes keys from their holders. Called when the call is sent, and again
    /// after its turn, because an earlier call of that turn may have granted the key.
    pub(crate) fn take_keys_away(&mut self, call: &Call) {
        let keys = &self.keys;
        self.held.retain(|key, held| !takes_away(keys, call, (*key, held)));
    }

    /// Records a delivered reply of a turn that started at `turn_start_ms` with these calls. Fails
    /// if a client receives a key that another client still believes to hold.
    pub(crate) fn receive<'a>(
        &mut self,
        slot: u32,
        reply: &Reply,
        turn_start_ms: u64,
        mut calls: impl Iterator<Item = &'a Call>,
    ) -> Result<(), String> {
        self.waiting.retain(|waiting| *waiting != slot);
        let sent_ms = self.sent.remove(&slot).unwrap_or(turn_start_ms);
        match reply {
            Reply::Granted { pool, lease, value, waited_ms, .. } => {
                let until_ms = sent_ms + waited_ms + lease.expires_in_ms;
                let since_ms = turn_start_ms;
                let held = HeldKey { lease: lease.id, value: value.clone(), since_ms, until_ms };
                let other = self.held.insert(lease.key_id, held);
                // Within one turn a key can be granted, taken away, and granted again.
                let mut was_taken_away = |other: &HeldKey| {
                    other.since_ms == turn_start_ms
                        && calls.any(|call| takes_away(&self.keys, call, (lease.key_id, other)))
                };
                if let Some(other) = other
                    && other.until_ms > turn_start_ms
                    && other.lease != lease.id
                    && !was_taken_away(&other)
                {
                    return Err(format!(
                        "two holders: {:?} holds {} until {}, {:?} received it at {turn_start_ms} \
                         (true time)",
                        other.lease, lease.key_id, other.until_ms, lease.id
                    ));
                }
                self.leases.push((pool.clone(), lease.id, lease.key_id));
                self.keys.push((pool.clone(), lease.key_id, value.clone()));
            }
            Reply::Renewed(lease) => {
                if let Some(held) = self.held.get_mut(&lease.key_id)
                    && held.lease == lease.id
                {
                    held.until_ms = sent_ms + lease.expires_in_ms;
                }
            }
            _ => {}
        }
        let excess = self.leases.len().saturating_sub(KNOWN_MAX);
        self.leases.drain(..excess);
        let excess = self.keys.len().saturating_sub(KNOWN_MAX);
        self.keys.drain(..excess);
        Ok(())
    }

    /// Records created keys: all clients know of them.
    pub(crate) fn learn(&mut self, pool: &PoolName, reply: &Reply) {
        if let Reply::Keys(keys) = reply {
            self.keys.extend(keys.iter().map(|key| (pool.clone(), key.id, key.value.clone())));
        }
    }

    /// Returns the calls that were sent with an Idempotency-Key.
    pub(crate) fn idempotent_calls(&self) -> &[SentCall] {
        &self.idempotent_calls
    }

    /// Forgets all open calls: the server ended, and no reply arrives any more.
    pub(crate) fn forget_open_calls(&mut self) {
        self.sent.clear();
        self.waiting.clear();
    }
}

/// Returns whether a call takes a key from the holder of this lease.
fn takes_away(
    keys: &[(PoolName, KeyId, Secret)],
    call: &Call,
    (key, held): (KeyId, &HeldKey),
) -> bool {
    match call {
        Call::Release { lease: released, .. } | Call::RevokeUndelivered { lease: released, .. } => {
            *released == held.lease
        }
        Call::ForceRelease { key: named, .. }
        | Call::QuarantineKey {
            key: named,
            options: QuarantineOptions { when_free: false, .. },
            ..
        }
        | Call::DeleteKey { key: named, .. } => match named {
            KeyRef::Id(id) => *id == key,
            KeyRef::Value(value) => keys.iter().any(|(_, id, known)| *id == key && known == value),
        },
        Call::DeletePool { .. } => true,
        // The party that brings a value back answers for holders that have not noticed that their
        // key was purged.
        Call::Import { values, options: ImportOptions { allow_retired: true, .. }, .. } => {
            values.contains(&held.value)
        }
        _ => false,
    }
}

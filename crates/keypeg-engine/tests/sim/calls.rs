//! What the clients of a simulation ask, by what they were told: they lose answers, leave the line,
//! come back with leases that ended long ago, and like to come at the very instant of a deadline.

use crate::model::itself;
use crate::support::SeededRandom;
use keypeg_engine::core::{
    BodyDigest, KeyId, KeyRef, KeyState, LeaseId, PolicyPatch, PoolName, ReleaseOptions, Secret,
};
use keypeg_engine::{Call, Reply};
use std::collections::BTreeMap;

/// What all clients together know.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    leases: Vec<(PoolName, LeaseId, KeyId)>,
    keys: Vec<(PoolName, KeyId, Secret)>,
    holders: u64,
    idempotency_keys: u64,
    /// What was asked under Idempotency-Keys.
    asked: Vec<Call>,
    /// Who may stand in line, by slot.
    pub(crate) waiting: Vec<u32>,
    /// By which lease, since when and until when each key's holder believes to have it, in true time.
    held: BTreeMap<KeyId, (LeaseId, u64, u64)>,
    /// When each call was sent, in true time, while its answer is open.
    sent: BTreeMap<u32, u64>,
    pub(crate) wish: AcquireOptions,
}

/// What the clients of one simulation like to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct AcquireOptions {
    /// How likely each kind of call is.
    pub(crate) weights: [u64; KINDS],
    pub(crate) waits: bool,
    /// One call in so many repeats one that was asked under an Idempotency-Key.
    pub(crate) once_one_in: u64,
    /// Keys may be purged.
    pub(crate) purges: bool,
    pub(crate) keys_max: usize,
}

/// Kinds of calls.
pub(crate) const KINDS: usize = 17;
/// Things clients know at most.
const KNOWN_MAX: usize = 40;

impl AcquireOptions {
    /// Draws a liking: some calls often, some never.
    pub(crate) fn draw(random: &mut SeededRandom, waits: bool, purges: bool) -> Self {
        // In the order of `Clients::call`.
        let usual = [10, 4, 30, 16, 8, 5, 4, 8, 3, 2, 3, 2, 2, 2, 1, 6, 2];
        let mut weights = usual.map(|weight: u64| weight * [0, 1, 1, 2][random.below(4) as usize]);
        for must in [0, 2] {
            weights[must] = weights[must].max(usual[must]);
        }
        let once_one_in = [8, 20, 1 << 40][random.below(3) as usize];
        Self { weights, waits, once_one_in, purges, keys_max: 4 + random.below(10) as usize }
    }
}

fn pick<T: Clone>(random: &mut SeededRandom, all: &[T]) -> Option<T> {
    // The latest are the most interesting.
    let len = all.len() as u64;
    let back = if random.below(2) == 0 {
        random.below(3.min(len.max(1)))
    } else {
        random.below(len.max(1))
    };
    all.len().checked_sub(1 + usize::try_from(back).unwrap()).map(|at| all[at].clone())
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
    if random.below(6) == 0 {
        patch.key_prefix = Some(["", "k_"][random.below(2) as usize].into());
        patch.key_length = Some([16, 20][random.below(2) as usize]);
    }
    patch
}

impl Clients {
    pub(crate) fn wishing(wish: AcquireOptions) -> Self {
        Self { wish, ..Self::default() }
    }

    /// Draws a call. `keys` is how many there are.
    pub(crate) fn call(&mut self, random: &mut SeededRandom, keys: usize) -> Call {
        if random.below(self.wish.once_one_in) == 0
            && let Some(Call::Idempotent { key, body, call }) = pick(random, &self.asked)
        {
            // Now and then with another body.
            let body = if random.below(12) == 0 { BodyDigest(7) } else { body };
            return Call::Idempotent { key, body, call };
        }
        let call = self.fresh(random, keys);
        let once =
            matches!(call, Call::Acquire { .. } | Call::Generate { .. } | Call::Import { .. });
        if !once || random.below(self.wish.once_one_in / 2) > 0 {
            return call;
        }
        self.idempotency_keys += 1;
        let key = format!("i{}", self.idempotency_keys).into();
        let body = BodyDigest(u128::from(1_000 + self.idempotency_keys));
        let call = Call::Idempotent { key, body, call: Box::new(call) };
        self.asked.push(call.clone());
        let many = self.asked.len().saturating_sub(KNOWN_MAX);
        self.asked.drain(..many);
        call
    }

    fn fresh(&mut self, random: &mut SeededRandom, keys: usize) -> Call {
        let all: u64 = self.wish.weights.iter().sum();
        let mut at = random.below(all);
        let kind = self.wish.weights.iter().position(|weight| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (pool, name) = (pool(random), PoolName::parse("default").unwrap());
        match kind.unwrap() {
            0 if keys < self.wish.keys_max => {
                let count = 1 + u32::try_from(random.below(4)).unwrap();
                Call::Generate { pool, count }
            }
            1 if keys < self.wish.keys_max => {
                let value = |random: &mut SeededRandom| {
                    Secret::new(&format!("value-{}", random.below(12))).unwrap()
                };
                let values = (0..=random.below(3)).map(|_| value(random)).collect();
                Call::Import { pool, values }
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
                let patch = patch(random, self.wish.purges);
                Call::PutPool { pool, patch }
            }
            11 => Call::GetPool { pool },
            12 => Call::ListPools,
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
                Call::ListKeys { pool, state, limit, cursor: None }
            }
            14 => Call::DeletePool {
                pool: if pool == name { PoolName::parse("b").unwrap() } else { pool },
            },
            15 => {
                let (pool, key) = self.key(random, pool);
                Call::GetKey { pool, key }
            }
            _ => Call::CancelWait,
        }
    }

    fn acquire(&mut self, random: &mut SeededRandom, pool: PoolName) -> Call {
        self.holders += 1;
        let holder = Some(format!("h{}", self.holders).into());
        let ttl_ms =
            [None, None, Some(100), Some(300 + random.below(10) * 100)][random.below(4) as usize];
        let waits = self.wish.waits && random.below(2) == 0;
        let wait_ms = if waits { 1 + random.below(40) * 50 } else { 0 };
        Call::Acquire { pool, ttl_ms, holder, wait_ms }
    }

    fn release(&mut self, random: &mut SeededRandom, pool: PoolName) -> Call {
        let (pool, lease, _) = self.lease(random, pool);
        let rest_ms = [None, None, Some(0), Some(300)][random.below(4) as usize];
        let quarantine = random.below(8) == 0;
        let reason = (random.below(3) == 0).then(|| "429".into());
        Call::Release { pool, lease, verdict: ReleaseOptions { rest_ms, quarantine, reason } }
    }

    /// A lease that was told of once, or, rarely, one that never was.
    fn lease(&self, random: &mut SeededRandom, pool: PoolName) -> (PoolName, LeaseId, KeyId) {
        let known = if random.below(30) == 0 { None } else { pick(random, &self.leases) };
        let (of, lease, key) =
            known.unwrap_or((pool.clone(), LeaseId(u128::from(random.next())), KeyId(1)));
        // Now and then by way of another pool.
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

    /// Notes what is sent: whoever gives a key back, or has it taken away, may no longer use it.
    pub(crate) fn send(&mut self, slot: u32, call: &Call, true_ms: u64) {
        if !matches!(call, Call::CancelWait) {
            self.sent.insert(slot, true_ms);
        }
        if matches!(itself(call), Call::Acquire { wait_ms: 1.., .. }) {
            self.waiting.push(slot);
        }
        self.give_up(call);
    }

    /// Notes that a call takes keys from whoever holds them. To be said when it is sent, and again
    /// after its turn, in which the key may have been lent before it.
    pub(crate) fn give_up(&mut self, call: &Call) {
        match call {
            Call::Release { lease, .. } | Call::RevokeUndelivered { lease, .. } => {
                self.held.retain(|_, (held, ..)| held != lease);
            }
            Call::ForceRelease { key: KeyRef::Id(id), .. }
            | Call::DeleteKey { key: KeyRef::Id(id), .. } => {
                self.held.remove(id);
            }
            Call::ForceRelease { key: KeyRef::Value(value), .. }
            | Call::DeleteKey { key: KeyRef::Value(value), .. } => {
                for (_, id, _) in self.keys.iter().filter(|(_, _, known)| known == value) {
                    self.held.remove(id);
                }
            }
            Call::DeletePool { .. } => self.held.clear(),
            _ => {}
        }
    }

    /// Takes an answer that was received, to a turn that began at `begun_ms`: nobody may be given a
    /// key while another has been told that it is his.
    pub(crate) fn receive(
        &mut self,
        slot: u32,
        reply: &Reply,
        (begun_ms, takes): (u64, bool),
    ) -> Result<(), String> {
        self.waiting.retain(|waiting| *waiting != slot);
        let sent_ms = self.sent.remove(&slot).unwrap_or(begun_ms);
        match reply {
            Reply::Granted { pool, lease, value, waited_ms, .. } => {
                let until = sent_ms + waited_ms + lease.expires_in_ms;
                // Within one turn a key can be lent, taken away, and lent again.
                let taken = |since: u64| takes && since == begun_ms;
                if let Some((other, since, held)) =
                    self.held.insert(lease.key_id, (lease.id, begun_ms, until))
                    && held > begun_ms
                    && other != lease.id
                    && !taken(since)
                {
                    return Err(format!(
                        "two holders: {other:?} was told it holds {} until {held}, {:?} got it at \
                         {begun_ms} (true time)",
                        lease.key_id, lease.id
                    ));
                }
                self.leases.push((pool.clone(), lease.id, lease.key_id));
                self.keys.push((pool.clone(), lease.key_id, value.clone()));
            }
            Reply::Renewed(lease) => {
                if let Some((holder, _, until)) = self.held.get_mut(&lease.key_id)
                    && *holder == lease.id
                {
                    *until = sent_ms + lease.expires_in_ms;
                }
            }
            _ => {}
        }
        let many = self.leases.len().saturating_sub(KNOWN_MAX);
        self.leases.drain(..many);
        let many = self.keys.len().saturating_sub(KNOWN_MAX);
        self.keys.drain(..many);
        Ok(())
    }

    /// Notes keys that were made: all clients know of them.
    pub(crate) fn learn(&mut self, pool: &PoolName, reply: &Reply) {
        if let Reply::Keys(keys) = reply {
            self.keys.extend(keys.iter().map(|key| (pool.clone(), key.id, key.value.clone())));
        }
    }

    /// The server ended: no answer comes any more.
    pub(crate) fn cut_off(&mut self) {
        self.sent.clear();
        self.waiting.clear();
    }
}

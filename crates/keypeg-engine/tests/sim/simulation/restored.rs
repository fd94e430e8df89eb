//! A server that is restored from a backup while the original stays stopped: it has every key of the
//! backup, lends none that the original may have lent, and its tokens are above all of the original's.
//!
//! Its clock and disk are its own. Until the holds end no grant is right, so it needs no model.

use super::Simulation;
use super::backups::{SavedBackup, hold_ms};
use super::reached_states;
use crate::clocks::SimClock;
use crate::model::{self, Checked, Model, ensure};
use crate::support::sim_disk::{CrashAt, SimDisk};
use crate::support::{SeededRandom, SentCall, list_pools};
use keypeg_core::{
    ImportOptions, KeyRef, KeyState, KeyView, NewLabels, NoKeyCause, PolicyPatch, PoolName,
    RESTORED_HOLDER, Refusal, Secret,
};
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{CallId, EngineState, JournalSizes};
use keypeg_engine::{EngineConfig, RestoreError, RestoreOptions, SealOptions, restore_onto};
use keypeg_store::{Call, PoolView, Reply, RequestError};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A token above all that a simulation reaches, for a clock that no restore accepts.
const TOKEN_FLOOR: u64 = 7_000_000_000_000_000;

/// The restored server.
struct Restored {
    disk: SimDisk,
    clock: SimClock,
    random: SeededRandom,
    config: EngineConfig,
    sizes: JournalSizes,
    process: Option<(EngineState, Checkpointer)>,
}

impl Restored {
    /// Starts it, after the power was cut if it has run before.
    fn start(&mut self) -> Checked {
        if self.process.take().is_some() {
            self.disk.end_process();
            self.disk.cut_power(&mut self.random);
            self.clock.reboot(self.random.below(5_000));
        }
        let random = Box::new(SeededRandom(self.random.next()));
        let disk = Arc::new(self.disk.clone());
        let clock = Box::new(self.clock.clone());
        let opened = EngineState::open(Some(disk), self.sizes, &self.config, clock, random);
        let (mut engine, _) = opened.map_err(|error| format!("a start is refused: {error}"))?;
        let checkpointer = engine.take_checkpointer().ok_or("no checkpointer")?;
        self.process = Some((engine, checkpointer));
        Ok(())
    }

    /// Checks that a draining pool grants no key, and lets it grant keys again.
    fn end_drain(&mut self, pool: &PoolName) -> Checked {
        let reply = self.call(acquire(pool))?;
        let is_draining = matches!(
            reply,
            Reply::Refused(RequestError::Refused(Refusal::NoKey {
                cause: NoKeyCause::Draining,
                ..
            }))
        );
        ensure!(is_draining, "the pool drains: {reply:?}");
        let patch = PolicyPatch { draining: Some(false), ..PolicyPatch::default() };
        let reply = self.call(Call::PutPool { pool: pool.clone(), patch: Box::new(patch) })?;
        ensure!(matches!(reply, Reply::Pool { .. }), "the drain is not undone: {reply:?}");
        Ok(())
    }

    /// Sends one call, and runs turns until it is answered.
    fn call(&mut self, call: impl Into<SentCall>) -> Checked<Reply> {
        let (engine, checkpointer) = self.process.as_mut().expect("started");
        let request = call.into().into_request(reached_states::principal());
        let mut queue = VecDeque::from([(CallId { lane: 0, slot: 1 }, request.into())]);
        let mut replies = Vec::new();
        for _ in 0..100 {
            let played = engine.turn(&mut queue, &mut replies);
            played.map_err(|error| format!("a turn fails: {error}"))?;
            if let Some((_, reply)) = replies.pop() {
                engine.pools().check_invariants();
                return Ok(reply);
            }
            while checkpointer.step().map_err(|error| error.to_string())? {}
            checkpointer.serve_lookups().map_err(|error| error.to_string())?;
        }
        Err("a call gets no reply".into())
    }

    fn pools(&mut self) -> Checked<Vec<PoolView>> {
        match self.call(list_pools())? {
            Reply::Pools(page) if page.next.is_none() => Ok(page.pools),
            other => Err(format!("no list of all pools: {other:?}")),
        }
    }

    fn keys(&mut self, pool: &PoolName) -> Checked<Vec<KeyView>> {
        let (mut keys, mut cursor) = (Vec::new(), None);
        loop {
            let call = Call::ListKeys {
                pool: pool.clone(),
                state: None,
                limit: 1_000,
                cursor,
                label: None,
            };
            let Reply::Page(page) = self.call(call)? else { return Err("no list of keys".into()) };
            keys.extend(page.keys);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(keys);
            }
        }
    }
}

impl Simulation {
    /// Restores a backup and plays with the restored server.
    pub(super) fn restore(
        &mut self,
        saved: &SavedBackup,
        longest_ms: u64,
        mut random: SeededRandom,
    ) -> Checked {
        self.note("a backup is restored");
        let clock = self.clock.apart(random.below(2) == 0);
        let policies = || saved.models.iter().flat_map(|model| model.pools.values());
        let holds = || policies().map(|pool| hold_ms(&pool.policy));
        // An operator gives a longer hold if a pool's leases may have become longer since.
        let given_ms =
            (holds().min() < Some(longest_ms)).then(|| holds().fold(longest_ms, u64::max));
        if given_ms.is_some() {
            self.coverage.count("a restore got the length of its holds");
        }
        let options = RestoreOptions {
            hold_us: given_ms.map(|ms| ms * 1_000),
            token_floor: None,
            wall_ms: clock.wall_ms(),
            seal: saved.seal.clone(),
        };
        let disk = self.restored_disk(saved, options, &mut random)?;
        let seal = saved.seal.clone().map(|keys| SealOptions { keys, seals_existing: false });
        let config = EngineConfig { seal, ..self.config() };
        // Time passes until the first start: the holds begin there.
        clock.advance([0, 700, 90_000][random.below(3) as usize]);
        let (sizes, first_ms) = (self.plan.sizes, clock.true_ms());
        let mut server = Restored { disk, clock, random, config, sizes, process: None };
        server.start()?;
        let held_until = |pool: &PoolView| first_ms + given_ms.unwrap_or(hold_ms(&pool.policy));
        let pools = server.pools()?;
        let holds: BTreeMap<_, _> =
            pools.iter().map(|pool| (pool.name.clone(), held_until(pool))).collect();
        check_keys(&mut server, saved, &holds)?;
        self.coverage.count("a server was restored");
        self.check_holds(&mut server, &holds)?;
        self.check_after_holds(&mut server)
    }

    /// Returns the disk of a restored directory. Some restores are cut, and then repeated.
    fn restored_disk(
        &mut self,
        saved: &SavedBackup,
        mut options: RestoreOptions,
        random: &mut SeededRandom,
    ) -> Checked<SimDisk> {
        let mut disk = SimDisk::new();
        if random.below(4) == 0 {
            let (operation, after) = (random.below(40), random.below(2) == 0);
            disk.crash_at(Some(CrashAt { operation, after }));
        }
        for _ in 0..3 {
            let onto: Arc<dyn Disk> = Arc::new(disk.clone());
            let mut source = SeededRandom(random.next());
            let bytes = &mut &saved.bytes[..];
            match restore_onto(bytes, &onto, "restored", options.clone(), &mut source) {
                Err(_) if disk.has_crashed() => {
                    self.coverage.count("a restore was interrupted");
                    disk = disk.after_crash(random);
                    disk.crash_at(None);
                }
                // A restore that was interrupted can have been complete.
                Ok(_) | Err(RestoreError::NotEmpty(_)) => return Ok(disk),
                Err(RestoreError::Tokens(_)) if self.plan.wall_steps => {
                    self.coverage.count("a restore got its first token");
                    options.token_floor = Some(TOKEN_FLOOR);
                }
                Err(error) => return Err(format!("a restore is refused: {error}")),
            }
        }
        Err("a restore needs more than three attempts".into())
    }

    /// Until the holds end no key is lent, over crashes and reboots too.
    fn check_holds(&mut self, server: &mut Restored, holds: &BTreeMap<PoolName, u64>) -> Checked {
        let mut repeated: Vec<_> = self.clients.idempotent_calls().to_vec();
        repeated.retain_mut(|sent| {
            let Call::Acquire { wait_ms, .. } = &mut sent.call else { return false };
            *wait_ms = 0;
            true
        });
        repeated.truncate(3);
        let mut ends_ms: Vec<u64> = holds.values().copied().collect();
        ends_ms.sort_unstable();
        ends_ms.dedup();
        for end_ms in ends_ms {
            for last in [false, false, true] {
                let left_ms = end_ms.saturating_sub(1 + server.clock.true_ms());
                let ms = if last { left_ms } else { server.random.below(left_ms + 1) };
                server.clock.advance(ms);
                if server.random.below(6) == 0 {
                    server.start()?;
                }
                let now_ms = server.clock.true_ms();
                for (pool, _) in holds.iter().filter(|(_, held_until_ms)| now_ms < **held_until_ms)
                {
                    let again =
                        repeated.iter().filter(|sent| model::pool_of(&sent.call) == Some(pool));
                    for sent in again.cloned().chain([acquire(pool).into()]) {
                        let reply = server.call(sent)?;
                        ensure!(
                            matches!(reply, Reply::Refused(_)),
                            "a held key is lent at {now_ms}, held until {}: {reply:?}",
                            holds[pool]
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// All holds end, and then keys are lent that the original has not lent, with greater tokens.
    fn check_after_holds(&mut self, server: &mut Restored) -> Checked {
        let pools = server.pools()?.into_iter().map(|pool| (pool.name, pool.policy.draining));
        let pools: Vec<_> = pools.collect();
        let mut last_token = self.token;
        for (name, is_draining) in pools {
            let mut turns = 0;
            let available = loop {
                let keys = server.keys(&name)?;
                let is_held =
                    |key: &KeyView| matches!(key.state, KeyState::Leased | KeyState::Resting);
                if !keys.iter().any(is_held) {
                    break keys.iter().filter(|key| key.state == KeyState::Available).count();
                }
                turns += 1;
                ensure!(turns < 200, "the holds do not end: {keys:?}");
                server.clock.advance(1_000);
            };
            if available == 0 {
                continue;
            }
            if is_draining {
                server.end_drain(&name)?;
            }
            let reply = server.call(acquire(&name))?;
            let Reply::Granted { lease, .. } = reply else {
                return Err(format!("{available} keys are available, and none is lent: {reply:?}"));
            };
            ensure!(
                lease.token > last_token,
                "its token {} is not above {last_token}, which the original has granted",
                lease.token
            );
            last_token = lease.token;
            let (now_ms, lent_until_ms) =
                (server.clock.true_ms(), self.backups.lent_until_ms(lease.key_id));
            ensure!(
                now_ms >= lent_until_ms,
                "two holders: the original lent {} until {lent_until_ms}, now is {now_ms}",
                lease.key_id
            );
            self.coverage.count("a restored server lent a key after its holds");
        }
        Ok(())
    }
}

fn acquire(pool: &PoolName) -> Call {
    Call::Acquire { pool: pool.clone(), ttl_ms: None, holder: None, wait_ms: 0 }
}

/// Checks that the restored server has the data of one of the models, and nothing else.
fn check_keys(
    server: &mut Restored,
    saved: &SavedBackup,
    holds: &BTreeMap<PoolName, u64>,
) -> Checked {
    let mut why = Err("no model".into());
    for model in &saved.models {
        why = check_model(server, model, holds);
        if why.is_ok() {
            return why;
        }
    }
    why
}

fn check_model(server: &mut Restored, model: &Model, holds: &BTreeMap<PoolName, u64>) -> Checked {
    let views = server.pools()?;
    let names: Vec<_> = views.iter().map(|view| view.name.as_str()).collect();
    ensure!(model.pools.keys().eq(&names), "its pools are {names:?}, not {:?}", model.pools.keys());
    for view in &views {
        let pool = &model.pools[view.name.as_str()];
        ensure!(view.policy == pool.policy, "the policy of {:?} differs: {view:?}", view.name);
        let keys = server.keys(&view.name)?;
        let missing: Vec<_> = pool.keys.iter().filter_map(|key| key.id).collect();
        let missing: Vec<_> =
            missing.iter().filter(|id| !keys.iter().any(|key| key.id == **id)).collect();
        ensure!(missing.is_empty(), "keys of {:?} are missing: {missing:?}", view.name);
        ensure!(
            keys.len() == pool.keys.len(),
            "{:?} has {} keys, not {}",
            view.name,
            keys.len(),
            pool.keys.len()
        );
        let (wall_ms, true_ms) = (server.clock.wall_ms(), server.clock.true_ms());
        let held_until_ms = wall_ms + holds[&view.name] - true_ms;
        for key in &keys {
            let ttl = pool.policy.keepalive_ttl_ms.filter(|_| key.keepalive);
            ensure!(
                key.expires_at_ms == ttl.map(|ttl| wall_ms + ttl),
                "it has not its full keep-alive time at {wall_ms}: {key:?}"
            );
            let Some(known) = pool.keys.iter().find(|known| known.id == Some(key.id)) else {
                continue;
            };
            check_key(server, (&view.name, key), known, held_until_ms)?;
        }
        check_retired(server, (&view.name, pool))?;
    }
    Ok(())
}

fn check_key(
    server: &mut Restored,
    (pool, key): (&PoolName, &KeyView),
    known: &model::Key,
    held_until_ms: u64,
) -> Checked {
    ensure!(key.keepalive == known.keepalive, "another key: {key:?}, not {known:?}");
    let reply = server.call(Call::Reveal { pool: pool.clone(), key: KeyRef::Id(key.id) })?;
    let Reply::Revealed { value, .. } = reply else {
        return Err(format!("no value of {key:?}: {reply:?}"));
    };
    ensure!(
        known.value.as_deref().is_none_or(|known| known == value.reveal()),
        "another value: {key:?}, not {known:?}"
    );
    if let model::State::Quarantined { reason } = &known.state {
        ensure!(
            key.state == KeyState::Quarantined && key.reason.as_deref() == reason.as_deref(),
            "it is no longer quarantined: {key:?}"
        );
        return Ok(());
    }
    if known.drain.is_some() && key.state == KeyState::Quarantined {
        // Its lease ended before the restore.
        return Ok(());
    }
    ensure!(key.draining == known.drain.is_some(), "draining as in {known:?}: {key:?}");
    let holder = key.lease.as_ref().and_then(|lease| lease.holder.as_deref());
    let is_held = key.state == KeyState::Leased
        && holder == Some(RESTORED_HOLDER)
        && key.lease.as_ref().is_some_and(|lease| lease.expires_at_ms >= held_until_ms);
    let rests = key.state == KeyState::Resting && key.rests_until_ms >= Some(held_until_ms);
    ensure!(is_held || rests, "it is not held until {held_until_ms}: {key:?}");
    Ok(())
}

/// The value of a key that was gone at the backup is still refused.
fn check_retired(server: &mut Restored, (name, pool): (&PoolName, &model::Pool)) -> Checked {
    let Some((value, _)) = pool.retired.first_key_value() else { return Ok(()) };
    let values = vec![Secret::new(value).expect("a value that was accepted")];
    let options = ImportOptions { keepalive: false, allow_retired: false };
    let reply = server.call(Call::Import {
        pool: name.clone(),
        values,
        options,
        labels: NewLabels::None,
    })?;
    let is_refused =
        matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeyExists { index: 0 })));
    ensure!(is_refused, "a retired value is accepted: {reply:?}");
    Ok(())
}

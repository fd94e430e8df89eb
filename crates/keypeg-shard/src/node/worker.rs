//! The thread of one shard: it follows the shard's log, takes the shard over when it should, and
//! serves it until another server owns it. Each time it lives with one replica.
//!
//! Invariant: a life that has failed is followed by a pause, so that no fault of the log, of the
//! scratch files or of the memory makes this thread read the shard again and again.

use super::clock::{now, passed_since, sleep};
use super::options::NodeOptions;
use super::snapshots::{Tenure, write_snapshots};
use super::thread_wait::{ClockPatience, ParkingExecutor};
use super::view::{Decision, View};
use crate::follower::{EngineOptions, FollowError, FollowOptions, Follower, Progress};
use crate::ownership::shard_of_pool;
use keypeg_core::{PoolName, RandomSource};
use keypeg_engine::{ReplicaConfig, ReplicaError, ShardEnd, ShardEngine};
use keypeg_log::{LogError, Shard};
use keypeg_store::{EngineLane, RequestError, ShardRole};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The pause after an error.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// A shard that is lost earlier than this may be lost again at once, such as by scratch files that
/// cannot be written.
const SHORT_TENURE: Duration = Duration::from_secs(5);
/// Frames after which a replica is made again from a newer snapshot, if there is one: what has ended
/// by time stays in a replica.
const FRAMES_MAX: u64 = 500_000;
/// What an error says that has come back from the newest snapshot.
const FRAMES_LOST: &str = "the newest snapshot does not help: the store has lost frames that no snapshot \
    contains. Restore the store, or a backup into an empty store";
/// The shortest time between two questions for the end of a log that is far ahead.
const ASK_PAUSE: Duration = Duration::from_secs(2);
/// The time between two looks at the heartbeats of the owner.
const HEARTBEAT_PAUSE: Duration = Duration::from_secs(1);
/// The shortest time between two looks at the log that requests have asked for.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// The thread of one shard.
pub(super) struct Worker {
    pub(super) shard: Shard,
    pub(super) options: Arc<NodeOptions>,
    pub(super) view: Arc<View>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) lanes: Vec<EngineLane>,
    pub(super) random: Box<dyn RandomSource + Send>,
}

/// How the life of a replica has ended.
enum LifeEnd {
    Stopping,
    /// Another one begins at the newest snapshot.
    Again,
}

impl Worker {
    /// Runs until the node stops.
    pub(super) fn run(mut self) {
        self.view.shard(self.shard).wakeup.listen();
        let mut last_error = String::new();
        loop {
            match self.live() {
                Ok(LifeEnd::Stopping) => break,
                Ok(LifeEnd::Again) => last_error.clear(),
                Err(error) => {
                    let text = error.to_string();
                    // A log that was trimmed meanwhile is read again without trouble.
                    if !matches!(error, FollowError::BeginAgain { .. }) {
                        let is_brief = matches!(error, FollowError::Log(LogError::Unavailable(_)));
                        self.note_error(&text, is_brief);
                    } else if text == last_error {
                        self.note_error(&format!("{text}; {FRAMES_LOST}"), false);
                    } else {
                        tracing::info!(shard = %self.shard, "{text}");
                    }
                    last_error = text;
                    self.pause(PAUSE_AFTER_ERROR);
                }
            }
            if self.is_stopping() {
                break;
            }
        }
        self.lanes.iter().for_each(EngineLane::close_inbox);
        for lane in &mut self.lanes {
            lane.refuse(&RequestError::ShuttingDown);
            lane.close_outbox();
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Shows why the shard cannot be followed, and logs it when it is another reason than before.
    fn note_error(&self, text: &str, is_brief: bool) {
        if self.view.shard(self.shard).facts().note_error(text, is_brief) {
            tracing::warn!(shard = %self.shard, "a shard cannot be followed: {text}");
        }
    }

    /// Shows why the shard was not taken over, until it has an owner. Usually another server was faster.
    fn note_failed_takeover(&self, error: &FollowError) {
        let shard = self.shard;
        if error.is_taken() {
            tracing::info!(%shard, "the shard was not taken over: {error}");
        } else if self.view.shard(shard).facts().note_failed_takeover(error.to_string()) {
            tracing::warn!(%shard, "a shard cannot be taken over: {error}");
        }
    }

    /// Lives with one replica.
    fn live(&mut self) -> Result<LifeEnd, FollowError> {
        for lane in &mut self.lanes {
            lane.refuse(&RequestError::NotOwner);
        }
        let mut follower = self.begin()?;
        let mut asked = None;
        loop {
            if self.is_stopping() {
                return Ok(LifeEnd::Stopping);
            }
            let progress = follower.follow()?;
            self.publish(&follower, progress);
            if progress == Progress::Behind {
                self.ask_for_end(&mut asked);
                follower.checkpointer().step()?;
                continue;
            }
            while follower.checkpointer().step()? {}
            follower.count_bytes();
            if follower.applied() >= FRAMES_MAX && self.has_newer_snapshot(&follower)? {
                return Ok(LifeEnd::Again);
            }
            let noise = self.noise();
            match self.view.decide(self.shard, noise) {
                // The log may have grown since: a takeover needs its end.
                Decision::TakeOver if progress == Progress::NearEnd => {}
                Decision::TakeOver => return self.own(follower),
                Decision::Wait(_) | Decision::Follow => self.wait_for_frames(),
            }
        }
    }

    fn begin(&mut self) -> Result<Follower<ParkingExecutor>, FollowError> {
        let options = &*self.options;
        let scratch_error = |error| FollowError::Replica(ReplicaError::Scratch(error));
        let follow = FollowOptions {
            log: Arc::clone(&options.log),
            identity: &options.identity,
            replica: ReplicaConfig {
                shard: self.shard.get(),
                max_keys: options.max_keys,
                memory: options.memory,
                memory_max: options.memory_max,
                cache: options.cache,
                sizes: options.sizes,
                seal: options.seal.clone(),
                on_a_thread: false,
                metrics: Arc::clone(&options.metrics),
            },
            scratch: (options.scratch)(self.shard.get()).map_err(scratch_error)?,
        };
        let follower = Follower::begin(follow, ParkingExecutor, &mut *self.random)?;
        let mut facts = self.view.shard(self.shard).facts();
        (facts.role, facts.begun) = (ShardRole::Loading, now());
        (facts.owner, facts.is_released, facts.at_end) = (None, false, None);
        (facts.position, facts.snapshot) = (follower.tail().position, follower.began_at());
        facts.end = facts.end.max(facts.position);
        Ok(follower)
    }

    fn publish(&self, follower: &Follower<ParkingExecutor>, progress: Progress) {
        let mut facts = self.view.shard(self.shard).facts();
        if facts.owner.as_deref() != follower.owner() {
            facts.owner = follower.owner().map(str::to_owned);
        }
        facts.is_released = follower.is_released();
        facts.position = follower.tail().position;
        facts.note_takeover(follower.taken_over_at());
        if facts.is_at_end(progress) {
            facts.role = ShardRole::Following;
            facts.note_end();
            facts.error.clear();
        }
    }

    /// Asks where the log ends, now and then while this server is far behind: operators see how much
    /// is left to read.
    fn ask_for_end(&self, asked: &mut Option<Instant>) {
        let at_end = self.view.shard(self.shard).facts().at_end;
        let is_near = |at: Instant| passed_since(at) < 3 * self.options.follow_every;
        if at_end.is_some_and(is_near) || asked.is_some_and(|at| passed_since(at) < ASK_PAUSE) {
            return;
        }
        *asked = Some(now());
        if let Ok(tail) = keypeg_log::wait(self.options.log.tail(self.shard)) {
            self.view.shard(self.shard).facts().end = tail.position;
        }
    }

    fn has_newer_snapshot(
        &self,
        follower: &Follower<ParkingExecutor>,
    ) -> Result<bool, FollowError> {
        let snapshots = keypeg_log::wait(self.options.log.snapshots(self.shard));
        let newest = snapshots.map_err(FollowError::Log)?.last().map_or(0, |it| it.id.at.position);
        Ok(newest > follower.began_at() + FRAMES_MAX / 2)
    }

    /// Takes the shard over and serves it.
    fn own(&mut self, follower: Follower<ParkingExecutor>) -> Result<LifeEnd, FollowError> {
        let options = Arc::clone(&self.options);
        let began = now();
        let default_pool = PoolName::default_pool();
        let has_default = shard_of_pool(default_pool.as_str(), options.identity.shards());
        let engine = EngineOptions {
            clock: (options.clock)(),
            random: (options.random)(),
            default_policy: (has_default == self.shard).then(|| options.default_policy.clone()),
        };
        let snapshot = follower.began_at();
        let server = options.server.clone();
        let (view, stopping) = (Arc::clone(&self.view), Arc::clone(&self.stopping));
        let patience = ClockPatience::new(Arc::clone(&options.metrics), view, stopping, self.shard);
        let taken = follower.take_over(server, patience, (options.random)(), engine);
        let (state, tails) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.note_failed_takeover(&error);
                // At different times, so that two servers do not hinder each other for long.
                let pause = PAUSE_AFTER_ERROR.mul_f64(self.noise());
                if error.is_taken() {
                    self.rest(pause);
                } else {
                    self.pause(PAUSE_AFTER_ERROR + pause);
                }
                return Ok(LifeEnd::Again);
            }
        };
        let wakeup = &self.view.shard(self.shard).wakeup;
        let scratch_error = |error| FollowError::Replica(ReplicaError::Scratch(error));
        let engine = ShardEngine::start(state, wakeup).map_err(scratch_error)?;
        let control = engine.control();
        if self.is_stopping() {
            control.hand_over();
        }
        let tenure = Arc::new(Tenure::new(self.shard, engine.last_batch(), tails, snapshot));
        let is_pinned = self.view.is_moved_here(self.shard);
        {
            let mut facts = self.view.shard(self.shard).facts();
            facts.owner = Some(options.server.to_string());
            (facts.is_released, facts.vacant_since) = (false, None);
            facts.position = tenure.position();
            facts.note_end();
            facts.note_takeover(tenure.position());
            facts.error.clear();
            facts.takeover_error.clear();
            facts.is_pinned = is_pinned;
        }
        self.view.set_here(self.shard, Some(control.clone()));
        self.lanes.iter_mut().for_each(EngineLane::accept);
        tracing::info!(shard = %self.shard, position = tenure.position(),
            took_ms = passed_since(began).as_millis(), "this server owns the shard");
        let snapshots = self.start_snapshots(control, Arc::clone(&tenure));
        let (view, shard, mut is_lost) = (&self.view, self.shard, false);
        let owned_since = now();
        engine.run(&mut self.lanes, |end| {
            view.set_here(shard, None);
            tenure.end();
            match end {
                ShardEnd::Released => {
                    view.shard(shard).facts().is_released = true;
                    tracing::info!(%shard, "this server has handed the shard over");
                }
                ShardEnd::Lost(error) => {
                    is_lost = true;
                    tracing::warn!(%shard, %error, "this server has lost the shard");
                }
            }
        });
        if let Some(thread) = snapshots {
            thread.thread().unpark();
        }
        if is_lost && passed_since(owned_since) < SHORT_TENURE {
            self.lanes.iter_mut().for_each(|lane| lane.refuse(&RequestError::NotOwner));
            self.pause(PAUSE_AFTER_ERROR);
        }
        Ok(if self.is_stopping() { LifeEnd::Stopping } else { LifeEnd::Again })
    }

    fn start_snapshots(
        &self,
        control: keypeg_engine::ShardControl,
        tenure: Arc<Tenure>,
    ) -> Option<thread::JoinHandle<()>> {
        let (options, view) = (Arc::clone(&self.options), Arc::clone(&self.view));
        let run = move || write_snapshots(&options, &view, &control, &tenure);
        let spawned: io::Result<_> =
            thread::Builder::new().name("keypeg-snapshot".into()).spawn(run);
        spawned
            .inspect_err(|error| tracing::error!(%error, "no thread for the snapshots of a shard"))
            .ok()
    }

    /// Waits until the log is to be read again: after the usual time while another server owns the
    /// shard, because a request asks for it, or because the shard seems to have no owner.
    fn wait_for_frames(&mut self) {
        let began = now();
        loop {
            let left = self.options.follow_every.saturating_sub(passed_since(began));
            let noise = self.noise();
            let is_due = match self.view.decide(self.shard, noise) {
                Decision::TakeOver => return,
                Decision::Wait(wait) => {
                    self.rest(left.min(wait));
                    true
                }
                Decision::Follow => left.is_zero() || self.rest(left.min(HEARTBEAT_PAUSE)),
            };
            if is_due {
                break;
            }
        }
        // Requests that are refused ask again and again.
        sleep(LOOK_PAUSE.saturating_sub(passed_since(began)));
    }

    /// Waits for this time; returns earlier, and `true`, when this thread is woken.
    fn rest(&self, at_most: Duration) -> bool {
        let wakeup = &self.view.shard(self.shard).wakeup;
        let until = now() + at_most;
        while !wakeup.take() {
            let left = until.saturating_duration_since(now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
        true
    }

    /// Waits for this time, whatever wakes this thread, unless the node stops.
    fn pause(&self, time: Duration) {
        let until = now() + time;
        while !self.is_stopping() && self.rest(until.saturating_duration_since(now())) {}
    }

    /// Returns a random number from 0 to 1.
    fn noise(&mut self) -> f64 {
        let mut bytes = [0; 2];
        self.random.fill(&mut bytes);
        f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX)
    }
}

//! Running nodes on one log in memory: they take over, hand over and fence each other by the real
//! clock.

mod backups;
mod faults;
#[path = "../../../keypeg-engine/tests/support/sim_disk.rs"]
#[expect(dead_code, reason = "the crashes of a disk are tested with the engine")]
mod sim_disk;
mod watched_log;

use super::clock::{now, passed_since, sleep};
use super::{Beat, LOOK_PAUSE, Node, NodeError, NodeOptions, NodeView, Steward};
use keypeg_core::{Policy, PoolName};
use keypeg_engine::state::JournalSizes;
use keypeg_engine::{Clock, ClockReading, ShardIdentity};
use keypeg_log::memory::MemoryLog;
use keypeg_log::{Guarantee, Heartbeat, LogError, ServerName, Shard, SharedLog};
use keypeg_store::{
    Call, Cluster, CoreLanes, MoveError, Place, Principal, Reply, Request, RequestError, ShardRole,
    Store,
};
use keypeg_testkit::SeededRandom;
use sim_disk::SimDisk;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use watched_log::{BeforeRead, Watched};

const SHARDS: u16 = 4;
/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_mins(1);

struct RealClock(Instant);

impl Clock for RealClock {
    fn read(&mut self) -> ClockReading {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap();
        let boot_us = 1_000_000 + us(passed_since(self.0));
        ClockReading { boot_us, boot_id: 1, wall_us: 1_795_000_000_000_000 + boot_us }
    }
}

static SEEDS: AtomicU64 = AtomicU64::new(1);

fn random() -> SeededRandom {
    SeededRandom(SEEDS.fetch_add(1, Ordering::Relaxed) * 7_919)
}

/// A node with one lane for each shard.
struct Server {
    node: Box<Node>,
    view: Arc<NodeView>,
    lanes: CoreLanes,
}

impl Server {
    fn start(name: &str, log: Arc<dyn SharedLog>, identity: &ShardIdentity) -> Self {
        Self::try_start(name, log, identity).unwrap()
    }

    fn try_start(
        name: &str,
        log: Arc<dyn SharedLog>,
        identity: &ShardIdentity,
    ) -> Result<Self, NodeError> {
        Self::start_with(name, log, identity, Duration::from_millis(30))
    }

    fn start_with(
        name: &str,
        log: Arc<dyn SharedLog>,
        identity: &ShardIdentity,
        follow_every: Duration,
    ) -> Result<Self, NodeError> {
        let options = NodeOptions {
            log,
            store: "memory".into(),
            identity: identity.clone(),
            server: ServerName::new(name).unwrap(),
            address: format!("http://{name}:1"),
            has_tokens: false,
            lanes: 1,
            default_policy: Policy { keepalive_ttl_ms: None, ..Policy::default() },
            max_keys: 10_000,
            memory: 64 << 20,
            memory_max: 64 << 20,
            cache: 1 << 20,
            sizes: JournalSizes { segment: 64 << 10, journal: 256 << 10 },
            seal: None,
            follow_every,
            snapshot_after: 20_000,
            scratch: Box::new(|_| Ok(Arc::new(SimDisk::new()))),
            clock: Box::new(|| Box::new(RealClock(now()))),
            random: Box::new(|| Box::new(random())),
            metrics: Arc::default(),
        };
        let (node, mut cores) = Node::start(options)?;
        let lanes = cores.pop().unwrap();
        for lane in &lanes.shards {
            let lane = lane.clone();
            std::thread::spawn(move || keypeg_log::wait(lane.run_delivery()));
        }
        Ok(Self { view: node.view(), node: Box::new(node), lanes })
    }

    /// Sends a call to the shard of its pool once.
    fn call_once(&self, pool: &PoolName, call: Call) -> Reply {
        let lane = &self.lanes.shards[self.view.shard_of(pool)];
        keypeg_log::wait(lane.submit(Request::new(Principal::Anyone, call)))
    }

    fn call(&self, pool: &PoolName, call: &Call) -> Reply {
        wait_for("an answer of the owner", || {
            let reply = self.call_once(pool, call.clone());
            let is_elsewhere = matches!(reply, Reply::Refused(RequestError::NotOwner));
            (!is_elsewhere).then_some(reply)
        })
    }

    fn owned(&self) -> usize {
        let status = self.view.status();
        status.shards.iter().filter(|shard| shard.role == ShardRole::Owner).count()
    }

    fn stop(self) {
        self.node.stop();
    }
}

fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let began = now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(passed_since(began) < DEADLINE, "{what}: not within {DEADLINE:?}");
        sleep(Duration::from_millis(5));
    }
}

fn installation(log: &Arc<dyn SharedLog>) -> ShardIdentity {
    let proposed = ShardIdentity::create(SHARDS, None, 1_000, &mut random());
    let stored = keypeg_log::wait(log.installation(&proposed.bytes())).unwrap();
    ShardIdentity::read(&stored).unwrap()
}

fn pool() -> PoolName {
    PoolName::default_pool()
}

fn generate(server: &Server, count: u32) {
    let reply = server.call(
        &pool(),
        &Call::Generate { pool: pool(), count, labels: keypeg_core::NewLabels::None },
    );
    assert!(matches!(reply, Reply::Keys(_)), "{reply:?}");
}

fn acquire(wait_ms: u64) -> Call {
    Call::Acquire { pool: pool(), ttl_ms: Some(60_000), holder: None, wait_ms }
}

fn token(reply: &Reply) -> u64 {
    let Reply::Granted { lease, .. } = reply else { panic!("{reply:?}") };
    lease.token
}

#[test]
fn a_second_node_goes_on_when_the_first_has_stopped() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    wait_for("all shards", || (first.owned() == usize::from(SHARDS)).then_some(()));
    generate(&first, 2);
    let before = token(&first.call(&pool(), &acquire(0)));
    let second = Server::start("two", Arc::clone(&log), &identity);
    let shard = second.view.shard_of(&pool());
    let refused = second.call_once(&pool(), acquire(0));
    assert!(matches!(refused, Reply::Refused(RequestError::NotOwner)), "{refused:?}");
    wait_for("the place of the shard", || match second.view.place(shard) {
        Place::There(peer) => {
            assert_eq!((&*peer.name, &*peer.address), ("one", "http://one:1"));
            Some(())
        }
        Place::Here | Place::Unknown => None,
    });
    first.stop();
    let after = token(&second.call(&pool(), &acquire(0)));
    assert!(after > before, "{after} after {before}");
    let none_left = second.call(&pool(), &acquire(0));
    assert!(matches!(none_left, Reply::Refused(RequestError::Refused(_))), "{none_left:?}");
    wait_for("all shards", || (second.owned() == usize::from(SHARDS)).then_some(()));
    assert_eq!(second.view.place(shard), Place::Here);
    second.stop();
}

#[test]
fn a_node_that_another_one_does_not_see_is_fenced_and_answers_nothing_wrong() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    generate(&first, 3);
    let before = token(&first.call(&pool(), &acquire(0)));
    // It waits in line at the first node when the shard goes.
    let shard = first.view.shard_of(&pool());
    let waiting = {
        let call =
            Call::Acquire { pool: pool(), ttl_ms: Some(60_000), holder: None, wait_ms: 60_000 };
        for _ in 0..2 {
            token(&first.call(&pool(), &acquire(0)));
        }
        first.lanes.shards[shard].submit(Request::new(Principal::Anyone, call))
    };
    let second =
        Server::start("two", Arc::new(Watched::alone(Arc::clone(&log), Arc::default())), &identity);
    wait_for("all shards", || (second.owned() == usize::from(SHARDS)).then_some(()));
    // The first node does not know it yet: its next turn is refused by the log.
    let late = first.call_once(&pool(), Call::ListPools { from: None, limit: 10, filter: None });
    assert!(
        matches!(late, Reply::Refused(RequestError::OutcomeUnknown | RequestError::NotOwner)),
        "{late:?}"
    );
    let waited = keypeg_log::wait(waiting);
    assert!(matches!(waited, Reply::Refused(RequestError::NotOwner)), "{waited:?}");
    let none_left = second.call(&pool(), &acquire(0));
    assert!(matches!(none_left, Reply::Refused(RequestError::Refused(_))), "{none_left:?}");
    generate(&second, 1);
    let after = token(&second.call(&pool(), &acquire(0)));
    assert!(after > before + 2, "{after} after {before}");
    // The first sees the heartbeat of the second, and leaves the shards to it.
    wait_for("the place", || matches!(first.view.place(shard), Place::There(_)).then_some(()));
    first.stop();
    second.stop();
}

/// Two servers of one name would take each other's shards again and again.
#[test]
fn a_second_server_of_one_name_does_not_start_while_the_first_runs() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    wait_for("all shards", || (first.owned() == usize::from(SHARDS)).then_some(()));
    let refused = Server::try_start("one", Arc::clone(&log), &identity).err();
    let Some(NodeError::NameInUse { server, address }) = refused else { panic!("{refused:?}") };
    assert_eq!((&*server, &*address), ("one", "http://one:1"));
    assert_eq!(first.owned(), usize::from(SHARDS), "the first one goes on");
    first.stop();
    // A clean stop removes the heartbeat.
    Server::start("one", log, &identity).stop();
}

/// A paused server must not replace the heartbeat of the later one before it has looked at it: then it
/// would see only its own.
#[test]
fn a_server_sends_no_heartbeat_once_a_later_one_has_its_name() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let later = Server::start("one", Arc::clone(&log), &identity);
    let NodeView { options, view, stopping, .. } = &*later.view;
    let (options, view, stopping) = (options.clone(), view.clone(), stopping.clone());
    let mut paused = Steward { options, view, stopping, count: 0, start: 1 };
    let outcome = paused.beat().unwrap();
    assert!(matches!(&outcome, Beat::NameInUse { address } if address == "http://one:1"));
    let stored = keypeg_log::wait(log.heartbeats()).unwrap();
    assert!(stored.len() == 1 && stored[0].count > 1, "{stored:?}");
    later.stop();
}

/// Both find no heartbeat before either has sent one. Both ran, and took each other's shards.
#[test]
fn one_of_two_servers_of_one_name_that_start_at_the_same_time_goes_on() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let meeting = Arc::new(Barrier::new(2));
    let start = || {
        let mut watched = Watched::new(Arc::clone(&log));
        watched.meeting = Some(Arc::clone(&meeting));
        let identity = identity.clone();
        std::thread::spawn(move || Server::try_start("one", Arc::new(watched), &identity))
    };
    let [first, second] = [start(), start()].map(|start| start.join().unwrap());
    let (one, refused) = match (first, second) {
        (Ok(one), Err(refused)) | (Err(refused), Ok(one)) => (one, refused),
        (first, second) => panic!("{} of two started", [first, second].iter().flatten().count()),
    };
    assert!(matches!(refused, NodeError::NameInUse { .. }), "{refused:?}");
    wait_for("all shards", || (one.owned() == usize::from(SHARDS)).then_some(()));
    one.stop();
}

/// The other one finds no heartbeat either, but its own first one comes a little later.
#[test]
fn a_server_does_not_start_when_one_of_its_name_starts_shortly_after_it() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let mut watched = Watched::new(Arc::clone(&log));
    let name = ServerName::new("one").unwrap();
    let other = Heartbeat::new(name, "http://other:1", u64::from(u32::MAX) + 9).unwrap();
    watched.later = Some((now() + LOOK_PAUSE, other));
    let refused = Server::try_start("one", Arc::new(watched), &identity).err();
    let Some(NodeError::NameInUse { address, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(address, "http://other:1");
}

#[test]
fn a_shard_moves_by_hand_and_stays() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    let second = Server::start("two", Arc::clone(&log), &identity);
    let shard = first.view.shard_of(&pool());
    generate(&first, 1);
    wait_for("the other server", || first.view.move_shard(shard, "two").is_ok().then_some(()));
    wait_for("the shard", || (second.view.place(shard) == Place::Here).then_some(()));
    let status = wait_for("the mark", || {
        let status = first.view.status().shards.swap_remove(shard);
        (status.owner.as_deref() == Some("two")).then_some(status)
    });
    assert_eq!(status.role, ShardRole::Following);
    assert!(second.view.move_shard(shard, "three").is_err());
    assert!(matches!(first.view.move_shard(shard, "two"), Err(MoveError::NotOwner(_))));
    assert!(first.view.move_shard(usize::from(SHARDS), "two").is_err());
    let reply = second.call(&pool(), &acquire(0));
    assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    second.stop();
    wait_for("the shard again", || (first.view.place(shard) == Place::Here).then_some(()));
    first.stop();
}

/// Otherwise this server would hand the shard over again each time that it has it back.
#[test]
fn a_shard_that_the_other_server_does_not_take_over_comes_back_and_stays() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    wait_for("all shards", || (first.owned() == usize::from(SHARDS)).then_some(()));
    // The second server follows the shards, and the log refuses each of its takeovers.
    let refusing = Watched::alone(log, Arc::new(AtomicBool::new(true)));
    let second = Server::start("two", Arc::new(refusing), &identity);
    wait_for("the other server", || first.view.move_shard(0, "two").is_ok().then_some(()));
    wait_for("the hand-over", || (first.view.place(0) != Place::Here).then_some(()));
    wait_for("the shard", || (first.view.place(0) == Place::Here).then_some(()));
    assert!(!first.view.is_moving(0, "two"));
    second.stop();
    first.stop();
}

/// A follower that reads on while the owner appends reads each frame by itself, and keeps the store
/// busy with that.
#[test]
fn a_follower_of_a_busy_shard_reads_its_log_at_the_usual_times_only() {
    const LOOKS: u64 = 20;
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Arc::new(Server::start("one", Arc::clone(&log), &identity));
    let shard = first.view.shard_of(&pool());
    generate(&first, 1_000);
    first.view.move_shard(shard, "one").expect("the owner keeps the shard");
    // Each read of the follower finds one more grant.
    let (is_busy, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let before_read = {
        let (owner, is_busy, reads) =
            (Arc::clone(&first), Arc::clone(&is_busy), Arc::clone(&reads));
        move || {
            if is_busy.load(Ordering::Acquire) && reads.fetch_add(1, Ordering::AcqRel) < 500 {
                token(&owner.call(&pool(), &acquire(0)));
            }
        }
    };
    let mut watched = Watched::new(Arc::clone(&log));
    watched.before_read = BeforeRead(Some(Arc::new(before_read)));
    // It does not read again by itself.
    let never = Duration::from_hours(1);
    let second = Server::start_with("two", Arc::new(watched), &identity, never).unwrap();
    wait_for("the ends of the logs", || {
        let mut status = second.view.status().shards.into_iter();
        status.all(|shard| shard.role == ShardRole::Following).then_some(())
    });
    is_busy.store(true, Ordering::Release);
    // Each look makes one read. A follower that reads on makes hundreds meanwhile.
    let mut found = 0;
    for _ in 0..LOOKS {
        second.view.look(shard);
        found = wait_for("a read", || {
            Some(reads.load(Ordering::Acquire)).filter(|reads| *reads > found)
        });
    }
    is_busy.store(false, Ordering::Release);
    assert!(found <= 2 * LOOKS, "{LOOKS} looks made {found} reads");
    // The heartbeats show that the owner has left: the follower reads what it lacks.
    let last = token(&first.call(&pool(), &acquire(0)));
    first.node.cancel_waits();
    let after = token(&second.call(&pool(), &acquire(0)));
    assert!(after > last, "{after} after {last}");
    second.stop();
}

#[test]
fn an_owner_writes_snapshots_at_which_a_new_server_begins() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let identity = installation(&log);
    let first = Server::start("one", Arc::clone(&log), &identity);
    generate(&first, 20);
    let shard = first.view.shard_of(&pool());
    let held: Vec<u64> = (0..5).map(|_| token(&first.call(&pool(), &acquire(0)))).collect();
    // Two snapshots, since the log is trimmed below the newest but one.
    let newest = |above: u64| {
        wait_for("a snapshot", || {
            token(&first.call(&pool(), &acquire(0)));
            release_newest(&first);
            let snapshot = first.view.status().shards[shard].snapshot;
            (snapshot > above).then_some(snapshot)
        })
    };
    newest(newest(0));
    wait_for("the trim", || {
        let read = keypeg_log::wait(log.read(Shard::new(u16::try_from(shard).unwrap()), 0, 1));
        matches!(read, Err(LogError::Hole { .. })).then_some(())
    });
    let second = Server::start("two", Arc::clone(&log), &identity);
    first.stop();
    let after = token(&second.call(&pool(), &acquire(0)));
    assert!(after > *held.last().unwrap());
    let Reply::Pool { pool: view, .. } = second.call(&pool(), &Call::GetPool { pool: pool() })
    else {
        panic!("the pool exists")
    };
    assert_eq!((view.counts.leased, view.counts.available), (6, 14));
    second.stop();
}

/// Releases the lease with the greatest token.
fn release_newest(server: &Server) {
    let list = Call::ListKeys { pool: pool(), state: None, limit: 100, cursor: None, label: None };
    let Reply::Page(page) = server.call(&pool(), &list) else { panic!("a page") };
    let newest = page.keys.iter().max_by_key(|key| key.lease.as_ref().map(|lease| lease.token));
    let key = keypeg_core::KeyRef::Id(newest.unwrap().id);
    let reply = server.call(&pool(), &Call::ForceRelease { pool: pool(), key });
    assert!(matches!(reply, Reply::KeyReleased { .. }), "{reply:?}");
}

/// "Not applied" on the word of a server that does not know would make its client repeat a change.
#[test]
fn the_outcome_of_a_change_whose_append_was_refused_is_unknown_and_a_waiter_was_not_served() {
    let log: Arc<dyn SharedLog> = Arc::new(MemoryLog::new(Guarantee::Chained));
    let (identity, refuses) = (installation(&log), Arc::<AtomicBool>::default());
    let server =
        Server::start("one", Arc::new(Watched::alone(log, Arc::clone(&refuses))), &identity);
    generate(&server, 1);
    token(&server.call(&pool(), &acquire(0)));
    let lane = &server.lanes.shards[server.view.shard_of(&pool())];
    let waiting = lane.submit(Request::new(Principal::Anyone, acquire(60_000)));
    refuses.store(true, Ordering::Relaxed);
    let lost = server.call_once(&pool(), Call::KeepAliveAll { pool: pool() });
    assert!(matches!(lost, Reply::Refused(RequestError::OutcomeUnknown)), "{lost:?}");
    let waited = keypeg_log::wait(waiting);
    assert!(matches!(waited, Reply::Refused(RequestError::NotOwner)), "{waited:?}");
    refuses.store(false, Ordering::Relaxed);
    generate(&server, 1);
    server.stop();
}

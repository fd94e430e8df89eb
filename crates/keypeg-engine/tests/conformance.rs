//! The conformance suite of every store: scripts of requests and their replies, sent through a
//! lane to the embedded engine (in memory) and to a naive store.
//!
//! A line is `call -> answer`. The answer is its first word and some of its fields; a line names
//! the fields that it checks, and a line without an answer must not be refused. Tokens count from
//! 1 within a script.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod naive_store;
mod support;

use keypeg_core::{
    ImportOptions, KeyId, KeyRef, KeyState, LeaseId, Policy, PolicyPatch, PoolName, Refusal,
    ReleaseOptions, Secret,
};
use keypeg_engine::state::CallId;
use keypeg_store::{
    Call, CallSlot, Caller, EngineLane, Lane, PendingReply, Principal, Reply, Request,
    RequestError, Wakeup, lane,
};
use naive_store::NaiveStore;
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use support::{Driver, ManualClock, engine_config};

/// A store whose time the test moves.
trait TestStore {
    /// Moves all clocks; at most a second at once.
    fn advance_ms(&mut self, ms: u64);
    /// Answers all that the lane has queued.
    fn run(&mut self, lane: &mut EngineLane);
}

impl TestStore for NaiveStore {
    fn advance_ms(&mut self, ms: u64) {
        self.now += ms;
    }

    fn run(&mut self, lane: &mut EngineLane) {
        NaiveStore::run(self, std::slice::from_mut(lane));
    }
}

impl TestStore for Driver {
    fn advance_ms(&mut self, ms: u64) {
        self.clock.advance_ms(ms);
    }

    fn run(&mut self, lane: &mut EngineLane) {
        let (mut items, mut replies) = (VecDeque::new(), Vec::new());
        lane.take(|CallSlot(slot), item| items.push_back((CallId { lane: 0, slot }, item)));
        self.engine.turn(&mut items, &mut replies).unwrap();
        for (call_id, reply) in replies {
            lane.answer(CallSlot(call_id.slot), reply);
        }
        lane.flush();
    }
}

/// Runs a script on each store.
#[track_caller]
fn check(script: &str) {
    let engine = Driver::open_with(None, &ManualClock::new(), 1, &engine_config()).unwrap();
    Script::new("engine", Box::new(engine)).run(script);
    let naive = NaiveStore::new(Policy::default(), Arc::default());
    Script::new("naive store", Box::new(naive)).run(script);
}

struct Script {
    store_name: &'static str,
    store: Box<dyn TestStore>,
    lane: Lane,
    engine_lane: EngineLane,
    pool: PoolName,
    keys: HashMap<String, KeyId>,
    values: HashMap<String, Secret>,
    leases: HashMap<String, (LeaseId, KeyId)>,
    waits: HashMap<String, PendingReply>,
    first_token: Option<u64>,
    last_token: u64,
}

impl Script {
    fn new(store_name: &'static str, store: Box<dyn TestStore>) -> Self {
        let (lane, engine_lane) = lane(&Wakeup::default());
        Self {
            store_name,
            store,
            lane,
            engine_lane,
            pool: PoolName::default_pool(),
            keys: HashMap::new(),
            values: HashMap::new(),
            leases: HashMap::new(),
            waits: HashMap::new(),
            first_token: None,
            last_token: 0,
        }
    }

    #[track_caller]
    fn run(mut self, script: &str) {
        for line in script.lines().map(|line| line.split('#').next().unwrap().trim()) {
            if line.is_empty() {
                continue;
            }
            let (call, expected) = line.split_once("->").unwrap_or((line, ""));
            let words: Vec<&str> = call.split_whitespace().collect();
            let answer = self.execute(words[0], &words[1..]);
            let is_refused = answer.is_err();
            let answer = answer.unwrap_or_else(|refusal| refusal);
            let fields: Vec<&str> = answer.split_whitespace().collect();
            let mut expected = expected.split_whitespace();
            let fits = match expected.next() {
                None => !is_refused,
                Some(first) => fields[0] == first && expected.all(|field| fields.contains(&field)),
            };
            assert!(fits, "{}: {line}\n   answered: {answer}\n{script}", self.store_name);
        }
    }

    /// Runs the store, then passes its replies to their calls.
    fn turn(&mut self) {
        // Twice: the lane may revoke a grant that no call receives.
        for _ in 0..2 {
            self.store.run(&mut self.engine_lane);
            let delivery = pin!(self.lane.run_delivery());
            assert!(delivery.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
    }

    fn call(&mut self, by: Principal, call: Call) -> Reply {
        let mut pending = self.lane.submit(Request { by, call });
        self.turn();
        match poll(&mut pending) {
            Poll::Ready(reply) => reply,
            Poll::Pending => panic!("{}: no reply", self.store_name),
        }
    }

    fn execute(&mut self, verb: &str, args: &[&str]) -> Result<String, String> {
        let (pool, name) = (self.pool.clone(), args.first().copied().unwrap_or_default());
        let ms = |field: &str| arg(args, field).map(millis);
        let call = match verb {
            "tick" => {
                let mut left = millis(name);
                while left > 0 {
                    self.store.advance_ms(left.min(1_000));
                    left -= left.min(1_000);
                    self.turn();
                }
                return Ok("done".into());
            }
            "in" => {
                self.pool = PoolName::parse(name).unwrap();
                return Ok("done".into());
            }
            "wait" => {
                let call = Call::Acquire {
                    pool,
                    ttl_ms: ms("ttl="),
                    holder: arg(args, "holder=").map(Into::into),
                    wait_ms: ms("for=").unwrap(),
                };
                let pending = self.lane.submit(Request { by: Principal::Anyone, call });
                self.waits.insert(name.into(), pending);
                self.turn();
                return Ok("sent".into());
            }
            "leave" => {
                drop(self.waits.remove(name));
                self.turn();
                return Ok("done".into());
            }
            "got" => {
                return match poll(self.waits.get_mut(name).unwrap()) {
                    Poll::Pending => Ok("nothing".into()),
                    Poll::Ready(reply) => self.text(name, args, reply),
                };
            }
            "put" => {
                let patch = PolicyPatch {
                    lease_ttl_ms: ms("lease_ttl="),
                    max_hold_ms: ms("max_hold=").map(Some),
                    rest_ms: ms("rest="),
                    max_keys: arg(args, "max_keys=").map(|max| Some(max.parse().unwrap())),
                    ..PolicyPatch::default()
                };
                Call::PutPool { pool, patch }
            }
            "drop" => Call::DeletePool { pool: PoolName::parse(name).unwrap() },
            "counts" => Call::GetPool { pool },
            "generate" => Call::Generate { pool, count: u32::try_from(args.len()).unwrap() },
            "import" => {
                let (no_keepalive, allow_retired) = ("keepalive=false", "allow_retired");
                let is_value = |arg: &&&str| ![no_keepalive, allow_retired].contains(*arg);
                let values = args.iter().filter(is_value).map(|arg| self.value(arg)).collect();
                let keepalive = !args.contains(&no_keepalive);
                let allow_retired = args.contains(&allow_retired);
                let options = ImportOptions { keepalive, allow_retired };
                Call::Import { pool, values, options }
            }
            "acquire" => Call::Acquire {
                pool,
                ttl_ms: ms("ttl="),
                holder: arg(args, "holder=").map(Into::into),
                wait_ms: 0,
            },
            "release" => {
                let options = ReleaseOptions {
                    rest_ms: ms("rest="),
                    quarantine: args.contains(&"quarantine"),
                    reason: arg(args, "reason=").map(Into::into),
                };
                Call::Release { pool, lease: self.lease(name), options }
            }
            "renew" => Call::Renew { pool, lease: self.lease(name), ttl_ms: ms("ttl=") },
            "show" => Call::GetKey { pool, key: self.key(name) },
            "force_release" => Call::ForceRelease { pool, key: self.key(name) },
            "delete" => Call::DeleteKey { pool, key: self.key(name) },
            "keepalive" => Call::KeepAlive { pool, key: self.key(name) },
            _ => panic!("no such call: {verb}"),
        };
        let max = arg(args, "max=").map(|max| max.parse().unwrap());
        let by = arg(args, "by=")
            .map_or(Principal::Anyone, |name| Principal::Token(Arc::new(Caller::new(name, max))));
        let reply = self.call(by, call);
        self.text(name, args, reply)
    }

    /// Returns the text of a reply, and records the names of its keys and lease.
    fn text(&mut self, name: &str, args: &[&str], reply: Reply) -> Result<String, String> {
        Ok(match reply {
            Reply::Done => "done".into(),
            Reply::Keys(keys) => {
                let named = || args.iter().map(ToString::to_string).zip(&keys);
                self.keys.extend(named().map(|(name, key)| (name, key.id)));
                self.values.extend(named().map(|(name, key)| (name, key.value.clone())));
                let life = if keys[0].expires_at_ms.is_some() { "ends" } else { "never_ends" };
                format!("created count={} {life}", keys.len())
            }
            Reply::Granted { lease, waited_ms, .. } => {
                assert!(lease.token > self.last_token, "tokens grow");
                self.last_token = lease.token;
                let first = *self.first_token.get_or_insert(lease.token);
                let ttl = length(lease.expires_in_ms);
                let growth = if lease.token == first { "first" } else { "later" };
                self.leases.insert(name.into(), (lease.id, lease.key_id));
                let waited = length(waited_ms);
                format!("granted token={growth} ttl={ttl} waited={waited}")
            }
            Reply::Renewed(lease) => format!("renewed ttl={}", length(lease.expires_in_ms)),
            Reply::KeyReleased { released } => format!("force_released changed={released}"),
            Reply::KeptAlive { expires_at_ms: Some(_), .. } => "kept ends".into(),
            Reply::KeptAlive { expires_at_ms: None, .. } => "kept never_ends".into(),
            Reply::Pool { pool, created } => format!(
                "pool created={created} available={} leased={} resting={} quarantined={} waiting={}",
                pool.counts.available,
                pool.counts.leased,
                pool.counts.resting,
                pool.counts.quarantined,
                pool.waiting,
            ),
            Reply::Key(key) => {
                let state = match key.state {
                    KeyState::Available => "available",
                    KeyState::Leased => "leased",
                    KeyState::Resting => "resting",
                    KeyState::Quarantined => "quarantined",
                };
                let holder = key.lease.as_ref().and_then(|lease| lease.holder.as_deref());
                let reason = key.reason.as_deref().unwrap_or("-");
                let keepalive = key.keepalive;
                assert!(keepalive || key.expires_at_ms.is_none(), "no deadline without keep-alive");
                format!(
                    "{state} holder={} reason={reason} keepalive={keepalive}",
                    holder.unwrap_or("-")
                )
            }
            Reply::Refused(RequestError::Refused(refusal)) => return Err(refusal_text(&refusal)),
            other => return Err(format!("{other:?}")),
        })
    }

    /// Returns a key by its name, or by the lease that lends it, `of:` and the lease's name.
    fn key(&self, name: &str) -> KeyRef {
        let id = match name.strip_prefix("of:") {
            Some(lease) => self.leases[lease].1,
            None => self.keys.get(name).copied().unwrap_or(KeyId(0)),
        };
        KeyRef::Id(id)
    }

    /// Returns the value of a known key, or else the word itself.
    fn value(&self, word: &str) -> Secret {
        self.values.get(word).cloned().unwrap_or_else(|| Secret::new(word).unwrap())
    }

    fn lease(&self, name: &str) -> LeaseId {
        self.leases.get(name).map_or(LeaseId(0), |(lease, _)| *lease)
    }
}

fn poll(pending: &mut PendingReply) -> Poll<Reply> {
    std::pin::Pin::new(pending).poll(&mut Context::from_waker(Waker::noop()))
}

fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NoKey { cause, next_hold_end_in_ms, .. } => {
            format!("no_key {cause:?} next={}", next_hold_end_in_ms.map_or("never".into(), length))
        }
        Refusal::LeaseEnded { cause: Some(cause) } => format!("lease_ended {cause:?}"),
        Refusal::LeaseEnded { cause: None } => "lease_ended unknown".into(),
        Refusal::Invalid(range) => format!("invalid {}", range.field),
        Refusal::PoolFull { max, .. } => format!("full max={max}"),
        Refusal::TooManyLeases { max } => format!("too_many_leases max={max}"),
        Refusal::MaxHoldReached { .. } => "max_hold_reached".into(),
        Refusal::KeyExists { index } => format!("key_exists at={index}"),
        Refusal::UnknownKey => "unknown_key".into(),
        Refusal::UnknownPool => "unknown_pool".into(),
        Refusal::DefaultPool => "default_pool".into(),
        other => format!("{other:?}"),
    }
}

fn arg<'a>(args: &[&'a str], field: &str) -> Option<&'a str> {
    args.iter().find_map(|arg| arg.strip_prefix(field))
}

/// Parses `60s` or `0.5s` to milliseconds.
fn millis(text: &str) -> u64 {
    let (whole, part) =
        text.strip_suffix('s').unwrap().split_once('.').unwrap_or((&text[..text.len() - 1], ""));
    whole.parse::<u64>().unwrap() * 1_000 + format!("{part:0<3}").parse::<u64>().unwrap()
}

fn length(ms: u64) -> String {
    let text = format!("{}.{:03}", ms / 1_000, ms % 1_000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

#[test]
fn a_key_is_created_leased_released_and_deleted() {
    check(
        "
        acquire early         -> no_key PoolEmpty next=never
        generate a b          -> created count=2
        acquire one holder=x  -> granted token=first ttl=60s
        show of:one           -> leased holder=x
        tick 1s
        acquire two ttl=10s   -> granted token=later ttl=10s
        acquire none          -> no_key AllLeased next=10s
        counts                -> pool available=0 leased=2
        release one           -> done
        show of:one           -> available
        release one           -> lease_ended Released
        delete of:two         -> done
        release two           -> lease_ended KeyGone
        show of:two           -> unknown_key
        release never         -> lease_ended unknown
        ",
    );
}

#[test]
fn a_lease_ends_at_its_deadline_and_never_before() {
    check("generate a\n acquire A\n tick 59.999s\n release A -> done");
    check("generate a\n acquire A\n tick 60s\n release A -> lease_ended Expired");
    check(
        "
        generate a
        acquire A
        tick 60s
        acquire B             -> granted token=later
        release A             -> lease_ended Superseded
        renew A               -> lease_ended Superseded
        show a                -> leased
        ",
    );
}

#[test]
fn renewals_end_at_the_longest_hold() {
    check(
        "
        put max_hold=90s      -> pool created=false
        generate a
        acquire A             -> granted ttl=60s
        renew A ttl=61s       -> invalid ttl_seconds
        tick 40s
        renew A               -> renewed ttl=50s
        renew A               -> max_hold_reached
        tick 49.999s
        release A             -> done
        ",
    );
}

#[test]
fn a_key_rests_or_is_quarantined_as_its_holder_reports() {
    check(
        "
        generate a
        acquire A
        release A rest=604801s -> invalid rest_seconds
        release A rest=30s reason=429 -> done
        show a                -> resting reason=429
        acquire X             -> no_key AllResting next=30s
        tick 30s
        show a                -> available reason=-
        acquire B
        release B quarantine reason=401 -> done
        acquire X             -> no_key AllQuarantined next=never
        tick 100s
        show a                -> quarantined reason=401
        force_release a       -> force_released changed=true
        force_release a       -> force_released changed=false
        ",
    );
}

#[test]
fn a_key_without_a_keep_alive_is_purged() {
    check(
        "
        generate a b
        tick 299s
        keepalive a           -> kept
        tick 1s
        show b                -> unknown_key
        keepalive b           -> unknown_key
        show a                -> available
        ",
    );
}

#[test]
fn waiters_are_served_in_their_order_and_leave() {
    check(
        "
        generate a
        acquire A
        wait first for=10s
        wait second for=10s
        wait third for=5s
        counts                -> pool leased=1 waiting=3
        leave first
        counts                -> pool waiting=2
        tick 2s
        release A
        got second            -> granted waited=2s
        tick 3s
        got third             -> no_key AllLeased
        counts                -> pool waiting=0 leased=1
        ",
    );
}

#[test]
fn a_caller_with_a_limit_gets_no_more_leases() {
    check(
        "
        generate a b c
        acquire A by=ci max=1 -> granted
        acquire B by=ci max=1 -> too_many_leases max=1
        acquire C             -> granted
        release A
        acquire B by=ci max=1 -> granted
        ",
    );
}

#[test]
fn a_value_that_was_in_the_pool_comes_back_only_where_the_import_allows_it() {
    check(
        "
        generate g p
        import v w            -> created count=2
        acquire A             -> granted token=first
        acquire B             -> granted
        delete g
        delete v
        tick 300s                                   # purges the others
        import x g            -> key_exists at=1
        import v              -> key_exists at=0
        import w              -> key_exists at=0
        import p              -> key_exists at=0
        import x x allow_retired -> key_exists at=1
        import g v p allow_retired -> created count=3
        import g allow_retired -> key_exists at=0
        acquire C             -> granted token=later
        acquire D             -> granted token=later
        acquire E             -> granted token=later
        delete g
        import g              -> key_exists at=0
        in other
        put
        import g v p          -> created count=3
        ",
    );
}

#[test]
fn a_key_without_keep_alive_is_never_purged_by_time() {
    check(
        "
        import v w keepalive=false -> created never_ends
        import x              -> created ends
        keepalive v           -> kept never_ends
        keepalive x           -> kept ends
        show v                -> available keepalive=false
        show x                -> available keepalive=true
        tick 300s
        show x                -> unknown_key
        show w                -> available keepalive=false
        acquire A
        tick 60s
        counts                -> pool available=2 leased=0
        delete v              -> done
        import v allow_retired -> created ends
        tick 300s
        show v                -> unknown_key
        counts                -> pool available=1
        ",
    );
}

#[test]
fn pools_are_created_with_the_default_policy_and_deleted_with_their_waiters() {
    check(
        "
        drop default          -> default_pool
        in other
        acquire X             -> unknown_pool
        put max_keys=1        -> pool created=true
        put                   -> pool created=false
        generate a            -> created
        generate b            -> full max=1
        acquire A             -> granted ttl=60s
        wait W for=10s
        drop other            -> done
        got W                 -> unknown_pool
        release A             -> unknown_pool
        ",
    );
}

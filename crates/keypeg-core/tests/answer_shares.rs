//! The shares of stored answers: one caller never takes the room of the others, and a restart does
//! not forget what a caller has. Small limits, and a naive model beside the pools.

#[path = "support/journal.rs"]
mod journal;

use journal::Journal;
use keypeg_core::{
    BodyDigest, Borrower, BorrowerId, IdHashKey, IdempotencyKey, Limits, Now, Policy, PolicyPatch,
    PoolName, Pools, Refusal, SnapshotCursor, StepContext,
};
use keypeg_testkit::{ScaledRandom, SeededRandom};

/// Returns limits of which only that of the stored answers is reached.
fn limits(answers: usize) -> Limits {
    Limits { pools: 9, keys: 1_000_000, bytes: u64::MAX, answers }
}
const HOUR_US: u64 = 3_600_000_000;

/// A caller: a token, a network without a token, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Token(&'static str),
    Network(u128),
    Unknown,
}

use Caller::{Network, Token, Unknown};

struct Server {
    pools: Pools,
    now: Now,
    answers_max: usize,
    journal: Journal,
    random: ScaledRandom,
}

impl Server {
    fn new(answers_max: usize) -> Self {
        let pools = Pools::new(IdHashKey::new([1; 32]), limits(answers_max), 1);
        let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
        Self { pools, now, answers_max, journal: Journal::default(), random: ScaledRandom::new(1) }
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let mut step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut self.journal,
            budget: 1_000,
            ended_by_time: false,
        };
        self.pools.expire(&mut step);
        apply(&mut self.pools, &mut step)
    }

    /// Generates a key under an Idempotency-Key; its answer weighs 2.
    fn generate(&mut self, caller: Caller, pool: &str, key: &str) -> Result<(), Refusal> {
        let borrower = match caller {
            Token(name) => Borrower::new(name, None).id(),
            Network(_) | Unknown => BorrowerId::NONE,
        };
        let network = if let Network(network) = caller { network } else { 0 };
        let owner = format!("{caller:?}");
        let key = IdempotencyKey { caller: &owner, key, body: BodyDigest(0), borrower, network };
        let name = PoolName::parse(pool).expect("a name");
        self.step(|pools, step| {
            if pools.get(&name).is_none() {
                let patch = PolicyPatch::default();
                pools.create_or_update(step, &name, &Policy::default(), patch).expect("room");
            }
            pools.with_pool(&name, step, |pool, shared, step| {
                pool.add_idempotent(shared, step, &key, |pool, shared, step| {
                    pool.generate(shared, step, 1)
                })
                .map(drop)
            })
        })
    }

    /// Generates keys until a refusal; returns how many, and the refusal.
    fn fill(&mut self, caller: Caller, pool: &str) -> (usize, Refusal) {
        for n in 0..=self.answers_max {
            if let Err(refusal) = self.generate(caller, pool, &format!("{pool} {n}")) {
                return (n, refusal);
            }
        }
        panic!("no refusal");
    }

    fn remove(&mut self, pool: &str) {
        let name = PoolName::parse(pool).expect("a name");
        self.step(|pools, step| pools.remove(step, &name).map(drop)).expect("it exists");
    }

    fn write_snapshot(&mut self) {
        let mut cursor = Some(SnapshotCursor::default());
        while let Some(from) = cursor {
            cursor = self.pools.write_snapshot(from, 3, &mut self.journal);
        }
    }

    fn restart(&mut self) {
        let installation = (IdHashKey::new([1; 32]), limits(self.answers_max), 1);
        self.pools = self.journal.replay(installation, self.now).expect("consistent facts");
    }
}

/// One token filled the room for all stored answers in 137 s, and every other caller was refused
/// for an hour.
#[test]
fn a_caller_that_fills_its_share_is_refused_and_the_others_go_on() {
    for (one, others) in [
        (Token("one"), [Token("two"), Token("three"), Network(1)]),
        (Network(1), [Network(2), Network(3), Token("one")]),
    ] {
        let mut server = Server::new(1_000);
        let share = Refusal::TooManyAnswers { max: 1_000, is_share: true };
        assert_eq!(server.fill(one, "p"), (250, share.clone()), "half of the room");
        assert_eq!(server.generate(one, "q", "another pool"), Err(share.clone()));
        assert_eq!(server.generate(one, "p", "p 7"), Ok(()), "a repeat needs no room");
        server.restart();
        assert_eq!(server.generate(one, "q", "after a restart"), Err(share.clone()));
        // Each gets half of what the callers before it left free.
        for (other, room) in others.into_iter().zip([125, 63, 31]) {
            assert_eq!(server.fill(other, "q"), (room, share.clone()), "{other:?}");
        }
        server.pools.check_invariants();
        server.remove("q");
        assert_eq!(server.generate(others[0], "r", "new"), Ok(()), "the room of a deleted pool");
        assert_eq!(server.generate(one, "r", "new"), Err(share), "its own answers are elsewhere");
        server.now.lease_us += HOUR_US;
        server.write_snapshot();
        server.restart();
        assert_eq!(server.generate(one, "p", "an hour later"), Ok(()));
        server.pools.check_invariants();
    }
}

#[test]
fn without_a_caller_only_the_limit_of_all_applies() {
    let mut server = Server::new(1_000);
    let full = Refusal::TooManyAnswers { max: 1_000, is_share: false };
    assert_eq!(server.fill(Unknown, "p"), (500, full.clone()));
    assert_eq!(server.generate(Token("one"), "p", "late"), Err(full));
}

/// The stored answers as a list.
#[derive(Default)]
struct Naive(Vec<(Caller, String, String, u64)>);

impl Naive {
    fn generate(
        &mut self,
        (caller, pool, key): (Caller, &str, &str),
        max: usize,
        now_us: u64,
    ) -> Result<(), Refusal> {
        self.0.retain(|answer| answer.3 > now_us);
        let known = |answer: &&(Caller, String, String, u64)| {
            (answer.0, &*answer.1, &*answer.2) == (caller, pool, key)
        };
        if self.0.iter().any(|answer| known(&answer)) {
            return Ok(());
        }
        let left = max.saturating_sub(2 * self.0.len());
        let own = 2 * self.0.iter().filter(|answer| answer.0 == caller).count();
        let is_share = left > 0;
        if left == 0 || caller != Unknown && own >= left {
            return Err(Refusal::TooManyAnswers { max, is_share });
        }
        self.0.push((caller, pool.into(), key.into(), now_us + HOUR_US));
        Ok(())
    }
}

#[test]
fn the_shares_agree_with_a_naive_model_across_expiry_deletions_and_restarts() {
    let callers = [Token("a"), Token("b"), Network(1), Network(2), Unknown];
    let pools = ["p", "q", "r"];
    for seed in 0..40 {
        let mut random = SeededRandom(seed);
        let max = 4 + random.index_below(40);
        let (mut server, mut naive) = (Server::new(max), Naive::default());
        let mut refused = [0; 2];
        for step in 0..600 {
            let pool = pools[random.index_below(3)];
            match random.below(40) {
                0 => {
                    server.write_snapshot();
                    server.restart();
                }
                1 if server.pools.get(&PoolName::parse(pool).expect("a name")).is_some() => {
                    server.remove(pool);
                    naive.0.retain(|answer| answer.1 != pool);
                }
                2..6 => server.now.lease_us += random.below(HOUR_US / 2),
                _ => {
                    let caller = callers[random.index_below(5)];
                    let key = random.below(30).to_string();
                    let expected = naive.generate((caller, pool, &key), max, server.now.lease_us);
                    let answer = server.generate(caller, pool, &key);
                    assert_eq!(answer, expected, "seed {seed}, step {step}, {caller:?}");
                    if let Err(Refusal::TooManyAnswers { is_share, .. }) = answer {
                        refused[usize::from(is_share)] += 1;
                    }
                }
            }
            server.step(|pools, _| pools.check_invariants());
        }
        assert!(refused[1] > 0, "seed {seed}: the shares are never reached");
    }
}

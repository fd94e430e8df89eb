//! Memory is counted in bytes, and bounded: what the pools report is what they allocate, and a full
//! server refuses what would add to it, but no release, keep-alive or deletion.
//!
//! The bound was once a number of keys, of 100 bytes each. A key with a value of 4 096 bytes, a
//! holder and a reason takes fifty times as much, and the kernel killed the server.

use keypeg_core::{
    ANSWERS_MAX, AcquireOptions, BodyDigest, BorrowerId, Fact, IdHashKey, IdempotencyKey,
    ImportOptions, KEY_BYTES_MIN, KeyId, KeyRef, LeaseId, Limits, Now, Policy, PolicyPatch, Pool,
    PoolName, Pools, QuarantineOptions, Refusal, ReleaseOptions, Secret, SharedState, StepContext,
    WaitOptions, WaiterId, answers_max,
};
use keypeg_testkit::ScaledRandom;

/// What the last item added can have taken beside itself: a chunk of each structure.
const CHUNKS: u64 = 1 << 20;

struct Server {
    pools: Pools,
    now: Now,
    random: ScaledRandom,
    next: u64,
}

impl Server {
    fn new(bytes: u64) -> Self {
        Self::with_answers(bytes, answers_max(bytes))
    }

    /// Creates a server that stores this number of answers at most.
    fn with_answers(bytes: u64, answers: usize) -> Self {
        let limits = Limits { pools: 10_000, keys: u64::from(u32::MAX), bytes, answers };
        let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
        let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
        let mut server = Self { pools, now, random: ScaledRandom::new(1), next: 0 };
        server.pool("p").expect("room");
        server
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let mut facts = |_: &Fact<'_>| {};
        let Self { pools, now, random, .. } = self;
        let (now, facts, budget) = (*now, &mut facts, 1_000);
        apply(pools, &mut StepContext { now, random, facts, budget, ended_by_time: false })
    }

    fn pool(&mut self, name: &str) -> Result<bool, Refusal> {
        let patch = PolicyPatch { rest_ms: Some(60_000), ..PolicyPatch::default() };
        self.step(|pools, step| {
            pools.create_or_update(step, &pool_name(name), &Policy::default(), patch)
        })
    }

    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&pool_name("p"), step, apply))
    }

    fn generate(&mut self, count: u32) -> Result<(), Refusal> {
        self.with_pool(|pool, shared, step| pool.generate(shared, step, count)).map(drop)
    }

    /// Imports values of that length, which no earlier call imported.
    fn import(&mut self, count: u64, len: usize) -> Result<(), Refusal> {
        let first = self.next;
        self.next += count;
        let value = |number| Secret::new(&format!("{number:0len$}")).expect("a length in range");
        let values: Vec<_> = (first..first + count).map(value).collect();
        self.with_pool(|pool, shared, step| {
            pool.import(shared, step, &values, ImportOptions::default(), None)
        })
        .map(drop)
    }

    fn acquire(&mut self, holder: &str) -> Result<LeaseId, Refusal> {
        let options = AcquireOptions { holder: Some(holder), ..AcquireOptions::default() };
        let granted = self.with_pool(|pool, shared, step| pool.acquire(shared, step, &options));
        granted.map(|granted| granted.lease.id)
    }

    fn wait(&mut self, holder: &str) -> Result<(), Refusal> {
        self.next += 1;
        let options = AcquireOptions { holder: Some(holder), ..AcquireOptions::default() };
        let wait = WaitOptions { waiter_id: WaiterId(self.next), wait_ms: 60_000 };
        self.with_pool(|pool, shared, step| pool.acquire_or_wait(shared, step, &options, wait))
            .map(drop)
    }

    fn release(&mut self, lease: LeaseId, quarantine: bool, reason: &str) -> Result<(), Refusal> {
        let options = ReleaseOptions { quarantine, reason: Some(reason.into()), rest_ms: None };
        self.with_pool(|pool, shared, step| pool.release(shared, step, lease, &options)).map(drop)
    }

    fn add_idempotent(&mut self) -> Result<(), Refusal> {
        self.next += 1;
        let text = self.next.to_string();
        let (key, body, borrower) = (&*text, BodyDigest::of(b""), BorrowerId::NONE);
        let key = IdempotencyKey { caller: "", key, body, borrower, network: 0 };
        self.with_pool(|pool, shared, step| {
            pool.add_idempotent(shared, step, &key, |pool, shared, step| {
                pool.generate(shared, step, 1)
            })
        })
        .map(drop)
    }

    fn delete(&mut self, key: KeyId) -> Result<(), Refusal> {
        self.with_pool(|pool, shared, step| pool.delete(shared, step, &KeyRef::Id(key))).map(drop)
    }

    fn label(&mut self, key: KeyId, label: Option<&str>) -> Result<(), Refusal> {
        let key = KeyRef::Id(key);
        self.with_pool(|pool, shared, step| pool.set_label(shared, step, &key, label)).map(drop)
    }

    /// Quarantines a key: a leased one when its lease ends.
    fn quarantine(&mut self, key: KeyId, reason: Option<&str>) -> Result<(), Refusal> {
        let options = QuarantineOptions { when_free: true, reason: reason.map(Into::into) };
        let key = KeyRef::Id(key);
        self.with_pool(|pool, shared, step| pool.quarantine_key(shared, step, &key, &options))
            .map(drop)
    }

    fn keys(&self) -> Vec<KeyId> {
        self.pools.key_ids(&pool_name("p"))
    }
}

fn pool_name(name: &str) -> PoolName {
    PoolName::parse(name).expect("a valid name")
}

/// Compares the counted bytes with those that the allocator has given: each allocation takes 8 to 24
/// bytes more than it asks for.
#[track_caller]
fn check_against_the_allocator(what: &str, build: impl FnOnce(&mut Server)) {
    let mut kept = None;
    let info = allocation_counter::measure(|| {
        let mut server = Server::new(u64::MAX);
        build(&mut server);
        kept = Some(server);
    });
    let [least, most] = [8, 24].map(|more| info.bytes_current + more * info.count_current);
    let server: Server = kept.expect("built");
    let counted = i64::try_from(server.pools.bytes()).expect("small");
    let allowed = least - least / 50 - 4_096..=most + most / 50 + 4_096;
    assert!(allowed.contains(&counted), "{what}: {counted} bytes are counted, not {allowed:?}");
}

#[test]
fn the_bytes_that_are_counted_are_those_that_are_allocated() {
    let holder = "h".repeat(128);
    let reason = "r".repeat(256);
    check_against_the_allocator("no key", |_| {});
    for count in [1, 100, 4_096, 4_097, 50_000] {
        check_against_the_allocator(&format!("{count} generated keys"), |server| {
            for _ in 0..count / 5_000 {
                server.generate(5_000).expect("room");
            }
            server.generate(count % 5_000).expect("room");
        });
    }
    for len in [20, 21, 40, 300, 4_096] {
        check_against_the_allocator(&format!("values of {len} bytes"), |server| {
            for _ in 0..6 {
                server.import(1_000, len).expect("room");
            }
        });
    }
    check_against_the_allocator("leases with holders", |server| {
        server.generate(6_000).expect("room");
        (0..6_000).for_each(|_| assert!(server.acquire(&holder).is_ok()));
    });
    for quarantine in [false, true] {
        check_against_the_allocator("rests and quarantines with reasons", |server| {
            server.generate(6_000).expect("room");
            for _ in 0..6_000 {
                let lease = server.acquire(&holder).expect("a key");
                server.release(lease, quarantine, &reason).expect("it runs");
            }
        });
    }
    for (what, leases) in [("quarantines by id", 0), ("drains with reasons", 6_000)] {
        check_against_the_allocator(what, |server| {
            server.generate(6_000).expect("room");
            (0..leases).for_each(|_| assert!(server.acquire(&holder).is_ok()));
            for key in server.keys() {
                server.quarantine(key, Some(&reason)).expect("room");
            }
        });
    }
    check_against_the_allocator("labels", |server| {
        server.generate(6_000).expect("room");
        for (number, key) in server.keys().into_iter().enumerate() {
            server.label(key, Some(&format!("{number} {reason}"))).expect("room");
        }
    });
    check_against_the_allocator("requests that wait", |server| {
        (0..6_000).for_each(|_| server.wait(&holder).expect("room"));
    });
    check_against_the_allocator("stored answers", |server| {
        (0..10_000).for_each(|_| server.add_idempotent().expect("room"));
    });
    check_against_the_allocator("retired values", |server| {
        (0..6).for_each(|_| server.import(1_000, 300).expect("room"));
        server.keys().into_iter().for_each(|key| server.delete(key).expect("it exists"));
    });
    check_against_the_allocator("many pools", |server| {
        for number in 0..5_000 {
            server.pool(&format!("pool-{number}")).expect("room");
        }
    });
}

/// A start refuses a number of keys by this number alone.
#[test]
fn every_key_takes_the_bytes_that_the_smallest_key_takes() {
    let mut server = Server::new(u64::MAX);
    let before = server.pools.bytes();
    for _ in 0..6 {
        server.import(5_000, 5).expect("room");
    }
    let bytes = server.pools.bytes() - before;
    assert!(bytes >= 30_000 * KEY_BYTES_MIN, "{} bytes for each key", bytes / 30_000);
}

/// Stored answers once had a limit of their own, which a server with little memory never reached:
/// then the answers of one caller used up the memory for the leases of all.
#[test]
fn stored_answers_leave_memory_for_leases() {
    const BYTES: u64 = 8 << 20;
    let mut server = Server::new(BYTES);
    let refused = (0..1_000_000).find_map(|_| server.add_idempotent().err());
    let max = answers_max(BYTES);
    assert_eq!(refused, Some(Refusal::TooManyAnswers { max, is_share: false }));
    assert!(server.pools.bytes() < BYTES / 4 * 3, "{} bytes", server.pools.bytes());
    for _ in 0..1_000 {
        server.acquire("job").expect("memory for leases");
    }
}

/// What ended gives its bytes back: a server that is full once is not full for good.
#[test]
fn bytes_are_given_back() {
    let mut server = Server::new(u64::MAX);
    server.import(5_000, 4_096).expect("room");
    let full = server.pools.bytes();
    assert!(full > 5_000 * 4_096);
    for key in server.keys() {
        server.delete(key).expect("it exists");
    }
    let deleted = server.pools.bytes();
    assert!(deleted < full / 20, "{deleted} of {full}");
    server.step(|pools, step| pools.remove(step, &pool_name("p"))).expect("it exists");
    let removed = server.pools.bytes();
    assert!(removed < 16 << 10, "{removed} of {full}");
    server.pools.check_invariants();
}

#[test]
fn a_full_server_refuses_keys_of_every_kind_before_its_memory_is_used_up() {
    const MAX: u64 = 16 << 20;
    type Add = fn(&mut Server) -> Result<(), Refusal>;
    let ways: [(&str, Add); 4] = [
        ("generated", |server| server.generate(100)),
        ("short", |server| server.import(100, 12)),
        ("long", |server| server.import(10, 4_096)),
        ("under an Idempotency-Key", Server::add_idempotent),
    ];
    for (what, add) in ways {
        // The limit of the stored answers is not what this test is about.
        let mut server = Server::with_answers(MAX, ANSWERS_MAX);
        let refused = (0..100_000).find_map(|_| add(&mut server).err());
        let max = MAX / 4 * 3;
        assert_eq!(refused, Some(Refusal::KeyMemoryFull { max }), "{what}");
        let bytes = server.pools.bytes();
        assert!(bytes <= max + CHUNKS, "{what}: {bytes} of {max}");
        assert!(bytes > max / 10 * 8, "{what}: {bytes} of {max}");
        let key = server.keys()[0];
        server
            .with_pool(|pool, shared, step| pool.keep_alive(shared, step, &KeyRef::Id(key)))
            .expect("a keep-alive is never refused");
        for key in server.keys().into_iter().take(2_000) {
            server.delete(key).expect("a deletion is never refused");
        }
        assert_eq!(add(&mut server), Ok(()), "{what}: there is room again");
    }
}

#[test]
fn a_full_server_refuses_leases_and_waits_and_accepts_every_release() {
    const MAX: u64 = 16 << 20;
    let holder = "h".repeat(128);
    let mut server = Server::new(MAX);
    while server.generate(100).is_ok() {}
    let mut leases = Vec::new();
    let refused = loop {
        match server.acquire(&holder) {
            Ok(lease) => leases.push(lease),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::MemoryFull { max: MAX });
    assert!(leases.len() > 2_000, "{} leases", leases.len());
    let before = server.pools.bytes();
    assert!(before <= MAX + CHUNKS, "{before} of {MAX}");
    // The reasons would take twice the bytes of the holders.
    let reason = "ö".repeat(256);
    for lease in leases {
        server.release(lease, true, &reason).expect("a release is never refused");
    }
    let after = server.pools.bytes();
    assert!(after <= MAX + 2 * CHUNKS, "{after} bytes of {MAX}");
    let mut other = Server::new(MAX);
    let refused = (0..100_000).find_map(|_| other.wait(&holder).err());
    assert_eq!(refused, Some(Refusal::MemoryFull { max: MAX }));
    let bytes = other.pools.bytes();
    assert!(bytes <= MAX + CHUNKS, "{bytes} bytes of {MAX}");
}

/// Texts of keys that exist take the memory for keys: a label, and the reason of a quarantine that
/// begins when a lease ends. A call without a text is never refused.
#[test]
fn a_full_server_refuses_labels_and_reasons_but_no_quarantine() {
    const MAX: u64 = 4 << 20;
    type Add = fn(&mut Server, KeyId, Option<&str>) -> Result<(), Refusal>;
    let ways: [(&str, Add); 2] = [("labels", Server::label), ("reasons", Server::quarantine)];
    for (what, add) in ways {
        let mut server = Server::new(MAX);
        server.generate(10_000).expect("room");
        let keys = server.keys();
        (0..keys.len()).for_each(|_| assert!(server.acquire("job").is_ok()));
        let text = "t".repeat(256);
        // Keys with the same label share it.
        let mut texts = (0..).map(|number| format!("{number} {text}"));
        let mut next = || texts.next().expect("endless");
        let refused = keys.iter().find_map(|key| add(&mut server, *key, Some(&next())).err());
        let max = MAX / 4 * 3;
        assert_eq!(refused, Some(Refusal::KeyMemoryFull { max }), "{what}");
        let bytes = server.pools.bytes();
        assert!((max / 10 * 8..=max + CHUNKS).contains(&bytes), "{what}: {bytes} of {max}");
        add(&mut server, keys[keys.len() - 1], None).expect("a call without a text is accepted");
        add(&mut server, keys[0], None).expect("it takes no memory");
        server.pools.check_invariants();
    }
}

#[test]
fn pools_take_memory_too() {
    let mut server = Server::new(1 << 20);
    let refused = (0..10_000).find_map(|number| server.pool(&format!("pool-{number}")).err());
    assert_eq!(refused, Some(Refusal::MemoryFull { max: 3 << 18 }));
    assert!(server.pools.bytes() <= 1 << 20);
}

//! A turn is bounded by work: however many long calls are queued, a turn executes short calls first,
//! and of the long ones only what its budget allows, callers in rotation.

mod support;

use keypeg_core::{ImportOptions, KeyId, KeyRef, NewLabels, PolicyPatch, PoolName, Secret};
use keypeg_engine::state::{CallId, LONG_UNITS_MAX};
use keypeg_store::{
    Call, CallerNumber, KEEP_ALIVE_MAX, LaneItem, Reply, RequestError, SHORT_UNITS_MAX, Wakeup,
};
use std::collections::HashMap;
use support::turns::Turns;
use support::{default_pool, list_pools};

/// The last key that a turn prepares or stages may exceed its budget.
const UNITS_MAX: u32 = LONG_UNITS_MAX + 40;

const LONG_CALLER: CallerNumber = CallerNumber(1);
const OTHER_CALLER: CallerNumber = CallerNumber(2);

fn side() -> PoolName {
    PoolName::parse("side").expect("valid")
}

fn keep_alive(key: KeyId) -> Call {
    Call::KeepAlive { pool: default_pool(), key: KeyRef::Id(key) }
}

fn unknown_keys() -> Call {
    let keys = (0..KEEP_ALIVE_MAX as u128).map(KeyId).collect();
    Call::KeepAliveMany { pool: default_pool(), keys }
}

fn page() -> Call {
    Call::ListKeys { pool: default_pool(), state: None, limit: 1_000, cursor: None, label: None }
}

fn generate(count: u32) -> Call {
    Call::Generate { pool: default_pool(), count, labels: NewLabels::None }
}

/// Returns a value of a length.
fn value(number: u32, len: usize) -> Secret {
    Secret::new(&format!("value-{number}-{:0>1$}", 0, len - 16)).expect("short")
}

fn import_of(numbers: std::ops::Range<u32>, len: usize) -> Call {
    let values = numbers.map(|number| value(number, len)).collect();
    Call::Import {
        pool: default_pool(),
        values,
        options: ImportOptions::default(),
        labels: NewLabels::None,
    }
}

fn import(first: u32) -> Call {
    import_of(first..first + 500, 600)
}

/// Four hundred callers listed ten thousand pools, and a keep-alive waited for all of them.
#[test]
fn a_short_call_is_answered_in_the_next_turn_however_many_long_calls_are_queued() {
    let mut turns = Turns::new();
    let [key] = turns.driver.generate(1)[..] else { panic!("one key") };
    for number in 0..100 {
        turns.send(LONG_CALLER, unknown_keys());
        turns.send(LONG_CALLER, page());
        turns.send(LONG_CALLER, list_pools());
        turns.send(LONG_CALLER, generate(700));
        turns.send(LONG_CALLER, import(number * 500));
    }
    let mut long_calls = 0;
    while turns.pending() > 0 || long_calls == 0 {
        let short = turns.send(OTHER_CALLER, keep_alive(key));
        let turn = turns.run();
        assert!(matches!(turn.replies[&short], Reply::KeptAlive { .. }), "{:?}", turn.replies);
        assert!(turn.long_units < UNITS_MAX, "{} of {} calls", turn.long_units, turn.long_calls);
        assert!(turn.long_units > 0, "each turn makes progress");
        long_calls += turn.long_calls;
    }
    assert_eq!(long_calls, 500);
}

/// The rotation: a caller with many long calls delays another caller's long call by one of them.
#[test]
fn long_calls_of_two_callers_alternate() {
    let mut turns = Turns::new();
    for _ in 0..100 {
        turns.send(LONG_CALLER, generate(2_000));
    }
    assert_eq!(turns.run().long_calls, 0, "one call costs more than a turn has");
    while turns.run().long_calls == 0 {}
    let other: Vec<_> = (0..3).map(|_| turns.send(OTHER_CALLER, unknown_keys())).collect();
    for slot in other {
        let mut long_calls = 0;
        loop {
            let turn = turns.run();
            long_calls += turn.long_calls;
            if turn.replies.contains_key(&slot) {
                break;
            }
        }
        assert!(long_calls <= 2, "{slot} waits for {long_calls} calls");
    }
}

/// A change of many keys is executed whole: no other call sees a part of it, in whichever turn it is
/// executed.
#[test]
fn a_long_change_is_all_or_nothing_in_every_turn() {
    let mut turns = Turns::new();
    for number in 0..8 {
        turns.send(LONG_CALLER, generate(900));
        turns.send(LONG_CALLER, import(number * 500));
    }
    let mut seen = Vec::new();
    while seen.is_empty() || turns.pending() > 0 {
        let slot = turns.send(OTHER_CALLER, Call::GetPool { pool: default_pool() });
        let Reply::Pool { pool, .. } = turns.run().replies.remove(&slot).expect("a reply") else {
            panic!("a pool")
        };
        seen.push(pool.counts.total());
    }
    assert!(seen.len() > 4, "{seen:?}");
    let sums: Vec<_> =
        (0..=8).flat_map(|a| (0..=8).map(move |b| a * 900 + b * 500)).collect::<Vec<u64>>();
    assert!(seen.iter().all(|total| sums.contains(total)), "{seen:?}");
    assert_eq!(turns.driver.engine.pools().key_count(), 8 * 1_400);
}

/// The number of queued long calls is bounded, and each caller has a share of it.
#[test]
fn a_caller_with_many_long_calls_is_refused_and_others_are_not() {
    let mut turns = Turns::new();
    let many: Vec<_> = (0..5_000).map(|_| turns.send(LONG_CALLER, page())).collect();
    let other = turns.send(OTHER_CALLER, page());
    let mut replies = HashMap::new();
    while !turns.items.is_empty() || turns.pending() > 0 {
        replies.extend(turns.run().replies);
    }
    let refused = |slot: &&u32| matches!(replies[*slot], Reply::Refused(RequestError::Overloaded));
    let refused_count = many.iter().filter(refused).count();
    assert!((2_000..4_000).contains(&refused_count), "{refused_count} of 5 000 are refused");
    assert!(matches!(replies[&other], Reply::Page(_)), "{:?}", replies[&other]);
}

/// A client that disconnects while its listing is queued costs no work, and its call's slot is free.
#[test]
fn a_queued_listing_whose_client_disconnects_is_not_executed() {
    let mut turns = Turns::new();
    turns.send(LONG_CALLER, generate(5_000));
    let listing = turns.send(LONG_CALLER, page());
    turns.run();
    turns.items.push_back((CallId { lane: 0, slot: listing }, LaneItem::Abandoned));
    let (mut long_calls, mut replies) = (0, HashMap::new());
    while turns.pending() > 0 {
        let turn = turns.run();
        long_calls += turn.long_calls;
        replies.extend(turn.replies);
    }
    assert!(matches!(replies[&listing], Reply::Done), "{:?}", replies[&listing]);
    assert_eq!(long_calls, 1, "only the call before it");
}

/// A pool is deleted, and created again, while a call on it is queued: the call meets the pool that
/// exists when it is executed.
#[test]
fn a_queued_call_meets_the_pool_that_exists_when_it_is_executed() {
    let mut turns = Turns::new();
    let put = || Call::PutPool { pool: side(), patch: Box::default() };
    turns.send(OTHER_CALLER, put());
    turns.send(LONG_CALLER, generate(5_000));
    let queued = turns
        .send(LONG_CALLER, Call::Generate { pool: side(), count: 1_000, labels: NewLabels::None });
    turns.run();
    turns.send(OTHER_CALLER, Call::DeletePool { pool: side() });
    let mut replies = HashMap::new();
    while !turns.items.is_empty() || turns.pending() > 0 {
        replies.extend(turns.run().replies);
    }
    assert!(matches!(replies[&queued], Reply::Refused(RequestError::Refused(_))));
    assert_eq!(turns.driver.engine.pools().key_count(), 5_000);
}

/// Ten thousand keys, or eight megabytes of values, were added in one turn, and every other call
/// waited 9 to 16 ms.
#[test]
fn the_keys_of_a_long_call_are_staged_in_several_turns_and_appear_in_one() {
    for (call, count) in [(generate(10_000), 10_000), (import_of(0..2_000, 4_000), 2_000)] {
        let mut turns = Turns::new();
        let slot = turns.send(LONG_CALLER, call);
        let mut turn_count = 0;
        let last = loop {
            let turn = turns.run();
            turn_count += 1;
            assert!(turn.long_units < UNITS_MAX, "{} units", turn.long_units);
            turns.driver.engine.pools().check_invariants();
            if turn.long_calls > 0 {
                break turn;
            }
            assert_eq!(turns.driver.engine.pools().key_count(), 0, "not a part of them");
        };
        assert!(turn_count >= 6, "{turn_count} turns");
        let Reply::Keys(keys) = &last.replies[&slot] else { panic!("keys") };
        assert_eq!(keys.len(), count);
        let pools = turns.driver.engine.pools();
        let pool = pools.get(&default_pool()).expect("exists");
        assert_eq!((pools.key_count(), pool.counts().available), (count as u64, count as u64));
    }
}

/// What is prepared belongs to one pool with one policy: a call that is executed after a change has
/// the keys of the pool as it is then.
#[test]
fn a_pool_that_changes_while_keys_are_prepared_gets_keys_of_its_own() {
    let new_form = |key_length| PolicyPatch {
        key_prefix: Some("new-".into()),
        key_length: Some(key_length),
        ..PolicyPatch::default()
    };
    let put = |patch| Call::PutPool { pool: side(), patch: Box::new(patch) };
    let value = |number| Secret::new(&format!("value-{number:0>600}")).expect("short");
    let values: Vec<_> = (0..900).map(value).collect();
    let import = Call::Import {
        pool: side(),
        values,
        options: ImportOptions::default(),
        labels: NewLabels::None,
    };
    let generate = Call::Generate { pool: side(), count: 3_000, labels: NewLabels::None };
    for (call, is_import) in [(generate, false), (import, true)] {
        for deletes in [false, true] {
            let mut turns = Turns::new();
            turns.send(OTHER_CALLER, put(PolicyPatch::default()));
            let slot = turns.send(LONG_CALLER, call.clone());
            assert_eq!(turns.run().long_calls, 0, "it is being prepared");
            if deletes {
                turns.send(OTHER_CALLER, Call::DeletePool { pool: side() });
            }
            turns.send(OTHER_CALLER, put(new_form(24)));
            let reply = loop {
                if let Some(reply) = turns.run().replies.remove(&slot) {
                    break reply;
                }
            };
            let Reply::Keys(keys) = reply else { panic!("{reply:?}") };
            let has_form = |value: &str| value.starts_with("new-") && value.len() == 28;
            let of_pool = |value: &str| has_form(value) || is_import;
            assert!(keys.iter().all(|key| of_pool(key.value.reveal())));
            // Each key is found by its id and by its value.
            turns.driver.engine.pools().check_invariants();
            for key in [KeyRef::Id(keys[0].id), KeyRef::Value(keys[899].value.clone())] {
                let slot = turns.send(OTHER_CALLER, Call::GetKey { pool: side(), key });
                assert!(matches!(turns.run().replies[&slot], Reply::Key(_)));
            }
        }
    }
}

/// Two imports of the same values are prepared one after the other: the second is refused whole.
#[test]
fn values_that_another_call_adds_while_they_are_prepared_are_refused() {
    let mut turns = Turns::new();
    let mine = turns.send(LONG_CALLER, import(0));
    let other = turns.send(OTHER_CALLER, import(499));
    let mut replies = HashMap::new();
    while replies.len() < 2 {
        replies.extend(turns.run().replies);
    }
    let [mine, other] = [mine, other].map(|slot| &replies[&slot]);
    let Reply::Keys(keys) = mine else { panic!("{mine:?}") };
    assert_eq!(keys.len(), 500);
    let is_refused = matches!(
        other,
        Reply::Refused(RequestError::Refused(keypeg_core::Refusal::KeyExists { index: 0 }))
    );
    assert!(is_refused, "{other:?}");
    assert_eq!(turns.driver.engine.pools().key_count(), 500);
}

/// An import of known values lists them, also without much left of its turn's budget, and within the
/// budget in any case.
#[test]
fn the_known_values_of_a_refused_import_are_listed_in_one_turn() {
    for len in [40, 600, 1_000] {
        let mut turns = Turns::new();
        let import = || import_of(0..3_000, len);
        let added = turns.send(LONG_CALLER, import());
        assert!(matches!(turns.reply(added), Reply::Keys(_)));
        let refused = turns.send(LONG_CALLER, import());
        let reply = loop {
            let mut turn = turns.run();
            assert!(turn.long_units < UNITS_MAX + 768, "{} units", turn.long_units);
            if let Some(reply) = turn.replies.remove(&refused) {
                break reply;
            }
        };
        let Reply::Refused(RequestError::KeysExist(known)) = reply else { panic!("{reply:?}") };
        assert!((256..=1_000).contains(&known.indices.len()), "{}", known.indices.len());
        assert!(known.more && (0..).zip(&known.indices).all(|(at, index)| at == *index));
    }
}

/// The limit of a short call is where the calls of most clients are: none of the frequent ones is
/// long.
#[test]
fn no_call_on_one_key_is_long() {
    let [one, many] = [1, 1_000];
    assert!(!generate(one).is_long() && generate(many).is_long());
    let acquire = Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    for call in [acquire, keep_alive(KeyId(1)), Call::KeepAliveAll { pool: default_pool() }] {
        assert!(call.units() * 10 <= SHORT_UNITS_MAX, "{call:?}");
    }
    assert!(page().is_long() && unknown_keys().is_long() && list_pools().is_long());
}

/// Returns an engine with this many leases, all due, whose clock advances by a millisecond at each
/// reading.
fn with_due_leases(count: u32) -> Turns {
    let mut turns = Turns::new();
    turns.driver.generate(count);
    for _ in 0..count {
        turns.driver.acquire("job").expect("a key is available");
    }
    turns.driver.clock.advance_ms(86_400_000);
    turns.driver.clock.set_reading_time_ms(1);
    turns
}

fn leased(turns: &Turns) -> u64 {
    let pool = turns.driver.engine.pools().get(&default_pool()).expect("it always exists");
    pool.counts().leased
}

/// A million keys ended at once, and each turn ended 4 096 of them before it answered a request.
#[test]
fn a_turn_ends_what_is_due_for_a_bounded_time_while_requests_wait() {
    let mut turns = with_due_leases(2_000);
    turns.ask(OTHER_CALLER, keep_alive(KeyId(1)));
    assert_eq!(leased(&turns), 2_000 - 256, "one slice takes the time of a turn");
    let acquire = Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let reply = turns.ask(OTHER_CALLER, acquire);
    assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    assert_eq!(leased(&turns), 2_000 - 3 * 256 + 1, "an acquire ends one slice more");
    turns.run();
    assert_eq!(leased(&turns), 1, "without requests a turn ends more");
}

#[test]
fn a_request_that_arrives_during_a_turn_shortens_it() {
    let mut turns = with_due_leases(2_000);
    let arrivals = Wakeup::default();
    turns.driver.engine.set_arrivals(vec![arrivals.clone()]);
    arrivals.notify();
    turns.run();
    assert_eq!(leased(&turns), 2_000 - 256);
    assert!(arrivals.take(), "the thread still takes the notification");
    turns.run();
    assert_eq!(leased(&turns), 0);
}

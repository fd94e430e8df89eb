//! The keys of a call that adds many are staged over several turns: until the last one, no call and
//! no start shows one of them, and what happens meanwhile counts as if the call came after it.

mod support;

use keypeg_core::{
    BodyDigest, EndCause, ImportOptions, KeyRef, NewLabels, NoKeyCause, PolicyPatch, PoolName,
    Refusal, ReleaseOptions, Secret,
};
use keypeg_engine::state::LONG_UNITS_MAX;
use keypeg_store::{Call, CallerNumber, Reply, RequestError};
use std::collections::HashMap;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::turns::Turns;
use support::{Driver, ManualClock, SentCall, default_pool};

const LONG_CALLER: CallerNumber = CallerNumber(1);
const OTHER_CALLER: CallerNumber = CallerNumber(2);
/// The last value that a turn stages may exceed its budget.
const UNITS_MAX: u32 = LONG_UNITS_MAX + 40;
/// The values of one import: staged in about four turns.
const COUNT: u32 = 3_000;

fn side() -> PoolName {
    PoolName::parse("side").expect("valid")
}

fn value(number: u32) -> Secret {
    Secret::new(&format!("value-{number}-{:0>90}", 0)).expect("short")
}

fn import_into(
    pool: PoolName,
    numbers: impl IntoIterator<Item = u32>,
    allow_retired: bool,
) -> Call {
    let values = numbers.into_iter().map(value).collect();
    let options = ImportOptions { allow_retired, ..ImportOptions::default() };
    Call::Import { pool, values, options, labels: NewLabels::None }
}

fn import(numbers: impl IntoIterator<Item = u32>) -> Call {
    import_into(default_pool(), numbers, false)
}

fn generate(count: u32) -> Call {
    Call::Generate { pool: default_pool(), count, labels: NewLabels::None }
}

fn put(pool: PoolName, patch: PolicyPatch) -> Call {
    Call::PutPool { pool, patch: Box::new(patch) }
}

fn delete(number: u32) -> Call {
    Call::DeleteKey { pool: default_pool(), key: KeyRef::Value(value(number)) }
}

fn refused(reply: &Reply) -> &Refusal {
    let Reply::Refused(RequestError::Refused(refusal)) = reply else { panic!("{reply:?}") };
    refusal
}

/// Returns the index of the only value of an import that is known, as far as the values after it were
/// examined.
fn only_known(reply: &Reply) -> usize {
    if let Reply::Refused(RequestError::KeysExist(known)) = reply {
        assert!(known.indices.len() == 1 && known.more, "{known:?}");
        return known.indices[0] as usize;
    }
    let Refusal::KeyExists { index } = refused(reply) else { panic!("{reply:?}") };
    *index
}

fn count_of(reply: &Reply) -> usize {
    let Reply::Keys(keys) = reply else { panic!("{reply:?}") };
    keys.len()
}

/// Sends a call, and runs turns until some of its values are staged: a slot of each takes memory.
fn staged(turns: &mut Turns, call: impl Into<SentCall>) -> u32 {
    let before = turns.driver.engine.pools().bytes();
    let slot = turns.send(LONG_CALLER, call);
    while turns.driver.engine.pools().bytes() < before + 50_000 {
        let turn = turns.run();
        assert!(!turn.replies.contains_key(&slot), "it takes more turns: {:?}", turn.replies);
    }
    turns.driver.engine.pools().check_invariants();
    slot
}

/// Runs turns until nothing is queued, none of them with more work than its budget.
fn finish(turns: &mut Turns) {
    while !turns.items.is_empty() || turns.pending() > 0 {
        assert!(turns.run().long_units < UNITS_MAX);
    }
    // What a refused call left is withdrawn too.
    for _ in 0..20 {
        assert!(turns.run().long_units < UNITS_MAX);
    }
    turns.driver.engine.pools().check_invariants();
}

#[test]
fn no_call_sees_a_staged_value() {
    let mut turns = Turns::new();
    let slot = staged(&mut turns, import(0..COUNT));
    let (pool, key) = (default_pool, || KeyRef::Value(value(0)));
    let on_key = [
        Call::GetKey { pool: pool(), key: key() },
        Call::KeepAlive { pool: pool(), key: key() },
        Call::ForceRelease { pool: pool(), key: key() },
        Call::DeleteKey { pool: pool(), key: key() },
        Call::Reveal { pool: pool(), key: key() },
    ];
    let on_key = on_key.map(|call| turns.send(OTHER_CALLER, call));
    let acquire = Call::Acquire { pool: pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let acquire = turns.send(OTHER_CALLER, acquire);
    let all = turns.send(OTHER_CALLER, Call::KeepAliveAll { pool: pool() });
    let replies = turns.run().replies;
    assert!(!replies.contains_key(&slot), "it is not complete");
    for call in on_key {
        assert_eq!(*refused(&replies[&call]), Refusal::UnknownKey);
    }
    let why = refused(&replies[&acquire]);
    assert!(matches!(why, Refusal::NoKey { cause: NoKeyCause::PoolEmpty, .. }), "{why:?}");
    assert!(matches!(replies[&all], Reply::KeptAliveMany { kept: 0, .. }), "{:?}", replies[&all]);
    let limit = 20;
    let list = Call::ListKeys { pool: pool(), state: None, limit, cursor: None, label: None };
    let list = turns.send(OTHER_CALLER, list);
    // The page is a long call: it comes behind the import.
    assert_eq!(count_of(&turns.reply(slot)), COUNT as usize);
    let Reply::Page(page) = turns.reply(list) else { panic!("a page") };
    assert_eq!(page.keys.len(), limit);
    let reply = turns.ask(OTHER_CALLER, Call::Reveal { pool: pool(), key: key() });
    assert!(matches!(reply, Reply::Revealed { .. }), "{reply:?}");
    finish(&mut turns);
}

/// The values that are staged and the values of other calls: the call that adds a key first wins.
#[test]
fn a_value_that_another_call_imports_meanwhile_is_refused() {
    for (place, deletes, allow_retired) in [
        (0, false, false),
        (10, false, false),
        (COUNT - 1, false, false),
        (10, true, false),
        (10, true, true),
        (COUNT - 1, true, true),
    ] {
        let mut turns = Turns::new();
        let slot = staged(&mut turns, import_into(default_pool(), 0..COUNT, allow_retired));
        let mut short = vec![turns.send(OTHER_CALLER, import([place]))];
        if deletes {
            short.push(turns.send(OTHER_CALLER, delete(place)));
        }
        let replies = turns.run().replies;
        assert_eq!(count_of(&replies[&short[0]]), 1);
        turns.driver.engine.pools().check_invariants();
        let reply = replies.get(&slot).cloned().unwrap_or_else(|| turns.reply(slot));
        if deletes && allow_retired {
            assert_eq!(count_of(&reply), COUNT as usize);
        } else {
            assert_eq!(only_known(&reply), place as usize);
        }
        finish(&mut turns);
        let keys = turns.driver.engine.pools().key_count();
        assert_eq!(
            keys,
            [u64::from(!deletes), u64::from(COUNT)][usize::from(deletes && allow_retired)]
        );
    }
}

/// A slot of a key that was deleted went with the staged value that used it again, and a release of
/// the lease that the key had ended the server. Found by the simulation.
#[test]
fn a_slot_that_had_a_key_stays_when_a_staged_value_is_withdrawn() {
    let mut turns = Turns::new();
    turns.ask(OTHER_CALLER, import([COUNT - 1]));
    turns.ask(OTHER_CALLER, import([COUNT]));
    let (lease, token) = loop {
        let (lease, key, token) = turns.driver.acquire("holder").expect("two keys");
        let reply = turns.driver.call(Call::Reveal { pool: default_pool(), key: KeyRef::Id(key) });
        // The key in the last slot.
        if matches!(reply, Reply::Revealed { value: of, .. } if of == value(COUNT)) {
            break (lease, token);
        }
    };
    turns.ask(OTHER_CALLER, delete(COUNT));
    let slot = turns.send(LONG_CALLER, import(0..COUNT));
    assert_eq!(*refused(&turns.reply(slot)), Refusal::KeyExists { index: COUNT as usize - 1 });
    finish(&mut turns);
    let options = ReleaseOptions::default();
    let reply = turns.ask(OTHER_CALLER, Call::Release { pool: default_pool(), lease, options });
    assert_eq!(*refused(&reply), Refusal::LeaseEnded { cause: Some(EndCause::KeyGone) }, "{token}");
}

/// What a refused call has staged is removed within the budgets of turns, and stands in no one's way.
#[test]
fn a_refused_import_leaves_nothing_and_its_removal_is_bounded() {
    let mut turns = Turns::new();
    turns.ask(OTHER_CALLER, import([COUNT - 1]));
    let before = turns.driver.engine.pools().bytes();
    let slot = turns.send(LONG_CALLER, import(0..COUNT));
    let reply = turns.reply(slot);
    assert_eq!(*refused(&reply), Refusal::KeyExists { index: COUNT as usize - 1 });
    let again = turns.send(OTHER_CALLER, import(0..COUNT - 1));
    let left = |turns: &Turns| turns.driver.engine.pools().bytes() - before;
    let staged = left(&turns);
    assert!(turns.run().long_units < UNITS_MAX);
    let one_turn_later = left(&turns);
    assert!(one_turn_later > staged / 2, "one turn removes a part: {one_turn_later} of {staged}");
    assert!(one_turn_later < staged, "it does remove a part");
    assert_eq!(count_of(&turns.reply(again)), COUNT as usize - 1);
    finish(&mut turns);
    // A value twice in one call is found among those that the call has staged.
    let twice = import((0..COUNT).map(|number| COUNT + number % (COUNT - 1)));
    let slot = turns.send(LONG_CALLER, twice);
    let reply = turns.reply(slot);
    assert_eq!(*refused(&reply), Refusal::KeyExists { index: COUNT as usize - 1 });
    finish(&mut turns);
    assert_eq!(turns.driver.engine.pools().key_count(), u64::from(COUNT));
}

#[test]
fn a_crash_between_two_turns_leaves_no_key_and_a_reply_means_all() {
    for call in [import(0..COUNT), generate(COUNT)] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let open = || Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
        let mut turns = Turns::of(open());
        staged(&mut turns, call.clone());
        drop(turns);
        let mut turns = Turns::of(open());
        assert_eq!(turns.driver.engine.pools().key_count(), 0);
        let slot = staged(&mut turns, call);
        let reply = turns.reply(slot);
        assert_eq!(count_of(&reply), COUNT as usize);
        drop(turns);
        let mut driver = open();
        assert_eq!(driver.engine.pools().key_count(), u64::from(COUNT));
        driver.engine.pools().check_invariants();
        let Reply::Keys(keys) = reply else { panic!("keys") };
        for key in keys.iter().step_by(100) {
            let key_ref = KeyRef::Id(key.id);
            let reply = driver.call(Call::Reveal { pool: default_pool(), key: key_ref });
            assert!(matches!(reply, Reply::Revealed { value, .. } if value == key.value));
        }
    }
}

#[test]
fn a_pool_that_changes_while_values_are_staged_gets_the_keys_that_it_allows_then() {
    let form = PolicyPatch { key_length: Some(30), ..PolicyPatch::default() };
    let full = PolicyPatch { max_keys: Some(Some(100)), ..PolicyPatch::default() };
    let generate = || Call::Generate { pool: side(), count: COUNT, labels: NewLabels::None };
    let import = || import_into(side(), 0..COUNT, false);
    let deleted = || vec![Call::DeletePool { pool: side() }];
    let renewed =
        |patch: &PolicyPatch| vec![Call::DeletePool { pool: side() }, put(side(), patch.clone())];
    // The call, the changes, and the keys afterwards; none if it is refused.
    for (call, changes, expected) in [
        (generate(), vec![put(side(), form.clone())], Some(COUNT)),
        (import(), vec![put(side(), form.clone())], Some(COUNT)),
        (generate(), vec![put(side(), full.clone())], None),
        (import(), vec![put(side(), full)], None),
        (generate(), deleted(), None),
        (import(), deleted(), None),
        (generate(), renewed(&form), Some(COUNT)),
        (import(), renewed(&form), Some(COUNT)),
    ] {
        let mut turns = Turns::new();
        turns.ask(OTHER_CALLER, put(side(), PolicyPatch::default()));
        let slot = staged(&mut turns, call.clone());
        let is_generated = matches!(call, Call::Generate { .. });
        for change in changes.clone() {
            turns.send(OTHER_CALLER, change);
        }
        let reply = turns.reply(slot);
        match expected {
            Some(count) => assert_eq!(count_of(&reply), count as usize),
            None => drop(refused(&reply).clone()),
        }
        if let (Reply::Keys(keys), true) = (&reply, is_generated) {
            assert!(keys.iter().all(|key| key.value.reveal().len() == 30), "the new form");
        }
        for _ in 0..20 {
            turns.run();
        }
        let pools = turns.driver.engine.pools();
        pools.check_invariants();
        let count = pools.get(&side()).map_or(0, |pool| pool.counts().total());
        assert_eq!(count, u64::from(expected.unwrap_or(0)), "{changes:?}");
    }
}

/// An import met a pool without room, and hashed and looked up all its values in one turn.
#[test]
fn an_import_without_room_is_bounded_and_names_a_value_that_exists_first() {
    let full = PolicyPatch { max_keys: Some(Some(10)), ..PolicyPatch::default() };
    for (exists, twice) in [(None, false), (Some(COUNT - 1), false), (None, true)] {
        let mut turns = Turns::new();
        turns.ask(OTHER_CALLER, put(default_pool(), full.clone()));
        turns.ask(OTHER_CALLER, import([exists.unwrap_or(COUNT + 1)]));
        let numbers = (0..COUNT).map(|number| if twice { number % (COUNT - 1) } else { number });
        let slot = turns.send(LONG_CALLER, import(numbers));
        let mut turn_count = 0;
        let reply = loop {
            let mut turn = turns.run();
            turn_count += 1;
            assert!(turn.long_units < UNITS_MAX, "{} units", turn.long_units);
            if let Some(reply) = turn.replies.remove(&slot) {
                break reply;
            }
        };
        assert!(turn_count > 2, "{turn_count} turns");
        let index = COUNT as usize - 1;
        let expected = if exists.is_some() || twice {
            Refusal::KeyExists { index }
        } else {
            Refusal::PoolFull { max: 10, of_server: false }
        };
        assert_eq!(*refused(&reply), expected);
        finish(&mut turns);
    }
}

/// Four hundred callers repeated a call with ten thousand keys, and one turn answered all of them.
#[test]
fn repeats_of_a_call_with_many_keys_are_bounded_and_say_when_a_key_is_gone() {
    let mut turns = Turns::new();
    let body = BodyDigest::of(b"keys");
    let with_key = || SentCall::with_key("k", body, import(0..COUNT));
    let slot = staged(&mut turns, with_key());
    let first = turns.reply(slot);
    let repeats: Vec<_> =
        (10..20).map(|caller| turns.send(CallerNumber(caller), with_key())).collect();
    let mut turn_count = 0;
    let mut replies = HashMap::new();
    while turns.pending() + turns.items.len() > 0 {
        let turn = turns.run();
        turn_count += 1;
        assert!(turn.long_units < UNITS_MAX, "{} units", turn.long_units);
        replies.extend(turn.replies);
    }
    // Each costs at least two units for each key.
    assert!(turn_count * LONG_UNITS_MAX >= 10 * 2 * COUNT, "{turn_count} turns");
    for slot in repeats {
        assert_eq!(format!("{:?}", replies[&slot]), format!("{first:?}"));
    }
    let slot = turns.send(LONG_CALLER, with_key());
    assert!(turns.run().replies.is_empty(), "it takes more turns");
    // A key that the repeat has collected already.
    turns.send(OTHER_CALLER, delete(0));
    assert_eq!(*refused(&turns.reply(slot)), Refusal::KeysGone);
    finish(&mut turns);
}

/// The same Idempotency-Key with another body was answered while a call with it was staged.
#[test]
fn an_idempotency_key_that_another_call_uses_meanwhile_is_refused() {
    let mut turns = Turns::new();
    let digest = BodyDigest::of;
    let long = SentCall::with_key("k", digest(b"long"), import(0..COUNT));
    let slot = staged(&mut turns, long);
    let short = SentCall::with_key("k", digest(b"short"), import([COUNT]));
    let short = turns.send(OTHER_CALLER, short);
    assert_eq!(count_of(&turns.run().replies[&short]), 1);
    assert_eq!(*refused(&turns.reply(slot)), Refusal::IdempotencyMismatch);
    finish(&mut turns);
    assert_eq!(turns.driver.engine.pools().key_count(), 1);
}

/// A value was retired after the import had begun, and was evicted from memory before the import
/// came to it.
#[test]
fn a_value_that_is_retired_and_checkpointed_meanwhile_is_not_imported() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let driver = Driver::open(Arc::new(disk), &clock, 1).expect("opens");
    let mut turns = Turns::of(driver);
    turns.ask(OTHER_CALLER, import([COUNT - 1]));
    // The database knows no retired value yet, so the import needs no lookup.
    let slot = staged(&mut turns, import(0..COUNT));
    turns.ask(OTHER_CALLER, delete(COUNT - 1));
    turns.driver.checkpoint().expect("no fault");
    let reply = turns.reply(slot);
    assert_eq!(*refused(&reply), Refusal::KeyExists { index: COUNT as usize - 1 });
    finish(&mut turns);
}

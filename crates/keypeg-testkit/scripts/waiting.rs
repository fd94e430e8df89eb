//! Waiting for a key: first come, first served; no waiter is refused early or wrongly.

use super::{check, check_within};
use keypeg_core::Limits;

#[test]
fn every_way_a_key_becomes_available_grants_it_to_the_first_waiter() {
    let ways = [
        ("", "release A"),
        ("", "force_release a"),
        ("", "generate b"),
        ("", "import v"),
        ("", "tick 5s\n expire"),
        ("", "tick 5s\n acquire X -> no_key AllLeased"),
        ("", "tick 5s\n release A -> lease_ended"),
        ("", "tick 5s\n show a"),
        ("release A quarantine", "force_release a"),
        ("release A rest=2s", "force_release a"),
        ("release A rest=2s", "tick 2s\n expire"),
        ("release A rest=2s", "tick 2s\n keepalive a"),
    ];
    for (before, way) in ways {
        check(&format!(
            "
            generate a
            acquire A ttl=5s
            wait one holder=1     -> waits
            wait two              -> waits
            counts                -> counts available=0 waiting=2
            {before}
            got one               -> nothing
            {way}
            got one               -> granted
            got two               -> nothing
            counts                -> counts available=0 waiting=1
            show of:one           -> leased by=1
            acquire late          -> no_key available=0
            release one
            got two               -> granted
            release two
            acquire late          -> granted
            "
        ));
    }
}

#[test]
fn a_wait_ends_at_its_deadline_and_never_before() {
    check(
        "
        generate a
        acquire A ttl=30s
        wait one for=10s
        tick 2s
        wait two for=3s
        wait far for=300s
        tick 2.999999s
        expire                -> expired left=1000
        got two               -> nothing
        tick 1us
        expire                -> expired left=999
        got two               -> no_key AllLeased leased=1 next=25s
        counts                -> counts waiting=2
        tick 4.999s
        expire
        got one               -> nothing
        tick 0.001s
        expire
        got one               -> no_key AllLeased next=20s
        tick 20s              # the lease expires; the third has waited 28 s of 300
        expire
        got far               -> granted key=a waited=28s ttl=60s
        ",
    );
    check(
        "
        wait one              -> waits                      # a request can wait on an empty pool
        wait two for=0s       -> no_key PoolEmpty
        wait bad ttl=61s      -> invalid ttl_seconds
        counts                -> counts waiting=1
        generate a b
        got one               -> granted waited=0s
        counts                -> counts available=1 waiting=0
        wait three            -> granted                    # no wait while a key is available
        ",
    );
}

/// A key becomes available in the step in which a wait ends: a refusal would be wrong.
#[test]
fn no_waiter_is_refused_while_a_key_is_available() {
    check(
        "
        generate a
        acquire A ttl=10s
        wait one for=10s
        wait two for=10s
        tick 10s
        expire
        got one               -> granted key=a waited=10s
        got two               -> no_key AllLeased available=0 leased=1
        ",
    );
}

#[test]
fn a_cancelled_wait_keeps_the_order_of_the_others() {
    check(
        "
        generate a
        acquire A
        wait one
        wait two
        wait three
        wait four
        cancel two            -> cancelled
        cancel two            -> not_waiting
        cancel one            -> cancelled
        counts                -> counts waiting=2
        release A
        got three             -> granted
        cancel three          -> not_waiting
        release three
        got four              -> granted
        release four
        counts                -> counts available=1 waiting=0
        got one               -> nothing
        got two               -> nothing
        ",
    );
}

#[test]
fn each_pool_has_its_own_wait_queue() {
    check(
        "
        pool other
        wait one
        in default
        wait two
        drop other            # its waiters are refused a step later
        expire
        got one               -> unknown_pool
        cancel one            -> not_waiting
        counts                -> counts waiting=1
        pool other            # the same index, another queue
        wait three
        generate a
        got three             -> granted key=a
        got two               -> nothing
        restart               # waiting is in memory only
        in default
        counts                -> counts waiting=0
        ",
    );
}

#[test]
fn a_grant_to_a_waiter_follows_the_present_policy() {
    check(
        "
        wait one ttl=50s
        wait two
        policy lease_ttl=20s rest=7s
        generate a b
        got one               -> granted ttl=20s
        got two               -> granted ttl=20s
        release two
        show of:two           -> resting left=7s
        restart
        show of:one           -> leased ttl=20s             # it is a fact like any other
        ",
    );
}

#[test]
fn a_key_that_is_due_is_not_granted_to_a_waiter() {
    check_within(
        Limits { pools: 3, keys: 10, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX },
        "
        generate a
        tick 250s
        acquire A
        wait one for=300s
        tick 50s
        release A             -> lease_ended KeyGone
        got one               -> nothing
        generate b
        got one               -> granted key=b waited=50s
        ",
    );
}

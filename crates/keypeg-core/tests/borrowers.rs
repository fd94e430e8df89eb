//! How many leases somebody may have at once, as tables: over all pools, those waited for among them;
//! every end of a lease makes room, and a restart forgets none.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::Limits;
use world::{check, check_within};

#[test]
fn a_borrower_has_as_many_leases_as_it_may_over_all_pools() {
    check(
        "
        generate a b c d
        acquire A as=ci max=2 -> granted
        pool side
        generate e f
        acquire B as=ci max=2 -> granted
        acquire C as=ci max=2 -> too_many_leases max=2
        in default
        acquire C as=ci max=2 -> too_many_leases max=2
        acquire C as=web max=2 -> granted
        acquire D             -> granted       # in nobody's name
        acquire E as=ci       -> granted       # its bound is gone
        borrowed ci           -> borrowed 3
        acquire F as=ci max=3 -> too_many_leases max=3
        acquire F as=ci ttl=61s max=1 -> invalid ttl_seconds
        borrowed web          -> borrowed 1
        borrowed nobody       -> borrowed 0
        ",
    );
}

/// One lease of one, in whatever way it ends.
#[test]
fn every_end_of_a_lease_makes_room() {
    let ends = [
        "release A",
        "release A rest=10s",
        "release A quarantine",
        "release A quarantine reason=401",
        "takeback A",
        "unblock of:A",
        "delete of:A",
        "tick 60s",
        "tick 60s\n expire",
        "tick serving 300s\n expire",
        "tick 60s\n acquire X ttl=1s\n acquire Y ttl=1s",
    ];
    for end in ends {
        for restart in ["", "restart"] {
            check(&format!(
                "
                generate a b
                acquire A as=ci max=1 -> granted
                acquire B as=ci max=1 -> too_many_leases
                {restart}
                borrowed ci           -> borrowed 1
                acquire B as=ci max=1 -> too_many_leases
                {end}
                {restart}
                generate new
                acquire B as=ci max=1 -> granted
                borrowed ci           -> borrowed 1
                acquire C as=ci max=1 -> too_many_leases
                ",
            ));
        }
    }
}

/// A policy that lets keys rest: the lease is over all the same.
#[test]
fn a_key_that_rests_is_nobodys() {
    check(
        "
        policy rest=100s
        generate a b c
        acquire A as=ci max=1 -> granted
        tick 60s
        expire
        borrowed ci           -> borrowed 0
        acquire B as=ci max=1 -> granted
        release B             -> released
        borrowed ci           -> borrowed 0
        restart
        acquire C as=ci max=1 -> granted
        borrowed ci           -> borrowed 1
        tick 100s
        expire
        borrowed ci           -> borrowed 0
        ",
    );
}

#[test]
fn a_pool_that_is_removed_takes_its_leases_and_waits_along() {
    for restart in ["", "restart"] {
        // Made again where there is room for it only because it was removed.
        let limits = Limits { pools: 2, keys: 5 };
        let script = format!(
            "
            generate a b c
            acquire A as=ci  -> granted
            pool side
            generate d e
            acquire B as=ci  -> granted
            acquire C as=web -> granted
            wait W as=ci     -> waits
            wait V as=ci     -> waits
            borrowed ci      -> borrowed 4
            drop side
            borrowed ci      -> borrowed 1
            borrowed web     -> borrowed 0
            expire
            got W            -> unknown_pool
            {restart}
            borrowed ci      -> borrowed 1
            in default
            acquire D as=ci max=2 -> granted
            acquire E as=ci max=2 -> too_many_leases
            pool side             -> made
            generate d e
            acquire E as=ci max=2 -> too_many_leases
            acquire E as=ci max=3 -> granted
            ",
        );
        check_within(limits, &script);
    }
}

#[test]
fn who_waits_has_the_lease_already() {
    check(
        "
        generate a b
        acquire A         -> granted
        acquire B         -> granted
        wait V as=ci max=2 for=10s -> waits
        wait W as=ci max=2 for=20s -> waits
        wait X as=ci max=2         -> too_many_leases max=2
        acquire X as=ci max=2      -> too_many_leases max=2
        wait Y as=web max=1        -> waits
        release A
        got V              -> granted
        borrowed ci        -> borrowed 2
        release V
        got W              -> granted
        borrowed ci        -> borrowed 1
        release W
        got Y              -> granted
        borrowed ci        -> borrowed 0
        wait V as=ci max=1 -> waits
        leave V            -> left
        borrowed ci        -> borrowed 0
        wait V as=ci max=1 for=1s -> waits
        tick 1s
        expire
        got V              -> no_key
        borrowed ci        -> borrowed 0
        wait V as=ci max=1 -> waits
        stop
        borrowed ci        -> borrowed 0
        borrowed web       -> borrowed 1
        ",
    );
}

/// What was answered is told again at the bound, and a repeat of a wait has its place; a refusal is
/// not remembered.
#[test]
fn asking_again_takes_no_more() {
    check(
        "
        generate a
        wait A as=ci max=1 by=ci once=1 -> granted
        wait A as=ci max=1 by=ci once=1 -> again same
        wait B as=ci max=1 by=ci once=2 -> too_many_leases
        wait B as=ci max=2 by=ci once=2 -> waits
        wait C as=ci max=2 by=ci once=2 -> waits
        got B                           -> taken_over
        borrowed ci                     -> borrowed 2
        release A
        got C                           -> granted
        borrowed ci                     -> borrowed 1
        restart
        borrowed ci                     -> borrowed 1
        wait D as=ci max=1 by=ci once=2 -> again
        release C
        borrowed ci                     -> borrowed 0
        wait D as=ci max=1 by=ci once=3 -> granted
        ",
    );
}

/// What is over and not ended yet is no lease: more is to be settled first, in whatever pool it is.
#[test]
fn a_lease_that_is_over_never_counts() {
    for elsewhere in ["", "pool side"] {
        check(&format!(
            "
            generate a b c d
            pool side
            generate e f
            in default
            acquire A as=ci -> granted
            acquire B as=ci -> granted
            tick 59.999999s
            {elsewhere}
            acquire C as=ci max=2 -> too_many_leases
            tick 1us
            budget 0
            acquire C as=ci max=2 -> settling
            budget 1
            expire
            acquire C as=ci max=2 -> granted
            ",
        ));
    }
}

//! Limits of leases per borrower, over all pools, waiting requests included; every end of a lease
//! makes room, and the counts survive a restart.

use super::{check, check_within};
use keypeg_core::Limits;

#[test]
fn a_borrowers_leases_are_limited_over_all_pools() {
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
        acquire D             -> granted       # without a borrower
        acquire E as=ci       -> granted       # without a limit
        leases ci             -> leases 3
        acquire F as=ci max=3 -> too_many_leases max=3
        acquire F as=ci ttl=61s max=1 -> invalid ttl_seconds
        leases web            -> leases 1
        leases unknown        -> leases 0
        ",
    );
}

/// The only lease of a borrower ends in each possible way.
#[test]
fn every_end_of_a_lease_makes_room() {
    let ends = [
        "release A",
        "release A rest=10s",
        "release A quarantine",
        "release A quarantine reason=401",
        "revoke A",
        "force_release of:A",
        "delete of:A",
        "tick 60s",
        "tick 60s\n expire",
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
                leases ci             -> leases 1
                acquire B as=ci max=1 -> too_many_leases
                {end}
                {restart}
                generate new
                acquire B as=ci max=1 -> granted
                leases ci             -> leases 1
                acquire C as=ci max=1 -> too_many_leases
                ",
            ));
        }
    }
}

/// The policy lets keys rest: the lease has ended, although its key is not available.
#[test]
fn a_resting_key_counts_for_no_borrower() {
    check(
        "
        policy rest=100s
        generate a b c
        acquire A as=ci max=1 -> granted
        tick 60s
        expire
        leases ci             -> leases 0
        acquire B as=ci max=1 -> granted
        release B             -> released
        leases ci             -> leases 0
        restart
        acquire C as=ci max=1 -> granted
        leases ci             -> leases 1
        tick 100s
        expire
        leases ci             -> leases 0
        ",
    );
}

#[test]
fn a_deleted_pools_leases_and_waits_count_no_more() {
    for restart in ["", "restart"] {
        // Created again at a limit that leaves room only because the pool was deleted.
        let limits =
            Limits { pools: 2, keys: 5, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
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
            leases ci        -> leases 4
            drop side
            leases ci        -> leases 1
            leases web       -> leases 0
            expire
            got W            -> unknown_pool
            {restart}
            leases ci        -> leases 1
            in default
            acquire D as=ci max=2 -> granted
            acquire E as=ci max=2 -> too_many_leases
            pool side             -> created
            generate d e
            acquire E as=ci max=2 -> too_many_leases
            acquire E as=ci max=3 -> granted
            ",
        );
        check_within(limits, &script);
    }
}

#[test]
fn a_waiting_request_counts_as_a_lease() {
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
        leases ci          -> leases 2
        release V
        got W              -> granted
        leases ci          -> leases 1
        release W
        got Y              -> granted
        leases ci          -> leases 0
        wait V as=ci max=1 -> waits
        cancel V           -> cancelled
        leases ci          -> leases 0
        wait V as=ci max=1 for=1s -> waits
        tick 1s
        expire
        got V              -> no_key
        leases ci          -> leases 0
        wait V as=ci max=1 -> waits
        stop
        leases ci          -> leases 0
        leases web         -> leases 1
        ",
    );
}

/// At the limit a stored answer is redelivered, and a repeat takes over a wait; a refusal is not
/// stored.
#[test]
fn a_repeat_counts_no_second_lease() {
    check(
        "
        generate a
        wait A as=ci max=1 caller=ci once=1 -> granted
        wait A as=ci max=1 caller=ci once=1 -> redelivered same
        wait B as=ci max=1 caller=ci once=2 -> too_many_leases
        wait B as=ci max=2 caller=ci once=2 -> waits
        wait C as=ci max=2 caller=ci once=2 -> waits
        got B                           -> taken_over
        leases ci                       -> leases 2
        release A
        got C                           -> granted
        leases ci                       -> leases 1
        restart
        leases ci                       -> leases 1
        wait D as=ci max=1 caller=ci once=2 -> redelivered
        release C
        leases ci                       -> leases 0
        wait D as=ci max=1 caller=ci once=3 -> granted
        ",
    );
}

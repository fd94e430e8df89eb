//! Requests with an Idempotency-Key: executed once, and a repeat gets the same answer, also after a
//! restart; a repeat takes over the wait of the first request; refusals are not stored.

use super::{check, check_within};
use keypeg_core::Limits;

#[test]
fn a_repeated_acquire_returns_the_same_lease_while_it_runs_and_then_that_it_ended() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a b
            wait A for=0s ttl=30s holder=x once=k -> granted ttl=30s
            {restart}
            tick 10s
            wait B for=0s ttl=30s holder=x once=k -> redelivered same ttl=20s
            counts                -> counts available=1 leased=1
            wait C for=0s once=k body=other -> mismatch
            wait D for=0s once=other -> granted
            counts                -> counts available=0 leased=2
            {restart}
            tick 19.999s
            wait E for=0s once=k  -> redelivered same ttl=0.001s
            tick 0.001s
            wait F for=0s once=k  -> lease_ended
            generate c
            wait G for=0s once=k  -> lease_ended          # not a second grant
            {restart}
            wait H for=0s once=k  -> lease_ended
            "
        ));
    }
}

#[test]
fn a_lease_renewed_since_is_redelivered_with_its_present_end() {
    check(
        "
        pool p lease_ttl=60s max_hold=300s
        generate a
        wait A for=0s ttl=10s once=k -> granted ttl=10s
        tick 5s
        renew A ttl=60s
        tick 20s
        wait B for=0s once=k  -> redelivered changed ttl=40s
        release B
        wait C for=0s once=k  -> lease_ended Released
        ",
    );
}

#[test]
fn an_answer_is_removed_after_an_hour_but_not_while_its_lease_runs() {
    check(
        "
        pool p lease_ttl=7200s keepalive=null
        generate a b once=g   -> created
        wait A for=0s ttl=10s once=k -> granted
        wait B for=0s once=l  -> granted ttl=7200s
        tick 3599.999s
        generate a b once=g   -> same
        wait C for=0s once=k  -> lease_ended
        wait D for=0s once=l  -> redelivered same
        tick 0.001s
        generate a b once=g   -> others
        wait E for=0s once=k  -> granted
        wait F for=0s once=l  -> redelivered same ttl=3600s
        restart
        wait G for=0s once=l  -> redelivered same ttl=3600s
        ",
    );
}

#[test]
fn a_repeated_generate_returns_the_same_keys_while_all_of_them_exist() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate x y z        # their slots are reused, out of order
            delete x
            delete z
            generate a b c d once=k -> created life=300s
            {restart}
            tick 10s
            generate a b c d once=k -> same life=290s
            acquire A
            generate a b c d once=k -> same
            generate a b c d once=k body=5 -> mismatch
            generate e once=l     -> created
            generate f once=k caller=other -> created  # the same key of another caller
            delete b
            generate n m          # reuses the slot of b
            {restart}
            generate a b c d once=k -> keys_gone
            counts                -> counts total=8
            "
        ));
    }
}

#[test]
fn a_repeated_import_returns_the_keys_instead_of_a_refusal() {
    check(
        "
        import a b once=k     -> created
        import a b            -> key_exists at=0
        restart
        import a b once=k     -> same
        delete a
        import a b once=k     -> keys_gone
        import a b once=l     -> key_exists at=0
        ",
    );
}

#[test]
fn a_key_that_is_due_is_missing_for_its_answer_too() {
    check(
        "
        pool p keepalive=10s
        generate a b once=k   -> created life=10s
        tick 9.999s
        generate a b once=k   -> same life=0.001s
        keepalive a
        tick 0.001s
        generate a b once=k   -> keys_gone
        counts                -> counts total=1
        ",
    );
}

#[test]
fn a_refusal_is_not_stored() {
    check(
        "
        wait A for=0s once=k  -> no_key PoolEmpty
        wait B for=1s once=k  -> waits
        tick 1s
        expire
        got B                 -> no_key PoolEmpty
        wait C for=0s once=k  -> no_key
        pool p max_keys=1
        generate a b once=g   -> full
        generate a once=g     -> created
        wait D for=0s once=k  -> granted
        ",
    );
    check_within(
        Limits { pools: 3, keys: 2, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX },
        "
        generate a b c once=g -> full of=server
        generate a b once=g   -> created
        generate a b once=g   -> same                  # needs no room
        ",
    );
}

#[test]
fn a_repeat_takes_over_the_position_of_the_waiting_request() {
    check(
        "
        wait one for=10s once=k -> waits
        wait two for=100s     -> waits
        tick 6s
        wait three for=10s once=k -> waits
        counts                -> counts waiting=2
        got one               -> taken_over
        cancel one            -> not_waiting
        wait bad once=k body=other -> mismatch
        tick 4s               # the first one's wait would end, the repeat's does not
        expire
        got three             -> nothing
        generate a
        got three             -> granted waited=4s
        got two               -> nothing
        wait four for=10s once=k -> redelivered same
        release three
        got two               -> granted
        wait five once=k      -> lease_ended Released
        ",
    );
    check(
        "
        wait one once=k       -> waits
        cancel one            -> cancelled
        wait two              -> waits
        wait three once=k     -> waits                 # a cancelled wait has no position
        generate a
        got two               -> granted
        got three             -> nothing
        drop default          -> default_pool
        ",
    );
    check(
        "
        pool p
        wait one once=k       -> waits
        drop p
        expire
        got one               -> unknown_pool
        pool p
        generate a
        wait two once=k       -> granted
        counts                -> counts waiting=0
        ",
    );
}

/// A grant that no client received is released, and a repeat of its request must not get the answer
/// that the lease ended, because it never had it. But a redelivered lease has a holder.
#[test]
fn a_revoked_grant_is_no_answer_unless_it_was_redelivered() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a
            wait A for=0s once=k  -> granted token=1
            revoke A              -> revoked
            {restart}
            counts                -> counts available=1
            wait B for=0s once=k  -> granted
            "
        ));
    }
    check(
        "
        generate a
        wait A for=0s once=k  -> granted
        wait B for=0s once=k  -> redelivered same
        revoke A              -> revoked
        counts                -> counts leased=1
        wait C for=0s once=k  -> redelivered same
        revoke A
        release B
        ",
    );
    check(
        "
        generate a
        acquire A
        revoke A              -> revoked
        counts                -> counts available=1
        revoke A              -> lease_ended Released
        ",
    );
}

//! A pool that is draining: it grants no key and accepts no wait, its leases run on, and undoing it
//! makes the keys available at once.

use super::check;

#[test]
fn a_draining_pool_grants_no_key_and_its_leases_run_on() {
    check(
        "
        generate a b c
        policy max_hold=300s rest=5s
        acquire A             -> granted
        acquire B             -> granted
        policy draining=true  -> done
        acquire X             -> no_key Draining available=1 leased=2 next=never
        wait one for=10s      -> no_key Draining
        counts                -> counts available=1 leased=2 waiting=0
        restart
        acquire X             -> no_key Draining available=1 leased=2
        tick 10s
        renew A               -> renewed ttl=60s
        release B             -> released
        acquire X             -> no_key Draining resting=1
        tick 5s
        keepalive all
        generate d
        import v
        acquire X             -> no_key Draining available=4 leased=1
        tick 57s
        acquire X             -> no_key Draining next=never
        counts                -> counts available=4 leased=0 resting=1
        tick 3s
        policy draining=false -> done
        acquire C             -> granted
        policy draining=false -> done
        restart
        acquire D             -> granted
        ",
    );
}

#[test]
fn a_pool_that_begins_to_drain_refuses_its_waiters_at_once() {
    check(
        "
        generate a
        acquire A ttl=5s
        wait one for=100s     -> waits
        wait two for=200s     -> waits
        policy rest=0s        -> done
        got one               -> nothing
        policy draining=true  -> done
        got one               -> no_key Draining leased=1 next=never
        got two               -> no_key Draining
        counts                -> counts leased=1 waiting=0
        release A
        acquire X             -> no_key Draining available=1
        policy draining=false
        acquire B             -> granted
        wait three for=10s    -> waits
        tick 1s
        release B
        got three             -> granted waited=1s
        ",
    );
}

#[test]
fn a_stored_answer_is_returned_while_the_pool_drains() {
    check(
        "
        generate a
        wait A once=1         -> granted
        wait one for=99s once=2 -> waits
        policy draining=true
        got one               -> no_key Draining
        wait B once=1         -> redelivered same
        wait X once=2         -> no_key Draining
        release A
        wait X once=2         -> no_key Draining available=1
        policy draining=false
        wait B once=2         -> granted
        ",
    );
}

#[test]
fn each_pool_drains_alone_and_a_new_one_can_begin_so() {
    check(
        "
        generate a
        pool other draining=true -> created
        in other
        generate b
        acquire B             -> no_key Draining available=1
        in default
        acquire A             -> granted
        policy draining=true
        in other
        policy draining=false lease_ttl=5s
        acquire B             -> granted ttl=5s
        ",
    );
    check(
        "acquire X -> no_key PoolEmpty\n policy draining=true\n acquire X -> no_key Draining available=0",
    );
}

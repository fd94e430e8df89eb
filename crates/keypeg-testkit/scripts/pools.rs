//! Pools: policies, values that are imported once, and limits.

use super::{check, check_within};
use keypeg_core::Limits;

#[test]
fn a_policy_change_affects_later_grants_and_not_running_leases() {
    check(
        "
        generate a b
        acquire A
        policy lease_ttl=10s keepalive=100s
        show of:A             -> leased ttl=60s life=300s
        acquire B             -> granted ttl=10s life=300s
        generate c            -> created life=100s
        tick 20s
        show of:A             -> leased ttl=40s life=280s
        show of:B             -> available life=280s
        keepalive of:A        -> kept life=100s
        policy lease_ttl=600s max_hold=700s keepalive=300s
        tick 39.999s
        renew A               -> max_hold_reached ends=0.001s  # the grant set the longest hold
        show c                -> available life=40.001s
        ",
    );
    check(
        "
        policy lease_ttl=0s         -> invalid lease_ttl_seconds
        policy lease_ttl=604800.001s -> invalid lease_ttl_seconds
        policy lease_ttl=604800s    -> done
        policy lease_ttl=10s max_hold=9.999s -> invalid max_hold_seconds
        policy lease_ttl=10s max_hold=10s -> done
        policy lease_ttl=11s        -> invalid max_hold_seconds
        policy max_hold=null lease_ttl=11s -> done
        policy keepalive=0s         -> invalid keepalive_ttl_seconds
        policy rest=604801s         -> invalid rest_seconds
        policy key_length=19        -> invalid key_length
        policy key_length=129       -> invalid key_length
        policy prefix=a.b           -> invalid key_prefix
        policy max_keys=0           -> invalid max_keys
        policy key_length=128 prefix=KP_
        generate a                  -> created length=131 prefix=KP
        show value:a                -> available
        policy key_length=20 prefix=
        generate b                  -> created length=20 prefix=
        pool other max_hold=1s      -> invalid max_hold_seconds
        counts                      -> unknown_pool
        ",
    );
}

#[test]
fn the_keep_alive_ttl_can_be_null_and_set_again() {
    check(
        "
        policy keepalive=null
        generate a b          -> created life=never
        tick 4000s
        show a                -> available life=never
        keepalive a           -> kept life=never
        counts                -> counts purge=never total=2
        policy keepalive=300s
        show a                -> available life=never       # keeps its deadline
        keepalive a           -> kept life=300s
        show b                -> available life=never
        keepalive all         -> kept count=2
        show b                -> available life=300s
        tick 100s
        policy keepalive=null
        show b                -> available life=200s
        keepalive all         -> kept count=2
        show a                -> available life=never
        acquire A             -> granted life=never
        tick 7000s
        counts                -> counts total=2 purge=never
        policy keepalive=10s
        keepalive a
        tick 10s
        show a                -> unknown_key
        show b                -> available life=never
        restart
        show b                -> available life=10s         # a start applies the policy
        ",
    );
}

#[test]
fn a_value_is_imported_at_most_once_during_the_life_of_a_pool() {
    check(
        "
        import v w            -> created life=300s
        import v              -> key_exists at=0
        import x y w          -> key_exists at=2
        show value:x          -> unknown_key                # all or nothing
        import x x            -> key_exists at=1
        import x y            -> created
        delete value:v
        import v              -> key_exists at=0            # deleted: retired
        tick 299s
        keepalive x y
        tick 1s
        import w              -> key_exists at=0            # purged at this instant: retired
        show value:w          -> unknown_key
        counts                -> counts total=2
        generate g
        import g              -> key_exists at=0
        delete g
        import g              -> key_exists at=0            # a generated value is retired too
        generate h
        tick 300s
        import h              -> key_exists at=0            # purged at this instant
        restart
        import w              -> key_exists at=0
        import v              -> key_exists at=0
        import h              -> key_exists at=0
        pool other
        import v h            -> created                    # another pool has its own values
        drop other
        pool other
        import v              -> created                    # deleted with its pool
        ",
    );
}

#[test]
fn a_pool_accepts_all_or_none_up_to_its_limit() {
    check(
        "
        policy max_keys=3
        generate a b
        generate c d          -> full max=3 of=pool
        import c d            -> full max=3 of=pool
        counts                -> counts total=2
        generate c            -> created
        import d              -> full max=3 of=pool
        import c              -> key_exists at=0            # this refusal comes first
        delete a
        import d              -> created
        policy max_keys=1
        generate e            -> full max=1 of=pool
        counts                -> counts total=3             # existing keys stay
        tick 300s
        generate e            -> created                    # due keys take no room
        policy max_keys=null
        generate 100          -> created
        ",
    );
}

#[test]
fn the_server_limits_the_keys_of_all_pools() {
    let limits = Limits { pools: 2, keys: 5, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
    check_within(
        limits,
        "
        generate a b c
        pool other max_keys=9 -> created
        generate d e f        -> full max=5 of=server
        import d e f          -> full max=5 of=server
        counts                -> counts total=0 server=3
        generate d e          -> created
        generate f            -> full max=5 of=server
        drop other
        in default
        counts                -> counts total=3 server=3
        generate d e          -> created
        delete a
        generate f            -> created
        ",
    );
}

//! Scripts about what only a request shows: listings in pages, revealed values, much that ends at
//! once, a stop. Every store runs them; the pools do not.

use super::check;

#[test]
fn a_listing_has_each_key_once_whatever_the_size_of_its_pages() {
    for limit in 1..7 {
        check(&format!(
            "
            list limit={limit}    -> listed count=0 pages=1
            generate a b c d e
            delete c
            acquire A
            list limit={limit}    -> listed count=4 keys=a,b,d,e
            generate f
            list limit={limit}    -> listed count=5 keys=a,b,d,e,f
            restart
            list limit={limit}    -> listed count=5 keys=a,b,d,e,f
            "
        ));
    }
}

#[test]
fn a_listing_of_a_state_has_only_its_keys() {
    check(
        "
        generate a
        acquire A
        release A quarantine
        generate b
        acquire B ttl=10s
        generate c
        acquire C
        release C rest=20s
        generate d
        list state=quarantined -> listed keys=a
        list state=leased     -> listed keys=b
        list state=resting    -> listed keys=c
        list state=available  -> listed keys=d
        tick 10s
        list state=leased     -> listed count=0
        list state=available limit=1 -> listed keys=b,d
        restart
        list state=quarantined -> listed keys=a
        list state=resting    -> listed keys=c
        tick 290s             # due keys are not listed
        keepalive a
        restart
        list                  -> listed count=4
        tick 300s
        list                  -> listed count=0
        ",
    );
}

#[test]
fn a_listing_of_a_label_has_only_its_keys() {
    check(
        "
        generate a b label=team
        generate c
        import v label=other
        list label=team       -> listed keys=a,b
        list label=other      -> listed keys=v
        list label=tea        -> listed count=0
        label c label=team
        label a
        list label=team limit=1 -> listed keys=b,c
        restart
        list label=team       -> listed keys=b,c
        delete b
        delete c
        list label=team       -> listed count=0
        list                  -> listed count=2
        label a label=team
        label v label=team
        acquire A
        list label=team state=available -> listed count=1
        list label=team state=leased -> listed count=1
        list label=team state=resting -> listed count=0
        ",
    );
}

#[test]
fn pools_are_listed_by_name_each_once_whatever_the_size_of_their_pages() {
    for limit in 1..7 {
        check(&format!(
            "
            pools limit={limit}   -> listed pools=default pages=1
            pool d
            pool b
            pool a-1
            pool e
            pools limit={limit}   -> listed pools=a-1,b,d,default,e
            drop b
            pools limit={limit}   -> listed pools=a-1,d,default,e
            pools limit={limit} from=b -> listed pools=d,default,e
            pools limit={limit} from=z -> listed pools= pages=1
            restart
            pools limit={limit}   -> listed pools=a-1,d,default,e
            "
        ));
    }
}

#[test]
fn a_listing_of_pools_has_only_those_that_its_filter_allows() {
    check(
        "
        pool team-a
        pool team-b
        pool team
        pool teams
        pools of=team-*       -> listed pools=team-a,team-b pages=1
        pools of=team-* limit=1 -> listed pools=team-a,team-b pages=2
        pools of=teams,team-a,default -> listed pools=default,team-a,teams
        pools of=team-*,team-b,team,t* limit=2 -> listed pools=team,team-a,team-b,teams pages=2
        pools of=unknown,other-* -> listed pools= pages=1
        pools of=team-*,default from=team-b -> listed pools=team-b
        pools of=*            -> listed pools=default,team,team-a,team-b,teams
        ",
    );
}

#[test]
fn a_cursor_is_valid_for_its_pool_only() {
    check(
        "
        list                  -> listed count=0
        generate 20
        pool other
        generate 20
        list limit=7 cursor=other -> listed count=13
        list limit=7 cursor=default -> bad_cursor
        in unknown
        list                  -> unknown_pool
        ",
    );
}

#[test]
fn a_reveal_shows_the_value_and_changes_nothing() {
    check(
        "
        reveal nokey          -> unknown_key
        generate a
        import v
        reveal a              -> revealed key=a same=true
        reveal v              -> revealed key=v same=true
        reveal value:v        -> revealed key=v same=true
        acquire A
        acquire B
        reveal v              -> revealed same=true
        counts                -> counts available=0 leased=2
        restart
        reveal a              -> revealed key=a same=true
        reveal v              -> revealed key=v same=true
        tick 300s
        reveal a              -> unknown_key
        ",
    );
}

#[test]
fn an_import_is_all_or_nothing_and_keeps_its_order() {
    let values: Vec<String> = (0..1_000).map(|number| format!("v{number}")).collect();
    let (all, halves) = (values.join(" "), values.split_at(500));
    let (first, second) = (halves.0.join(" "), halves.1.join(" "));
    check(&format!(
        "
        import {first}        -> created
        import {second} v0    -> key_exists at=500
        counts                -> counts total=500
        import {second}       -> created
        restart
        import new {all}      -> key_exists at=1
        delete value:v7
        delete value:v999
        restart
        counts                -> counts total=998
        import new v7         -> key_exists at=1
        restart
        import v999           -> key_exists at=0
        import new            -> created
        "
    ));
}

/// More is due than a store expires at once. A call may be refused until it has expired, but no
/// answer shows what is due.
#[test]
fn much_that_ends_at_once_gives_no_wrong_answer() {
    check(
        "
        policy lease_ttl=100s
        generate 5000
        tick 299s
        generate a
        acquire X             -> granted
        release X
        tick 1s
        acquire A             -> granted key=a              # every other key was due
        acquire B             -> no_key AllLeased leased=1
        counts                -> counts total=1 available=0 leased=1
        generate 4999
        list limit=1000       -> listed count=5000
        keepalive all         -> kept count=5000
        tick 299.999s
        counts                -> counts total=5000
        tick 0.001s
        keepalive all         -> kept count=0
        counts                -> counts total=0 server=0
        acquire C             -> no_key PoolEmpty
        ",
    );
    check(
        "
        policy max_keys=5000
        generate 5000
        generate a            -> full max=5000
        tick 300s
        generate 5000         -> created
        generate a            -> full max=5000
        restart
        counts                -> counts total=5000
        ",
    );
}

#[test]
fn the_key_set_is_the_same_after_every_start() {
    check(
        "
        policy lease_ttl=90s rest=3s
        generate a b c
        import v w
        delete b
        delete value:w
        pool other max_keys=2 keepalive=null
        generate x y
        pool gone
        generate z
        drop gone
        restart
        show z                -> unknown_pool
        in other
        show x                -> available life=never
        generate z            -> full max=2
        delete x
        in default
        list                  -> listed keys=a,c,v
        import w              -> key_exists at=0
        acquire A             -> granted ttl=90s
        restart
        release A             -> released
        show of:A             -> resting left=3s
        in other
        list                  -> listed keys=y
        generate z            -> created
        restart
        restart
        list                  -> listed keys=y,z
        in default
        list                  -> listed keys=a,c,v
        ",
    );
}

#[test]
fn a_stop_refuses_all_that_waits_or_would_wait() {
    check(
        "
        generate a
        acquire A
        wait W for=300s       -> waits
        stop
        got W                 -> shutting_down
        wait X for=1s         -> shutting_down
        acquire Y             -> no_key AllLeased
        release A             -> released
        ",
    );
}

#[test]
fn a_pool_is_created_or_changed_on_the_condition_that_it_exists_or_not() {
    check(
        "
        pool_if other exists=true -> unknown_pool
        counts                -> unknown_pool
        pool_if other exists=false max_keys=1 -> created
        generate a
        pool_if other exists=false max_keys=9 -> done       # and it changes nothing
        generate b            -> full max=1
        pool_if other exists=true max_keys=9 -> done
        generate b            -> created
        ",
    );
}

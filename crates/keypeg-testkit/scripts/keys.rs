//! Keys: the way from creation to deletion or purge, keep-alives, quarantine, force-release.

use super::check;

#[test]
fn a_key_is_created_leased_released_and_purged() {
    check(
        "
        acquire early         -> no_key PoolEmpty available=0 leased=0 next=never
        generate a b          -> created life=300s length=20 prefix=
        counts                -> counts available=2 leased=0 total=2 hold_end=never purge=300s
        acquire one holder=x  -> granted token=1 ttl=60s life=300s
        show of:one           -> leased by=x token=1 ttl=60s life=300s
        tick 1s
        acquire two ttl=10s   -> granted token=2 ttl=10s life=299s
        acquire none          -> no_key AllLeased available=0 leased=2 next=10s
        counts                -> counts available=0 leased=2 total=2 hold_end=10s purge=299s
        release one           -> released
        show of:one           -> available life=299s
        release one           -> lease_ended Released
        acquire three         -> granted token=3 ttl=60s
        release one           -> lease_ended Released
        delete of:two         -> deleted
        release two           -> lease_ended KeyGone
        show of:two           -> unknown_key
        counts                -> counts leased=1 total=1 server=1
        tick 299s
        acquire last          -> no_key PoolEmpty
        counts                -> counts total=0 server=0 hold_end=never purge=never
        ",
    );
}

#[test]
fn a_key_is_purged_at_its_keep_alive_deadline_and_never_before() {
    let free = [
        ("acquire B", "granted key=a life=0.001s", "no_key PoolEmpty"),
        ("show a", "available life=0.001s", "unknown_key"),
        ("show value:a", "available life=0.001s", "unknown_key"),
        ("keepalive a", "kept life=300s", "unknown_key"),
        ("keepalive a a", "kept count=1 missing=", "kept count=0 missing=a"),
        ("keepalive all", "kept count=1", "kept count=0"),
        ("force_release a", "already_available", "unknown_key"),
        ("delete a", "deleted", "unknown_key"),
        ("expire", "expired left=1000", "expired left=999"),
    ];
    for (call, before, at) in free {
        check(&format!("generate a\n tick 299.999s\n {call} -> {before}"));
        check(&format!("generate a\n tick 300s\n {call} -> {at}\n show a -> unknown_key"));
    }
    let leased = [
        ("acquire B", "no_key AllLeased leased=1 next=10.001s", "no_key PoolEmpty next=never"),
        ("show a", "leased token=1 ttl=10.001s life=0.001s", "unknown_key"),
        ("release A", "released", "lease_ended KeyGone"),
        ("renew A", "max_hold_reached ends=10.001s", "lease_ended KeyGone"),
        ("renew A ttl=5s", "renewed ttl=10.001s", "lease_ended KeyGone"),
        ("keepalive a", "kept life=300s", "unknown_key"),
        ("keepalive all", "kept count=1", "kept count=0"),
        ("force_release a", "freed", "unknown_key"),
        ("delete a", "deleted", "unknown_key"),
    ];
    for (call, before, at) in leased {
        let begin = "generate a\n tick 250s\n acquire A -> granted life=50s";
        check(&format!("{begin}\n tick 49.999s\n {call} -> {before}"));
        check(&format!("{begin}\n tick 50s\n {call} -> {at}\n show a -> unknown_key"));
    }
    check("generate a\n tick 299.999999s\n keepalive a -> kept life=300s");
}

#[test]
fn a_keep_alive_changes_no_lease_and_a_lease_changes_no_keep_alive_deadline() {
    check(
        "
        pool default max_hold=100s
        generate a            -> created life=300s
        tick 100s
        acquire A             -> granted life=200s ttl=60s
        tick 10s
        keepalive a           -> kept life=300s
        show a                -> leased ttl=50s life=300s
        keepalive all         -> kept count=1
        show a                -> leased ttl=50s life=300s
        tick 10s
        renew A               -> renewed ttl=60s
        show a                -> leased ttl=60s life=290s
        tick 10s
        release A             -> released
        show a                -> available life=280s
        acquire B             -> granted life=280s
        force_release a       -> freed
        show a                -> available life=280s
        tick 279.999s
        acquire C             -> granted life=0.001s
        tick 0.001s
        release C             -> lease_ended KeyGone
        ",
    );
}

#[test]
fn a_key_purged_during_a_lease_never_returns() {
    check(
        "
        generate a b
        tick 290s
        acquire A
        keepalive of:A
        tick 10s              # purges the other key but not this one
        expire                -> expired left=999
        counts                -> counts leased=1 total=1
        tick 280s
        acquire B             -> granted life=10s token=2
        tick 10s
        release B             -> lease_ended KeyGone
        renew B               -> lease_ended KeyGone
        keepalive of:B        -> unknown_key
        force_release of:B    -> unknown_key
        delete of:B           -> unknown_key
        acquire C             -> no_key PoolEmpty
        restart
        acquire C             -> no_key PoolEmpty
        show of:B             -> unknown_key
        release B             -> lease_ended                # the cause need not be known any more
        ",
    );
}

#[test]
fn a_force_release_works_whatever_the_holder() {
    check(
        "
        force_release nokey   -> unknown_key
        generate a
        force_release a       -> already_available
        acquire A
        force_release a       -> freed
        release A             -> lease_ended Released
        acquire B             -> granted key=a token=2
        force_release value:a -> freed
        policy rest=30s
        acquire C
        force_release a       -> freed
        show a                -> resting left=30s           # ends the lease; the key then rests
        force_release a       -> freed
        show a                -> available                  # ends the rest
        ",
    );
}

#[test]
fn a_key_can_be_deleted_in_any_state() {
    check(
        "
        policy rest=10s
        generate a b c
        delete nokey          -> unknown_key
        acquire A
        delete of:A           -> deleted
        delete of:A           -> unknown_key
        release A             -> lease_ended KeyGone
        acquire B
        release B
        show of:B             -> resting left=10s
        delete of:B           -> deleted
        release B             -> lease_ended KeyGone
        acquire C
        tick 60s              # expired, but not ended in memory yet
        delete of:C           -> deleted
        counts                -> counts available=0 leased=0 resting=0 total=0 hold_end=never
        import v
        delete value:v        -> deleted
        delete value:v        -> unknown_key
        ",
    );
}

#[test]
fn a_release_can_set_how_long_the_key_rests() {
    check(
        "
        generate a
        acquire A
        release A rest=604800.001s -> invalid rest_seconds
        show a                -> leased
        release A rest=30s reason=429 -> released
        show a                -> resting left=30s why=429
        acquire X             -> no_key AllResting resting=1 next=30s
        release A rest=1s     -> lease_ended Released
        restart
        show a                -> resting left=30s why=429
        tick 29.999s
        show a                -> resting left=0.001s why=429
        tick 0.001s
        show a                -> available
        acquire B             -> granted key=a
        tick 60s
        show a                -> available                  # the reason ended with the rest
        policy rest=10s
        acquire C
        release C rest=0s reason=none -> released
        show a                -> available                  # the policy's rest is overridden
        acquire D
        release D reason=slow -> released
        show a                -> resting left=10s why=slow
        force_release a       -> freed
        show a                -> available
        ",
    );
}

#[test]
fn a_quarantined_key_is_not_leased_until_it_is_freed() {
    check(
        "
        generate a b
        acquire A
        release A quarantine rest=5s reason=401 -> released
        counts                -> counts available=1 leased=0 quarantined=1 total=2 hold_end=never
        show of:A             -> quarantined why=401
        release A             -> lease_ended Released
        renew A               -> lease_ended Released
        acquire B             -> granted token=2
        acquire X             -> no_key NoneFree leased=1 quarantined=1 next=60s
        release B quarantine
        acquire X             -> no_key AllQuarantined quarantined=2 next=never
        show of:B             -> quarantined why=-
        restart
        show of:A             -> quarantined why=401
        show of:B             -> quarantined why=-
        keepalive of:A        -> kept life=300s
        tick 100s             # no expiry ends a quarantine
        acquire X             -> no_key AllQuarantined
        force_release of:A    -> freed
        force_release of:A    -> already_available
        acquire C             -> granted
        show of:C             -> leased
        release C quarantine reason=retry
        show of:C             -> quarantined why=retry
        delete of:C           -> deleted
        tick 200s             # the other key had no keep-alive
        show of:B             -> unknown_key
        counts                -> counts quarantined=0 total=0
        restart
        counts                -> counts quarantined=0 total=0
        ",
    );
}

#[test]
fn a_keep_alive_of_the_whole_pool_revives_no_due_key() {
    check(
        "
        generate a
        tick 100s
        generate b c
        tick 200s             # a is due, b and c are not
        keepalive all         -> kept count=2
        show a                -> unknown_key
        show b                -> available life=300s
        counts                -> counts total=2 purge=300s
        generate d
        tick 10s
        keepalive d           -> kept life=300s
        show b                -> available life=290s
        tick 289.999s
        show c                -> available life=0.001s
        keepalive all         -> kept count=3
        tick 299.999s
        keepalive c           -> kept life=300s
        tick 0.001s
        show b                -> unknown_key
        show d                -> unknown_key
        show c                -> available life=299.999s
        ",
    );
}

#[test]
fn a_keep_alive_of_many_counts_each_once_and_returns_the_missing() {
    check(
        "
        generate a
        tick 100s
        generate b c d
        delete d
        tick 200s
        keepalive a b b d c a d b -> kept count=2 missing=a,d
        show b                -> available life=300s
        show c                -> available life=300s
        pool other
        keepalive b c         -> kept count=0 missing=b,c   # keys of another pool
        ",
    );
}

/// A generated value was accepted again once its key was deleted or purged, with its old id: a
/// client that still had the value shared it with the next holder.
#[test]
fn a_generated_value_is_recognised_after_its_key_is_gone() {
    check(
        "
        policy keepalive=1s prefix=ci_
        generate a b c
        import b              -> key_exists at=0            # it is in the pool
        delete a              -> deleted
        import a              -> key_exists at=0
        tick 1s
        import x a            -> key_exists at=1            # all or nothing
        show value:x          -> unknown_key
        policy prefix= key_length=30
        import b              -> key_exists at=0            # the value decides, not the policy
        restart
        import c              -> key_exists at=0
        import c once=k       -> key_exists at=0            # no repeat gets another answer
        import c once=k       -> key_exists at=0
        pool other
        import a b c          -> created                    # of another pool
        delete a
        import a              -> key_exists at=0            # imported here, and retired here
        in default
        import a              -> key_exists at=0
        drop other
        pool other
        generate d
        drop other
        pool other
        import d              -> created                    # the pool that generated it is gone
        ",
    );
}

#[test]
fn a_retired_value_comes_back_only_where_the_import_allows_it() {
    check(
        "
        generate g
        import v allow_retired -> created                   # it allows, and does not require
        import v allow_retired -> key_exists at=0           # in the pool
        import w w allow_retired -> key_exists at=1
        acquire A             -> granted token=1
        acquire B             -> granted token=2
        delete g
        delete v
        import v              -> key_exists at=0
        import g v allow_retired -> created life=300s
        release A             -> lease_ended KeyGone        # an older lease is not of this key
        release B             -> lease_ended KeyGone
        acquire C             -> granted token=3            # tokens only grow
        acquire D             -> granted token=4
        tick 300s
        import g              -> key_exists at=0            # retired as before
        import v              -> key_exists at=0
        import g v allow_retired once=k -> same              # the same ids as before
        import g v allow_retired once=k -> same
        delete g
        import g v allow_retired once=k -> keys_gone
        import g allow_retired -> created
        restart
        show g                -> available
        import g              -> key_exists at=0
        delete g
        delete v
        restart
        import g              -> key_exists at=0
        import v              -> key_exists at=0
        acquire E             -> no_key PoolEmpty
        import g allow_retired -> created
        acquire F             -> granted key=g
        ",
    );
}

/// Imported accounts were purged after the pool's keep-alive TTL, although nothing can create them
/// again.
#[test]
fn a_key_without_keep_alive_is_never_purged_by_time() {
    check(
        "
        import v w keepalive=false -> created life=never
        import x              -> created life=300s
        counts                -> counts total=3 purge=300s
        keepalive v           -> kept life=never            # harmless
        keepalive v x         -> kept count=2
        keepalive all         -> kept count=3
        show v                -> available life=never
        acquire A             -> granted
        acquire B             -> granted
        acquire C             -> granted
        tick 300s
        show v                -> available life=never
        show x                -> unknown_key
        counts                -> counts total=2 purge=never
        policy keepalive=10s
        keepalive v           -> kept life=never            # a policy does not change it
        restart
        keepalive all         -> kept count=2
        tick 700000s
        show v                -> available life=never
        acquire A             -> granted life=never
        release A rest=1s
        show of:A             -> resting life=never
        force_release of:A
        acquire A
        release A quarantine
        restart
        tick 7000s
        show of:A             -> quarantined life=never
        delete v              -> deleted
        import v keepalive=false -> key_exists at=0
        import v allow_retired -> created life=10s           # each import decides
        tick 10s
        show v                -> unknown_key
        import v keepalive=false allow_retired once=k -> same life=never
        tick 10s
        import v keepalive=false allow_retired once=k -> same life=never
        delete w
        delete v
        counts                -> counts total=0 purge=never
        ",
    );
}

#[test]
fn a_label_is_shown_with_its_key_and_its_lease_until_it_is_changed() {
    check(
        "
        generate a label=team  -> created
        import v w label=other -> created
        generate b
        show b                -> available label=-
        show a                -> available label=team
        label b label=team    -> available label=team
        show v                -> available label=other
        keepalive a b v w
        delete w
        acquire A
        label of:A label=mine -> leased label=mine
        show of:A             -> leased label=mine
        restart
        show of:A             -> leased label=mine
        release A rest=5s
        show of:A             -> resting label=mine
        label of:A label=     -> resting label=-
        label of:A label=x    -> resting label=x
        label of:A            -> resting label=-             # no label is none
        tick 5s
        label a label=a
        label b label=a
        label v label=a
        import w allow_retired label=w -> created
        acquire B             -> granted
        delete w
        import w allow_retired -> created
        restart
        show w                -> available label=-           # the label left with the key
        label unknown label=x -> unknown_key
        in nowhere
        label a label=x       -> unknown_pool
        ",
    );
}

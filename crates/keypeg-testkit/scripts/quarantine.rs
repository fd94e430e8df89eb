//! Quarantine by key id: at once, when a lease ends, and back.

use super::check;

#[test]
fn a_key_is_quarantined_by_its_id_in_any_state() {
    check(
        "
        generate a b
        quarantine nokey      -> unknown_key
        put_back nokey        -> unknown_key
        quarantine a why=401  -> quarantined life=300s why=401
        counts                -> counts available=1 quarantined=1 draining=0
        acquire B             -> granted key=b
        quarantine b          -> quarantined why=-          # ends the lease
        release B             -> lease_ended Released
        acquire X             -> no_key AllQuarantined
        quarantine a          -> quarantined why=401        # the reason stays
        quarantine a why=402  -> quarantined why=402
        restart
        show a                -> quarantined why=402
        show b                -> quarantined why=-
        keepalive all
        tick 200s             # no time ends a quarantine
        show a                -> quarantined
        put_back a            -> available
        put_back a            -> available                  # changes nothing
        put_back b            -> available
        acquire C
        release C rest=10s reason=slow
        show of:C             -> resting why=slow
        quarantine of:C       -> quarantined why=-          # the reason of the rest ends with it
        put_back of:C         -> available
        quarantine of:C free why=old -> quarantined why=old # not leased, so at once
        force_release of:C    -> freed
        show of:C             -> available
        quarantine of:C
        delete of:C           -> deleted
        in nowhere
        quarantine a          -> unknown_pool
        put_back a            -> unknown_pool
        ",
    );
}

#[test]
fn a_draining_key_is_quarantined_when_its_lease_ends() {
    for (end, cause) in [
        ("release A rest=9s reason=no", "Released"),
        ("force_release a", "Released"),
        ("tick 60s", "Expired"),
    ] {
        for (restart, again) in [("", ""), ("restart", ""), ("", "restart")] {
            check(&format!(
                "
                generate a
                policy rest=5s
                acquire A holder=job  -> granted ttl=60s
                quarantine a free why=old -> leased by=job draining=old
                counts                -> counts leased=1 quarantined=0 draining=1 total=1
                acquire X             -> no_key AllLeased leased=1
                {restart}
                show a                -> leased by=job draining=old
                {end}
                {again}
                show a                -> quarantined why=old
                counts                -> counts leased=0 quarantined=1 draining=0 total=1
                release A             -> lease_ended {cause}
                acquire X             -> no_key AllQuarantined
                put_back a            -> available
                acquire B             -> granted
                show a                -> leased draining=no
                release B
                show a                -> resting
                "
            ));
        }
    }
}

#[test]
fn a_draining_key_keeps_its_lease_and_can_be_put_back() {
    check(
        "
        policy lease_ttl=60s max_hold=600s
        generate a
        acquire A                 -> granted
        quarantine a free         -> leased draining=-
        tick 30s
        renew A                   -> renewed ttl=60s
        show a                    -> leased draining=- ttl=60s
        quarantine a free why=x   -> leased draining=x
        quarantine a free         -> leased draining=x          # the reason stays
        put_back a                -> leased draining=no
        put_back a                -> leased draining=no
        counts                    -> counts leased=1 draining=0
        restart
        show a                    -> leased draining=no
        release A                 -> released
        show a                    -> available
        acquire B
        quarantine a free why=y
        quarantine a              -> quarantined why=y          # now: ends the lease, keeps the reason
        release B                 -> lease_ended Released
        put_back a
        acquire C
        quarantine a free why=z
        release C quarantine reason=dead -> released
        show a                    -> quarantined why=dead
        put_back a
        acquire D
        quarantine a free why=z
        delete a                  -> deleted
        counts                    -> counts draining=0 total=0
        ",
    );
}

#[test]
fn a_key_that_is_put_back_goes_to_the_first_waiter() {
    check(
        "
        generate a
        acquire A
        quarantine a free
        wait W for=100s           -> waits
        release A
        got W                     -> nothing                    # quarantined, not available
        put_back a                -> available
        got W                     -> granted key=a
        ",
    );
}

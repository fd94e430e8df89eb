//! Limits of leases per borrower where more is due than a step can expire, and where a key is purged.
//! The other tables are in `keypeg-testkit/scripts/borrowers.rs`.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use world::check;

/// A due lease does not count against the limit, in any pool: the call must be repeated first.
#[test]
fn a_due_lease_never_counts() {
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

/// The purge of the leased key ends the lease too.
#[test]
fn a_purge_makes_room() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a b
            acquire A as=ci max=1 -> granted
            {restart}
            acquire B as=ci max=1 -> too_many_leases
            tick serving 300s
            expire
            {restart}
            generate new
            acquire B as=ci max=1 -> granted
            leases ci             -> leases 1
            ",
        ));
    }
}

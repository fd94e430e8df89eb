//! The table: one row for each field, and the fields of each request.
//!
//! A new field is a row and its place in a request. Every number of a range stands here only; the
//! other crates use it under its name.

use crate::kinds::{
    Field, FlagField, IntegerField, Item, Least, ListField, Most, SecondsField, Symbols, TextField,
    ValueField, WordField,
};

/// The least length of time above zero, in milliseconds.
pub const DURATION_MIN_MS: u64 = 1;
/// The longest lease TTL, hold, rest and keep-alive TTL: 7 days.
pub const DURATION_MAX_MS: u64 = 7 * 24 * 60 * 60 * 1_000;
/// The longest wait for a key, in milliseconds.
pub const WAIT_MAX_MS: u64 = 300_000;
/// The most keys that one call generates, imports or keeps alive.
pub const GENERATE_MAX: u32 = 10_000;
/// The longest value of a key, in bytes.
pub const VALUE_MAX: usize = 4096;
/// The largest body of a request, in bytes.
pub const BODY_MAX: usize = 1 << 20;
/// The largest body of a request that imports values, in bytes.
pub const VALUES_BODY_MAX: usize = 8 << 20;
/// The most keys of one page of a listing.
pub const PAGE_MAX: usize = 1_000;
/// The longest Idempotency-Key, in bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 128;
/// The most seconds of history that one request reads: what a server keeps.
pub const HISTORY_SECONDS_MAX: u32 = 900;
/// The names of pools, as a regular expression without its anchors.
pub const POOL_NAMES: &str = "[a-z0-9][a-z0-9_.-]{0,63}";

/// The longest lease, and its length where a request gives none.
pub static LEASE_TTL: SecondsField = SecondsField {
    name: "lease_ttl_seconds",
    least: Least::Ms(DURATION_MIN_MS),
    most: Most::Ms(DURATION_MAX_MS),
    is_nullable: false,
};
/// The longest time from a grant to the end of its lease.
pub static MAX_HOLD: SecondsField = SecondsField {
    name: "max_hold_seconds",
    least: Least::Field(&LEASE_TTL),
    most: Most::Ms(DURATION_MAX_MS),
    is_nullable: true,
};
/// How long a key lives without a keep-alive.
pub static KEEPALIVE_TTL: SecondsField = SecondsField {
    name: "keepalive_ttl_seconds",
    least: Least::Ms(DURATION_MIN_MS),
    most: Most::Ms(DURATION_MAX_MS),
    is_nullable: true,
};
/// How long a key rests: of a policy, and of a release.
pub static REST: SecondsField = SecondsField {
    name: "rest_seconds",
    least: Least::ZeroOrMs(DURATION_MIN_MS),
    most: Most::Ms(DURATION_MAX_MS),
    is_nullable: false,
};
/// The number of symbols in a generated value after the prefix. The last four are the tag, so the
/// shortest value has 16 random symbols: 95 bits.
pub static KEY_LENGTH: IntegerField =
    IntegerField { name: "key_length", least: 20, most: 128, is_nullable: false };
/// The prefix of a generated value.
pub static KEY_PREFIX: TextField =
    TextField { name: "key_prefix", most: 32, symbols: Symbols::WordAndHyphen, is_nullable: false };
/// The limit of keys in a pool; the server's own limit may be lower.
pub static MAX_KEYS: IntegerField =
    IntegerField { name: "max_keys", least: 1, most: 1_000_000_000, is_nullable: true };
/// Whether a pool is draining: it grants no key.
pub static DRAINING: FlagField = FlagField { name: "draining", only_true: false };

/// How many keys to generate.
pub static COUNT: IntegerField =
    IntegerField { name: "count", least: 1, most: GENERATE_MAX as u64, is_nullable: false };
/// The values to import.
pub static VALUES: ListField = ListField {
    name: "values",
    least: 1,
    most: GENERATE_MAX as usize,
    item: Item::Value { bytes_max: VALUE_MAX },
};
/// Whether imported keys are purged unless they are kept alive.
pub static KEEPALIVE: FlagField = FlagField { name: "keepalive", only_true: false };
/// Whether an import accepts values whose keys were deleted or purged.
pub static ALLOW_RETIRED: FlagField = FlagField { name: "allow_retired", only_true: false };
/// The label of all new keys; also the parameter of a listing for the label of its keys.
pub static LABEL: TextField =
    TextField { name: "label", most: 128, symbols: Symbols::Printable, is_nullable: false };
/// The labels of new keys, where they differ: one for each key.
pub static LABELS: ListField =
    ListField { name: "labels", least: 1, most: GENERATE_MAX as usize, item: Item::Text(&LABEL) };
/// The new label of a key; null, like an empty one, is none.
pub static NEW_LABEL: TextField =
    TextField { name: "label", most: 128, symbols: Symbols::Printable, is_nullable: true };

/// The value of the key to verify.
pub static KEY: ValueField = ValueField { name: "key", bytes_max: VALUE_MAX };

/// The ids of the keys to keep alive.
pub static IDS: ListField =
    ListField { name: "ids", least: 0, most: GENERATE_MAX as usize, item: Item::KeyId };
/// Whether all keys of a pool are kept alive.
pub static ALL: FlagField = FlagField { name: "all", only_true: true };

/// The length of a lease: of an acquire, and of a renewal.
pub static TTL: SecondsField = SecondsField {
    name: "ttl_seconds",
    least: Least::Ms(DURATION_MIN_MS),
    most: Most::OfPool(&LEASE_TTL),
    is_nullable: false,
};
/// How long an acquire waits for a key.
pub static WAIT: SecondsField = SecondsField {
    name: "wait_seconds",
    least: Least::Ms(0),
    most: Most::Ms(WAIT_MAX_MS),
    is_nullable: false,
};
/// The name of a holder.
pub static HOLDER: TextField =
    TextField { name: "holder", most: 128, symbols: Symbols::Printable, is_nullable: false };
/// Whether a release quarantines its key.
pub static QUARANTINE: FlagField = FlagField { name: "quarantine", only_true: false };
/// When the quarantine of a leased key begins: at once, which ends its lease, or when its lease ends.
pub static WHEN: WordField = WordField { name: "when", words: &["now", "free"] };
/// The reason of a rest or a quarantine.
pub static REASON: TextField =
    TextField { name: "reason", most: 256, symbols: Symbols::Printable, is_nullable: false };

/// The name of the server that a shard moves to.
pub static SERVER: TextField =
    TextField { name: "server", most: 64, symbols: Symbols::Printable, is_nullable: false };

/// The parameter of a listing for the most keys on a page.
pub static LIMIT: IntegerField =
    IntegerField { name: "limit", least: 1, most: PAGE_MAX as u64, is_nullable: false };

/// The parameter of a history for the number of seconds, up to the present.
pub static SECONDS: IntegerField = IntegerField {
    name: "seconds",
    least: 1,
    most: HISTORY_SECONDS_MAX as u64,
    is_nullable: false,
};

/// The parameter of the metrics: whether they contain the series of pools.
pub static POOLS: IntegerField =
    IntegerField { name: "pools", least: 0, most: 1, is_nullable: false };

/// The fields of a policy.
pub static POLICY: [Field; 8] = [
    Field::Seconds(&LEASE_TTL),
    Field::Seconds(&MAX_HOLD),
    Field::Seconds(&KEEPALIVE_TTL),
    Field::Seconds(&REST),
    Field::Integer(&KEY_LENGTH),
    Field::Text(&KEY_PREFIX),
    Field::Integer(&MAX_KEYS),
    Field::Flag(&DRAINING),
];
/// The fields of a pool that only the server sets. A change of a policy ignores them, so that a
/// client can send back the pool that it has read.
pub static POOL_READ_ONLY: [&str; 11] = [
    "pool",
    "keepalive_every_seconds",
    "available",
    "leased",
    "resting",
    "quarantined",
    "draining_keys",
    "total",
    "waiting",
    "next_return_at",
    "next_purge_at",
];
/// The fields of a request that adds keys.
pub static ADD_KEYS: [Field; 6] = [
    Field::Integer(&COUNT),
    Field::List(&VALUES),
    Field::Flag(&KEEPALIVE),
    Field::Flag(&ALLOW_RETIRED),
    Field::Text(&LABEL),
    Field::List(&LABELS),
];
/// The fields of a request that changes a key.
pub static CHANGE_KEY: [Field; 1] = [Field::Text(&NEW_LABEL)];
/// The fields of a request that quarantines a key.
pub static QUARANTINE_KEY: [Field; 2] = [Field::Word(&WHEN), Field::Text(&REASON)];
/// The fields of a request that verifies a key.
pub static VERIFY: [Field; 1] = [Field::Value(&KEY)];
/// The fields of a request that keeps keys alive.
pub static KEEP_ALIVE: [Field; 2] = [Field::List(&IDS), Field::Flag(&ALL)];
/// The fields of an acquire.
pub static ACQUIRE: [Field; 3] =
    [Field::Seconds(&TTL), Field::Seconds(&WAIT), Field::Text(&HOLDER)];
/// The fields of a release.
pub static RELEASE: [Field; 3] =
    [Field::Seconds(&REST), Field::Flag(&QUARANTINE), Field::Text(&REASON)];
/// The fields of a renewal.
pub static RENEW: [Field; 1] = [Field::Seconds(&TTL)];
/// The fields of a request that moves a shard.
pub static MOVE_SHARD: [Field; 1] = [Field::Text(&SERVER)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_describes_its_allowed_values() {
        for (field, allowed) in [
            (POLICY[0], "0.001..604800"),
            (POLICY[1], "null, or lease_ttl_seconds..604800"),
            (POLICY[2], "null, or 0.001..604800"),
            (POLICY[3], "0, or 0.001..604800"),
            (POLICY[4], "20..128"),
            (POLICY[5], "at most 32 of A-Z a-z 0-9 _ -"),
            (POLICY[6], "null, or 1..1000000000"),
            (POLICY[7], "true or false"),
            (ADD_KEYS[0], "1..10000"),
            (ADD_KEYS[1], "an array of 1..10000 strings of 1..4096 bytes"),
            (ADD_KEYS[4], "at most 128 printable characters"),
            (ADD_KEYS[5], "an array of 1..10000 strings of at most 128 printable characters"),
            (CHANGE_KEY[0], "null, or at most 128 printable characters"),
            (VERIFY[0], "a string of 1..4096 bytes"),
            (KEEP_ALIVE[0], "an array of at most 10000 key ids"),
            (KEEP_ALIVE[1], "true"),
            (ACQUIRE[0], "0.001..lease_ttl_seconds of the pool"),
            (ACQUIRE[1], "0..300"),
            (ACQUIRE[2], "at most 128 printable characters"),
            (RELEASE[1], "true or false"),
            (RELEASE[2], "at most 256 printable characters"),
            (Field::Integer(&LIMIT), "1..1000"),
            (Field::Integer(&SECONDS), "1..900"),
            (Field::Integer(&POOLS), "0..1"),
        ] {
            assert_eq!(field.to_string(), allowed, "{}", field.name());
        }
    }

    #[test]
    fn each_range_includes_its_limits_and_nothing_beyond_them() {
        assert!(LEASE_TTL.allows(1) && LEASE_TTL.allows(DURATION_MAX_MS));
        assert!(!LEASE_TTL.allows(0) && !LEASE_TTL.allows(DURATION_MAX_MS + 1));
        assert!(MAX_HOLD.allows(1) && !MAX_HOLD.allows(0));
        assert!(REST.allows(0) && REST.allows(1) && !REST.allows(DURATION_MAX_MS + 1));
        assert!(WAIT.allows(0) && WAIT.allows(300_000) && !WAIT.allows(300_001));
        assert!(TTL.allows(DURATION_MAX_MS) && !TTL.allows(DURATION_MAX_MS + 1));
        assert!(KEY_LENGTH.allows(20) && KEY_LENGTH.allows(128));
        assert!(!KEY_LENGTH.allows(19) && !KEY_LENGTH.allows(129));
        for (text, is_allowed) in [
            ("", true),
            (&*"ä".repeat(128), true),
            (&*"ä".repeat(129), false),
            (&*"\u{10348}".repeat(128), true),
            (&*"\u{10348}".repeat(129), false),
            ("a\u{85}", false),
        ] {
            assert_eq!(HOLDER.allows(text), is_allowed, "{text}");
        }
        assert!(KEY_PREFIX.allows("aZ_-9") && !KEY_PREFIX.allows("a b") && !KEY_PREFIX.allows("ä"));
        assert_eq!((WHEN.find("free"), WHEN.find("Now")), (Some(1), None));
        assert!(ALL.allows(true) && !ALL.allows(false) && QUARANTINE.allows(false));
    }
}

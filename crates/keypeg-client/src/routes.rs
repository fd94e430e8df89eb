//! Where things are: the paths of the canonical API, made in one place.
//!
//! Names and ids are made of characters that need no escape in a path.

/// All pools.
pub const POOLS: &str = "/v1/pools";
/// Whether the process runs.
pub const LIVEZ: &str = "/livez";
/// Whether the server takes requests.
pub const READYZ: &str = "/readyz";
/// Which version the server is.
pub const VERSION: &str = "/version";

/// What the server counts.
pub const METRICS: &str = "/metrics";

/// One pool.
pub fn pool(pool: &str) -> String {
    format!("{POOLS}/{pool}")
}

/// A pool's keys.
pub fn keys(pool: &str) -> String {
    format!("{POOLS}/{pool}/keys")
}

/// One key.
pub fn key(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}")
}

/// Puts a key back, whoever holds it.
pub fn key_release(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/release")
}

/// Keeps one key alive.
pub fn key_keepalive(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/keepalive")
}

/// Keeps many keys alive.
pub fn keepalive(pool: &str) -> String {
    format!("{POOLS}/{pool}/keepalive")
}

/// What happens to a pool, as it happens.
pub fn events(pool: &str) -> String {
    format!("{POOLS}/{pool}/events")
}

/// A pool's leases.
pub fn leases(pool: &str) -> String {
    format!("{POOLS}/{pool}/leases")
}

/// Gives a lease's key back.
pub fn lease_release(pool: &str, lease: &str) -> String {
    format!("{POOLS}/{pool}/leases/{lease}/release")
}

/// Gives a lease more time.
pub fn lease_renew(pool: &str, lease: &str) -> String {
    format!("{POOLS}/{pool}/leases/{lease}/renew")
}

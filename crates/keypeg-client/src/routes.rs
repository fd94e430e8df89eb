//! Where things are: every route as data, and the paths of the canonical API, made in one place.
//!
//! The table tells which methods a path has and what each is for; what a call does is its
//! handler's. Names and ids are made of characters that need no escape in a path.

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
/// This API as an `OpenAPI` document.
pub const OPENAPI: &str = "/openapi.json";
/// This API as a page for people.
pub const DOCS: &str = "/docs";
/// How that page looks.
pub const DOCS_STYLE: &str = "/docs/style.css";

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

/// What an access token must allow for a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To look, at everything but values.
    Read,
    /// To borrow keys, and to keep what is borrowed.
    Lend,
    /// To make keys and to end them.
    Keys,
    /// To take a key from whoever holds it.
    Force,
    /// To see what the server counts.
    Metrics,
    /// To change pools.
    Admin,
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The HTTP method. HEAD is not listed: see [`Route::has_head`].
    pub method: &'static str,
    /// The path, with its parameters in braces. A slash at its end may be left out.
    pub path: &'static str,
    /// A name for the operation, unlike any other's.
    pub operation: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// What it takes to be allowed to; `None` is open to everybody.
    pub scope: Option<Scope>,
}

/// Every route there is.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    Route::new("GET", POOLS, "listPools", "Lists the pools", Some(Scope::Read)),
    Route::new("GET", "/v1/pools/{pool}", "showPool", "Shows a pool and its counts", Some(Scope::Read)),
    Route::new("PUT", "/v1/pools/{pool}", "putPool", "Makes a pool, or changes its policy", Some(Scope::Admin)),
    Route::new("DELETE", "/v1/pools/{pool}", "deletePool", "Removes a pool with all its keys", Some(Scope::Admin)),
    Route::new("GET", "/v1/pools/{pool}/keys", "listKeys", "Lists keys, without their values", Some(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/keys", "addKeys", "Generates keys, or imports values", Some(Scope::Keys)),
    Route::new("GET", "/v1/pools/{pool}/keys/{id}", "showKey", "Shows a key, without its value", Some(Scope::Read)),
    Route::new("DELETE", "/v1/pools/{pool}/keys/{id}", "deleteKey", "Deletes a key in any state, for ever", Some(Scope::Keys)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/release", "releaseKey", "Puts a key back, whoever holds it", Some(Scope::Force)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/keepalive", "keepKeyAlive", "Keeps a key alive", Some(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/keepalive", "keepAlive", "Keeps many keys alive, or all of the pool", Some(Scope::Lend)),
    Route::new("GET", "/v1/pools/{pool}/events", "followEvents", "Tells what happens to a pool, as it happens", Some(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/leases", "acquire", "Acquires a random free key", Some(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/release", "release", "Gives a lease's key back", Some(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/renew", "renew", "Gives a lease more time", Some(Scope::Lend)),
    Route::new("GET", "/api/v1/random_api_key/", "seedAcquire", "Acquires a random free key of the default pool", Some(Scope::Lend)),
    Route::new("POST", "/api/v1/random_api_key/", "seedAdd", "Generates a key, or adds the given one", Some(Scope::Keys)),
    Route::new("PUT", "/api/v1/random_api_key/", "seedRelease", "Unblocks a key", Some(Scope::Force)),
    Route::new("PATCH", "/api/v1/random_api_key/", "seedKeepAlive", "Keeps a key alive", Some(Scope::Lend)),
    Route::new("DELETE", "/api/v1/random_api_key/", "seedDelete", "Deletes a key", Some(Scope::Keys)),
    Route::new("GET", "/api/v1/start_scheduler/", "seedStartScheduler", "Does nothing: the clockwork always runs", None),
    Route::new("GET", "/keys", "plainAcquire", "Acquires a random free key of the default pool", Some(Scope::Lend)),
    Route::new("POST", "/keys", "plainGenerate", "Generates a key", Some(Scope::Keys)),
    Route::new("GET", "/keys/{id}", "plainShow", "Shows whether a key is blocked", Some(Scope::Read)),
    Route::new("PUT", "/keys/{id}", "plainRelease", "Unblocks a key", Some(Scope::Force)),
    Route::new("DELETE", "/keys/{id}", "plainDelete", "Deletes a key", Some(Scope::Keys)),
    Route::new("PUT", "/keepalive/{id}", "plainKeepAlive", "Keeps a key alive", Some(Scope::Lend)),
    Route::new("GET", LIVEZ, "live", "Tells that the process runs", None),
    Route::new("GET", READYZ, "ready", "Tells whether the server takes requests", None),
    Route::new("GET", VERSION, "version", "Tells which version the server is", None),
    Route::new("GET", METRICS, "metrics", "Tells what the server counts", Some(Scope::Metrics)),
    Route::new("GET", OPENAPI, "openapi", "This document", None),
    Route::new("GET", DOCS, "docs", "This document as a page", None),
    Route::new("GET", DOCS_STYLE, "docsStyle", "How that page looks", None),
];

impl Route {
    const fn new(
        method: &'static str,
        path: &'static str,
        operation: &'static str,
        summary: &'static str,
        scope: Option<Scope>,
    ) -> Self {
        Self { method, path, operation, summary, scope }
    }

    /// Whether HEAD is answered as GET is: not where that would lend a key.
    pub fn has_head(&self) -> bool {
        self.method == "GET" && self.scope != Some(Scope::Lend)
    }

    /// Whether `path` is one of this route's. A parameter is anything but nothing.
    pub fn is_at(&self, path: &str) -> bool {
        let template = match self.path.strip_suffix('/') {
            Some(without) if !path.ends_with('/') => without,
            _ => self.path,
        };
        let mut segments = path.split('/');
        let alike = template.split('/').all(|part| {
            segments.next().is_some_and(|segment| {
                if part.starts_with('{') { !segment.is_empty() } else { segment == part }
            })
        });
        alike && segments.next().is_none()
    }
}

/// The methods that `path` has, as `Allow` tells them; `None` where no route is there.
pub fn allow(path: &str) -> Option<String> {
    let mut methods = Vec::new();
    for route in ROUTES.iter().filter(|route| route.is_at(path)) {
        methods.push(route.method);
        if route.has_head() {
            methods.push("HEAD");
        }
    }
    (!methods.is_empty()).then(|| methods.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_is_there_once_under_a_name_of_its_own() {
        for (at, route) in ROUTES.iter().enumerate() {
            for other in &ROUTES[..at] {
                assert_ne!(route.operation, other.operation);
                assert_ne!((route.method, route.path), (other.method, other.path));
            }
        }
    }

    #[test]
    fn what_is_made_here_is_in_the_table() {
        for (path, methods) in [
            (POOLS.into(), "GET, HEAD"),
            (pool("a"), "GET, HEAD, PUT, DELETE"),
            (keys("a"), "GET, HEAD, POST"),
            (key("a", "b"), "GET, HEAD, DELETE"),
            (key_release("a", "b"), "POST"),
            (key_keepalive("a", "b"), "POST"),
            (keepalive("a"), "POST"),
            (events("a"), "GET, HEAD"),
            (leases("a"), "POST"),
            (lease_release("a", "b"), "POST"),
            (lease_renew("a", "b"), "POST"),
        ] {
            assert_eq!(allow(&path).as_deref(), Some(methods), "{path}");
        }
    }

    #[test]
    fn a_path_is_a_routes_segment_by_segment() {
        for (path, methods) in [
            ("/api/v1/random_api_key", Some("GET, POST, PUT, PATCH, DELETE")),
            ("/api/v1/random_api_key/", Some("GET, POST, PUT, PATCH, DELETE")),
            ("/keys", Some("GET, POST")),
            ("/keys/x", Some("GET, HEAD, PUT, DELETE")),
            ("/keys/", None),
            ("/v1/pools/", None),
            ("/v1/pools//keys", None),
            ("/v1/pools/a/keys/b/release/", None),
            ("/v1/pools/a/nope", None),
            ("/api/v1/random_api_key//", None),
            ("/livez/", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(allow(path).as_deref(), methods, "{path:?}");
        }
    }
}

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

/// Shows a key's value.
pub fn key_reveal(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/reveal")
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

/// What an access token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To look, at everything but values.
    Read,
    /// To borrow keys, to keep what is borrowed, and to give it back.
    Lend,
    /// To make keys and to end them.
    Keys,
    /// To take a key from whoever holds it.
    Force,
    /// To be shown the value of a key that was not lent to the asker.
    Reveal,
    /// To see what the server counts, over all pools.
    Metrics,
    /// Everything, and alone to change pools.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Lend, Self::Keys, Self::Force, Self::Reveal, Self::Metrics, Self::Admin];

    /// Its word, as it stands in a tokens' file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Lend => "lend",
            Self::Keys => "keys",
            Self::Force => "force",
            Self::Reveal => "reveal",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// Who may use a route of a server that has access tokens; of one that has none, everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody: it tells nothing that is not public.
    Open,
    /// Whoever has a token, whatever it allows.
    Token,
    /// Whoever has a token of this scope.
    Scope(Scope),
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
    /// Who may.
    pub access: Access,
}

/// Every route there is.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    Route::new("GET", POOLS, "listPools", "Lists the pools", Access::Scope(Scope::Read)),
    Route::new("GET", "/v1/pools/{pool}", "showPool", "Shows a pool and its counts", Access::Scope(Scope::Read)),
    Route::new("PUT", "/v1/pools/{pool}", "putPool", "Makes a pool, or changes its policy", Access::Scope(Scope::Admin)),
    Route::new("DELETE", "/v1/pools/{pool}", "deletePool", "Removes a pool with all its keys", Access::Scope(Scope::Admin)),
    Route::new("GET", "/v1/pools/{pool}/keys", "listKeys", "Lists keys, without their values", Access::Scope(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/keys", "addKeys", "Generates keys, or imports values", Access::Scope(Scope::Keys)),
    Route::new("GET", "/v1/pools/{pool}/keys/{id}", "showKey", "Shows a key, without its value", Access::Scope(Scope::Read)),
    Route::new("DELETE", "/v1/pools/{pool}/keys/{id}", "deleteKey", "Deletes a key in any state, for ever", Access::Scope(Scope::Keys)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/release", "releaseKey", "Puts a key back, whoever holds it", Access::Scope(Scope::Force)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/keepalive", "keepKeyAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/reveal", "revealKey", "Shows a key's value", Access::Scope(Scope::Reveal)),
    Route::new("POST", "/v1/pools/{pool}/keepalive", "keepAlive", "Keeps many keys alive, or all of the pool", Access::Scope(Scope::Lend)),
    Route::new("GET", "/v1/pools/{pool}/events", "followEvents", "Tells what happens to a pool, as it happens", Access::Scope(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/leases", "acquire", "Acquires a random free key", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/release", "release", "Gives a lease's key back", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/renew", "renew", "Gives a lease more time", Access::Scope(Scope::Lend)),
    Route::new("GET", "/api/v1/random_api_key/", "seedAcquire", "Acquires a random free key of the default pool", Access::Scope(Scope::Lend)),
    Route::new("POST", "/api/v1/random_api_key/", "seedAdd", "Generates a key, or adds the given one", Access::Scope(Scope::Keys)),
    Route::new("PUT", "/api/v1/random_api_key/", "seedRelease", "Unblocks a key", Access::Scope(Scope::Force)),
    Route::new("PATCH", "/api/v1/random_api_key/", "seedKeepAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("DELETE", "/api/v1/random_api_key/", "seedDelete", "Deletes a key", Access::Scope(Scope::Keys)),
    Route::new("GET", "/api/v1/start_scheduler/", "seedStartScheduler", "Does nothing: the clockwork always runs", Access::Token),
    Route::new("GET", "/keys", "plainAcquire", "Acquires a random free key of the default pool", Access::Scope(Scope::Lend)),
    Route::new("POST", "/keys", "plainGenerate", "Generates a key", Access::Scope(Scope::Keys)),
    Route::new("GET", "/keys/{id}", "plainShow", "Shows whether a key is blocked", Access::Scope(Scope::Read)),
    Route::new("PUT", "/keys/{id}", "plainRelease", "Unblocks a key", Access::Scope(Scope::Force)),
    Route::new("DELETE", "/keys/{id}", "plainDelete", "Deletes a key", Access::Scope(Scope::Keys)),
    Route::new("PUT", "/keepalive/{id}", "plainKeepAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("GET", LIVEZ, "live", "Tells that the process runs", Access::Open),
    Route::new("GET", READYZ, "ready", "Tells whether the server takes requests", Access::Open),
    Route::new("GET", VERSION, "version", "Tells which version the server is", Access::Token),
    Route::new("GET", METRICS, "metrics", "Tells what the server counts", Access::Scope(Scope::Metrics)),
    Route::new("GET", OPENAPI, "openapi", "This document", Access::Open),
    Route::new("GET", DOCS, "docs", "This document as a page", Access::Open),
    Route::new("GET", DOCS_STYLE, "docsStyle", "How that page looks", Access::Open),
];

impl Route {
    const fn new(
        method: &'static str,
        path: &'static str,
        operation: &'static str,
        summary: &'static str,
        access: Access,
    ) -> Self {
        Self { method, path, operation, summary, access }
    }

    /// Whether HEAD is answered as GET is: not where that would lend a key.
    pub fn has_head(&self) -> bool {
        self.method == "GET" && !self.lends()
    }

    fn lends(&self) -> bool {
        self.access == Access::Scope(Scope::Lend)
    }

    /// Whether it changes something for somebody, or shows a secret that was not lent: what an audit
    /// log tells. Keeping alive only moves the time at which a key is forgotten.
    pub fn is_audited(&self) -> bool {
        let keeps = self.path.ends_with("/keepalive")
            || self.path.starts_with("/keepalive/")
            || self.method == "PATCH";
        (self.method != "GET" || self.lends()) && !keeps
    }

    /// The pool that a path of this route is about; that of the older faces is the default one.
    pub fn pool_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some(below) = self.path.strip_prefix("/v1/pools/") else {
            let old = ["/api/v1/random_api_key", "/keys", "/keepalive"];
            return old.iter().any(|start| self.path.starts_with(start)).then_some("default");
        };
        debug_assert!(below.starts_with("{pool}"));
        path.split('/').nth(3)
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

/// The route that takes `method` at `path`; HEAD is its GET's.
pub fn find(method: &str, path: &str) -> Option<&'static Route> {
    let (method, head) = if method == "HEAD" { ("GET", true) } else { (method, false) };
    let found = ROUTES.iter().find(|route| route.method == method && route.is_at(path))?;
    (!head || found.has_head()).then_some(found)
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
            (key_reveal("a", "b"), "POST"),
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

    #[test]
    fn a_request_finds_its_route_and_its_pool() {
        for (method, path, operation, pool) in [
            ("GET", "/v1/pools", "listPools", None),
            ("HEAD", "/v1/pools/ci", "showPool", Some("ci")),
            ("POST", "/v1/pools/ci/leases/x/renew", "renew", Some("ci")),
            ("GET", "/api/v1/random_api_key", "seedAcquire", Some("default")),
            ("PUT", "/keepalive/x", "plainKeepAlive", Some("default")),
            ("GET", "/api/v1/start_scheduler/", "seedStartScheduler", None),
            ("GET", METRICS, "metrics", None),
        ] {
            let route = find(method, path).unwrap();
            assert_eq!((route.operation, route.pool_of(path)), (operation, pool), "{path}");
        }
        for (method, path) in
            [("HEAD", "/keys"), ("HEAD", "/v1/pools/ci/leases"), ("PUT", POOLS), ("GET", "/nope")]
        {
            assert_eq!(find(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn what_moves_or_shows_a_key_is_audited() {
        let left: Vec<_> = ROUTES.iter().filter(|route| !route.is_audited()).collect();
        let told = ["keepKeyAlive", "keepAlive", "seedKeepAlive", "plainKeepAlive"];
        for route in left {
            let reads = route.method == "GET" && !route.lends();
            assert!(reads || told.contains(&route.operation), "{}", route.operation);
        }
        assert!(find("GET", "/keys").unwrap().is_audited());
        assert!(find("POST", "/v1/pools/a/keys/b/reveal").unwrap().is_audited());
    }
}

//! The table of routes, and the functions that build the paths of the canonical API.
//!
//! The table owns which methods a path has, the summary of each, and the scope that it requires;
//! it does not know what a handler does. Names and ids consist of characters that need no escape
//! in a path, so paths are built and compared as they are.

use crate::Code;

/// The path of backups.
pub const BACKUP: &str = "/v1/backup";
/// Path of the list of pools.
pub const POOLS: &str = "/v1/pools";
/// Path of the dashboard; a client that is not a browser gets links to everything else.
pub const INDEX: &str = "/";
/// Path of what the access token of a request allows.
pub const ACCESS: &str = "/v1/access";
/// Path of the history of all pools.
pub const HISTORY: &str = "/v1/history";
/// Path of the servers and shards of an installation.
pub const CLUSTER: &str = "/v1/cluster";
/// Path of the liveness probe.
pub const LIVEZ: &str = "/livez";
/// Path of the readiness probe.
pub const READYZ: &str = "/readyz";
/// Path of the server's version.
pub const VERSION: &str = "/version";
/// Path of the metrics.
pub const METRICS: &str = "/metrics";
/// Path of the `OpenAPI` document.
pub const OPENAPI: &str = "/openapi.json";
/// Path of the documentation page.
pub const DOCS: &str = "/docs";
/// Path of the style sheet of all pages.
pub const DOCS_STYLE: &str = "/docs/style.css";
/// Path of the index of problem pages.
pub const PROBLEMS: &str = "/problems";

/// Returns the path of a pool.
pub fn pool(pool: &str) -> String {
    format!("{POOLS}/{pool}")
}

/// Returns the path that reveals the value of a key.
pub fn key_reveal(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/reveal")
}

/// Returns the path of the keys of a pool.
pub fn keys(pool: &str) -> String {
    format!("{POOLS}/{pool}/keys")
}

/// Returns the path of a key.
pub fn key(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}")
}

/// Returns the path that force-releases a key.
pub fn key_release(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/release")
}

/// Returns the path that keeps one key alive.
pub fn key_keepalive(pool: &str, key: &str) -> String {
    format!("{POOLS}/{pool}/keys/{key}/keepalive")
}

/// Returns the path that keeps many keys alive.
pub fn keepalive(pool: &str) -> String {
    format!("{POOLS}/{pool}/keepalive")
}

/// Returns the path that verifies a key.
pub fn verify(pool: &str) -> String {
    format!("{POOLS}/{pool}/verify")
}

/// Returns the path of the event stream of a pool.
pub fn events(pool: &str) -> String {
    format!("{POOLS}/{pool}/events")
}

/// Returns the path of the history of a pool.
pub fn history(pool: &str) -> String {
    format!("{POOLS}/{pool}/history")
}

/// Returns the path of the leases of a pool.
pub fn leases(pool: &str) -> String {
    format!("{POOLS}/{pool}/leases")
}

/// Returns the path that releases a lease.
pub fn lease_release(pool: &str, lease: &str) -> String {
    format!("{POOLS}/{pool}/leases/{lease}/release")
}

/// Returns the path that renews a lease.
pub fn lease_renew(pool: &str, lease: &str) -> String {
    format!("{POOLS}/{pool}/leases/{lease}/renew")
}

/// Returns the path that moves a shard to another server.
pub fn shard_move(shard: u32) -> String {
    format!("{CLUSTER}/shards/{shard}/move")
}

/// Returns the path of the page that explains an error code.
pub fn problem(code: Code) -> String {
    format!("{PROBLEMS}/{}", code.as_str())
}

/// A right that an access token grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Read everything except the values of keys.
    Read,
    /// Acquire, renew and release leases, and keep keys alive.
    Lend,
    /// Create, import, label and delete keys.
    Keys,
    /// Force-release or quarantine a key.
    Force,
    /// Reveal the value of a key that the caller does not hold.
    Reveal,
    /// Verify keys: learn whether a value is that of a key, and who holds it.
    Verify,
    /// Read the metrics, which cover all pools, and the servers and shards of an installation.
    Metrics,
    /// Everything; the only scope that can create, change and delete pools.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Lend,
        Self::Keys,
        Self::Force,
        Self::Reveal,
        Self::Verify,
        Self::Metrics,
        Self::Admin,
    ];

    /// Returns the word for the scope in the token file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Lend => "lend",
            Self::Keys => "keys",
            Self::Force => "force",
            Self::Reveal => "reveal",
            Self::Verify => "verify",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }
}

/// What a route requires, on a server with access tokens. Without tokens every route is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No token: the route returns only public information.
    Open,
    /// Any valid token.
    Token,
    /// A token with this scope.
    Scope(Scope),
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The HTTP method. HEAD is not listed: see [`Route::has_head`].
    pub method: &'static str,
    /// The path, with parameters in braces. A slash at its end is optional.
    pub path: &'static str,
    /// The unique name of the operation.
    pub operation: &'static str,
    /// What the route does, in one line.
    pub summary: &'static str,
    /// What a caller needs.
    pub access: Access,
}

/// The routes of the API, each an operation of the `OpenAPI` document.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    Route::new("GET", POOLS, "listPools", "Lists the pools", Access::Scope(Scope::Read)),
    Route::new("GET", "/v1/pools/{pool}", "showPool", "Shows a pool and its counts", Access::Scope(Scope::Read)),
    Route::new("PUT", "/v1/pools/{pool}", "putPool", "Creates a pool, or changes its policy", Access::Scope(Scope::Admin)),
    Route::new("DELETE", "/v1/pools/{pool}", "deletePool", "Deletes a pool and all its keys", Access::Scope(Scope::Admin)),
    Route::new("GET", "/v1/pools/{pool}/keys", "listKeys", "Lists keys, without their values", Access::Scope(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/keys", "addKeys", "Generates keys, or imports values", Access::Scope(Scope::Keys)),
    Route::new("GET", "/v1/pools/{pool}/keys/{id}", "showKey", "Shows a key, without its value", Access::Scope(Scope::Read)),
    Route::new("PATCH", "/v1/pools/{pool}/keys/{id}", "changeKey", "Changes the label of a key", Access::Scope(Scope::Keys)),
    Route::new("DELETE", "/v1/pools/{pool}/keys/{id}", "deleteKey", "Deletes a key in any state, permanently", Access::Scope(Scope::Keys)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/release", "releaseKey", "Force-releases a key", Access::Scope(Scope::Force)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/quarantine", "quarantineKey", "Quarantines a key", Access::Scope(Scope::Force)),
    Route::new("DELETE", "/v1/pools/{pool}/keys/{id}/quarantine", "endQuarantine", "Puts a quarantined or draining key back", Access::Scope(Scope::Force)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/keepalive", "keepKeyAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/keys/{id}/reveal", "revealKey", "Reveals the value of a key", Access::Scope(Scope::Reveal)),
    Route::new("POST", "/v1/pools/{pool}/keepalive", "keepAlive", "Keeps many keys alive, or all keys of the pool", Access::Scope(Scope::Lend)),
    Route::new("GET", "/v1/pools/{pool}/verify", "authorize", "Verifies the key of a forwarded request", Access::Scope(Scope::Verify)),
    Route::new("POST", "/v1/pools/{pool}/verify", "verify", "Verifies a key", Access::Scope(Scope::Verify)),
    Route::new("GET", "/v1/pools/{pool}/events", "followEvents", "Streams the events of a pool", Access::Scope(Scope::Read)),
    Route::new("GET", "/v1/pools/{pool}/history", "showPoolHistory", "Shows the last 15 minutes of a pool", Access::Scope(Scope::Read)),
    Route::new("POST", "/v1/pools/{pool}/leases", "acquire", "Acquires a random available key", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/release", "release", "Releases a lease", Access::Scope(Scope::Lend)),
    Route::new("POST", "/v1/pools/{pool}/leases/{lease}/renew", "renew", "Renews a lease", Access::Scope(Scope::Lend)),
    Route::new("GET", "/api/v1/random_api_key/", "seedAcquire", "Acquires a random available key of the default pool", Access::Scope(Scope::Lend)),
    Route::new("POST", "/api/v1/random_api_key/", "seedAdd", "Generates a key, or adds the given value", Access::Scope(Scope::Keys)),
    Route::new("PUT", "/api/v1/random_api_key/", "seedRelease", "Force-releases (unblocks) a key", Access::Scope(Scope::Force)),
    Route::new("PATCH", "/api/v1/random_api_key/", "seedKeepAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("DELETE", "/api/v1/random_api_key/", "seedDelete", "Deletes a key", Access::Scope(Scope::Keys)),
    Route::new("GET", "/api/v1/start_scheduler/", "seedStartScheduler", "Does nothing: expiry always runs", Access::Token),
    Route::new("GET", "/keys", "plainAcquire", "Acquires a random available key of the default pool", Access::Scope(Scope::Lend)),
    Route::new("POST", "/keys", "plainGenerate", "Generates a key", Access::Scope(Scope::Keys)),
    Route::new("GET", "/keys/{id}", "plainShow", "Shows whether a key is blocked", Access::Scope(Scope::Read)),
    Route::new("PUT", "/keys/{id}", "plainRelease", "Force-releases (unblocks) a key", Access::Scope(Scope::Force)),
    Route::new("DELETE", "/keys/{id}", "plainDelete", "Deletes a key", Access::Scope(Scope::Keys)),
    Route::new("PUT", "/keepalive/{id}", "plainKeepAlive", "Keeps a key alive", Access::Scope(Scope::Lend)),
    Route::new("GET", HISTORY, "showHistory", "Shows the last 15 minutes of all pools together", Access::Scope(Scope::Read)),
    Route::new("GET", CLUSTER, "showCluster", "Shows the servers and shards of the installation", Access::Scope(Scope::Metrics)),
    Route::new("POST", "/v1/cluster/shards/{shard}/move", "moveShard", "Moves a shard to another server", Access::Scope(Scope::Admin)),
    Route::new("GET", BACKUP, "backup", "Streams a backup of all data", Access::Scope(Scope::Admin)),
    Route::new("GET", ACCESS, "showAccess", "Shows what the access token of the request allows", Access::Token),
    Route::new("GET", INDEX, "index", "Shows the dashboard to a browser; returns links otherwise", Access::Open),
    Route::new("GET", LIVEZ, "live", "Reports that the process runs", Access::Open),
    Route::new("GET", READYZ, "ready", "Reports whether the server accepts requests", Access::Open),
    Route::new("GET", VERSION, "version", "Returns the version of the server", Access::Token),
    Route::new("GET", METRICS, "metrics", "Returns the metrics of the server", Access::Scope(Scope::Metrics)),
    Route::new("GET", OPENAPI, "openapi", "Returns this document", Access::Open),
    Route::new("GET", DOCS, "docs", "Shows this document as a page", Access::Open),
    Route::new("GET", DOCS_STYLE, "docsStyle", "Returns the style sheet of that page", Access::Open),
];

/// The routes of the problem pages. They are not operations of the API, so the `OpenAPI` document
/// does not have them; each problem's `type` is the path of its page.
pub const PROBLEM_ROUTES: &[Route] = &[
    Route::new("GET", PROBLEMS, "problems", "Lists the error codes", Access::Open),
    Route::new("GET", "/problems/{code}", "problem", "Explains an error code", Access::Open),
];

/// The routes of the files of the dashboard, which are no operations either. Their names contain a
/// digest of their content.
pub const DASHBOARD_ROUTES: &[Route] = &[Route::new(
    "GET",
    "/ui/{asset}",
    "dashboardFile",
    "Returns a file of the dashboard",
    Access::Open,
)];

/// Returns every route of the server.
fn all_routes() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().chain(PROBLEM_ROUTES).chain(DASHBOARD_ROUTES)
}

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

    /// Returns whether HEAD is supported: wherever GET is, unless GET would lend a key.
    pub fn has_head(&self) -> bool {
        self.method == "GET" && !self.lends()
    }

    /// Returns whether the route acquires a key, or renews or releases a lease.
    pub fn lends(&self) -> bool {
        self.access == Access::Scope(Scope::Lend)
    }

    /// Returns whether the audit log records the route: it changes something for other callers, or
    /// reveals a secret that was not lent. A keep-alive only moves the time at which a key is
    /// purged, and a verification changes nothing, so neither is recorded.
    pub fn is_audited(&self) -> bool {
        let reads = self.method == "GET" && !self.lends() && !self.is_backup();
        !reads && !self.keeps_alive() && !self.verifies()
    }

    /// Returns whether the route returns the values of all keys.
    fn is_backup(&self) -> bool {
        self.path == BACKUP
    }

    fn verifies(&self) -> bool {
        self.access == Access::Scope(Scope::Verify)
    }

    /// Returns whether the route keeps keys alive, extends a lease or returns a key: late, such a
    /// request loses keys or keeps them from other clients, so a server refuses it last.
    pub fn is_urgent(&self) -> bool {
        self.keeps_alive()
            || matches!(
                self.operation,
                "release" | "renew" | "releaseKey" | "seedRelease" | "plainRelease"
            )
    }

    fn keeps_alive(&self) -> bool {
        self.path.ends_with("/keepalive")
            || self.path.starts_with("/keepalive/")
            || self.operation == "seedKeepAlive"
    }

    /// Returns the pool that a path of this route names; the compatibility APIs use the default
    /// pool.
    pub fn pool_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        let Some(below) = self.path.strip_prefix("/v1/pools/") else {
            let compatibility = ["/api/v1/random_api_key", "/keys", "/keepalive"];
            return compatibility
                .iter()
                .any(|start| self.path.starts_with(start))
                .then_some("default");
        };
        debug_assert!(below.starts_with("{pool}"));
        path.split('/').nth(3)
    }

    /// Returns the shard that a path of this route names.
    pub fn shard_of<'a>(&self, path: &'a str) -> Option<&'a str> {
        self.path.contains("/{shard}/").then(|| path.split('/').nth(4)).flatten()
    }

    /// Returns whether the route has this path. `{code}` matches the known error codes, any other
    /// parameter matches any segment that is not empty.
    pub fn matches(&self, path: &str) -> bool {
        let template = match self.path.strip_suffix('/') {
            Some(without) if !without.is_empty() && !path.ends_with('/') => without,
            _ => self.path,
        };
        let mut segments = path.split('/');
        let all_match = template.split('/').all(|part| {
            segments.next().is_some_and(|segment| match part {
                "{code}" => Code::from_word(segment).is_some(),
                parameter if parameter.starts_with('{') => !segment.is_empty(),
                literal => segment == literal,
            })
        });
        all_match && segments.next().is_none()
    }
}

/// Every method that a route supports, as the value of an `Allow` header.
pub const ALL_METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Returns the value of the `Allow` header for `path`; `None` if there is no such route. Every route
/// supports OPTIONS, which no row of the table lists.
pub fn allow(path: &str) -> Option<String> {
    let mut methods = Vec::new();
    for route in all_routes().filter(|route| route.matches(path)) {
        methods.push(route.method);
        if route.has_head() {
            methods.push("HEAD");
        }
    }
    if methods.is_empty() {
        return None;
    }
    methods.push("OPTIONS");
    Some(methods.join(", "))
}

/// Returns the route for `method` at `path`; HEAD has the route of GET.
pub fn find(method: &str, path: &str) -> Option<&'static Route> {
    let (method, head) = if method == "HEAD" { ("GET", true) } else { (method, false) };
    let found = all_routes().find(|route| route.method == method && route.matches(path))?;
    (!head || found.has_head()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_occurs_once_with_a_unique_name() {
        for (index, route) in all_routes().enumerate() {
            for other in all_routes().take(index) {
                assert_ne!(route.operation, other.operation);
                assert_ne!((route.method, route.path), (other.method, other.path));
            }
        }
    }

    #[test]
    fn each_path_that_is_built_here_is_in_the_table() {
        for (path, methods) in [
            (POOLS.into(), "GET, HEAD"),
            (pool("a"), "GET, HEAD, PUT, DELETE"),
            (keys("a"), "GET, HEAD, POST"),
            (key("a", "b"), "GET, HEAD, PATCH, DELETE"),
            (key_release("a", "b"), "POST"),
            (key_keepalive("a", "b"), "POST"),
            (key_reveal("a", "b"), "POST"),
            (keepalive("a"), "POST"),
            (verify("a"), "GET, HEAD, POST"),
            (events("a"), "GET, HEAD"),
            (leases("a"), "POST"),
            (lease_release("a", "b"), "POST"),
            (lease_renew("a", "b"), "POST"),
            (shard_move(3), "POST"),
        ] {
            assert_eq!(allow(&path), Some(format!("{methods}, OPTIONS")), "{path}");
        }
    }

    #[test]
    fn a_path_matches_a_route_segment_by_segment() {
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
            ("/", Some("GET, HEAD")),
            ("//", None),
            ("/problems", Some("GET, HEAD")),
            ("/problems/unknown_pool", Some("GET, HEAD")),
            ("/problems/nope", None),
            ("/problems/", None),
            ("", None),
            ("*", None),
        ] {
            let methods = methods.map(|methods| format!("{methods}, OPTIONS"));
            assert_eq!(allow(path), methods, "{path:?}");
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
        let moves = find("POST", "/v1/cluster/shards/3/move").unwrap();
        assert_eq!(moves.shard_of("/v1/cluster/shards/3/move"), Some("3"));
        for (method, path) in
            [("HEAD", "/keys"), ("HEAD", "/v1/pools/ci/leases"), ("PUT", POOLS), ("GET", "/nope")]
        {
            assert_eq!(find(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn a_route_that_moves_or_reveals_a_key_is_audited() {
        let not_audited: Vec<_> = all_routes().filter(|route| !route.is_audited()).collect();
        let keep_alives = ["keepKeyAlive", "keepAlive", "seedKeepAlive", "plainKeepAlive"];
        for route in not_audited {
            let reads = route.method == "GET" && !route.lends();
            let harmless = keep_alives.contains(&route.operation) || route.operation == "verify";
            assert!(reads || harmless, "{}", route.operation);
        }
        assert!(find("GET", BACKUP).unwrap().is_audited(), "it has the value of every key");
        assert!(find("GET", "/keys").unwrap().is_audited());
        assert!(find("POST", "/v1/pools/a/keys/b/reveal").unwrap().is_audited());
    }

    #[test]
    fn keep_alives_renewals_and_releases_are_urgent() {
        let mut urgent: Vec<_> =
            all_routes().filter(|route| route.is_urgent()).map(|route| route.operation).collect();
        urgent.sort_unstable();
        let expected = [
            "keepAlive",
            "keepKeyAlive",
            "plainKeepAlive",
            "plainRelease",
            "release",
            "releaseKey",
            "renew",
            "seedKeepAlive",
            "seedRelease",
        ];
        assert_eq!(urgent, expected);
    }
}

//! The client: each route of the canonical API as a call.
//!
//! It asks once and tells what came; whether to ask again is its caller's to say, who knows
//! whether a change may happen twice. Connections are kept and shared by clones. There is no TLS
//! yet, so only `http://` is spoken.

use crate::{
    AcquireRequest, Events, Freed, GenerateRequest, Grant, KeepAliveRequest, Kept, KeptMany, Key,
    KeyPage, KeyState, Lease, LeaseGuard, NewKeys, PolicyRequest, Pool, Pools, Problem,
    ReleaseRequest, RenewRequest, Revealed, Secret, routes,
};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a connection may take to open.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a call may take, waiting in line aside; well above what the server itself allows.
const CALL_TIME: Duration = Duration::from_mins(1);

/// How long a stream of events may be silent, after which its connection is taken for dead: three
/// times what a server lets pass.
const SILENT_TIME: Duration = Duration::from_secs(45);

/// Calls one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// Under which Idempotency-Key it asks.
    once: Option<String>,
    /// What it shows to be let in; marked as sensitive, so that it is in no `Debug`.
    token: Option<HeaderValue>,
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server said no, and why; [`Problem::outcome`] tells whether a change was made.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// No answer came. A change may or may not have been made.
    #[error("the server cannot be reached: {}", root(.0))]
    Unreachable(#[source] reqwest::Error),
    /// An answer came that is none of Keypeg's.
    #[error("not an answer of Keypeg (status {status}): {detail}")]
    Unexpected {
        /// Its HTTP status.
        status: u16,
        /// What is wrong with it.
        detail: String,
    },
    /// What was given cannot be part of a call, so none was made.
    #[error("{0}")]
    Unusable(String),
}

impl Error {
    /// What the server said, where it said no.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Unreachable(_) | Self::Unexpected { .. } | Self::Unusable(_) => None,
        }
    }
}

/// The last cause of an error, which says the most.
fn root(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Which version a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerVersion {
    /// `keypeg`.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Client {
    /// Makes a client of the server at `base`, such as `http://127.0.0.1:8000`. Asks nothing yet.
    pub fn new(base: &str) -> Result<Self, Error> {
        let host = base.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let host = host.filter(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@']));
        let Some(host) = host else {
            let message = format!("{base} is no http://HOST:PORT; there is no TLS yet");
            return Err(Error::Unusable(message));
        };
        let http = connecting().build().map_err(|error| Error::Unusable(root(&error)))?;
        Ok(Self { http, base: format!("http://{host}"), once: None, token: None })
    }

    /// Makes a client that shows this access token with each call.
    pub fn with_token(&self, token: &str) -> Result<Self, Error> {
        let visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let shown = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| visible);
        let Some(mut shown) = shown else {
            return Err(Error::Unusable("an access token has visible characters alone".into()));
        };
        shown.set_sensitive(true);
        Ok(Self { token: Some(shown), ..self.clone() })
    }

    /// Makes a client whose [`generate`](Self::generate) and [`acquire`](Self::acquire) are made
    /// under this Idempotency-Key, 1 to 128 visible characters: asked again they are answered the
    /// same, and nothing happens twice. Take a new one for each thing that is to happen.
    #[must_use]
    pub fn once(&self, key: &str) -> Self {
        Self { once: Some(key.into()), ..self.clone() }
    }

    /// All pools, by name.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        let Pools { pools } = self.get(routes::POOLS.into()).await?;
        Ok(pools)
    }

    /// One pool with its counts.
    pub async fn pool(&self, pool: &str) -> Result<Pool, Error> {
        self.get(routes::pool(part(pool)?)).await
    }

    /// Makes a pool or changes its policy.
    pub async fn put_pool(&self, pool: &str, policy: &PolicyRequest) -> Result<Pool, Error> {
        json(self.send(Method::PUT, routes::pool(part(pool)?), Some(policy)).await?).await
    }

    /// Removes a pool with all its keys.
    pub async fn delete_pool(&self, pool: &str) -> Result<(), Error> {
        self.send::<()>(Method::DELETE, routes::pool(part(pool)?), None).await.map(drop)
    }

    /// Makes keys, all or none.
    pub async fn generate(&self, pool: &str, request: &GenerateRequest) -> Result<NewKeys, Error> {
        self.post(routes::keys(part(pool)?), request).await
    }

    /// Brings values in, in their order; all or none.
    pub async fn import(&self, pool: &str, values: Vec<Secret>) -> Result<NewKeys, Error> {
        let request = GenerateRequest { values: Some(values), ..GenerateRequest::default() };
        self.generate(pool, &request).await
    }

    /// One page of a pool's keys, without their values: at most `limit`, 100 when left out, from
    /// `cursor` on. See [`Client::list`] for all of them.
    pub async fn list_keys(
        &self,
        pool: &str,
        state: Option<KeyState>,
        limit: Option<u32>,
        cursor: Option<&str>,
    ) -> Result<KeyPage, Error> {
        let mut query = Vec::new();
        query.extend(state.map(|state| format!("state={}", state.as_str())));
        query.extend(limit.map(|limit| format!("limit={limit}")));
        query.extend(cursor.map(part).transpose()?.map(|cursor| format!("cursor={cursor}")));
        self.get(format!("{}?{}", routes::keys(part(pool)?), query.join("&"))).await
    }

    /// All keys of a pool, or those in one state, page by page. Asks nothing yet.
    pub fn list(&self, pool: &str, state: Option<KeyState>) -> KeyPages {
        KeyPages { client: self.clone(), pool: pool.into(), state, cursor: None, over: false }
    }

    /// One key, without its value.
    pub async fn key(&self, pool: &str, key: &str) -> Result<Key, Error> {
        self.get(routes::key(part(pool)?, part(key)?)).await
    }

    /// Deletes a key in any state, for ever.
    pub async fn delete_key(&self, pool: &str, key: &str) -> Result<(), Error> {
        let route = routes::key(part(pool)?, part(key)?);
        self.send::<()>(Method::DELETE, route, None).await.map(drop)
    }

    /// Puts a key back, whoever holds it.
    pub async fn release_key(&self, pool: &str, key: &str) -> Result<Freed, Error> {
        self.bare(routes::key_release(part(pool)?, part(key)?)).await
    }

    /// Shows a key's value, whoever holds it.
    pub async fn reveal(&self, pool: &str, key: &str) -> Result<Revealed, Error> {
        self.bare(routes::key_reveal(part(pool)?, part(key)?)).await
    }

    /// Keeps one key alive.
    pub async fn keep_alive(&self, pool: &str, key: &str) -> Result<Kept, Error> {
        self.bare(routes::key_keepalive(part(pool)?, part(key)?)).await
    }

    /// Keeps many keys alive, or all of a pool.
    pub async fn keep_alive_many(
        &self,
        pool: &str,
        request: &KeepAliveRequest,
    ) -> Result<KeptMany, Error> {
        self.post(routes::keepalive(part(pool)?), request).await
    }

    /// Borrows a random free key. The lease runs on by itself: see [`Client::hold`].
    pub async fn acquire(&self, pool: &str, request: &AcquireRequest) -> Result<Grant, Error> {
        let wait = request.wait_seconds.map_or(0, |wait| wait.ms);
        let within = CALL_TIME + Duration::from_millis(wait);
        let route = routes::leases(part(pool)?);
        json(self.send_within(within, Method::POST, route, Some(request)).await?).await
    }

    /// Borrows a random free key and keeps the lease as long as the guard lives and the pool's
    /// longest hold allows. To be called on a tokio runtime.
    pub async fn hold(&self, pool: &str, request: &AcquireRequest) -> Result<LeaseGuard, Error> {
        LeaseGuard::acquire(self.clone(), pool, request).await
    }

    /// Gives a lease's key back.
    pub async fn release(&self, pool: &str, lease: &str) -> Result<(), Error> {
        let route = routes::lease_release(part(pool)?, part(lease)?);
        self.send::<()>(Method::POST, route, None).await.map(drop)
    }

    /// Gives a lease's key back, with what its holder says of it: a rest, a quarantine, why.
    pub async fn release_with(
        &self,
        pool: &str,
        lease: &str,
        request: &ReleaseRequest,
    ) -> Result<(), Error> {
        let route = routes::lease_release(part(pool)?, part(lease)?);
        self.send(Method::POST, route, Some(request)).await.map(drop)
    }

    /// Gives a lease more time.
    pub async fn renew(
        &self,
        pool: &str,
        lease: &str,
        request: &RenewRequest,
    ) -> Result<Lease, Error> {
        self.post(routes::lease_renew(part(pool)?, part(lease)?), request).await
    }

    /// What happens to a pool from now on, as it happens; after the event with the id `after` where
    /// the server still has all that came since. A stream that does not go on there begins with
    /// [`Event::Resync`](crate::Event::Resync).
    pub async fn events(&self, pool: &str, after: Option<&str>) -> Result<Events, Error> {
        // A client of its own, since no other call may be as silent as long as it likes.
        let http = connecting().read_timeout(SILENT_TIME).build();
        let http = http.map_err(|error| Error::Unusable(root(&error)))?;
        let route = routes::events(part(pool)?);
        let mut request = http.get(format!("{}{route}", self.base));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        Ok(Events::new(sent(request).await?, after))
    }

    /// Whether the server's process runs.
    pub async fn live(&self) -> Result<(), Error> {
        self.send::<()>(Method::GET, routes::LIVEZ.into(), None).await.map(drop)
    }

    /// Whether the server takes requests.
    pub async fn ready(&self) -> Result<(), Error> {
        self.send::<()>(Method::GET, routes::READYZ.into(), None).await.map(drop)
    }

    /// Which version the server is.
    pub async fn version(&self) -> Result<ServerVersion, Error> {
        self.get(routes::VERSION.into()).await
    }

    /// What the server counts, as `OpenMetrics` text.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send::<()>(Method::GET, routes::METRICS.into(), None).await?;
        response.text().await.map_err(Error::Unreachable)
    }

    async fn get<T: DeserializeOwned>(&self, route: String) -> Result<T, Error> {
        json(self.send::<()>(Method::GET, route, None).await?).await
    }

    async fn bare<T: DeserializeOwned>(&self, route: String) -> Result<T, Error> {
        json(self.send::<()>(Method::POST, route, None).await?).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        route: String,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        json(self.send(Method::POST, route, Some(body)).await?).await
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        route: String,
        body: Option<&B>,
    ) -> Result<Response, Error> {
        self.send_within(CALL_TIME, method, route, body).await
    }

    async fn send_within<B: Serialize>(
        &self,
        within: Duration,
        method: Method,
        route: String,
        body: Option<&B>,
    ) -> Result<Response, Error> {
        let mut request =
            self.http.request(method, format!("{}{route}", self.base)).timeout(within);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = &self.once {
            request = request.header("idempotency-key", key);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        sent(request).await
    }
}

fn connecting() -> ClientBuilder {
    reqwest::Client::builder().connect_timeout(CONNECT_TIME).redirect(Policy::none())
}

/// Sends a request and gives its answer, where that is no refusal.
async fn sent(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await.map_err(|error| {
        if error.is_builder() { Error::Unusable(root(&error)) } else { Error::Unreachable(error) }
    })?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let body = response.bytes().await.map_err(Error::Unreachable)?;
    Err(serde_json::from_slice(&body).map_or_else(
        |error| Error::Unexpected { status, detail: error.to_string() },
        |problem| Error::Refused(Box::new(problem)),
    ))
}

/// A listing that goes on from page to page.
#[derive(Clone, Debug)]
pub struct KeyPages {
    client: Client,
    pool: String,
    state: Option<KeyState>,
    cursor: Option<String>,
    over: bool,
}

/// Keys of a page; the most there may be.
const PAGE: u32 = 1_000;

impl KeyPages {
    /// The next page, which may have no keys; `None` at the end. After an error it can be asked for
    /// again.
    pub async fn next(&mut self) -> Result<Option<Vec<Key>>, Error> {
        if self.over {
            return Ok(None);
        }
        let asked =
            self.client.list_keys(&self.pool, self.state, Some(PAGE), self.cursor.as_deref());
        let KeyPage { keys, next_cursor } = asked.await?;
        self.over = next_cursor.is_none();
        self.cursor = next_cursor;
        Ok(Some(keys))
    }
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let status = response.status().as_u16();
    let body = response.bytes().await.map_err(Error::Unreachable)?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::Unexpected { status, detail: error.to_string() })
}

/// Lets a name or an id into a path: it can be neither another path nor above this one.
fn part(text: &str) -> Result<&str, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.chars().all(plain) && !matches!(text, "" | "." | "..") {
        return Ok(text);
    }
    Err(Error::Unusable(format!("{text:?} is no name and no id")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_host_and_nothing_more() {
        for base in ["http://127.0.0.1:8000", "http://localhost/", "http://[::1]:8000"] {
            assert!(Client::new(base).is_ok(), "{base}");
        }
        for base in ["", "localhost:8000", "https://a", "http://", "http://a/b", "http://a@b"] {
            assert!(matches!(Client::new(base), Err(Error::Unusable(_))), "{base}");
        }
    }

    #[test]
    fn what_would_lead_elsewhere_is_no_part_of_a_path() {
        for good in ["default", "a..", "A-b_0"] {
            assert_eq!(part(good).unwrap(), good);
        }
        for bad in ["", ".", "..", "a/b", "a?b", "%2e", "ä", "a b"] {
            assert!(part(bad).is_err(), "{bad}");
        }
    }
}

//! The client: each route of the canonical API as a method.
//!
//! A method sends one request and returns its result. It never retries: only the caller knows
//! whether a change may be applied twice. Clones share a pool of connections.

use crate::address::{ServerAddress, is_loopback, proxy_variable};
use crate::error::{Error, root_cause};
use crate::tls::{TlsSettings, unused_config};
use crate::{
    AcquireRequest, Cluster, ClusterShard, Existence, GenerateRequest, Grant, History,
    KeepAliveRequest, KeptAlive, KeptAliveMany, KeyFilter, KeyPage, Lease, MoveShardRequest,
    NewKeys, PolicyRequest, Pool, Pools, ReleaseRequest, RenewRequest, Secret, Verification,
    VerifyRequest, routes,
};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use reqwest::redirect::Policy;
use reqwest::{ClientBuilder, Method, RequestBuilder, Response};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The timeout of opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a request without its wait for a key; well above the limits of the server.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// The read timeout of an event stream, after which its connection counts as dead: three times the
/// interval at which the server sends comments.
const STREAM_READ_TIMEOUT: Duration = Duration::from_secs(45);

/// The read timeout of a backup: a server first writes its leases to its journal again.
const BACKUP_READ_TIMEOUT: Duration = Duration::from_mins(5);

/// A client of one server. A clone is cheap.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    address: ServerAddress,
    tls: Arc<ClientConfig>,
    /// The Idempotency-Key of each request.
    idempotency_key: Option<String>,
    /// The `Authorization` header; marked as sensitive, so that `Debug` does not show it.
    authorization: Option<HeaderValue>,
}

/// The name and version of a server, and of which source it was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerVersion {
    /// Always `keypeg`.
    pub name: String,
    /// The version.
    pub version: String,
    /// The commit of the source; `None` if the build or an older server does not know it.
    #[serde(default)]
    pub commit: Option<String>,
    /// The date of the source, as RFC 3339; `None` if the build or an older server does not know it.
    #[serde(default)]
    pub built_at: Option<String>,
    /// The platform that the server was compiled for; `None` from an older server.
    #[serde(default)]
    pub target: Option<String>,
}

impl Client {
    /// Creates a client of the server at `base`, for example `http://127.0.0.1:8000`,
    /// `https://keys.example`, or `https://keys.example/keypeg` behind a proxy that adds a path. It
    /// does not connect yet. Over `https` it trusts the authorities of the operating system.
    ///
    /// Requests to a server on another machine go through the proxy that the environment names
    /// (`http_proxy` or `https_proxy`, except for `no_proxy`). Requests to this machine never do.
    pub fn new(base: &str) -> Result<Self, Error> {
        Self::with_tls(base, &TlsSettings::default())
    }

    /// Like [`Client::new`], with settings for `https`.
    pub fn with_tls(base: &str, settings: &TlsSettings) -> Result<Self, Error> {
        let address = ServerAddress::parse(base).map_err(Error::InvalidInput)?;
        let tls = if address.is_https() {
            settings.config()?
        } else if settings.is_default() {
            unused_config()
        } else {
            let message = format!(
                "the address {} has no TLS: an authority and a client certificate need an address \
                 that begins with https://",
                address.base
            );
            return Err(Error::InvalidInput(message));
        };
        let tls = Arc::new(tls);
        let http = http_client(&address, &tls).build();
        let http = http.map_err(|error| Error::InvalidInput(root_cause(&error)))?;
        Ok(Self { http, address, tls, idempotency_key: None, authorization: None })
    }

    /// Returns a client that sends this access token with each request.
    pub fn with_token(&self, token: &str) -> Result<Self, Error> {
        let is_visible = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let header = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| is_visible);
        let Some(mut header) = header else {
            let message = "invalid access token: it must consist of visible characters only";
            return Err(Error::InvalidInput(message.into()));
        };
        header.set_sensitive(true);
        Ok(Self { authorization: Some(header), ..self.clone() })
    }

    /// Returns whether both clients send the same access token, or none.
    pub(crate) fn has_token_of(&self, other: &Self) -> bool {
        self.authorization == other.authorization
    }

    /// Returns a client that sends this Idempotency-Key (1 to 128 visible characters) with
    /// [`generate`](Self::generate) and [`acquire`](Self::acquire). The server applies such a
    /// request once, and a repeat gets the stored answer. Use a new key for each operation.
    #[must_use]
    pub fn with_idempotency_key(&self, key: &str) -> Self {
        Self { idempotency_key: Some(key.into()), ..self.clone() }
    }

    /// Returns one page of the pools that the token may see, sorted by name: at most `limit` pools
    /// (1000 by default), from `cursor` on. [`Client::list_all_pools`] returns all pages.
    pub async fn list_pools(
        &self,
        limit: Option<u32>,
        cursor: Option<&str>,
    ) -> Result<Pools, Error> {
        self.get(page_of(routes::POOLS, &KeyFilter::default(), limit, cursor)?).await
    }

    /// Returns one pool with its counts.
    pub async fn pool(&self, pool: &str) -> Result<Pool, Error> {
        self.get(routes::pool(path_segment(pool)?)).await
    }

    /// Creates a pool, or changes its policy.
    pub async fn put_pool(&self, pool: &str, policy: &PolicyRequest) -> Result<Pool, Error> {
        parse_json(self.send(Method::PUT, routes::pool(path_segment(pool)?), Some(policy)).await?)
            .await
    }

    /// Creates a pool that does not exist, or changes the policy of one that does. Otherwise the
    /// server refuses with [`Code::PreconditionFailed`](crate::Code::PreconditionFailed).
    pub async fn put_pool_if(
        &self,
        pool: &str,
        policy: &PolicyRequest,
        existence: Existence,
    ) -> Result<Pool, Error> {
        let route = routes::pool(path_segment(pool)?);
        let name = match existence {
            Existence::Missing => IF_NONE_MATCH,
            Existence::Present => IF_MATCH,
        };
        let request = self.request(REQUEST_TIMEOUT, Method::PUT, &route, Some(policy));
        parse_json(send_request(request.header(name, "*")).await?).await
    }

    /// Returns the last seconds of a pool, or of all pools together; at most `seconds` of them.
    pub async fn history(&self, pool: Option<&str>, seconds: u32) -> Result<History, Error> {
        let route = match pool {
            Some(pool) => routes::history(path_segment(pool)?),
            None => routes::HISTORY.into(),
        };
        self.get(format!("{route}?seconds={seconds}")).await
    }

    /// Deletes a pool and all its keys.
    pub async fn delete_pool(&self, pool: &str) -> Result<(), Error> {
        self.send::<()>(Method::DELETE, routes::pool(path_segment(pool)?), None).await.map(drop)
    }

    /// Generates keys, or imports values; all or nothing.
    pub async fn generate(&self, pool: &str, request: &GenerateRequest) -> Result<NewKeys, Error> {
        self.post(routes::keys(path_segment(pool)?), request).await
    }

    /// Imports values in their order; all or nothing.
    pub async fn import(&self, pool: &str, values: Vec<Secret>) -> Result<NewKeys, Error> {
        let request = GenerateRequest { values: Some(values), ..GenerateRequest::default() };
        self.generate(pool, &request).await
    }

    /// Returns one page of the keys of a pool, without their values: at most `limit` keys (100 by
    /// default), from `cursor` on. The filter can be a state. [`Client::list_all_keys`] returns all
    /// pages.
    pub async fn list_keys(
        &self,
        pool: &str,
        filter: impl Into<KeyFilter>,
        limit: Option<u32>,
        cursor: Option<&str>,
    ) -> Result<KeyPage, Error> {
        let route = routes::keys(path_segment(pool)?);
        self.get(page_of(&route, &filter.into(), limit, cursor)?).await
    }

    /// Returns whether a key with this value exists in the pool and is leased, and to which holder.
    pub async fn verify(&self, pool: &str, value: Secret) -> Result<Verification, Error> {
        let request = VerifyRequest { key: value };
        self.post(routes::verify(path_segment(pool)?), &request).await
    }

    /// Keeps one key alive.
    pub async fn keep_alive(&self, pool: &str, key: &str) -> Result<KeptAlive, Error> {
        self.post_empty(routes::key_keepalive(path_segment(pool)?, path_segment(key)?)).await
    }

    /// Keeps many keys alive, or all keys of a pool.
    pub async fn keep_alive_many(
        &self,
        pool: &str,
        request: &KeepAliveRequest,
    ) -> Result<KeptAliveMany, Error> {
        self.post(routes::keepalive(path_segment(pool)?), request).await
    }

    /// Acquires a random available key. The client does not renew the lease: see
    /// [`Client::acquire_guard`].
    pub async fn acquire(&self, pool: &str, request: &AcquireRequest) -> Result<Grant, Error> {
        let wait = request.wait_seconds.map_or(0, |wait| wait.ms);
        let timeout = REQUEST_TIMEOUT + Duration::from_millis(wait);
        let route = routes::leases(path_segment(pool)?);
        parse_json(self.send_with_timeout(timeout, Method::POST, route, Some(request)).await?).await
    }

    /// Releases a lease.
    pub async fn release(&self, pool: &str, lease: &str) -> Result<(), Error> {
        let route = routes::lease_release(path_segment(pool)?, path_segment(lease)?);
        self.send::<()>(Method::POST, route, None).await.map(drop)
    }

    /// Releases a lease, with a rest, a quarantine or a reason.
    pub async fn release_with(
        &self,
        pool: &str,
        lease: &str,
        request: &ReleaseRequest,
    ) -> Result<(), Error> {
        let route = routes::lease_release(path_segment(pool)?, path_segment(lease)?);
        self.send(Method::POST, route, Some(request)).await.map(drop)
    }

    /// Renews a lease.
    pub async fn renew(
        &self,
        pool: &str,
        lease: &str,
        request: &RenewRequest,
    ) -> Result<Lease, Error> {
        self.post(routes::lease_renew(path_segment(pool)?, path_segment(lease)?), request).await
    }

    /// Returns the servers and shards of the installation, as this server sees them.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        self.get(routes::CLUSTER.into()).await
    }

    /// Moves a shard to the server with this name; returns the shard when that server owns it.
    pub async fn move_shard(&self, shard: u32, server: &str) -> Result<ClusterShard, Error> {
        let (request, route) =
            (MoveShardRequest { server: Some(server.into()) }, routes::shard_move(shard));
        let timeout = 2 * REQUEST_TIMEOUT;
        let sent = self.send_with_timeout(timeout, Method::POST, route, Some(&request)).await?;
        parse_json(sent).await
    }

    /// Succeeds if the process of the server runs.
    pub async fn live(&self) -> Result<(), Error> {
        self.send::<()>(Method::GET, routes::LIVEZ.into(), None).await.map(drop)
    }

    /// Succeeds if the server accepts requests.
    pub async fn ready(&self) -> Result<(), Error> {
        self.send::<()>(Method::GET, routes::READYZ.into(), None).await.map(drop)
    }

    /// Returns the version of the server.
    pub async fn version(&self) -> Result<ServerVersion, Error> {
        self.get(routes::VERSION.into()).await
    }

    /// Returns the metrics of the server as `OpenMetrics` text.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send::<()>(Method::GET, routes::METRICS.into(), None).await?;
        response.text().await.map_err(Error::Unreachable)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, route: String) -> Result<T, Error> {
        parse_json(self.send::<()>(Method::GET, route, None).await?).await
    }

    pub(crate) async fn post_empty<T: DeserializeOwned>(&self, route: String) -> Result<T, Error> {
        parse_json(self.send::<()>(Method::POST, route, None).await?).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        route: String,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        parse_json(self.send(Method::POST, route, Some(body)).await?).await
    }

    pub(crate) async fn send<B: Serialize>(
        &self,
        method: Method,
        route: String,
        body: Option<&B>,
    ) -> Result<Response, Error> {
        self.send_with_timeout(REQUEST_TIMEOUT, method, route, body).await
    }

    /// Opens an event stream, after the event with the id `after` if there is one.
    pub(crate) async fn open_stream(
        &self,
        route: &str,
        after: Option<&str>,
    ) -> Result<Response, Error> {
        // A separate HTTP client, because only this request has a read timeout and no total one.
        let http = http_client(&self.address, &self.tls).read_timeout(STREAM_READ_TIMEOUT).build();
        let http = http.map_err(|error| Error::InvalidInput(root_cause(&error)))?;
        let mut request = http.get(format!("{}{route}", self.address.base));
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        send_request(request).await
    }

    /// Opens a backup.
    pub(crate) async fn open_backup(&self) -> Result<Response, Error> {
        let http = http_client(&self.address, &self.tls).read_timeout(BACKUP_READ_TIMEOUT).build();
        let http = http.map_err(|error| Error::InvalidInput(root_cause(&error)))?;
        let mut request = http.get(format!("{}{}", self.address.base, routes::BACKUP));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        send_request(request).await
    }

    async fn send_with_timeout<B: Serialize>(
        &self,
        timeout: Duration,
        method: Method,
        route: String,
        body: Option<&B>,
    ) -> Result<Response, Error> {
        send_request(self.request(timeout, method, &route, body)).await
    }

    fn request<B: Serialize>(
        &self,
        timeout: Duration,
        method: Method,
        route: &str,
        body: Option<&B>,
    ) -> RequestBuilder {
        let mut request =
            self.http.request(method, format!("{}{route}", self.address.base)).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = &self.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request
    }
}

fn http_client(address: &ServerAddress, tls: &ClientConfig) -> ClientBuilder {
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(Policy::none())
        .tls_backend_preconfigured(tls.clone());
    if address.is_loopback { builder.no_proxy() } else { builder }
}

/// Sends a request and returns its answer; a refusal becomes an error.
async fn send_request(request: RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await.map_err(|error| {
        if error.is_builder() {
            Error::InvalidInput(root_cause(&error))
        } else {
            Error::Unreachable(error)
        }
    })?;
    if response.status().is_success() {
        return Ok(response);
    }
    let origin = AnswerOrigin::of(&response);
    let body = response.bytes().await.map_err(Error::Unreachable)?;
    Err(serde_json::from_slice(&body)
        .map_or_else(|_| origin.unexpected(&body), |problem| Error::Refused(Box::new(problem))))
}

/// Where an answer came from, for the error if it is not an answer of Keypeg.
struct AnswerOrigin {
    status: u16,
    content_type: String,
    is_loopback: bool,
    is_https: bool,
}

impl AnswerOrigin {
    fn of(response: &Response) -> Self {
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default();
        Self {
            status: response.status().as_u16(),
            content_type: media_type.trim().chars().take(100).collect(),
            is_https: response.url().scheme() == "https",
            is_loopback: response.url().host_str().is_some_and(is_loopback),
        }
    }

    fn unexpected(self, body: &[u8]) -> Error {
        let Self { status, content_type, is_loopback, is_https } = self;
        let what = match &*content_type {
            _ if body.is_empty() => "its body is empty".into(),
            "" => "it has no content type".into(),
            content_type => format!("its content type is {content_type}"),
        };
        // The failures of a proxy that does not reach its server.
        let is_gateway = matches!(status, 502..=504);
        let origin = match proxy_variable(is_https) {
            Some(variable) if !is_loopback => {
                let other = if is_gateway {
                    "; otherwise check whether the server behind the proxy runs"
                } else {
                    ""
                };
                format!(
                    "the variable {variable} sends requests through a proxy; if the proxy answered, \
                     add the server to no_proxy{other}"
                )
            }
            _ if is_gateway => "another server or a proxy answered: check the address of the \
                                server, and whether the server behind it runs"
                .into(),
            _ => "another server or a proxy answered: check the address of the server".into(),
        };
        Error::Unexpected { status, detail: format!("{what}; {origin}") }
    }
}

/// Returns the path and the query of a page.
fn page_of(
    route: &str,
    filter: &KeyFilter,
    limit: Option<u32>,
    cursor: Option<&str>,
) -> Result<String, Error> {
    let mut query = Vec::new();
    query.extend(filter.query());
    query.extend(limit.map(|limit| format!("limit={limit}")));
    query.extend(cursor.map(path_segment).transpose()?.map(|cursor| format!("cursor={cursor}")));
    Ok(if query.is_empty() { route.into() } else { format!("{route}?{}", query.join("&")) })
}

pub(crate) async fn parse_json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let origin = AnswerOrigin::of(&response);
    let body = response.bytes().await.map_err(Error::Unreachable)?;
    serde_json::from_slice(&body).map_err(|_| origin.unexpected(&body))
}

/// Checks a name, id or cursor before it becomes part of a path, so that it cannot lead to another
/// path.
pub(crate) fn path_segment(text: &str) -> Result<&str, Error> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.chars().all(is_allowed) && !matches!(text, "" | "." | "..") {
        return Ok(text);
    }
    Err(Error::InvalidInput(format!(
        "invalid name, id or cursor {text:?}: only letters, digits and _.- are allowed"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_change_the_path_is_rejected() {
        for good in ["default", "a..", "A-b_0"] {
            assert_eq!(path_segment(good).unwrap(), good);
        }
        for bad in ["", ".", "..", "a/b", "a?b", "%2e", "ä", "a b"] {
            assert!(path_segment(bad).is_err(), "{bad}");
        }
    }
}

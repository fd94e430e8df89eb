//! The HTTP layer: reads a request, calls the engine, and writes a response.
//!
//! A `match` over the method and the path's segments selects the handler. A router crate would
//! answer HEAD by running the GET handler, which here would grant a key. For every other request,
//! keypeg-client's route table decides between 404 and 405 with its `Allow` header. Every response
//! carries an `x-request-id`; a panic becomes a 500 for its own request only. A handler parses the
//! request, submits a call through its core's lane, and maps the reply.

pub(crate) mod accept;
mod admit;
mod answer;
mod body;
#[cfg(feature = "bench-constant")]
mod constant;
mod django;
mod docs;
mod error;
mod events;
mod fast_path;
mod hyper_errors;
mod idempotency;
mod keys;
mod leases;
mod metrics;
mod ops;
mod pools;
mod prefer;
mod query;
mod simple;
mod wire;

use crate::access::Access;
use crate::clock;
use admit::{RequestContext, Target};
use answer::Body;
use error::Problem;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::header::{TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, StatusCode, Version};
use keypeg_client::{Code, routes};
use keypeg_core::{PoolName, Refusal};
use keypeg_store::{Lane, RequestError};
pub(crate) use metrics::StartInfo;
use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Instant;

type Request = hyper::Request<Incoming>;
type Response = hyper::Response<Body>;
/// What a handler returns: its response, or the problem to report.
type HandlerResult = Result<Response, Problem>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The content security policy of every response that is not an HTML page: allows nothing.
const CSP_DENY_ALL: &str = "default-src 'none'; frame-ancestors 'none'";
/// Panic text for a reply of the wrong variant.
const REPLY_VARIANT: &str = "invariant: the engine answers each call with its own reply variant";

/// One core's share of the server.
#[derive(Debug)]
pub(crate) struct App {
    lane: Lane,
    server: Arc<Server>,
    core: usize,
    /// The next request's number on this core.
    requests: AtomicU64,
    counts: Arc<metrics::CoreCounts>,
    buffers: fast_path::Buffers,
}

/// State that all cores share.
#[derive(Debug)]
pub(crate) struct Server {
    /// Set when the server starts to shut down.
    stopping: AtomicBool,
    /// A random number that keeps request ids of different runs apart.
    run_id: u64,
    /// The access rules.
    access: Arc<Access>,
    /// The source of `/metrics`.
    metrics: metrics::Metrics,
}

impl App {
    /// KeyCounts a problem and returns its response.
    fn refuse(&self, problem: Problem, request_id: RequestId, is_change: bool) -> Response {
        self.counts.refused(problem.code());
        problem.into_response(request_id, is_change)
    }

    fn next_request_id(&self) -> RequestId {
        let sequence = self.requests.fetch_add(1, Ordering::Relaxed);
        RequestId { run_id: self.server.run_id, core: self.core, sequence }
    }
}

/// Identifies a request uniquely, also across runs of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId {
    run_id: u64,
    core: usize,
    /// The request's number on its core.
    sequence: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{:x}-{:x}", self.run_id, self.core, self.sequence)
    }
}

/// Answers one request that hyper has read. `ambiguous` is set when its framing can be read in two
/// ways, see [`wire::WatchedSocket::ambiguous`].
pub(crate) async fn respond(
    app: &App,
    client_ip: Option<IpAddr>,
    ambiguous: bool,
    request: Request,
) -> Response {
    let (id, started) = (app.next_request_id(), clock::stopwatch());
    let family = metrics::Family::of(request.uri().path());
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let has_secrets = may_carry_secrets(request.uri().path());
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let handled = catch_panic(async {
        check_framing(ambiguous, &request)?;
        check_host(app, &request)?;
        if is_change {
            refuse_cross_site(request.headers())?;
        }
        let target = Target { method: request.method().as_str(), path: request.uri().path() };
        let bearer = || admit::bearer_of(request.headers());
        let origin = Origin { client_ip, id, started };
        let context = admit::admit(app, target, bearer, &origin)?;
        let result = route(&context, request).await;
        context.finish_audit(result.as_ref().map(Response::status));
        result
    });
    let mut response = match handled.await {
        Some(Ok(response)) => response,
        Some(Err(problem)) => app.refuse(problem, id, is_change),
        None => app.refuse(Problem::panicked(), id, is_change),
    };
    app.counts.answered(family, response.status(), started.elapsed());
    add_standard_headers(&mut response, ResponseTraits { id, is_change, has_secrets });
    // `wire` does not follow a chunked body to its end, so it could not watch the next head.
    if is_chunked {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Adds the headers that every response has.
fn add_standard_headers(response: &mut Response, of: ResponseTraits) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !of.is_change {
        // A page has set its own policy. The response to a change is JSON or empty, which a browser
        // does not render, so it needs no policy.
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(CSP_DENY_ALL));
    }
    let id = HeaderValue::try_from(of.id.to_string()).expect("invariant: hex and dashes");
    headers.insert(REQUEST_ID, id);
    if of.has_secrets {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// The properties of a request on which the standard headers of its response depend.
#[derive(Clone, Copy, Debug)]
struct ResponseTraits {
    id: RequestId,
    /// Whether the request may change something.
    is_change: bool,
    /// Whether the response may carry a secret.
    has_secrets: bool,
}

/// Where a request came from, and when.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// `None` unless the access rules use addresses.
    client_ip: Option<IpAddr>,
    id: RequestId,
    started: Instant,
}

/// Runs a handler; returns `None` when it panics.
async fn catch_panic<T>(handler: impl Future<Output = T>) -> Option<T> {
    let mut handler = pin!(handler);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Returns whether responses below a path may carry key values or lease ids.
fn may_carry_secrets(path: &str) -> bool {
    ["/v1/", "/api/", "/keys"].iter().any(|prefix| path.starts_with(prefix))
}

/// Refuses a request whose bytes two readers could take for different requests (request smuggling).
fn check_framing(ambiguous: bool, request: &Request) -> Result<(), Problem> {
    if ambiguous && request.headers().contains_key(TRANSFER_ENCODING) {
        let detail = "Send either Content-Length or Transfer-Encoding, not both.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut encodings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let first = encodings.next();
    let chunked = first.is_none_or(|first| first.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || encodings.next().is_some() {
        let detail = "Only a single `Transfer-Encoding: chunked` is supported.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    let missing = first.is_none() && request.version() == Version::HTTP_11;
    if missing || hosts.next().is_some() || !first.is_none_or(|host| is_host(host.as_bytes())) {
        let detail =
            "HTTP/1.1 requires exactly one Host header: a name or address, with an optional port.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    Ok(())
}

/// Returns whether a Host value has only characters that are legal in a host and a port, see
/// RFC 3986, 3.2.2. An empty value is legal: a client without a host name has to send it.
fn is_host(value: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(byte);
    value.iter().all(legal)
}

/// Refuses a request for another host, see [`Hosts`](crate::access::Hosts).
fn check_host(app: &App, request: &Request) -> Result<(), Problem> {
    let hosts = &app.server.access.hosts;
    let header = request.headers().get(HOST).map(|host| host.to_str().unwrap_or("?"));
    let target = request.uri().scheme().and(request.uri().host());
    if header.into_iter().chain(target).all(|host| hosts.take(host)) {
        return Ok(());
    }
    let detail = "The Host header does not name this server: use localhost, an IP address, or a \
                  name given with --allow-host.";
    Err(Problem::new(Code::Misdirected, detail))
}

/// Selects the handler by path. Names and ids have only characters that need no escape, so segments
/// are not decoded: a segment with a `%` is not a valid name or id.
async fn route(context: &RequestContext<'_>, request: Request) -> HandlerResult {
    const SEGMENTS_MAX: usize = 6;
    let uri = request.uri().clone();
    let path = uri.path().strip_prefix('/').ok_or_else(Problem::not_found)?;
    let mut segments = [""; SEGMENTS_MAX];
    let mut count = 0;
    for segment in path.split('/') {
        *segments.get_mut(count).ok_or_else(Problem::not_found)? = segment;
        count += 1;
    }
    match &segments[..count] {
        ["v1", "pools", rest @ ..] if !rest.contains(&"") => {
            canonical(context, rest, request).await
        }
        ["api", "v1", "random_api_key"] | ["api", "v1", "random_api_key", ""] => {
            django::keys(context, request).await
        }
        ["api", "v1", "start_scheduler"] | ["api", "v1", "start_scheduler", ""] => {
            django::start_scheduler(&request)
        }
        ["keys"] => simple::keys(context, request).await,
        ["keys", key] if !key.is_empty() => simple::key(context, key, &request).await,
        ["keepalive", key] if !key.is_empty() => simple::keep_alive(context, key, &request).await,
        ["metrics"] => ops::metrics(context, &request).await,
        ["livez"] => ops::live(&request),
        ["readyz"] => ops::ready(context, &request),
        ["version"] => ops::version(&request),
        ["openapi.json"] => docs::openapi(&request),
        ["docs"] => docs::page(&request),
        ["docs", "style.css"] => docs::style(&request),
        ["problems"] => docs::problems(&request),
        ["problems", code] => docs::problem(&request, code),
        _ => Err(unrouted(uri.path())),
    }
}

/// Selects the handler of the canonical API: everything below `/v1/pools`.
async fn canonical(
    context: &RequestContext<'_>,
    segments: &[&str],
    request: Request,
) -> HandlerResult {
    let method = request.method().clone();
    match (method, segments) {
        (Method::GET | Method::HEAD, []) => pools::list(context).await,
        (Method::GET | Method::HEAD, [pool]) => pools::show(context, pool).await,
        (Method::GET | Method::HEAD, [pool, "events"]) => {
            events::subscribe(context, pool, request).await
        }
        (Method::PUT, [pool]) => pools::create_or_update(context, pool, request).await,
        (Method::DELETE, [pool]) => pools::delete(context, pool).await,
        (Method::GET | Method::HEAD, [pool, "keys"]) => {
            keys::list(context, pool, request.uri().query()).await
        }
        (Method::POST, [pool, "keys"]) => keys::add(context, pool, request).await,
        (Method::GET | Method::HEAD, [pool, "keys", key]) => keys::show(context, pool, key).await,
        (Method::DELETE, [pool, "keys", key]) => keys::delete(context, pool, key).await,
        (Method::POST, [pool, "keys", key, "release"]) => {
            keys::force_release(context, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "keepalive"]) => {
            keys::keep_alive(context, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "reveal"]) => {
            keys::reveal(context, pool, key, request).await
        }
        (Method::POST, [pool, "keepalive"]) => keys::keep_alive_many(context, pool, request).await,
        (Method::POST, [pool, "leases"]) => leases::acquire(context, pool, request).await,
        (Method::POST, [pool, "leases", lease, "release"]) => {
            leases::release(context, pool, lease, request).await
        }
        (Method::POST, [pool, "leases", lease, "renew"]) => {
            leases::renew(context, pool, lease, request).await
        }
        _ => Err(unrouted(request.uri().path())),
    }
}

/// Returns the problem of a request without a handler: 405 if the route table has its path, else
/// 404.
fn unrouted(path: &str) -> Problem {
    routes::allow(path).map_or_else(Problem::not_found, Problem::method_not_allowed)
}

/// Parses a pool name from a path. An invalid name is reported as an unknown pool.
fn pool_name(text: &str) -> Result<PoolName, Problem> {
    PoolName::parse(text)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownPool)))
}

/// Refuses a request that a page of another site made a browser send (CSRF). It protects changes,
/// which need no body and so no CORS preflight, and grants by GET.
fn refuse_cross_site(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        let detail = "Cross-site requests from a browser cannot acquire or change keys \
                      (Sec-Fetch-Site: cross-site).";
        return Err(Problem::new(Code::Forbidden, detail));
    }
    Ok(())
}

/// Returns a JSON response.
fn json_response(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("invariant: wire types always serialise");
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns an empty response.
fn no_content() -> Response {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_only_its_own_request() {
        assert_eq!(catch_panic(async { 7 }).await, Some(7));
        let panicking = async {
            tokio::task::yield_now().await;
            assert!(may_carry_secrets("/livez"), "on purpose");
        };
        assert_eq!(catch_panic(panicking).await, None);
        let id = RequestId { run_id: 1, core: 2, sequence: 3 };
        let response = Problem::panicked().into_response(id, true);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

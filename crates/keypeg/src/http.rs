//! The HTTP face: one request in, one answer out.
//!
//! Routes are a match over methods and the path's segments (a router crate answers HEAD by running
//! the GET, which here would lend a key); whatever it does not take, keypeg-client's table of routes
//! tells to be 404, or 405 and with which `Allow`. Every answer gets its `x-request-id`; a panic is its request's 500 and
//! nothing more. Handlers parse, ask the engine through their core's lane, and map the reply.

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
use admit::Asking;
use answer::Body;
use error::Problem;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::header::{TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, StatusCode, Version};
use keypeg_client::{Code, routes};
use keypeg_engine::core::{PoolName, Refusal};
use keypeg_engine::{Lane, RequestError};
pub(crate) use metrics::Begun;
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
type Answered = Result<Response, Problem>;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What an answer that is no page lets a browser do.
const NOTHING_NEEDED: &str = "default-src 'none'; frame-ancestors 'none'";
/// Why a reply of another shape cannot be.
const SHAPES: &str = "invariant: the engine answers each call in its own shape";

/// What one core of the server answers with.
#[derive(Debug)]
pub(crate) struct App {
    lane: Lane,
    server: Arc<Server>,
    core: usize,
    requests: AtomicU64,
    counts: Arc<metrics::CoreCounts>,
    buffers: fast_path::Buffers,
}

/// What all cores know.
#[derive(Debug)]
pub(crate) struct Server {
    /// Set when the server begins to stop.
    stopping: AtomicBool,
    /// Tells this run's request ids from those of other runs.
    run: u64,
    /// Who may do what.
    access: Arc<Access>,
    /// What is told at `/metrics`.
    metrics: metrics::Metrics,
}

impl App {
    fn refuse(&self, problem: Problem, request_id: RequestId, change: bool) -> Response {
        self.counts.refused(problem.code());
        problem.into_response(request_id, change)
    }

    fn next_request_id(&self) -> RequestId {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        RequestId { run: self.server.run, core: self.core, request }
    }
}

/// Tells a request from all others, of other runs too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId {
    run: u64,
    core: usize,
    request: u64,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{:x}-{:x}", self.run, self.core, self.request)
    }
}

/// Answers one request, whatever it is. `ambiguous` tells that its framing can be read in two
/// ways, see [`wire::Wire::ambiguous`].
pub(crate) async fn respond(
    app: &App,
    from: Option<IpAddr>,
    ambiguous: bool,
    request: Request,
) -> Response {
    let (id, begun) = (app.next_request_id(), clock::stopwatch());
    let family = metrics::Family::of(request.uri().path());
    let change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let secret = may_carry_secrets(request.uri().path());
    let chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let answered = guarded(async {
        check_framing(ambiguous, &request)?;
        check_host(app, &request)?;
        if change {
            refuse_cross_site(request.headers())?;
        }
        let (method, path) = (request.method().as_str(), request.uri().path());
        let bearer = || admit::bearer_of(request.headers());
        let asking = admit::admit(app, (method, path), bearer, &Came { from, id, begun })?;
        let answered = route(&asking, request).await;
        asking.end(match &answered {
            Ok(response) => (response.status(), None),
            Err(problem) => (problem.status(), Some(problem.code())),
        });
        answered
    });
    let mut response = match answered.await {
        Some(Ok(response)) => response,
        Some(Err(problem)) => app.refuse(problem, id, change),
        None => app.refuse(Problem::panicked(), id, change),
    };
    app.counts.answered(family, response.status(), begun.elapsed());
    dress(&mut response, id, change, secret);
    // The end of a chunked body is not followed, so the next head could not be watched.
    if chunked {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Gives an answer the headers that answers have.
fn dress(response: &mut Response, id: RequestId, change: bool, secret: bool) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if !change {
        // What is no page needs nothing; a page has said what it needs. What a change answers is JSON
        // or nothing, and nothing to look at.
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(NOTHING_NEEDED));
    }
    let id = HeaderValue::try_from(id.to_string()).expect("invariant: hex and dashes");
    headers.insert(REQUEST_ID, id);
    if secret {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
}

/// Where a request came from, and when.
#[derive(Clone, Copy, Debug)]
struct Came {
    /// Known where somebody wants to know.
    from: Option<IpAddr>,
    id: RequestId,
    begun: Instant,
}

/// Runs a handler; `None` when it panicked.
async fn guarded<T>(handling: impl Future<Output = T>) -> Option<T> {
    let mut handling = pin!(handling);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

fn may_carry_secrets(path: &str) -> bool {
    ["/v1/", "/api/", "/keys"].iter().any(|start| path.starts_with(start))
}

/// Refuses what two readers of the same bytes could take for two different requests.
fn check_framing(ambiguous: bool, request: &Request) -> Result<(), Problem> {
    if ambiguous && request.headers().contains_key(TRANSFER_ENCODING) {
        let detail = "Content-Length and Transfer-Encoding exclude each other.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut encodings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let first = encodings.next();
    let chunked = first.is_none_or(|first| first.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if !chunked || encodings.next().is_some() {
        let detail = "The one Transfer-Encoding there is here is chunked, once.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let first = hosts.next();
    let missing = first.is_none() && request.version() == Version::HTTP_11;
    if missing || hosts.next().is_some() || !first.is_none_or(|host| is_host(host.as_bytes())) {
        let detail = "HTTP/1.1 wants exactly one Host header, a name or address and its port.";
        return Err(Problem::new(Code::Malformed, detail).closing());
    }
    Ok(())
}

/// Tells whether a header's value has only characters that a host and a port are made of, see
/// RFC 3986, 3.2.2; an empty one is what a client without a host to name has to send.
fn is_host(value: &[u8]) -> bool {
    let sign = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(byte);
    value.iter().all(sign)
}

/// Refuses a host that is not this server: see [`Hosts`](crate::access::Hosts).
fn check_host(app: &App, request: &Request) -> Result<(), Problem> {
    let hosts = &app.server.access.hosts;
    let named = request.headers().get(HOST).map(|host| host.to_str().unwrap_or("?"));
    let target = request.uri().scheme().and(request.uri().host());
    if named.into_iter().chain(target).all(|host| hosts.take(host)) {
        return Ok(());
    }
    let detail =
        "This server goes by another name: localhost, an address, or what --allow-host says.";
    Err(Problem::new(Code::Misdirected, detail))
}

/// Names and ids are made of characters that need no escape, so segments are taken as they are:
/// one with a `%` is no name and no id.
async fn route(app: &Asking<'_>, request: Request) -> Answered {
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
        ["v1", "pools", rest @ ..] if !rest.contains(&"") => canonical(app, rest, request).await,
        ["api", "v1", "random_api_key"] | ["api", "v1", "random_api_key", ""] => {
            django::keys(app, request).await
        }
        ["api", "v1", "start_scheduler"] | ["api", "v1", "start_scheduler", ""] => {
            django::start_scheduler(&request)
        }
        ["keys"] => simple::keys(app, request).await,
        ["keys", key] if !key.is_empty() => simple::key(app, key, &request).await,
        ["keepalive", key] if !key.is_empty() => simple::keep_alive(app, key, &request).await,
        ["metrics"] => ops::metrics(app, &request).await,
        ["livez"] => ops::live(&request),
        ["readyz"] => ops::ready(app, &request),
        ["version"] => ops::version(&request),
        ["openapi.json"] => docs::openapi(&request),
        ["docs"] => docs::page(&request),
        ["docs", "style.css"] => docs::style(&request),
        ["problems"] => docs::problems(&request),
        ["problems", code] => docs::problem(&request, code),
        _ => Err(unrouted(uri.path())),
    }
}

/// The canonical API: what is below `/v1/pools`.
async fn canonical(app: &Asking<'_>, segments: &[&str], request: Request) -> Answered {
    let method = request.method().clone();
    match (method, segments) {
        (Method::GET | Method::HEAD, []) => pools::list(app).await,
        (Method::GET | Method::HEAD, [pool]) => pools::show(app, pool).await,
        (Method::GET | Method::HEAD, [pool, "events"]) => events::follow(app, pool, request).await,
        (Method::PUT, [pool]) => pools::put(app, pool, request).await,
        (Method::DELETE, [pool]) => pools::remove(app, pool).await,
        (Method::GET | Method::HEAD, [pool, "keys"]) => {
            keys::list(app, pool, request.uri().query()).await
        }
        (Method::POST, [pool, "keys"]) => keys::add(app, pool, request).await,
        (Method::GET | Method::HEAD, [pool, "keys", key]) => keys::show(app, pool, key).await,
        (Method::DELETE, [pool, "keys", key]) => keys::remove(app, pool, key).await,
        (Method::POST, [pool, "keys", key, "release"]) => {
            keys::release(app, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "keepalive"]) => {
            keys::keep_alive(app, pool, key, request).await
        }
        (Method::POST, [pool, "keys", key, "reveal"]) => {
            keys::reveal(app, pool, key, request).await
        }
        (Method::POST, [pool, "keepalive"]) => keys::keep_alive_many(app, pool, request).await,
        (Method::POST, [pool, "leases"]) => leases::acquire(app, pool, request).await,
        (Method::POST, [pool, "leases", lease, "release"]) => {
            leases::release(app, pool, lease, request).await
        }
        (Method::POST, [pool, "leases", lease, "renew"]) => {
            leases::renew(app, pool, lease, request).await
        }
        _ => Err(unrouted(request.uri().path())),
    }
}

/// Why no handler takes a request: the table of routes knows whether its path is one.
fn unrouted(path: &str) -> Problem {
    routes::allow(path).map_or_else(Problem::not_found, Problem::method_not_allowed)
}

/// Reads a pool's name in a path; one that cannot be a name is the name of no pool.
fn pool_name(text: &str) -> Result<PoolName, Problem> {
    PoolName::parse(text)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownPool)))
}

/// Refuses what a page of another site made a browser ask for: a change, which needs no body and so
/// no leave of ours, or a grant by GET.
fn refuse_cross_site(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
        return Err(Problem::new(
            Code::Forbidden,
            "Another site's page may not take or change a key.",
        ));
    }
    Ok(())
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("invariant: wire types always serialise");
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn no_content() -> Response {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_request_alone() {
        assert_eq!(guarded(async { 7 }).await, Some(7));
        let panics = async {
            tokio::task::yield_now().await;
            assert!(may_carry_secrets("/livez"), "on purpose");
        };
        assert_eq!(guarded(panics).await, None);
        let id = RequestId { run: 1, core: 2, request: 3 };
        let response = Problem::panicked().into_response(id, true);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

//! Answers a request that hyper has read: checks, admission, handler, counters, standard headers.
//!
//! Every response carries an `x-request-id`; a panic becomes a 500 for its own request only.

use super::all_pools::ListedShards;
use super::app::App;
use super::checks::{check_framing, check_host, decode_path, refuse_cross_site};
use super::date::HttpDate;
use super::dispatch::Checked;
use super::error::Problem;
use super::forward::{self, Forwarded};
use super::message::{Body, Request, Response, waited};
use super::metrics::Family;
use super::origin::{Origin, Sender};
use super::request_log::RequestLog;
use super::respond::{HandlerResult, ResponseTraits, add_standard_headers, no_content};
use crate::clock;
use crate::tls::ClientCertificate;
use hyper::Method;
use hyper::header::{ALLOW, CONNECTION, DATE, HeaderValue, TRANSFER_ENCODING};
use keypeg_client::{Code, routes};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// What the listener for operations serves.
const OPS_PATHS: [&str; 4] = [routes::LIVEZ, routes::READYZ, routes::METRICS, routes::VERSION];

/// Answers one request that hyper has read. `ambiguous` is set when its framing can be read in two
/// ways, see `WatchedConnection::ambiguous`.
pub(super) async fn handle(
    app: &App,
    sender: &Sender,
    ambiguous: bool,
    mut request: Request,
) -> Response {
    let started = clock::stopwatch();
    let secret = app.lanes.cluster().map(|cluster| cluster.peer_secret());
    let forwarded = secret.and_then(|secret| Forwarded::of(request.headers(), &secret));
    let (origin, certificate) = origin_of(app, sender, forwarded.as_ref(), &request, started);
    let id = origin.id;
    let path = decode_path(&mut request);
    let family = Family::of(request.uri().path());
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let peer = request.body().peer().clone();
    let mut in_flight = None;
    let mut log = RequestLog::begin(request.method().as_str(), request.uri().path(), &origin);
    let handled = catch_panic(async {
        let hosts = &app.server.access.hosts;
        check_framing(ambiguous, &request)?;
        // Of a forwarded request, the server that received it has checked the host.
        if forwarded.is_none() {
            check_host(hosts, &request)?;
        }
        path?;
        if app.is_for_ops && !OPS_PATHS.contains(&request.uri().path()) {
            return Err(Problem::not_for_ops());
        }
        if *request.method() == Method::OPTIONS {
            return options(request.uri().path());
        }
        if is_change {
            refuse_cross_site(hosts, &request)?;
        }
        let in_flight = &mut in_flight;
        let forwarded = forwarded.as_ref();
        let log = &mut log;
        let origin = &origin;
        Checked { app, origin, certificate, forwarded, family, is_change, in_flight, log }
            .answer(request)
            .await
    });
    let handled = handled.await;
    if let Some(Err(problem)) = &handled
        && problem.code() == Code::Overloaded
        && family == Family::KeepAlive
    {
        app.lanes.note_refused_keep_alive();
    }
    let is_refused = is_refused_here(handled.as_ref()) && forwarded.is_some();
    let mut response = match handled {
        Some(Ok(response)) => response,
        Some(Err(problem)) => app.refuse(problem, id, is_change),
        None => app.refuse(Problem::panicked(), id, is_change),
    };
    let took = started.elapsed().saturating_sub(waited(&response));
    app.counts.answered(family, response.status(), took);
    log.set_status(response.status());
    add_standard_headers(&mut response, ResponseTraits { id, is_change });
    response.headers_mut().insert(DATE, date());
    if is_refused {
        forward::mark_refused(response.headers_mut());
    }
    if let Some(ListedShards(shards)) = response.extensions_mut().remove()
        && forwarded.is_some()
    {
        forward::mark_shards(response.headers_mut(), &shards);
    }
    // hyper closes a connection rather than read the rest of a chunked body that no handler wanted.
    if peer.take_unread_body() && is_chunked {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let is_stream = response.body().is_event_stream();
    let held = [in_flight, response.body_mut().take_held()];
    if let Body::Forwarded(answer) = response.body_mut()
        && !is_stream
    {
        peer.hold([None, None], is_stream);
        answer.hold(peer, held);
    } else {
        peer.hold(held, is_stream);
    }
    response
}

/// Returns where a request came from, and the certificate of its client: of a forwarded one, what the
/// server says that received it.
fn origin_of<'a>(
    app: &App,
    sender: &'a Sender,
    forwarded: Option<&'a Forwarded>,
    request: &Request,
    started: Instant,
) -> (Origin, Option<&'a ClientCertificate>) {
    if let Some(Forwarded { client_ip, id, certificate, .. }) = forwarded {
        let id = id.unwrap_or_else(|| app.next_request_id());
        return (Origin { client_ip: *client_ip, id, started }, certificate.as_deref());
    }
    let caller = app.server.proxies.caller_of(sender.ip, request.headers());
    let id = app.next_request_id();
    (Origin { client_ip: Some(caller), id, started }, sender.certificate.as_deref())
}

/// Returns whether this server has refused a request that another one may handle.
fn is_refused_here(handled: Option<&HandlerResult>) -> bool {
    let code = handled.and_then(|result| result.as_ref().err()).map(Problem::code);
    matches!(code, Some(Code::NotOwner | Code::ShuttingDown))
}

/// Refuses a request before its admission, for a reason of its connection.
pub(super) fn refuse<B>(app: &App, problem: Problem, request: &hyper::Request<B>) -> Response {
    let family = Family::of(request.uri().path());
    if family == Family::KeepAlive {
        app.lanes.note_refused_keep_alive();
    }
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let id = app.next_request_id();
    let mut response = app.refuse(problem, id, is_change);
    app.counts.answered(family, response.status(), Duration::ZERO);
    add_standard_headers(&mut response, ResponseTraits { id, is_change });
    response.headers_mut().insert(DATE, date());
    response
}

fn date() -> HeaderValue {
    HeaderValue::try_from(HttpDate::now().text).expect("invariant: ASCII")
}

/// Answers OPTIONS with the methods of a path. It needs no access token: the table of routes is
/// public, and the answer does not depend on what exists.
fn options(path: &str) -> HandlerResult {
    let allow = if path == "*" { Some(routes::ALL_METHODS.into()) } else { routes::allow(path) };
    let allow = HeaderValue::try_from(allow.ok_or_else(Problem::not_found)?);
    let mut response = no_content();
    response.headers_mut().insert(ALLOW, allow.expect("invariant: names of methods"));
    Ok(response)
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

#[cfg(test)]
mod tests {
    use super::super::origin::RequestId;
    use super::*;
    use hyper::StatusCode;

    #[tokio::test]
    async fn a_panic_fails_only_its_own_request() {
        assert_eq!(catch_panic(async { 7 }).await, Some(7));
        let panicking = async {
            tokio::task::yield_now().await;
            assert_eq!(1 + 1, 3, "on purpose");
        };
        assert_eq!(catch_panic(panicking).await, None);
        let id = RequestId { run_id: 1, core: 2, sequence: 3 };
        let response = Problem::panicked().into_response(id, true);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

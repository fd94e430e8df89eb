//! Answers a request that hyper has read: checks, admission, handler, counters, standard headers.
//!
//! Every response carries an `x-request-id`; a panic becomes a 500 for its own request only.

use super::admit::{self, Target};
use super::app::App;
use super::checks::{check_framing, check_host, decode_path, refuse_cross_site};
use super::date::HttpDate;
use super::error::Problem;
use super::message::{Body, Request, Response, waited};
use super::metrics::Family;
use super::origin::{Origin, Sender};
use super::request_log::RequestLog;
use super::respond::{HandlerResult, ResponseTraits, add_standard_headers, no_content};
use super::route::route;
use crate::clock;
use hyper::Method;
use hyper::body::Body as _;
use hyper::header::{ALLOW, CONNECTION, DATE, HeaderValue, TRANSFER_ENCODING};
use keypeg_client::{Code, routes};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

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
    let (id, started) = (app.next_request_id(), clock::stopwatch());
    let path = decode_path(&mut request);
    let family = Family::of(request.uri().path());
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let peer = request.body().peer().clone();
    let mut in_flight = None;
    let caller = app.server.proxies.caller_of(sender.ip, request.headers());
    let origin = Origin { client_ip: Some(caller), id, started };
    let mut log = RequestLog::begin(request.method().as_str(), request.uri().path(), &origin);
    let handled = catch_panic(async {
        let hosts = &app.server.access.hosts;
        check_framing(ambiguous, &request)?;
        check_host(hosts, &request)?;
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
        let target = Target { method: request.method().as_str(), path: request.uri().path() };
        let bearer = || admit::bearer_of(request.headers());
        let certificate = sender.certificate.as_deref();
        let context = admit::admit(app, target, bearer, certificate, &origin)?;
        log.set_token(context.token_name());
        if !context.begins_on(request.body().place(), started) {
            return peer.abandon().await;
        }
        if !request.body().is_end_stream() {
            let caller = context.owner(&origin);
            request.body_mut().set_room(&app.server.bodies, caller);
        }
        let result = route(&context, request).await;
        let result = result.and_then(|response| context.count_answer(response, is_change, family));
        let admitted = context.finish_audit(result.as_ref().map(Response::status));
        in_flight = admitted.and_then(|admitted| admitted.in_flight);
        result
    });
    let handled = handled.await;
    if let Some(Err(problem)) = &handled
        && problem.code() == Code::Overloaded
        && family == Family::KeepAlive
    {
        app.lanes.note_refused_keep_alive();
    }
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
    // hyper closes a connection rather than read the rest of a chunked body that no handler wanted.
    if peer.take_unread_body() && is_chunked {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let is_stream = matches!(response.body(), Body::Events(_));
    peer.hold([in_flight, response.body_mut().take_held()], is_stream);
    response
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

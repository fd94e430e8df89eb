//! Answers a request that hyper has read: checks, admission, handler, counters, standard headers.
//!
//! Every response carries an `x-request-id`; a panic becomes a 500 for its own request only.

use super::admit::{self, Target};
use super::app::App;
use super::checks::{check_framing, check_host, refuse_cross_site};
use super::date::HttpDate;
use super::error::Problem;
use super::message::{Request, Response};
use super::metrics::Family;
use super::origin::Origin;
use super::respond::{ResponseTraits, add_standard_headers};
use super::route::route;
use crate::clock;
use hyper::Method;
use hyper::header::{CONNECTION, DATE, HeaderValue, TRANSFER_ENCODING};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Answers one request that hyper has read. `ambiguous` is set when its framing can be read in two
/// ways, see `WatchedConnection::ambiguous`.
pub(super) async fn handle(
    app: &App,
    client_ip: Option<IpAddr>,
    ambiguous: bool,
    request: Request,
) -> Response {
    let (id, started) = (app.next_request_id(), clock::stopwatch());
    let family = Family::of(request.uri().path());
    let is_change = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let has_secrets = may_carry_secrets(request.uri().path());
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let handled = catch_panic(async {
        check_framing(ambiguous, &request)?;
        check_host(&app.server.access.hosts, &request)?;
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
    let date = HttpDate::now().text;
    response.headers_mut().insert(DATE, HeaderValue::try_from(date).expect("invariant: ASCII"));
    // `wire` does not follow a chunked body to its end, so it could not watch the next head.
    if is_chunked {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
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
            assert!(may_carry_secrets("/livez"), "on purpose");
        };
        assert_eq!(catch_panic(panicking).await, None);
        let id = RequestId { run_id: 1, core: 2, sequence: 3 };
        let response = Problem::panicked().into_response(id, true);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}

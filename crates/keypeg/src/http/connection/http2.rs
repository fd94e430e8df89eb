//! Serves a connection that speaks HTTP/2, with hyper, and bounds what one client can take.
//!
//! `streams` counts the requests and watches the responses that the client does not accept, `io`
//! and `frames` watch the bytes, `body` passes on responses in parts. Only TLS leads here, by ALPN.

mod body;
mod frames;
mod io;
mod streams;

pub(super) use streams::Stream;

use super::client::Client;
use super::request_peer::RequestPeer;
use super::stream::Connection;
use crate::clock;
use crate::http::app::App;
use crate::http::error::Problem;
use crate::http::handle::{handle, refuse};
use crate::http::message::{Body, RequestBody, Response};
use crate::http::shutdown::{ServerPhase, reached};
use crate::share::{CallerId, Exceeded, Held};
use body::StreamBody;
use hyper::Method;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use io::Http2Io;
use keypeg_client::Code;
use keypeg_client::routes::{self, Route};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use streams::{End, Streams};
use tokio::sync::watch;

/// The most requests in progress on one connection.
const STREAMS_MAX: u32 = 64;
/// The most bytes of a request's headers, decoded, each with 32 bytes more (RFC 9113, 6.5.2).
const HEADER_LIST_MAX: u32 = 16 << 10;
/// The most bytes of all bodies of a connection that arrive before a request reads them.
const WINDOW: u32 = 64 << 10;
/// The most bytes of a response that hyper takes before the client accepts them.
const SEND_BUFFER_MAX: usize = 64 << 10;
/// The largest frame that is read, in bytes: the smallest limit that a server may have.
const FRAME_MAX: u32 = 16 << 10;
/// Streams that the client has reset before the server has seen their requests: more end the
/// connection.
const RESETS_PENDING_MAX: usize = 20;
/// Streams that the server has reset because the client broke a rule: more end the connection.
const RESETS_BY_ERROR_MAX: usize = 100;
/// How often the server checks that the client still answers, and how long it waits.
const PING_TIME: Duration = Duration::from_secs(20);

/// Serves a connection until its end.
pub(super) async fn serve(
    app: Arc<App>,
    client: Client,
    connection: Connection,
    mut phase: watch::Receiver<ServerPhase>,
) {
    let timeouts = app.server.timeouts;
    let streams = Streams::new(timeouts, Arc::clone(&client.place), clock::stopwatch());
    let service = {
        let streams = Arc::clone(&streams);
        service_fn(move |request| answer(Arc::clone(&app), client.clone(), &streams, request))
    };
    let io = TokioIo::new(Http2Io::new(connection, timeouts));
    let mut connection = pin!(http().serve_connection(io, service));
    let mut watch = pin!(streams.watch());
    let mut is_ending = false;
    loop {
        let end = tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended with an error");
                }
                return;
            }
            end = &mut watch => end,
            () = reached(&mut phase, ServerPhase::Draining), if !is_ending => End::WhenAnswered,
        };
        match end {
            End::WhenAnswered if !is_ending => {
                is_ending = true;
                streams.stop(clock::stopwatch());
                connection.as_mut().graceful_shutdown();
                watch.set(streams.watch());
            }
            // The client does not read, does not answer, or resets what it requests.
            End::WhenAnswered | End::Now => return,
        }
    }
}

/// Configures hyper. Frames for which it has no bound are bounded in `frames`.
fn http() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .max_frame_size(FRAME_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_BY_ERROR_MAX)
        .keep_alive_interval(PING_TIME)
        .keep_alive_timeout(PING_TIME);
    http
}

/// Answers one request. hyper drops the future when the client resets the stream.
fn answer(
    app: Arc<App>,
    Client { sender, place }: Client,
    streams: &Arc<Streams>,
    request: hyper::Request<Incoming>,
) -> impl Future<Output = Result<hyper::Response<StreamBody>, Infallible>> + Send + use<> {
    let stream = streams.begin();
    let is_head = *request.method() == Method::HEAD;
    async move {
        let caller = app.server.proxies.caller_of(sender.ip, request.headers());
        let admitted = admit(&app, &CallerId::of_address(Some(caller)), &request);
        let (mut response, in_progress) = match admitted {
            Err(problem) => (refuse(&app, problem, &request), None),
            Ok(in_progress) => {
                let peer = RequestPeer::Stream(Arc::clone(&stream));
                let time = app.server.timeouts.body;
                let request = request.map(|body| RequestBody::new(body, peer, place, time));
                (handle(&app, &sender, false, request).await, Some(in_progress))
            }
        };
        stream.hold([in_progress]);
        // A response that closes its connection ends this one when all streams have ended.
        if response.headers_mut().remove(CONNECTION).is_some() {
            stream.end_connection();
        }
        if is_head {
            drop_body(&mut response);
        }
        Ok(response.map(|body| StreamBody::new(body, stream)))
    }
}

/// Replaces the body of a response to HEAD by its length, as hyper does for HTTP/1.1.
fn drop_body(response: &mut Response) {
    if let Some(len) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, len.into());
    }
    *response.body_mut() = Body::default();
}

/// Counts a request in progress. A connection of HTTP/1.1 has one, so their number is bounded; one
/// of HTTP/2 has many. Nothing that gives back a key is refused.
fn admit(
    app: &App,
    caller: &CallerId,
    request: &hyper::Request<Incoming>,
) -> Result<Held, Problem> {
    let requests = &app.server.streamed_requests;
    let route = routes::find(request.method().as_str(), request.uri().path());
    if route.is_some_and(Route::is_urgent) {
        return Ok(requests.charge(caller, 1));
    }
    requests.admit(caller, 1).map_err(|exceeded| match exceeded {
        Exceeded::Bound => {
            let detail = "Too many requests are in progress: try again later.";
            Problem::new(Code::Overloaded, detail).retry_after_ms(1_000)
        }
        Exceeded::Share => {
            let detail = "Your address has too many requests in progress (its share of the server's \
                          connections): let some finish, then retry.";
            Problem::new(Code::RateLimited, detail).retry_after_ms(1_000)
        }
    })
}

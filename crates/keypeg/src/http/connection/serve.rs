//! Serves one connection: the handshake of TLS, or the fast path, then hyper.
//!
//! The fast path is for plain TCP; hyper serves every encrypted connection, by HTTP/1.1 or HTTP/2 as
//! the client selects. Does not know how
//! connections are accepted and distributed.

use super::client::Client;
use super::fast_path::{Buffers, ConnEnd, FastPath, ReadAhead};
use super::handshake;
use super::http2;
use super::hyper_errors::HyperErrorFilter;
use super::request_peer::RequestPeer;
use super::stream::Connection;
use super::wire::{WatchedConnection, linger};
use crate::http::app::App;
use crate::http::handle::handle;
use crate::http::message::{Body, RequestBody, Response};
use crate::http::shutdown::{ServerPhase, reached};
use crate::http::timeouts::Timeouts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// The largest request head in bytes; hyper also reads about that much of a body ahead.
const HEAD_MAX: usize = 64 << 10;

/// Serves one connection: the fast path first, then hyper if needed.
pub(super) async fn serve(
    app: Arc<App>,
    buffers: Arc<Buffers>,
    socket: TcpStream,
    client: Client,
    mut phase: watch::Receiver<ServerPhase>,
) {
    if app.server.tls.is_some() {
        // Boxed, as below.
        return Box::pin(serve_tls(app, socket, client, phase)).await;
    }
    let client_ip = Some(client.sender.ip);
    let Ok(mut connection) = Connection::plain(socket) else { return };
    let fast_path = FastPath { app: &app, buffers: &buffers, client_ip, place: &client.place };
    match fast_path.serve(&mut connection, &mut phase).await {
        ConnEnd::Closed { has_unread: false } => {}
        // Boxed, like the next arm: few connections get here, and every connection's future would
        // have room for it.
        ConnEnd::Closed { has_unread: true } => Box::pin(linger(connection)).await,
        ConnEnd::HandToHyper { read_ahead } => {
            Box::pin(serve_by_hyper(app, client, connection, read_ahead, phase)).await;
        }
    }
}

/// Serves one connection of the listener for operations, by hyper alone.
pub(super) async fn serve_ops(
    app: Arc<App>,
    socket: TcpStream,
    client: Client,
    phase: watch::Receiver<ServerPhase>,
) {
    if app.server.tls.is_some() {
        return serve_tls(app, socket, client, phase).await;
    }
    let Ok(connection) = Connection::plain(socket) else { return };
    serve_by_hyper(app, client, connection, ReadAhead::default(), phase).await;
}

/// Serves one connection after its handshake.
async fn serve_tls(
    app: Arc<App>,
    socket: TcpStream,
    mut client: Client,
    mut phase: watch::Receiver<ServerPhase>,
) {
    let handshake = handshake::accept(&app, socket, &client);
    let connection = tokio::select! {
        connection = handshake => connection,
        () = reached(&mut phase, ServerPhase::Draining) => None,
    };
    let Some(connection) = connection else { return };
    client.sender.certificate = connection.client_certificate().map(Arc::new);
    if connection.speaks_http2() {
        return Box::pin(http2::serve(app, client, connection, phase)).await;
    }
    serve_by_hyper(app, client, connection, ReadAhead::default(), phase).await;
}

/// Serves a connection with hyper until its end.
async fn serve_by_hyper(
    app: Arc<App>,
    client: Client,
    connection: Connection,
    read_ahead: ReadAhead,
    mut phase: watch::Receiver<ServerPhase>,
) {
    let filter = HyperErrorFilter::new(Arc::clone(&app));
    let timeouts = app.server.timeouts;
    let watched = WatchedConnection::new(connection, filter, read_ahead, timeouts, client.clone());
    let Client { sender, place } = client;
    let (peer, clear_heads) = (watched.peer(), watched.clear_heads());
    let Timeouts { idle, body: body_time, .. } = app.server.timeouts;
    let heads = AtomicU64::new(0);
    let client = peer.clone();
    let service = service_fn(move |request: hyper::Request<_>| {
        let earlier_heads = heads.fetch_add(1, Ordering::Relaxed);
        let ambiguous = earlier_heads >= clear_heads.load(Ordering::Relaxed);
        let app = Arc::clone(&app);
        let (client, place, sender) = (client.clone(), Arc::clone(&place), sender.clone());
        async move {
            std::future::poll_fn(|cx| client.poll_accepted(cx)).await;
            let peer = RequestPeer::Connection(client);
            let request = request.map(|body| RequestBody::new(body, peer, place, body_time));
            Ok::<_, Infallible>(handle(&app, &sender, ambiguous, request).await)
        }
    });
    let mut connection = http(idle).serve_connection(TokioIo::new(watched), service);
    let mut is_stopping = false;
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut connection => break ended,
            // The request in progress, polled with the connection, may have set the flag.
            () = std::future::poll_fn(|_| ready_if(peer.is_abandoned())) => return,
            () = reached(&mut phase, ServerPhase::Draining), if !is_stopping => {
                is_stopping = true;
                peer.stop();
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    drop(peer);
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
    let http1::Parts { io, service, .. } = connection.into_parts();
    drop(service);
    io.into_inner().end().await;
}

fn ready_if(condition: bool) -> Poll<()> {
    if condition { Poll::Ready(()) } else { Poll::Pending }
}

/// Serves an empty connection, in which hyper reads the wall clock for the first time on this
/// thread. It would panic in each connection if the clock were stepped to before 1970 until then;
/// later it keeps the date that it has, which `auto_date_header(false)` does not send.
pub(super) async fn read_clock_in_hyper() {
    let (_, server) = tokio::io::duplex(1);
    let service = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) });
    // It ends at once: the other end is closed. hyper adds the idle time to the present instant, so
    // that must not overflow.
    let _ = http(Timeouts::default().idle).serve_connection(TokioIo::new(server), service).await;
}

/// Configures hyper, without `pipeline_flush`: with it, hyper 1.12 delays finished responses while
/// any byte after their requests is unread, even half a request or a stray line end. A client that
/// has closed its sending side is answered: requests that must not wait for such a client watch it.
fn http(idle_time: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(idle_time)
        .half_close(true)
        // `handle` writes it, for any clock.
        .auto_date_header(false)
        .max_header_size(HEAD_MAX)
        .max_buf_size(HEAD_MAX);
    http
}

//! The TLS handshake of a new connection, bounded in time and number.
//!
//! A handshake counts from its first byte on, so a client that sends nothing holds only its place.
//! Each network may have its share of those in progress; further clients wait for their turn. A
//! client that sends plain HTTP gets an answer that says so.

use super::client::Client;
use super::hyper_errors::plain_http_response;
use super::stream::{Connection, socket_of};
use super::wire::linger;
use crate::http::app::App;
use crate::share::{CallerId, Held};
use crate::tls::TlsAcceptor;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// The type of the record that begins a handshake (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// How long a client waits between two attempts to get its turn.
const TURN_PAUSE: Duration = Duration::from_millis(25);

/// Encrypts a new connection; `None` if there is nothing to serve. The whole handshake must be
/// complete within the time of a head.
pub(super) async fn accept(
    app: &Arc<App>,
    socket: std::net::TcpStream,
    client: &Client,
) -> Option<Connection> {
    let tls = app.server.tls.as_ref()?;
    let socket = socket_of(socket).ok()?;
    let counts = &tls.handshakes;
    let time = app.server.timeouts.head;
    // Pinned here, so that each end is counted before the client sees it.
    let mut handshake = pin!(handshake(app, tls, socket, client.sender.ip));
    match timeout(time, handshake.as_mut()).await {
        Ok(Ended::Completed(connection)) => {
            count(&counts.completed);
            Some(connection)
        }
        Ok(Ended::Closed) => None,
        Ok(Ended::Failed { socket, is_answered }) => {
            count(&counts.failed);
            // The client could lose the alert, or the answer, if bytes of it are unread.
            if is_answered {
                linger(Connection::Plain(socket)).await;
            }
            None
        }
        Err(_) => {
            count(&counts.timed_out);
            None
        }
    }
}

/// How a handshake ended.
enum Ended {
    Completed(Connection),
    /// The client closed the connection before it sent anything.
    Closed,
    /// The client got an alert or an answer, or what it sent was neither TLS nor HTTP.
    Failed {
        socket: TcpStream,
        is_answered: bool,
    },
}

async fn handshake(app: &App, tls: &TlsAcceptor, socket: TcpStream, ip: IpAddr) -> Ended {
    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(1..) => {}
        Ok(_) | Err(_) => return Ended::Closed,
    }
    if first[0] != HANDSHAKE_RECORD {
        return refuse_plain(app, socket, first[0]).await;
    }
    let _turn = turn(tls, &CallerId::of_address(Some(ip))).await;
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.config());
    match acceptor.accept(socket).into_fallible().await {
        Ok(stream) => Ended::Completed(Connection::Tls(Box::new(stream))),
        Err((error, socket)) => {
            tracing::debug!(%error, %ip, "a TLS handshake failed");
            Ended::Failed { socket, is_answered: true }
        }
    }
}

/// Waits until the network of the client has less than its share of the handshakes in progress.
async fn turn(tls: &TlsAcceptor, caller: &CallerId) -> Held {
    loop {
        if let Some(turn) = tls.admit(caller) {
            return turn;
        }
        sleep(TURN_PAUSE).await;
    }
}

/// Answers a client that sends plain HTTP; any other client learns nothing.
async fn refuse_plain(app: &App, mut socket: TcpStream, first: u8) -> Ended {
    let is_answered =
        first.is_ascii_uppercase() && socket.write_all(&plain_http_response(app)).await.is_ok();
    Ended::Failed { socket, is_answered }
}

fn count(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

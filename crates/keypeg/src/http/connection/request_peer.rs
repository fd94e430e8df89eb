//! The client of one request: a connection of HTTP/1.1, or a stream of HTTP/2.
//!
//! A request that waits learns through it that its client has gone. Does not know what the request
//! asks for.

use super::http2::Stream;
use super::peer::Peer;
use crate::share::Held;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A handle to the client of a request.
#[derive(Clone, Debug)]
pub(crate) enum RequestPeer {
    /// A connection that carries one request at a time.
    Connection(Peer),
    /// A stream among others. hyper drops its request when the client resets the stream, or when
    /// the connection ends.
    Stream(Arc<Stream>),
}

impl RequestPeer {
    /// Becomes ready when the client has closed its sending side, or with the error of a broken
    /// connection. A stream never becomes ready: its client ends its request by a reset.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Connection(peer) => peer.poll_closed(cx),
            Self::Stream(_) => Poll::Pending,
        }
    }

    /// Ends the connection without an answer to the request in progress, which never completes.
    pub(crate) async fn abandon<T>(&self) -> T {
        match self {
            Self::Connection(peer) => peer.abandon().await,
            Self::Stream(stream) => {
                stream.end_connection();
                std::future::pending().await
            }
        }
    }

    /// Keeps what a response holds until the client has accepted the response. To be called right
    /// before hyper gets it.
    pub(crate) fn hold(&self, under_way: [Option<Held>; 2], is_stream: bool) {
        match self {
            Self::Connection(peer) => peer.hold(under_way, is_stream),
            Self::Stream(stream) => stream.hold(under_way),
        }
    }

    /// Notes that a request ended before its body was read to the end. A stream ends alone.
    pub(crate) fn leave_body_unread(&self) {
        if let Self::Connection(peer) = self {
            peer.leave_body_unread();
        }
    }

    /// Returns whether the connection cannot go on, because the last request ended before its body
    /// was read to the end.
    pub(crate) fn take_unread_body(&self) -> bool {
        match self {
            Self::Connection(peer) => peer.take_unread_body(),
            Self::Stream(_) => false,
        }
    }
}

//! Sends a response of the fast path: at once as far as the socket accepts it, then the rest as the
//! client reads it.
//!
//! Nearly every response is accepted at once, and then takes no memory of its own. Knows neither
//! requests nor operations.

use super::writer::{ReplyLines, ResponseInfo};
use super::{Client, FastPath, Sent};
use crate::access::Admitted;
use crate::clock;
use crate::http::admit;
use crate::http::connection::stream::Connection;
use crate::http::connection::write_watch::{WriteWatch, Written};
use crate::http::handlers::payload::Payload;
use crate::http::message::{Response, waited};
use crate::http::metrics::Family;
use crate::http::origin::Origin;
use crate::share::CallerId;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;

impl FastPath<'_> {
    /// Sends a response.
    pub(super) async fn send(
        &self,
        Client { connection, write_watch }: Client<'_>,
        result: &Result<Payload, Response>,
        origin: &Origin,
        family: Family,
        admitted: Option<&Admitted>,
    ) -> io::Result<Sent> {
        let written = std::future::poll_fn(|cx| {
            Poll::Ready(self.try_send(connection, result, origin, family, cx))
        });
        let (sent, rest) = written.await?;
        if !rest.is_empty() {
            let caller = admit::caller(admitted, origin.client_ip);
            // Boxed, because few clients do not accept a response at once.
            Box::pin(self.send_rest(connection, write_watch, &rest, &caller)).await?;
        }
        write_watch.complete(Written::Response);
        Ok(sent)
    }

    /// Sends the rest of a response that the socket did not accept at once. Fails for a client that
    /// reads too slowly, and if there is no room for the rest: the client has not read what is
    /// before it.
    async fn send_rest(
        &self,
        connection: &mut Connection,
        write_watch: &mut WriteWatch,
        mut rest: &[u8],
        caller: &CallerId,
    ) -> io::Result<()> {
        let server = &self.app.server;
        let room = server.answers.admit(caller, rest.len() as u64);
        let sent = std::future::poll_fn(|cx| {
            while room.is_ok() && !rest.is_empty() {
                match Pin::new(&mut *connection).poll_write(cx, rest) {
                    Poll::Ready(len) => {
                        let len = len?;
                        if len == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        write_watch.progress(len);
                        rest = &rest[len..];
                    }
                    Poll::Pending => {
                        return write_watch
                            .poll_blocked(&server.timeouts, Written::Response, cx)
                            .map(Err);
                    }
                }
            }
            Poll::Ready(if room.is_ok() { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) })
        });
        let sent = sent.await;
        if sent.is_err() {
            connection.discard_unread();
        }
        sent
    }

    /// Sends as much of a response as the socket accepts; returns the rest.
    fn try_send(
        &self,
        connection: &mut Connection,
        result: &Result<Payload, Response>,
        origin: &Origin,
        family: Family,
        cx: &mut Context<'_>,
    ) -> io::Result<(Sent, Vec<u8>)> {
        let status = result.as_ref().map_or_else(Response::status, Payload::status);
        let app = self.app;
        let now = clock::stopwatch();
        let waited = result.as_ref().map_or_else(waited, Payload::waited);
        let took = now.saturating_duration_since(origin.started).saturating_sub(waited);
        app.counts.answered(family, status, took);
        let closes = app.server.stopping.load(Ordering::Relaxed);
        let mut buffers = self.buffers.lock();
        let info = ResponseInfo { id: origin.id, closes, now };
        let (bytes, closes) = match result {
            Ok(payload) => {
                let lines =
                    ReplyLines { first: payload.lines(), is_change: payload.is_of_change() };
                let write_body = |body: &mut Vec<u8>| payload.write_body(body);
                (buffers.writer.write_reply(status, lines, write_body, &info), closes)
            }
            Err(response) => buffers.writer.write_response(response, &info),
        };
        let sent_len = match Pin::new(connection).poll_write(cx, bytes) {
            Poll::Ready(len) => len?,
            Poll::Pending => 0,
        };
        Ok((Sent { closes, at: now }, bytes[sent_len..].to_vec()))
    }
}

//! The bytes of a connection that speaks HTTP/2, on their way to and from hyper.
//!
//! A client that does not read is disconnected, and so is one that sends more frames without a
//! request than any use needs. Does not know streams.

use super::frames::Frames;
use crate::clock;
use crate::http::connection::stream::Connection;
use crate::http::connection::write_watch::{WriteWatch, Written};
use crate::http::timeouts::Timeouts;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose bytes are watched.
#[derive(Debug)]
pub(super) struct Http2Io {
    connection: Connection,
    timeouts: Timeouts,
    frames: Frames,
    write_watch: WriteWatch,
}

impl Http2Io {
    pub(super) fn new(connection: Connection, timeouts: Timeouts) -> Self {
        let frames = Frames::new(clock::stopwatch());
        Self { connection, timeouts, frames, write_watch: WriteWatch::default() }
    }

    /// Passes on the result of writing, or fails once the client has accepted nothing for too long.
    /// What hyper writes at once is bounded, so that this limit is enough.
    fn unless_too_slow<T>(
        &mut self,
        result: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let error = ready!(self.write_watch.poll_blocked(&self.timeouts, Written::Stream, cx));
            self.connection.discard_unread();
            return Poll::Ready(Err(error));
        }
        result
    }

    fn written(&mut self, result: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(len) = result {
            self.write_watch.progress(len);
            self.frames.sent(len);
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for Http2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.connection).poll_read(cx, buffer))?;
        let is_allowed = this.frames.follow(&buffer.filled()[before..], clock::stopwatch());
        if !is_allowed {
            tracing::debug!("a client sent too many HTTP/2 frames without a request");
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.connection).poll_write(cx, bytes);
        let written = ready!(this.unless_too_slow(written, cx));
        this.written(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.connection).poll_write_vectored(cx, bytes);
        let written = ready!(this.unless_too_slow(written, cx));
        this.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.connection).poll_flush(cx);
        let flushed = ready!(this.unless_too_slow(flushed, cx));
        this.write_watch.complete(Written::Stream);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut_down = Pin::new(&mut this.connection).poll_shutdown(cx);
        this.unless_too_slow(shut_down, cx)
    }
}

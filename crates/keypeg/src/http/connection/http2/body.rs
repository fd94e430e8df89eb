//! The body of a response to hyper: in parts, of which each is counted until it is sent.
//!
//! hyper takes a part when the client has room for it, and keeps it until the connection accepts it.
//! What the response holds of the server's memory is given back after its last part.

use super::streams::Stream;
use crate::clock;
use crate::http::message::{Body, BodyError};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The most bytes of one part.
const PART_MAX: usize = 16 << 10;

/// The body of a response on a stream.
#[derive(Debug)]
pub(super) struct StreamBody {
    body: Body,
    stream: Arc<Stream>,
}

/// Bytes that hyper has taken.
struct Part {
    bytes: Bytes,
    stream: Arc<Stream>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.stream.part_sent(self.bytes.len(), clock::stopwatch());
    }
}

impl StreamBody {
    pub(super) fn new(body: Body, stream: Arc<Stream>) -> Self {
        if body.is_end_stream() {
            stream.complete();
        } else {
            stream.wait(!body.is_event_stream(), clock::stopwatch());
        }
        Self { body, stream }
    }
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    /// The client then gets a reset stream.
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { body, stream } = self.get_mut();
        let (bytes, is_rated) = match body {
            Body::Complete(bytes) | Body::Counted(bytes, _) => {
                let len = bytes.len().min(PART_MAX);
                (Some(bytes.split_to(len)).filter(|part| !part.is_empty()), true)
            }
            Body::Backup(backup) => match backup.poll_bytes(cx) {
                Poll::Ready(bytes) => (bytes.transpose().map_err(BodyError::Backup)?, true),
                Poll::Pending => {
                    stream.catch_up();
                    return Poll::Pending;
                }
            },
            Body::Forwarded(answer) => match answer.poll_bytes(cx) {
                Poll::Ready(bytes) => {
                    (bytes.transpose().map_err(BodyError::Forwarded)?, !answer.is_stream())
                }
                Poll::Pending => {
                    stream.catch_up();
                    return Poll::Pending;
                }
            },
            Body::Events(events) => match events.poll_bytes(cx) {
                Poll::Ready(bytes) => (bytes, false),
                Poll::Pending => {
                    stream.catch_up();
                    return Poll::Pending;
                }
            },
        };
        if bytes.is_none() || body.is_end_stream() {
            stream.complete();
        }
        Poll::Ready(bytes.map(|bytes| {
            stream.wait(is_rated, clock::stopwatch());
            let part = Part { bytes, stream: Arc::clone(stream) };
            Ok(Frame::data(Bytes::from_owner(part)))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

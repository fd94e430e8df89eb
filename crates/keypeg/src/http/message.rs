//! The types of requests and responses; a response body is complete bytes, a stream of events or a
//! backup.
//! The body of a request knows the client that sends it.
//!
//! A complete body, which nearly every response has, costs no more allocation or indirection than
//! its bytes alone.

use super::backup::BackupBody;
use super::connection::places::Place;
use super::connection::request_peer::RequestPeer;
use super::event_stream::EventStream;
use super::forwarded_answer::ForwardedAnswer;
use super::kept_body::{KeptBody, Reader};
use crate::share::{CallerId, Held, ReservedBudget};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use keypeg_store::BackupRefused;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

pub(super) type Request = hyper::Request<RequestBody>;
pub(super) type Response = hyper::Response<Body>;

/// How long the request of a response waited for a key: not a part of the time of the server.
#[derive(Clone, Copy, Debug)]
struct Waited(Duration);

/// Notes how long the request of a response waited for a key.
pub(super) fn after_wait(mut response: Response, waited: Duration) -> Response {
    if !waited.is_zero() {
        response.extensions_mut().insert(Waited(waited));
    }
    response
}

/// Returns how long the request of a response waited for a key.
pub(super) fn waited(response: &Response) -> Duration {
    response.extensions().get::<Waited>().map_or(Duration::ZERO, |waited| waited.0)
}

/// Where the bytes of a body come from.
#[derive(Debug)]
enum Source {
    /// The client.
    Incoming(Incoming),
    /// The client, and what was read before: another server may have to read it too.
    Kept(Reader),
    /// None: the body is kept elsewhere.
    Taken,
}

/// A body that is read again for each attempt to have its request answered.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) body: Arc<KeptBody>,
    pub(super) peer: RequestPeer,
    pub(super) place: Arc<Place>,
    time: Duration,
}

impl Kept {
    /// Returns the body as a handler reads it.
    pub(super) fn request_body(&self, reader: Reader) -> RequestBody {
        let (peer, place) = (self.peer.clone(), Arc::clone(&self.place));
        // Whether the client has sent all is known by the kept body alone.
        let was_read = true;
        let source = Source::Kept(reader);
        RequestBody { source, peer, place, room: None, time: self.time, was_read }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.body.was_read() {
            self.peer.leave_body_unread();
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    source: Source,
    peer: RequestPeer,
    place: Arc<Place>,
    /// The memory of bodies and the caller to count for, once the request is admitted.
    room: Option<(Arc<ReservedBudget>, CallerId)>,
    time: Duration,
    was_read: bool,
}

impl RequestBody {
    /// Wraps a body that must be complete within `time`.
    pub(super) fn new(
        incoming: Incoming,
        peer: RequestPeer,
        place: Arc<Place>,
        time: Duration,
    ) -> Self {
        let was_read = incoming.is_end_stream();
        Self { source: Source::Incoming(incoming), peer, place, room: None, time, was_read }
    }

    /// Keeps what is read of the body from now on, so that it can be read again.
    pub(super) fn keep(mut self) -> Kept {
        // The reading of the kept body decides whether it is read to its end.
        self.was_read = true;
        let (peer, place, time) = (self.peer.clone(), Arc::clone(&self.place), self.time);
        let source = std::mem::replace(&mut self.source, Source::Taken);
        let Source::Incoming(incoming) = source else {
            unreachable!("invariant: a body is kept once")
        };
        Kept { body: KeptBody::new(incoming), peer, place, time }
    }

    /// Returns the client that sends the body.
    pub(super) fn peer(&self) -> &RequestPeer {
        &self.peer
    }

    /// Returns the place of the connection.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Sets the memory of bodies and the caller whose share the body counts against.
    pub(super) fn set_room(&mut self, bodies: &Arc<ReservedBudget>, caller: CallerId) {
        self.room = Some((Arc::clone(bodies), caller));
    }

    /// Returns the memory of bodies and the caller to count for.
    pub(super) fn room(&self) -> Option<(Arc<ReservedBudget>, CallerId)> {
        self.room.clone()
    }

    /// Returns the time within which the body must be complete.
    pub(super) fn time(&self) -> Duration {
        self.time
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.was_read {
            self.peer.leave_body_unread();
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(match &mut this.source {
            Source::Incoming(incoming) => Pin::new(incoming).poll_frame(cx),
            Source::Kept(reader) => Pin::new(reader).poll_frame(cx),
            Source::Taken => Poll::Ready(None),
        });
        this.was_read |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Incoming(incoming) => incoming.is_end_stream(),
            Source::Kept(reader) => reader.is_end_stream(),
            Source::Taken => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Kept(reader) => reader.size_hint(),
            Source::Taken => SizeHint::with_exact(0),
        }
    }
}

/// Why a response ends before it is complete.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The backup failed.
    #[error("the backup failed: {0}")]
    Backup(BackupRefused),
    /// The server that answers the request has gone.
    #[error("the answer of another server ended: {0}")]
    Forwarded(hyper::Error),
}

/// The body of a response.
#[derive(Debug)]
pub(super) enum Body {
    /// The bytes that hyper has not taken yet.
    Complete(Bytes),
    /// Many bytes, with their part of the bytes that the server holds for all callers.
    Counted(Bytes, Box<Held>),
    /// Events, sent as they occur.
    Events(Box<EventStream>),
    /// A backup, sent as it is read.
    Backup(Box<BackupBody>),
    /// The answer of another server, sent as it arrives.
    Forwarded(Box<ForwardedAnswer>),
}

impl Body {
    /// Returns whether it is a stream of events, which a client reads for as long as it likes.
    pub(super) fn is_event_stream(&self) -> bool {
        match self {
            Self::Events(_) => true,
            Self::Forwarded(answer) => answer.is_stream(),
            Self::Complete(_) | Self::Counted(..) | Self::Backup(_) => false,
        }
    }

    /// Takes the part of the bytes that the server holds for all callers, if the body has one.
    pub(super) fn take_held(&mut self) -> Option<Held> {
        match std::mem::take(self) {
            Self::Counted(bytes, held) => {
                *self = Self::Complete(bytes);
                Some(*held)
            }
            Self::Forwarded(mut answer) => {
                let room = answer.take_room();
                *self = Self::Forwarded(answer);
                room
            }
            other @ (Self::Complete(_) | Self::Events(_) | Self::Backup(_)) => {
                *self = other;
                None
            }
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::Complete(Bytes::new())
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self::Complete(bytes.into())
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    /// The client then gets an incomplete response.
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Complete(bytes) | Self::Counted(bytes, _) if bytes.is_empty() => {
                Poll::Ready(None)
            }
            Self::Complete(bytes) | Self::Counted(bytes, _) => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Events(stream) => {
                stream.poll_bytes(cx).map(|bytes| bytes.map(Frame::data).map(Ok))
            }
            Self::Backup(backup) => {
                backup.poll_bytes(cx).map_ok(Frame::data).map_err(BodyError::Backup)
            }
            Self::Forwarded(answer) => {
                answer.poll_bytes(cx).map_ok(Frame::data).map_err(BodyError::Forwarded)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Complete(bytes) | Self::Counted(bytes, _) => bytes.is_empty(),
            Self::Events(_) | Self::Backup(_) => false,
            Self::Forwarded(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Complete(bytes) | Self::Counted(bytes, _) => {
                SizeHint::with_exact(bytes.len() as u64)
            }
            Self::Events(_) | Self::Backup(_) => SizeHint::default(),
            Self::Forwarded(answer) => answer.size_hint(),
        }
    }
}

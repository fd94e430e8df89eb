//! The connections of one core to the other servers: kept for a while, one request at a time.
//!
//! A request that surely did not leave this server is distinguished from one that may have arrived:
//! only the first may be sent again. Does not know what the requests are.

use super::link_places::{LinkPlace, LinkPlaces};
use crate::clock;
use crate::http::kept_body::Reader;
use crate::tls::PeerTls;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a connection may take to be made, with its handshake.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// How long a connection is kept without a request: far less than a server keeps one.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// The most connections that are kept to one server.
const IDLE_MAX: usize = 64;
/// How long the other server's machine may not answer before the connection has failed.
const SILENCE_TIME: Duration = Duration::from_secs(15);
/// How long a failed attempt is shown.
const FAULT_TIME: Duration = Duration::from_mins(1);
/// How long a failed attempt is remembered, so that the next one is not logged again.
const FAULT_MEMORY: Duration = Duration::from_hours(1);
/// The largest buffer of a connection, in bytes.
const BUFFER_MAX: usize = 64 << 10;

/// The connections of one core to the other servers.
#[derive(Clone)]
pub(crate) struct Links {
    /// By address.
    idle: Arc<Mutex<HashMap<String, Vec<Idle>>>>,
    /// How the certificates of servers are checked; `None` if this server is alone.
    tls: Option<Arc<PeerTls>>,
    faults: Arc<PeerFaults>,
    places: Arc<LinkPlaces>,
}

/// Why other servers could not be reached at the last attempt, by address. All cores share it.
#[derive(Debug, Default)]
pub(crate) struct PeerFaults(Mutex<HashMap<String, PeerFault>>);

#[derive(Debug)]
struct PeerFault {
    text: String,
    /// When the last attempt failed.
    at: Instant,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// A connection to another server. Dropping it ends the request in progress there.
pub(super) struct Link {
    sender: SendRequest<Reader>,
    task: AbortHandle,
    socket: Arc<Socket>,
    is_flushed: Arc<AtomicBool>,
}

/// Closes the sending side of a connection whose request is in progress.
pub(super) struct Closing {
    socket: Arc<Socket>,
    is_flushed: Arc<AtomicBool>,
}

/// A second descriptor of the socket of a connection, with the place of the connection.
struct Socket {
    descriptor: OwnedFd,
    _place: LinkPlace,
}

/// A connection that notes whether the socket has accepted all that was written.
struct Flushed<S> {
    stream: S,
    is_flushed: Arc<AtomicBool>,
}

/// Why a request has no answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum SendError {
    /// The request did not leave this server.
    NotSent,
    /// The request may have arrived.
    Lost,
    /// The client of the request has left, and the other server ended the connection.
    Abandoned,
    /// This server stops, and the other server ended the connection: the request waited there.
    Stopped,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("has_tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Links {
    pub(crate) fn new(
        tls: Option<Arc<PeerTls>>,
        faults: Arc<PeerFaults>,
        places: Arc<LinkPlaces>,
    ) -> Self {
        Self { idle: Arc::default(), tls, faults, places }
    }

    /// Returns a kept connection to the server with this address, or makes one. Fails if all places of
    /// such connections are taken.
    pub(super) async fn link(&self, address: &str) -> io::Result<Link> {
        while let Some(mut link) = self.take_idle(address) {
            if link.is_open() && link.sender.ready().await.is_ok() {
                return Ok(link);
            }
        }
        // This is no fault of the other server.
        let Some(place) = self.places.enter() else {
            return Err(io::Error::other("all connections to other servers are in use"));
        };
        let connected = match timeout(CONNECT_TIME, self.connect(address, place)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        self.faults.note(address, connected.as_ref().err(), clock::stopwatch());
        connected
    }

    /// Keeps a connection whose request has its complete answer, unless places are short.
    pub(super) fn keep(&self, address: String, link: Link) {
        if link.sender.is_closed() || !self.places.can_keep() {
            return;
        }
        let now = clock::stopwatch();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let links = idle.entry(address).or_default();
        links.retain(|idle| now.saturating_duration_since(idle.since) < IDLE_TIME);
        if links.len() < IDLE_MAX {
            links.push(Idle { link, since: now });
        }
    }

    fn take_idle(&self, address: &str) -> Option<Link> {
        let now = clock::stopwatch();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let Idle { link, since } = idle.get_mut(address)?.pop()?;
        (now.saturating_duration_since(since) < IDLE_TIME).then_some(link)
    }

    async fn connect(&self, address: &str, place: LinkPlace) -> io::Result<Link> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let uri: Uri = address.parse().map_err(|_| invalid())?;
        let is_https = uri.scheme_str() == Some("https");
        let host = uri.host().ok_or_else(invalid)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        let socket = Socket { descriptor: prepare(&stream)?, _place: place };
        if !is_https {
            return Link::open(stream, socket).await;
        }
        let tls = self.tls.as_ref().and_then(|peers| peers.current()).ok_or_else(invalid)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| invalid())?;
        Link::open(TlsConnector::from(tls).connect(name, stream).await?, socket).await
    }
}

impl PeerFaults {
    /// Logs why a server cannot be reached, once for each reason, and when it is reached again.
    fn note(&self, address: &str, error: Option<&io::Error>, now: Instant) {
        let mut faults = self.faults();
        let Some(error) = error else {
            if faults.remove(address).is_some() {
                tracing::info!(address, "another server is reached again");
            }
            return;
        };
        let step = if is_about_certificate(error) {
            "name the authority of its certificate with --cluster-ca, and check that the certificate \
             has the host of its --advertise"
        } else {
            "check that it runs, and that its --advertise leads to it"
        };
        let text = format!("{error}; {step}");
        faults.retain(|_, fault| now.saturating_duration_since(fault.at) < FAULT_MEMORY);
        if faults.get(address).is_none_or(|fault| fault.text != text) {
            tracing::warn!(address, "another server cannot be reached: {text}");
        }
        faults.insert(address.to_owned(), PeerFault { text, at: now });
    }

    /// Returns why the last attempt to reach a server has failed, if it was made in the last minute.
    pub(crate) fn of(&self, address: &str, now: Instant) -> Option<String> {
        let faults = self.faults();
        let fault = faults.get(address)?;
        (now.saturating_duration_since(fault.at) < FAULT_TIME).then(|| fault.text.clone())
    }

    fn faults(&self) -> MutexGuard<'_, HashMap<String, PeerFault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_about_certificate(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// Sets the options of a socket, and returns a second descriptor of it.
fn prepare(stream: &TcpStream) -> io::Result<OwnedFd> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let every = SILENCE_TIME / 3;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(every).with_interval(every).with_retries(2),
    )?;
    socket.set_tcp_user_timeout(Some(SILENCE_TIME))?;
    Ok(rustix::io::fcntl_dupfd_cloexec(stream, 0)?)
}

impl Link {
    async fn open<S>(stream: S, socket: Socket) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let is_flushed = Arc::<AtomicBool>::default();
        let stream = TokioIo::new(Flushed { stream, is_flushed: Arc::clone(&is_flushed) });
        let handshake = Builder::new().max_buf_size(BUFFER_MAX).handshake(stream);
        let (sender, connection) = handshake.await.map_err(io::Error::other)?;
        let socket = Arc::new(socket);
        let of_task = Arc::clone(&socket);
        let task = tokio::spawn(async move {
            let _ = connection.await;
            drop(of_task);
        });
        Ok(Self { sender, task: task.abort_handle(), socket, is_flushed })
    }

    /// Returns whether the other server has neither closed the connection nor sent something.
    fn is_open(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !self.sender.is_closed()
            && recv(&self.socket.descriptor, &mut [0; 1], flags).is_err_and(|error| {
                error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::WOULDBLOCK
            })
    }

    /// Sends a request, and returns the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Reader>,
    ) -> Result<Response<Incoming>, SendError> {
        self.is_flushed.store(false, Ordering::Relaxed);
        self.sender.try_send_request(request).await.map_err(|mut error| {
            if error.take_message().is_some() { SendError::NotSent } else { SendError::Lost }
        })
    }

    /// Returns what closes the sending side while a request is in progress.
    pub(super) fn closing(&self) -> Closing {
        let (socket, is_flushed) = (Arc::clone(&self.socket), Arc::clone(&self.is_flushed));
        Closing { socket, is_flushed }
    }
}

impl Closing {
    /// Returns whether all of the request that was read has been sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_flushed.load(Ordering::Relaxed)
    }

    /// Closes the sending side: the other server then treats the request as that of a client that
    /// has closed its own.
    pub(super) fn close_sending(&self) {
        let _ = shutdown(&self.socket.descriptor, Shutdown::Write);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Flushed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Flushed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_flushed.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.is_flushed.store(true, Ordering::Relaxed);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

//! The byte stream of a connection: plain TCP, or TLS. Nothing else in `connection` but the handshake
//! names a kind of socket.

use crate::tls::ClientCertificate;
use rustix::net::sockopt::set_socket_linger;
use socket2::SockRef;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The most bytes that the kernel keeps for a client: sent and not acknowledged, or received and not
/// read. The kernel doubles it for its own structures. A client that is 50 ms away transfers 2 MiB/s.
const KERNEL_BUFFER: usize = 128 << 10;
/// The most bytes that the kernel accepts before it sends them. It keeps them for a client that
/// reads nothing.
const UNSENT_MAX: u32 = 16 << 10;

/// Bounds what the kernel keeps for each connection that the listener accepts from now on, which is
/// memory of the server's control group. By default the kernel keeps up to 10 MiB.
pub(crate) fn bound_kernel_buffers(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_send_buffer_size(KERNEL_BUFFER)?;
    socket.set_recv_buffer_size(KERNEL_BUFFER)?;
    socket.set_tcp_notsent_lowat(UNSENT_MAX)
}

/// The byte stream between a client and the server.
#[derive(Debug)]
pub(super) enum Connection {
    Plain(TcpStream),
    /// Boxed: the state of TLS has more than a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Takes over an accepted socket; each response is sent at once (no Nagle delay). Must be
    /// called on the runtime of the core that serves the connection.
    pub(super) fn plain(socket: std::net::TcpStream) -> io::Result<Self> {
        socket_of(socket).map(Self::Plain)
    }

    /// Returns whether client and server have agreed on HTTP/2 (ALPN).
    pub(super) fn speaks_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Returns the certificate that the client showed, which the handshake has verified.
    pub(super) fn client_certificate(&self) -> Option<ClientCertificate> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => {
                let shown = stream.get_ref().1.peer_certificates()?.first()?;
                ClientCertificate::parse(shown)
            }
        }
    }

    /// Makes the end of this connection discard what the client has not read: the kernel would keep
    /// it for minutes.
    pub(super) fn discard_unread(&self) {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0,
        };
        // If it fails, the connection has ended already.
        let _ = set_socket_linger(socket, Some(Duration::ZERO));
    }
}

/// Takes over an accepted socket for the runtime of this thread, without Nagle delay.
pub(super) fn socket_of(socket: std::net::TcpStream) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    TcpStream::from_std(socket)
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

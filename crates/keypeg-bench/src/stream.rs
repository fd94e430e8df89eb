//! A connection as bytes: plain, or in TLS.
//!
//! Speaks HTTP/1.1 only, so that a connection has one request in flight with TLS too. Connections
//! of one run share the sessions of TLS: a connection that is opened again resumes one.

use crate::protocol::ExchangeError;
use crate::target::Target;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Time for a connection to open, with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where connections go, and how they speak.
pub(crate) struct Endpoint {
    pub(crate) addr: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Endpoint {
    /// Returns the endpoint of a target; `None` if it is of `https` and there is no `config`.
    pub(crate) fn new(target: &Target, config: Option<Arc<ClientConfig>>) -> Option<Self> {
        let addr = target.addr;
        let Some(name) = target.server_name.clone() else { return Some(Self { addr, tls: None }) };
        let mut config = Arc::unwrap_or_clone(config?);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Some(Self { addr, tls: Some((Arc::new(config).into(), name)) })
    }

    /// Opens a connection; fails after 10 s.
    pub(crate) async fn connect(&self) -> Result<Stream, ExchangeError> {
        let opened = tokio::time::timeout(CONNECT_TIMEOUT, self.open()).await;
        opened.map_err(|_| ExchangeError::Protocol("no connection within 10 s"))?
    }

    async fn open(&self) -> Result<Stream, ExchangeError> {
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let Some((connector, name)) = &self.tls else { return Ok(Stream::Plain(stream)) };
        Ok(Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?)))
    }
}

/// An open connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    pub(crate) async fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes).await,
            Self::Tls(stream) => stream.read(bytes).await,
        }
    }
}

//! The client side of a protocol on one connection, as bytes: the next request, and its response.
//!
//! Knows nothing of sockets and time. A response is parsed only as far as needed: its end, its
//! success, and the values that the next request uses.

use serde::{Serialize, Serializer};
use std::fmt;

/// The requests and responses of one connection.
pub trait Protocol: Send {
    /// Appends the next request; returns its kind, an index into the kinds of the workload.
    fn write_request(&mut self, out: &mut Vec<u8>) -> usize;
    /// Parses the response at the start of `bytes`; `None` if it is incomplete.
    fn parse_response(&mut self, bytes: &[u8]) -> Result<Option<Response>, ExchangeError>;
    /// Returns whether the connection holds a lease that it must release before it closes.
    fn must_release(&self) -> bool {
        false
    }
    /// Returns whether the next request is part of the handshake, which is not measured.
    fn handshake(&self) -> bool {
        false
    }
}

impl fmt::Debug for dyn Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol")
    }
}

/// The result of parsing a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// Length in bytes.
    pub len: usize,
    /// An HTTP status, or its equivalent in another protocol; below 300 is a success.
    pub status: u16,
    /// Whether the server closes the connection after it.
    pub closes: bool,
}

/// The reason why a request has no usable response.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExchangeError {
    /// The response could not be parsed, or never came.
    #[error("{0}")]
    Protocol(&'static str),
    /// The connection failed.
    #[error("{0}")]
    Io(std::io::ErrorKind),
    /// TLS failed: one of the two sides refused the other.
    #[error("{0}")]
    Tls(#[source] rustls::Error),
}

/// A report has the text of the error.
impl Serialize for ExchangeError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<std::io::Error> for ExchangeError {
    fn from(error: std::io::Error) -> Self {
        // An error of TLS is the content of an I/O error, not its source.
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        tls.map_or_else(|| Self::Io(error.kind()), |tls| Self::Tls(tls.clone()))
    }
}

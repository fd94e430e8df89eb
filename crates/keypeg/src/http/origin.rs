//! The identity and the origin of a request, and the client of a connection.

use crate::tls::ClientCertificate;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Identifies a request uniquely, also across runs of the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestId {
    pub(super) run_id: u64,
    pub(super) core: usize,
    /// The request's number on its core.
    pub(super) sequence: u64,
}

impl RequestId {
    /// Parses the id that another server of the installation gave a request.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let run_id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let core = usize::from_str_radix(parts.next()?, 16).ok()?;
        let sequence = u64::from_str_radix(parts.next()?, 16).ok()?;
        parts.next().is_none().then_some(Self { run_id, core, sequence })
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{:x}-{:x}", self.run_id, self.core, self.sequence)
    }
}

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) ip: IpAddr,
    /// The verified certificate that it showed.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}

/// Where a request came from, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// `None` if it is unknown.
    pub(super) client_ip: Option<IpAddr>,
    pub(super) id: RequestId,
    pub(super) started: Instant,
}

//! The time limits of a connection's phases, shared by the fast path and the hyper path.
//!
//! The limits are values of the configuration, so a test can set short ones. Does not know how a
//! phase is measured.

use std::time::Duration;

/// The time limits that an operator can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// How long a connection may be idle between requests.
    pub(crate) idle: Duration,
    /// How long a head may take, from a new connection or from its first byte on.
    pub(crate) head: Duration,
    /// How long a body may take, from the end of its head on.
    pub(crate) body: Duration,
    /// How long a client may accept no byte of its response.
    pub(crate) write: Duration,
    /// The lowest rate in bytes per second at which a client must accept its response; 0 sets none.
    pub(crate) write_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // Many clients close idle connections after 60 s; the side that closes later never
            // cuts off a request.
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            write: Duration::from_secs(30),
            write_rate: 16 << 10,
        }
    }
}

/// How long an incomplete head may still take once the server stops: the rest of its packets can be
/// on their way, but a client that sends no more must not delay the stop.
pub(super) const STOP_HEAD_TIME: Duration = Duration::from_millis(100);
/// How long an idle connection of HTTP/2 may take to accept the GOAWAY of a server that stops.
pub(super) const GOAWAY_TIME: Duration = Duration::from_secs(1);
/// How long requests in progress may take once the server stops: container runtimes kill a process
/// 10 s after SIGTERM.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(8);

//! The time limits of a connection's phases, shared by the fast path and the hyper path.

use std::time::Duration;

/// How long a connection may be idle between requests. Many clients close idle connections after
/// 60 s; the side that closes later never cuts off a request.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(75);
/// How long a head may take, from a new connection or from its first byte on.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a client may accept no byte of its response.
pub(super) const WRITE_TIME: Duration = Duration::from_secs(30);

//! Access control: access tokens and their limits, and the host names of this server.
//!
//! Makes the decisions; `http/admit.rs` requests them and sends refusals. Without configured tokens
//! only the host name is checked. Knows nothing of HTTP.

mod gate;
mod hosts;
mod limits;
mod new_token;
mod reload;
mod token_commands;
mod token_entry;
mod token_file;
mod tokens;

pub(crate) use gate::{Admitted, Attempt, Gate, GateCounters, Refused};
pub use hosts::Hosts;
pub use new_token::{NewToken, TokenCommand};
pub(crate) use reload::watch;
pub use token_commands::{ListTokens, RevokeToken};
pub(crate) use token_file::read_token_file;
pub(crate) use tokens::Shown;

use limits::UnknownKeys;
use std::sync::Arc;
use std::time::Instant;

/// The checks before a request is admitted.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) hosts: Hosts,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) unknown_keys: UnknownKeys,
}

impl Access {
    /// `now` is the origin of the times that limits use.
    pub(crate) fn new(hosts: Hosts, gate: Option<Arc<Gate>>, now: Instant) -> Self {
        Self { hosts, gate, unknown_keys: UnknownKeys::new(now) }
    }
}

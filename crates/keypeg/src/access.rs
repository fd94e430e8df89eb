//! Access control: access tokens and their limits, the host names of this server, the audit log.
//!
//! Makes the decisions; `http/admit.rs` requests them, sends refusals and fills in audit lines.
//! Without configured tokens and audit log, only the host name is checked. Knows nothing of HTTP.

mod audit;
mod gate;
mod hosts;
mod limits;
mod new_token;
mod reload;
mod token_file;
mod tokens;

pub(crate) use audit::{Audit, AuditCounters, Entry, Outcome};
pub(crate) use audit::{Settings as AuditSettings, Writer as AuditWriter};
pub(crate) use gate::{Admitted, Attempt, Gate, GateCounters, Refused};
pub use hosts::Hosts;
pub use new_token::TokenCommand;
pub(crate) use reload::watch;
pub(crate) use token_file::read_token_file;
pub(crate) use tokens::Shown;

use std::sync::Arc;

/// The checks before a request is admitted.
#[derive(Debug, Default)]
pub(crate) struct Access {
    pub(crate) hosts: Hosts,
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) audit: Option<Arc<Audit>>,
}

impl Access {
    /// Returns whether the client address of a request is needed.
    pub(crate) fn wants_addresses(&self) -> bool {
        self.gate.is_some() || self.audit.is_some()
    }
}

//! The line of a request in the log, at the level debug.
//!
//! It has the operation and not the path, because a path can contain the id of a lease. No line
//! contains a key, an access token, a lease id, a holder or a query. While the level is off, a request
//! costs one load of it.

use super::origin::{Origin, RequestId};
use crate::clock;
use hyper::StatusCode;
use keypeg_client::routes;
use keypeg_core::PoolName;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use tracing::Level;

/// The target of the lines, for `KEYPEG_LOG=info,keypeg::request=debug`.
const TARGET: &str = "keypeg::request";

/// The line of one request, which is written when the request ends. `None` while the level is off.
#[derive(Debug)]
pub(super) struct RequestLog(Option<Box<Line>>);

#[derive(Debug)]
struct Line {
    method: &'static str,
    /// The name of the operation; `none` for a path without a route.
    operation: &'static str,
    pool: Option<String>,
    id: RequestId,
    started: Instant,
    address: Option<IpAddr>,
    token: Option<Arc<str>>,
    /// `None` as long as there is no answer: the client can disconnect before.
    status: Option<StatusCode>,
}

impl RequestLog {
    /// Begins the line of a request, if the log has such lines.
    pub(super) fn begin(method: &str, path: &str, origin: &Origin) -> Self {
        if !tracing::enabled!(target: TARGET, Level::DEBUG) {
            return Self(None);
        }
        let route = routes::find(method, path);
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        let pool = route.and_then(|route| route.pool_of(path)).and_then(PoolName::parse);
        Self(Some(Box::new(Line {
            method: known.into_iter().find(|known| *known == method).unwrap_or("other"),
            operation: route.map_or("none", |route| route.operation),
            pool: pool.map(|pool| pool.as_str().to_owned()),
            id: origin.id,
            started: origin.started,
            address: origin.client_ip.map(|address| address.to_canonical()),
            token: None,
            status: None,
        })))
    }

    /// Sets the name of the caller's token.
    pub(super) fn set_token(&mut self, name: Option<&Arc<str>>) {
        if let Some(line) = &mut self.0 {
            line.token = name.map(Arc::clone);
        }
    }

    /// Sets the status of the answer.
    pub(super) fn set_status(&mut self, status: StatusCode) {
        if let Some(line) = &mut self.0 {
            line.status = Some(status);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let elapsed = clock::stopwatch().saturating_duration_since(self.started);
        tracing::debug!(
            target: TARGET,
            method = self.method,
            operation = self.operation,
            pool = self.pool.as_deref(),
            status = self.status.map(|status| status.as_u16()),
            duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            token = self.token.as_deref(),
            address = self.address.map(tracing::field::display),
            request_id = %self.id,
            "{}",
            if self.status.is_some() { "request" } else { "request without an answer" },
        );
    }
}

//! The lines of the audit log at an admission: what is known of a request then, and refusals.
//!
//! Does not know what a request does later. No line contains a secret.

use crate::access::Shown;
use crate::audit::{Audit, Line, Refusal};
use crate::http::error::Problem;
use crate::http::origin::Origin;
use crate::share::CallerId;
use keypeg_client::routes::Route;
use std::sync::Arc;

/// Logs a refusal at admission. Its caller is the token, or the address without a valid one.
pub(super) fn refusal(
    audit: &Audit,
    shown: Option<&Shown>,
    problem: &Problem,
    origin: &Origin,
    fill: impl FnOnce(&mut Line),
) {
    let token = shown.map(|shown| Arc::clone(&shown.token.name));
    let caller = match &token {
        Some(name) => CallerId::Token(Arc::clone(name)),
        None => CallerId::of_address(origin.client_ip),
    };
    let (status, code) = (problem.status().as_u16(), problem.code().as_str());
    audit.refused(&caller, Refusal { status, code, at: origin.started }, |line| {
        fill(line);
        line.token = token;
    });
}

/// Notes what is known of a request at its admission.
pub(super) fn fill(line: &mut Line, route: &Route, path: &str, origin: &Origin) {
    line.request_id = origin.id.to_string();
    line.address = origin.client_ip.map(|ip| ip.to_canonical());
    line.operation = route.operation;
    if let Some(pool) = route.pool_of(path) {
        line.pool(pool);
    }
}

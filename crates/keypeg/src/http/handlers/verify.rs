//! Verifies keys: for the service behind them, and for the gateway in front of that service.
//!
//! A value that is unknown, deleted, purged or not in one of the requested states gets one and the
//! same answer. No answer and no error repeats the value.

use super::gateway::authorized;
use super::operation::Operation;
use super::payload::Payload;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::keys::{ActiveStates, VerifyBody};
use crate::http::parse::path::pool_name;
use crate::http::respond::HandlerResult;
use hyper::header::HeaderName;
use keypeg_client::Code;
use keypeg_core::Secret;

/// The header with the key of a forwarded request.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Verifies the key in the body.
pub(crate) async fn verify(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let parsed = match ActiveStates::read(request.uri().query()) {
        Ok(states) => {
            let value = body::read(context, request).await.and_then(VerifyBody::value);
            value.map(|value| (states, value))
        }
        Err(problem) => Err(problem),
    };
    let (states, value) = context.or_unknown_pool(&pool, parsed).await?;
    Ok(Operation::verify(pool, value, states).run(context).await?.to_response())
}

/// Verifies the key in the header of a request that a gateway asks about: 204 if it is active.
pub(crate) async fn authorize(
    context: &RequestContext<'_>,
    pool: &str,
    request: &Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let states = ActiveStates::read(request.uri().query());
    let parsed = states.and_then(|states| Ok((states, forwarded_key(request)?)));
    let (states, value) = context.or_unknown_pool(&pool, parsed).await?;
    authorization(Operation::verify(pool, value, states).run(context).await?)
}

/// Returns the answer to a gateway for the payload of a verification.
pub(crate) fn authorization(payload: Payload) -> HandlerResult {
    if let Payload::Kept(key) = payload {
        return Ok(authorized(&key.verification));
    }
    if let Payload::Verified(verification) = payload
        && verification.active
    {
        return Ok(authorized(&verification));
    }
    Err(Problem::key_not_active())
}

/// Returns the key in a header; `None` if no pool can have it.
pub(crate) fn key_of_header(value: &[u8]) -> Option<Secret> {
    std::str::from_utf8(value).ok().and_then(Secret::new)
}

/// Returns the key of the forwarded request. A key that no pool can have is not active.
fn forwarded_key(request: &Request) -> Result<Secret, Problem> {
    let mut keys = request.headers().get_all(API_KEY).iter();
    let key = keys.next().ok_or_else(Problem::key_required)?;
    if keys.next().is_some() {
        return Err(Problem::key_not_active());
    }
    key_of_header(key.as_bytes()).ok_or_else(Problem::key_not_active)
}

impl Problem {
    fn key_required() -> Self {
        let detail = "The request has no key: the gateway passes the client's key on in X-Api-Key.";
        Self::new(Code::KeyRequired, detail).challenging("ApiKey header=\"X-Api-Key\"".into())
    }

    /// Does not say why: the answer for an unknown key is that for a key without a lease.
    fn key_not_active() -> Self {
        let detail =
            "The key is not active: it is unknown, was deleted or purged, or has no lease.";
        Self::new(Code::KeyNotActive, detail)
    }
}

//! The calls of the fast path: reads each request and builds its success response.
//!
//! Uses the readers and wire types of the hyper path's handlers, so both give the same responses.

use super::super::admit::RequestContext;
use super::super::body::Fields;
#[cfg(feature = "bench-constant")]
use super::super::constant;
use super::super::error::Problem;
use super::super::keys;
use super::super::leases::{self, AcquireArgs, LeaseGrant};
use super::head::RequestHead;
use hyper::StatusCode;
use keypeg_core::{KeyId, KeyRef, LeaseId, PoolName};
use keypeg_store::{Call, Reply};

/// A call that the fast path answers.
pub(super) enum FastCall {
    Engine(Call, CallKind),
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

/// The kind of a call, with what its response needs from the request.
pub(super) enum CallKind {
    Acquire,
    Renew(PoolName),
    Release(LeaseId),
    KeepAlive,
}

impl FastCall {
    /// Reads the call from a request; returns `None` for any other call and for one that would be
    /// refused.
    pub(super) fn read(head: &RequestHead<'_>) -> Option<Self> {
        let fields = |known| Fields::of_complete_body(head.body, head.content_type, known);
        let mut segments = head.path.strip_prefix("/v1/pools/")?.split('/');
        let pool = PoolName::parse(segments.next()?)?;
        let below_pool = [segments.next(), segments.next(), segments.next(), segments.next()];
        #[cfg(feature = "bench-constant")]
        if pool.as_str() == constant::POOL {
            return constant::Constant::read(below_pool, fields).map(Self::Constant);
        }
        let (call, kind) = match below_pool {
            [Some("leases"), None, ..] => {
                let acquire = AcquireArgs::of(fields(leases::ACQUIRE_FIELDS)?).ok()?;
                (acquire.into_call(pool), CallKind::Acquire)
            }
            [Some("leases"), Some(lease), Some("release"), None] => {
                let verdict = leases::release_options(fields(leases::RELEASE_FIELDS)?).ok()?;
                let lease = LeaseId::parse(lease)?;
                (Call::Release { pool, lease, verdict }, CallKind::Release(lease))
            }
            [Some("leases"), Some(lease), Some("renew"), None] => {
                let ttl_ms = leases::renew_ttl(fields(leases::RENEW_FIELDS)?).ok()?;
                let lease = LeaseId::parse(lease)?;
                (Call::Renew { pool: pool.clone(), lease, ttl_ms }, CallKind::Renew(pool))
            }
            [Some("keys"), Some(key), Some("keepalive"), None] => {
                fields(&[])?;
                let key = KeyRef::Id(KeyId::parse(key)?);
                (Call::KeepAlive { pool, key }, CallKind::KeepAlive)
            }
            _ => return None,
        };
        Some(Self::Engine(call, kind))
    }
}

impl CallKind {
    /// Maps the engine's reply to the response.
    pub(super) fn map_reply(
        self,
        context: &RequestContext<'_>,
        reply: Reply,
    ) -> Result<FastReply, Problem> {
        let reply = context.check_reply(reply);
        Ok(match self {
            Self::Acquire => FastReply::Granted(LeaseGrant::of(reply.map_err(Problem::of_grant)?)),
            Self::Renew(pool) => FastReply::Renewed(Box::new(leases::renewed_lease(&pool, reply?))),
            Self::Release(lease) => {
                reply?;
                context.audit_lease(lease.token());
                FastReply::Released
            }
            Self::KeepAlive => FastReply::KeptAlive(keys::kept_alive(&reply?)),
        })
    }
}

/// A success response.
pub(super) enum FastReply {
    Granted(LeaseGrant),
    Renewed(Box<keypeg_client::Lease>),
    KeptAlive(keypeg_client::KeptAlive),
    Released,
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

impl FastReply {
    /// Returns the response's status.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Granted(_) => StatusCode::CREATED,
            Self::Renewed(_) | Self::KeptAlive(_) => StatusCode::OK,
            Self::Released => StatusCode::NO_CONTENT,
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => constant.status(),
        }
    }

    /// Writes the response's body.
    pub(super) fn write(&self, body: &mut Vec<u8>) {
        let written = match self {
            Self::Granted(granted) => serde_json::to_writer(body, &granted.to_wire()),
            Self::Renewed(lease) => serde_json::to_writer(body, lease),
            Self::KeptAlive(kept) => serde_json::to_writer(body, kept),
            Self::Released => Ok(()),
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => {
                body.extend_from_slice(constant.body());
                Ok(())
            }
        };
        written.expect("invariant: wire types always serialise");
    }
}

//! The calls that are answered here: what each asks, and what it is told when all is well.

use super::super::admit::Asking;
use super::super::body::Fields;
#[cfg(feature = "bench-constant")]
use super::super::constant;
use super::super::error::Problem;
use super::super::keys;
use super::super::leases::{self, Granted, Wanted};
use super::head::Head;
use hyper::StatusCode;
use keypeg_engine::core::{KeyId, KeyRef, LeaseId, PoolName};
use keypeg_engine::{Call, Reply};

/// What is asked, and what its reply will be.
pub(super) enum Hot {
    Asked(Call, Kind),
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

pub(super) enum Kind {
    Acquire,
    Renew(PoolName),
    Release(LeaseId),
    KeepAlive,
}

impl Hot {
    /// Reads what is asked; `None` where it is anything else, or would be refused.
    pub(super) fn read(head: &Head<'_>) -> Option<Self> {
        let fields = |known| Fields::of_whole(head.body, head.content_type, known);
        let mut segments = head.path.strip_prefix("/v1/pools/")?.split('/');
        let pool = PoolName::parse(segments.next()?)?;
        let below = [segments.next(), segments.next(), segments.next(), segments.next()];
        #[cfg(feature = "bench-constant")]
        if pool.as_str() == constant::POOL {
            return constant::Constant::read(below, fields).map(Self::Constant);
        }
        let (call, kind) = match below {
            [Some("leases"), None, ..] => {
                let wanted = Wanted::of(fields(leases::ACQUIRE)?).ok()?;
                (wanted.call(pool), Kind::Acquire)
            }
            [Some("leases"), Some(lease), Some("release"), None] => {
                let verdict = leases::verdict(fields(leases::RELEASE)?).ok()?;
                let lease = LeaseId::parse(lease)?;
                (Call::Release { pool, lease, verdict }, Kind::Release(lease))
            }
            [Some("leases"), Some(lease), Some("renew"), None] => {
                let ttl_ms = leases::longer(fields(leases::RENEW)?).ok()?;
                let lease = LeaseId::parse(lease)?;
                (Call::Renew { pool: pool.clone(), lease, ttl_ms }, Kind::Renew(pool))
            }
            [Some("keys"), Some(key), Some("keepalive"), None] => {
                fields(&[])?;
                let key = KeyRef::Id(KeyId::parse(key)?);
                (Call::KeepAlive { pool, key }, Kind::KeepAlive)
            }
            _ => return None,
        };
        Some(Self::Asked(call, kind))
    }
}

impl Kind {
    pub(super) fn told(self, app: &Asking<'_>, reply: Reply) -> Result<Told, Problem> {
        let reply = app.heard(reply);
        Ok(match self {
            Self::Acquire => Told::Granted(Granted::of(reply.map_err(Problem::of_grant)?)),
            Self::Renew(pool) => Told::Renewed(Box::new(leases::renewed(&pool, reply?))),
            Self::Release(lease) => {
                reply?;
                app.note_lease(lease.token());
                Told::Released
            }
            Self::KeepAlive => Told::Kept(keys::kept(&reply?)),
        })
    }
}

/// What a request is told when all is well.
pub(super) enum Told {
    Granted(Granted),
    Renewed(Box<keypeg_client::Lease>),
    Kept(keypeg_client::KeptAlive),
    Released,
    #[cfg(feature = "bench-constant")]
    Constant(constant::Constant),
}

impl Told {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Granted(_) => StatusCode::CREATED,
            Self::Renewed(_) | Self::Kept(_) => StatusCode::OK,
            Self::Released => StatusCode::NO_CONTENT,
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => constant.status(),
        }
    }

    pub(super) fn write(&self, body: &mut Vec<u8>) {
        let written = match self {
            Self::Granted(granted) => serde_json::to_writer(body, &granted.told()),
            Self::Renewed(lease) => serde_json::to_writer(body, lease),
            Self::Kept(kept) => serde_json::to_writer(body, kept),
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

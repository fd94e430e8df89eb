//! The payload of a frequent operation's success: its status and its JSON.
//!
//! Knows neither hyper's responses nor the fast path's buffers: each path sends it in its own way.

#[cfg(feature = "bench-constant")]
use super::constant::Constant;
use crate::http::message::{Response, after_wait};
use crate::http::parse::keys::ActiveStates;
use crate::http::respond::{json_bytes, no_content};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{KeptAlive, KeyId, KeyState, KeyView, LeaseId, LeaseView, PoolName};
use keypeg_store::LeaseGrant;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// The content of a success response.
pub(crate) enum Payload {
    Granted(LeaseGrant),
    Renewed(Box<wire::Lease>),
    KeptAlive(wire::KeptAlive),
    Verified(Box<wire::Verification>),
    Released,
    #[cfg(feature = "bench-constant")]
    Constant(Constant),
}

impl Payload {
    /// Returns the response's status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Granted(_) => StatusCode::CREATED,
            Self::Renewed(_) | Self::KeptAlive(_) | Self::Verified(_) => StatusCode::OK,
            Self::Released => StatusCode::NO_CONTENT,
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => constant.status(),
        }
    }

    /// Writes the response's body: JSON, or nothing.
    pub(crate) fn write_body(&self, body: &mut Vec<u8>) {
        let written = match self {
            Self::Granted(grant) => serde_json::to_writer(body, &wire_grant(grant)),
            Self::Renewed(lease) => serde_json::to_writer(body, lease),
            Self::KeptAlive(kept_alive) => serde_json::to_writer(body, kept_alive),
            Self::Verified(verification) => serde_json::to_writer(body, verification),
            Self::Released => Ok(()),
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => {
                body.extend_from_slice(constant.body());
                Ok(())
            }
        };
        written.expect("invariant: wire types always serialise");
    }

    /// Returns how long the request waited for a key.
    pub(crate) fn waited(&self) -> Duration {
        match self {
            Self::Granted(grant) => Duration::from_millis(grant.waited_ms),
            Self::Renewed(_) | Self::KeptAlive(_) | Self::Verified(_) | Self::Released => {
                Duration::ZERO
            }
            #[cfg(feature = "bench-constant")]
            Self::Constant(_) => Duration::ZERO,
        }
    }

    /// Returns the response for hyper.
    pub(crate) fn to_response(&self) -> Response {
        let mut body = Vec::new();
        self.write_body(&mut body);
        let response = if body.is_empty() { no_content() } else { json_bytes(self.status(), body) };
        after_wait(response, self.waited())
    }
}

/// Returns a grant as its wire type, without copying text.
fn wire_grant(grant: &LeaseGrant) -> wire::Grant<WireText<'_>> {
    let LeaseGrant { pool, lease, value, waited_ms, .. } = grant;
    wire::Grant {
        id: WireText::Lease(lease.id),
        pool: WireText::Text(pool.as_str()),
        key_id: WireText::Key(lease.key_id),
        key: wire::Secret(WireText::Text(value.reveal())),
        fencing_token: lease.token,
        holder: lease.holder.as_deref().map(WireText::Text),
        label: lease.label.as_deref().map(WireText::Text),
        granted_at: UnixMs(lease.granted_at_ms),
        waited_seconds: Seconds::from_ms(*waited_ms),
        expires_at: UnixMs(lease.expires_at_ms),
        expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
        key_expires_at: lease.key_expires_at_ms.map(UnixMs),
    }
}

/// A value that is serialised as text, without allocating a string first.
enum WireText<'a> {
    Lease(LeaseId),
    Key(KeyId),
    Text(&'a str),
}

impl Serialize for WireText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lease(id) => serializer.collect_str(id),
            Self::Key(id) => serializer.collect_str(id),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

/// Returns a renewed lease as its wire type.
pub(super) fn renewed_lease(pool: &PoolName, lease: LeaseView) -> wire::Lease {
    wire::Lease {
        id: lease.id.to_string(),
        pool: pool.as_str().into(),
        key_id: lease.key_id.to_string(),
        fencing_token: lease.token,
        holder: lease.holder.map(Into::into),
        label: lease.label.map(Into::into),
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
        expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
        key_expires_at: lease.key_expires_at_ms.map(UnixMs),
    }
}

/// Returns the answer of a keep-alive as its wire type.
pub(super) fn kept_alive(KeptAlive { id, expires_at_ms }: KeptAlive) -> wire::KeptAlive {
    wire::KeptAlive { id: id.to_string(), expires_at: expires_at_ms.map(UnixMs) }
}

/// Returns whether a key is active, as its wire type. What is not active shows no more than that.
pub(super) fn verification(key: Option<KeyView>, active: ActiveStates) -> wire::Verification {
    let key = key.filter(|key| active.contain(wire_state(key.state)));
    let Some(KeyView { id, state, label, lease, .. }) = key else {
        return wire::Verification::default();
    };
    wire::Verification {
        active: true,
        state: Some(wire_state(state)),
        key_id: Some(id.to_string()),
        label: label.map(Into::into),
        lease: lease.map(wire_lease),
    }
}

/// Returns the state of a key as its wire type.
pub(super) fn wire_state(state: KeyState) -> wire::KeyState {
    match state {
        KeyState::Available => wire::KeyState::Available,
        KeyState::Leased => wire::KeyState::Leased,
        KeyState::Resting => wire::KeyState::Resting,
        KeyState::Quarantined => wire::KeyState::Quarantined,
    }
}

/// Returns the public part of a lease as its wire type.
pub(super) fn wire_lease(lease: LeaseView) -> wire::KeyLease {
    wire::KeyLease {
        holder: lease.holder.map(Into::into),
        fencing_token: lease.token,
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
    }
}

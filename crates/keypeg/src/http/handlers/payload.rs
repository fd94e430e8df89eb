//! The payload of a frequent operation's success: its status and its JSON.
//!
//! Knows neither hyper's responses nor the fast path's buffers: each path sends it in its own way.

#[cfg(feature = "bench-constant")]
use super::constant::Constant;
use crate::http::message::{Response, after_wait};
use crate::http::parse::keys::ActiveStates;
use crate::http::respond::{json_bytes, no_content};
use crate::http::verified_keys::ActiveKey;
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_core::{KeptAlive, KeyState, KeyView, LeaseView, PoolName};
use keypeg_store::LeaseGrant;
use std::sync::Arc;
use std::time::Duration;

/// The content of a success response.
pub(crate) enum Payload {
    Granted(LeaseGrant),
    Renewed(Box<wire::Lease>),
    KeptAlive(wire::KeptAlive),
    Verified(Box<wire::Verification>),
    /// A verification that this core has kept.
    Kept(Arc<ActiveKey>),
    /// The same as the answer to a gateway, on the fast path.
    Authorized(Arc<ActiveKey>),
    Released,
    #[cfg(feature = "bench-constant")]
    Constant(Constant),
}

impl Payload {
    /// Returns the response's status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Granted(_) => StatusCode::CREATED,
            Self::Renewed(_) | Self::KeptAlive(_) | Self::Verified(_) | Self::Kept(_) => {
                StatusCode::OK
            }
            Self::Released | Self::Authorized(_) => StatusCode::NO_CONTENT,
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => constant.status(),
        }
    }

    /// Writes the response's body: JSON, or nothing.
    pub(crate) fn write_body(&self, body: &mut Vec<u8>) {
        let written = match self {
            Self::Granted(grant) => write_grant(grant, body),
            Self::Renewed(lease) => serde_json::to_writer(body, lease),
            Self::KeptAlive(kept_alive) => serde_json::to_writer(body, kept_alive),
            Self::Verified(verification) => serde_json::to_writer(body, verification),
            Self::Kept(key) => {
                body.extend_from_slice(&key.json);
                Ok(())
            }
            Self::Released | Self::Authorized(_) => Ok(()),
            #[cfg(feature = "bench-constant")]
            Self::Constant(constant) => {
                body.extend_from_slice(constant.body());
                Ok(())
            }
        };
        written.expect("invariant: wire types always serialise");
    }

    /// Returns the header lines of the response's content, if it is there and not in the body.
    pub(crate) fn lines(&self) -> &[u8] {
        if let Self::Authorized(key) = self { &key.lines } else { b"" }
    }

    /// Returns whether the response is one for a method that can change something.
    pub(crate) fn is_of_change(&self) -> bool {
        !matches!(self, Self::Authorized(_))
    }

    /// Returns how long the request waited for a key.
    pub(crate) fn waited(&self) -> Duration {
        match self {
            Self::Granted(grant) => Duration::from_millis(grant.waited_ms),
            Self::Renewed(_)
            | Self::KeptAlive(_)
            | Self::Verified(_)
            | Self::Kept(_)
            | Self::Authorized(_)
            | Self::Released => Duration::ZERO,
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

/// Writes a grant as JSON, exactly as [`wire::Grant`] is serialised. It is the largest answer of the
/// frequent calls: most of its bytes are names of members and digits, which need no escapes.
fn write_grant(grant: &LeaseGrant, body: &mut Vec<u8>) -> serde_json::Result<()> {
    let LeaseGrant { pool, lease, value, waited_ms, .. } = grant;
    body.extend_from_slice(b"{\"id\":\"");
    body.extend_from_slice(&lease.id.digits());
    body.extend_from_slice(b"\",\"pool\":\"");
    body.extend_from_slice(pool.as_str().as_bytes());
    body.extend_from_slice(b"\",\"key_id\":\"");
    body.extend_from_slice(&lease.key_id.digits());
    body.extend_from_slice(b"\",\"key\":");
    serde_json::to_writer(&mut *body, value.reveal())?;
    body.extend_from_slice(b",\"fencing_token\":");
    serde_json::to_writer(&mut *body, &lease.token)?;
    body.extend_from_slice(b",\"holder\":");
    serde_json::to_writer(&mut *body, &lease.holder)?;
    body.extend_from_slice(b",\"label\":");
    serde_json::to_writer(&mut *body, &lease.label)?;
    body.extend_from_slice(b",\"granted_at\":\"");
    body.extend_from_slice(&UnixMs(lease.granted_at_ms).text());
    body.extend_from_slice(b"\",\"waited_seconds\":");
    serde_json::to_writer(&mut *body, &Seconds::from_ms(*waited_ms))?;
    body.extend_from_slice(b",\"expires_at\":\"");
    body.extend_from_slice(&UnixMs(lease.expires_at_ms).text());
    body.extend_from_slice(b"\",\"expires_in_seconds\":");
    serde_json::to_writer(&mut *body, &Seconds::from_ms(lease.expires_in_ms))?;
    match lease.key_expires_at_ms {
        None => body.extend_from_slice(b",\"key_expires_at\":null}"),
        Some(at_ms) => {
            body.extend_from_slice(b",\"key_expires_at\":\"");
            body.extend_from_slice(&UnixMs(at_ms).text());
            body.extend_from_slice(b"\"}");
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_core::{KeyId, LeaseId, Secret};

    #[test]
    fn a_grant_is_written_exactly_as_its_wire_type_is_serialised() {
        let id = |text: &str| LeaseId::parse(text).expect("an id");
        let texts = [None, Some(""), Some("job-7"), Some("a\"b\\c\u{0}\u{1f}\n ü €\u{1f600}/")];
        for (index, text) in texts.into_iter().enumerate() {
            let number = index as u64;
            let lease = LeaseView {
                id: id(["0", "7"][index % 2].repeat(26).as_str()),
                key_id: KeyId::parse("6674ecnpkeibtvvpj0t7ngvphl").expect("an id"),
                token: number << 50,
                holder: text.map(Into::into),
                label: texts[3 - index].map(Into::into),
                granted_at_ms: 1_795_383_000_007 + number,
                expires_at_ms: number,
                expires_in_ms: 500 + 500 * number,
                key_expires_at_ms: (index != 1).then_some(u64::MAX),
            };
            let value = texts[index].filter(|text| !text.is_empty()).unwrap_or("k");
            let pool = PoolName::parse("a.b_c-1").expect("a name");
            let wire = wire::Grant {
                id: lease.id.to_string(),
                pool: pool.as_str().to_owned(),
                key_id: lease.key_id.to_string(),
                key: wire::Secret(value.to_owned()),
                fencing_token: lease.token,
                holder: lease.holder.clone().map(Into::into),
                label: lease.label.clone().map(Into::into),
                granted_at: UnixMs(lease.granted_at_ms),
                waited_seconds: Seconds::from_ms(number * 250),
                expires_at: UnixMs(lease.expires_at_ms),
                expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
                key_expires_at: lease.key_expires_at_ms.map(UnixMs),
            };
            let value = Secret::new(value).expect("a value");
            let (waited_ms, redelivered) = (number * 250, false);
            let lease = Box::new(lease);
            let grant = LeaseGrant { pool, lease, value, waited_ms, redelivered };
            let mut body = Vec::new();
            write_grant(&grant, &mut body).expect("writes");
            assert_eq!(String::from_utf8(body), Ok(serde_json::to_string(&wire).expect("writes")));
        }
    }
}

//! Why a lease ended before its holder released it: what an event or a refusal means for a lease.
//!
//! Owns the words for people. It sends nothing and knows no time.

use crate::error::Error;
use crate::{Code, Event, Grant};
use std::fmt;

/// Why a lease ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEnd {
    /// A request ended the lease: a force-release, or a release with the id of the lease.
    Released,
    /// The server ended the lease by time.
    Expired,
    /// The key was deleted.
    KeyDeleted,
    /// The key was purged, because no keep-alive arrived in time.
    KeyPurged,
    /// The pool was deleted.
    PoolDeleted,
    /// The lease reached the maximum hold of its pool.
    MaxHold,
    /// The server answered that there is no such lease; with its words.
    Refused(String),
    /// No renewal succeeded before the end of the lease; with the last failure, if there was an
    /// answer.
    NotRenewed(Option<String>),
}

impl LeaseEnd {
    /// Returns why the lease of `grant` has ended, if this event reports it.
    pub(crate) fn of_event(event: &Event, grant: &Grant) -> Option<Self> {
        let token = grant.fencing_token;
        let is_own = |key_id: &str| key_id == grant.key_id;
        match event {
            Event::Released(ended) if is_own(&ended.key_id) && ended.fencing_token == token => {
                Some(Self::Released)
            }
            Event::Expired(ended) if is_own(&ended.key_id) && ended.fencing_token == token => {
                Some(Self::Expired)
            }
            Event::Quarantined(ended) if is_own(&ended.key_id) && ended.fencing_token == token => {
                Some(Self::Released)
            }
            // A later lease of the key exists, so this one has ended.
            Event::Granted(later) if is_own(&later.key_id) && later.fencing_token > token => {
                Some(Self::Expired)
            }
            Event::Deleted(key) if is_own(&key.key_id) => Some(Self::KeyDeleted),
            Event::Purged(key) if is_own(&key.key_id) => Some(Self::KeyPurged),
            Event::Dropped(_) => Some(Self::PoolDeleted),
            Event::Released(_)
            | Event::Expired(_)
            | Event::Quarantined(_)
            | Event::Granted(_)
            | Event::Deleted(_)
            | Event::Purged(_)
            | Event::Resync(_)
            | Event::Generated(_)
            | Event::Imported(_)
            | Event::Renewed(_)
            | Event::Restored(_)
            | Event::Policy(_) => None,
        }
    }

    /// Returns why the lease has ended, if the refusal of its renewal or release says so.
    pub fn of_refusal(error: &Error) -> Option<Self> {
        let problem = error.problem()?;
        match (problem.code, problem.extensions.cause.as_deref()) {
            (Code::LeaseEnded, Some("released")) => Some(Self::Released),
            (Code::LeaseEnded, Some("expired" | "superseded")) => Some(Self::Expired),
            (Code::LeaseEnded | Code::UnknownPool | Code::UnknownKey, _) => {
                Some(Self::Refused(problem.detail.clone()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for LeaseEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Released => "another client released it, by force-release or by its id",
            Self::Expired => "it expired on the server",
            Self::KeyDeleted => "its key was deleted",
            Self::KeyPurged => "its key was purged: no keep-alive arrived in time",
            Self::PoolDeleted => "its pool was deleted",
            Self::MaxHold => "it reached the maximum hold of its pool",
            Self::Refused(detail) => return write!(f, "the server answered: {detail}"),
            Self::NotRenewed(Some(last)) => return write!(f, "no renewal succeeded: {last}"),
            Self::NotRenewed(None) => "no renewal succeeded: the server did not answer",
        })
    }
}

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
            Event::Quarantined(ended)
                if is_own(&ended.key_id) && ended.fencing_token == Some(token) =>
            {
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
            | Event::Draining(_)
            | Event::DrainCancelled(_)
            | Event::Granted(_)
            | Event::Deleted(_)
            | Event::Purged(_)
            | Event::Resync(_)
            | Event::Generated(_)
            | Event::Imported(_)
            | Event::Labelled(_)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Problem;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-22T21:30:00.000Z";

    /// Parses an object with these members, and the times that all have.
    fn parsed<T: serde::de::DeserializeOwned>(mut members: Value) -> T {
        for time in ["at", "granted_at", "expires_at"] {
            members[time] = AT.into();
        }
        serde_json::from_value(members).unwrap()
    }

    fn grant() -> Grant {
        parsed(json!({
            "id": "l", "pool": "ci", "key_id": "own", "key": "v", "fencing_token": 7,
            "waited_seconds": 0, "expires_in_seconds": 60,
        }))
    }

    /// The lease of the key `own` with the fencing token 7 ends with an event about both, or about a
    /// later lease of the key. An event of an earlier lease of the same key can arrive late.
    #[test]
    fn an_event_ends_the_lease_that_it_names_and_no_other() {
        let of_lease = |key: &str, token: u64| {
            let (pool, state) = ("ci", "available");
            let it = json!({ "pool": pool, "key_id": key, "fencing_token": token, "state": state });
            [
                (Event::Released(parsed(it.clone())), Some(LeaseEnd::Released), None),
                (Event::Expired(parsed(it.clone())), Some(LeaseEnd::Expired), None),
                (Event::Quarantined(parsed(it.clone())), Some(LeaseEnd::Released), None),
                (Event::Granted(parsed(it.clone())), None, Some(LeaseEnd::Expired)),
                (Event::Renewed(parsed(it)), None, None),
            ]
        };
        let grant = grant();
        for (event, own, _) in of_lease("own", 7) {
            assert_eq!(LeaseEnd::of_event(&event, &grant), own, "{event:?}");
        }
        for (event, _, later) in of_lease("own", 8) {
            assert_eq!(LeaseEnd::of_event(&event, &grant), later, "{event:?}");
        }
        let others = [of_lease("own", 6), of_lease("other", 7), of_lease("other", 8)];
        for (event, ..) in others.into_iter().flatten() {
            assert_eq!(LeaseEnd::of_event(&event, &grant), None, "{event:?}");
        }
        for (key, is_own) in [("own", true), ("other", false)] {
            let it = json!({ "pool": "ci", "key_id": key, "was": "leased" });
            for (event, cause) in [
                (Event::Deleted(parsed(it.clone())), Some(LeaseEnd::KeyDeleted)),
                (Event::Purged(parsed(it.clone())), Some(LeaseEnd::KeyPurged)),
                (Event::Restored(parsed(it)), None),
            ] {
                let expected = cause.filter(|_| is_own);
                assert_eq!(LeaseEnd::of_event(&event, &grant), expected, "{event:?}");
            }
        }
        let dropped = Event::Dropped(parsed(json!({ "pool": "ci" })));
        assert_eq!(LeaseEnd::of_event(&dropped, &grant), Some(LeaseEnd::PoolDeleted));
    }

    #[test]
    fn a_refusal_ends_the_lease_only_if_it_says_so() {
        for (code, cause, expected) in [
            (Code::LeaseEnded, Some("released"), Some(LeaseEnd::Released)),
            (Code::LeaseEnded, Some("expired"), Some(LeaseEnd::Expired)),
            (Code::LeaseEnded, Some("superseded"), Some(LeaseEnd::Expired)),
            (Code::LeaseEnded, None, Some(LeaseEnd::Refused("d".into()))),
            (Code::UnknownKey, None, Some(LeaseEnd::Refused("d".into()))),
            (Code::UnknownPool, None, Some(LeaseEnd::Refused("d".into()))),
            (Code::MaxHoldReached, None, None),
            (Code::Unauthorized, None, None),
            (Code::RateLimited, None, None),
            (Code::Overloaded, None, None),
        ] {
            let problem: Problem = serde_json::from_value(json!({
                "type": "", "title": "", "status": code.status(), "code": code, "detail": "d",
                "request_id": "r", "cause": cause,
            }))
            .unwrap();
            let error = Error::Refused(Box::new(problem));
            assert_eq!(LeaseEnd::of_refusal(&error), expected, "{error:?}");
        }
        let error = Error::InvalidInput("released".into());
        assert_eq!(LeaseEnd::of_refusal(&error), None);
    }
}

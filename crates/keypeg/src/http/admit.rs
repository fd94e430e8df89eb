//! Whether a request is let through, in whose name it asks the engine, and what the audit log is
//! told of it.
//!
//! Whoever is let through is an [`Asking`], and no handler has another way to the engine. Which
//! scope a route wants is its row in keypeg-client's table; a path without a row reaches no handler.

use super::error::Problem;
use super::{App, Came, unrouted};
use crate::access::{Admitted, Entry, Gate, Outcome, Refused, Shown};
use hyper::header::AUTHORIZATION;
use hyper::{StatusCode, http::HeaderMap};
use keypeg_client::Code;
use keypeg_client::routes::{self, Access as Needs, Route};
use keypeg_engine::core::{KeyRef, PoolName};
use keypeg_engine::{Call, PendingReply, Principal, Reply, Request as Asked};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// A request that was let through.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    app: &'a App,
    admitted: Option<Admitted>,
    /// Locked never for long, and by this request alone: it makes what waits for an answer movable.
    entry: Option<Box<Mutex<Entry>>>,
}

impl Deref for Asking<'_> {
    type Target = App;

    fn deref(&self) -> &App {
        self.app
    }
}

/// Lets a request through, or says why not.
/// `bearer` reads the token it shows, if anybody wants to know.
pub(super) fn admit<'a, 'b>(
    app: &'a App,
    (method, path): (&str, &str),
    bearer: impl FnOnce() -> Result<Option<&'b [u8]>, Problem>,
    came: &Came,
) -> Result<Asking<'a>, Problem> {
    let access = &app.server.access;
    if access.gate.is_none() && access.audit.is_none() {
        return Ok(Asking { app, admitted: None, entry: None });
    }
    let route = routes::find(method, path).ok_or_else(|| unrouted(path))?;
    let pool = route.pool_of(path);
    let mut entry = None;
    if let Some(audit) = access.audit.as_ref().filter(|_| route.is_audited()) {
        let mut begun = audit.begin().ok_or_else(Problem::audit_is_full)?;
        begun.line.request_id = came.id.to_string();
        begun.line.address = came.from.map(|from| from.to_canonical());
        begun.line.operation = route.operation;
        if let Some(pool) = pool {
            begun.line.pool(pool);
        }
        entry = Some(begun);
    }
    let gate = access.gate.as_ref().filter(|_| route.access != Needs::Open);
    let admitted = gate.map(|gate| {
        let shown = bearer().map_err(|problem| (None, problem))?;
        pass(gate, (route, pool), shown, came)
    });
    match admitted.transpose() {
        Ok(admitted) => {
            if let (Some(entry), Some(admitted)) = (&mut entry, &admitted) {
                entry.line.token = Some(Arc::clone(&admitted.shown.token.name));
            }
            Ok(Asking { app, admitted, entry: entry.map(|entry| Box::new(Mutex::new(entry))) })
        }
        Err((shown, problem)) => {
            if let Some(mut entry) = entry {
                entry.line.token = shown.map(|shown| Arc::clone(&shown.token.name));
                entry.end(
                    Outcome::Refused,
                    problem.status().as_u16(),
                    Some(problem.code().as_str()),
                );
            }
            Err(problem)
        }
    }
}

fn pass(
    gate: &Gate,
    (route, pool): (&Route, Option<&str>),
    shown: Option<&[u8]>,
    came: &Came,
) -> Result<Admitted, (Option<Shown>, Problem)> {
    gate.admit((route, pool), shown, came.from, came.begun).map_err(|(shown, refused)| {
        let problem = match refused {
            Refused::NoToken => Problem::unauthorized(None),
            Refused::BadToken => Problem::unauthorized(Some("invalid_token")),
            Refused::Guesses(wait) => {
                Problem::too_often("Too many wrong access tokens.", wait).closing()
            }
            Refused::Scope(scope) => Problem::lacks_scope(scope),
            Refused::Pool => Problem::other_pool(),
            Refused::TooOften(wait) => {
                Problem::too_often("The access token's requests_per_second are used up.", wait)
            }
            Refused::TooMany => {
                let detail = "The access token has its share of the server's requests under way.";
                Problem::too_often(detail, std::time::Duration::from_secs(1)).closing()
            }
        };
        (shown, problem)
    })
}

/// The token that a request shows, see RFC 6750, 2.1; the other two ways would put it into bodies
/// and queries.
pub(super) fn bearer_of(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(Problem::unauthorized(Some("invalid_token")));
    }
    Ok(bearer(first.as_bytes()))
}

/// The token in the header's value.
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let end = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    // Another scheme is none of ours: as if nothing was shown.
    scheme.eq_ignore_ascii_case(b"bearer").then(|| token.trim_ascii())
}

impl Asking<'_> {
    /// Asks the engine; a refusal becomes its problem.
    pub(super) async fn ask(&self, call: Call) -> Result<Reply, Problem> {
        self.note_asked(&call).await;
        let reply = self.begin(call).await;
        self.heard(reply)
    }

    /// Asks the engine what the audit log need not be told of before: the answer is to be
    /// [`heard`](Asking::heard).
    pub(super) fn begin(&self, call: Call) -> PendingReply {
        let by = self.admitted.as_ref().map_or(Principal::Anyone, |admitted| {
            Principal::Token(Arc::clone(&admitted.shown.token.caller))
        });
        self.app.lane.submit(Asked { by, call })
    }

    /// Takes what the engine said; a refusal becomes its problem.
    pub(super) fn heard(&self, reply: Reply) -> Result<Reply, Problem> {
        if let Reply::Refused(refusal) = reply {
            return Err(Problem::refused(&refusal));
        }
        self.note_reply(&reply);
        Ok(reply)
    }

    /// Asks in the server's own name what is no caller's to be told of: nothing of it is audited.
    pub(super) async fn ask_as(&self, by: Principal, call: Call) -> Result<Reply, Problem> {
        let reply = self.app.lane.submit(Asked { by, call }).await;
        let Reply::Refused(refusal) = reply else { return Ok(reply) };
        Err(Problem::refused(&refusal))
    }

    /// Lets what was read of a request pass; where it was wrong, the pool has the first word: one
    /// that does not exist is told rather than what is wrong with the request to it.
    pub(super) async fn judged<T>(
        &self,
        pool: &PoolName,
        read: Result<T, Problem>,
    ) -> Result<T, Problem> {
        match read {
            Ok(read) => Ok(read),
            Err(problem) => {
                self.ask(Call::GetPool { pool: pool.clone() }).await?;
                Err(problem)
            }
        }
    }

    /// Whether a pool may be shown in a list.
    pub(super) fn sees(&self, pool: &PoolName) -> bool {
        self.admitted.as_ref().is_none_or(|admitted| admitted.shown.token.is_for(pool.as_str()))
    }

    /// What a long answer has to be asked again and again: whether it may still be given.
    pub(super) fn leave(&self) -> Option<Leave> {
        let gate = Arc::clone(self.app.server.access.gate.as_ref()?);
        Some(Leave { gate, shown: self.admitted.as_ref()?.shown.clone() })
    }

    /// Tells the audit log what came of it: its status, and its code where it is a problem.
    pub(super) fn end(self, (status, code): (StatusCode, Option<Code>)) {
        let Some(entry) = self.entry else { return };
        let entry = entry.into_inner().unwrap_or_else(PoisonError::into_inner);
        let applied = code.is_none() && status < StatusCode::BAD_REQUEST;
        let outcome = if applied { Outcome::Applied } else { Outcome::Refused };
        entry.end(outcome, status.as_u16(), code.map(Code::as_str));
    }

    async fn note_asked(&self, call: &Call) {
        let Some(entry) = &self.entry else { return };
        // All others tell their keys with their replies, if at all.
        let (Call::ForceRelease { pool, key }
        | Call::DeleteKey { pool, key }
        | Call::Reveal { pool, key }) = call
        else {
            return;
        };
        let id = match key {
            KeyRef::Id(id) => *id,
            // The older face names keys by their values, which a log does not hold.
            KeyRef::Value(_) => {
                let show = Call::GetKey { pool: pool.clone(), key: key.clone() };
                let Reply::Key(view) = self.begin(show).await else { return };
                view.id
            }
        };
        entry.lock().unwrap_or_else(PoisonError::into_inner).line.keys([id].into_iter());
    }

    fn note_reply(&self, reply: &Reply) {
        let Some(entry) = &self.entry else { return };
        let line = &mut entry.lock().unwrap_or_else(PoisonError::into_inner).line;
        if let Reply::Keys(keys) = reply {
            line.keys(keys.iter().map(|key| key.id));
        }
        if let Reply::Granted { lease, .. } | Reply::Renewed(lease) = reply {
            line.keys([lease.key_id].into_iter());
            line.fencing_token = Some(lease.token);
        }
    }

    /// Tells the audit log which lease was meant: its token, never its id.
    pub(super) fn note_lease(&self, token: u64) {
        if let Some(entry) = &self.entry {
            entry.lock().unwrap_or_else(PoisonError::into_inner).line.fencing_token = Some(token);
        }
    }
}

/// What a stream was let through with.
#[derive(Debug)]
pub(super) struct Leave {
    gate: Arc<Gate>,
    shown: Shown,
}

impl Leave {
    /// Whether it would be let through now.
    pub(super) fn holds(&self) -> bool {
        self.gate.still_admits(&self.shown)
    }
}

impl Problem {
    /// No valid token; `error` as RFC 6750, 3.1 names it, where something was shown.
    fn unauthorized(error: Option<&'static str>) -> Self {
        let (detail, challenge) = match error {
            None => ("An access token is wanted: Authorization: Bearer TOKEN.", "Bearer".into()),
            Some(error) => (
                "The access token is unknown, expired or revoked.",
                format!("Bearer error=\"{error}\""),
            ),
        };
        Self::new(Code::Unauthorized, detail).challenging(challenge)
    }

    fn lacks_scope(scope: &'static str) -> Self {
        let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{scope}\"");
        let detail = format!("The access token lacks the scope {scope}.");
        Self::new(Code::Forbidden, detail).of_scope(scope).challenging(challenge)
    }

    /// Says the same whether or not there is such a pool.
    fn other_pool() -> Self {
        Self::new(Code::Forbidden, "The access token is for other pools.")
            .challenging("Bearer error=\"insufficient_scope\"".into())
    }

    fn too_often(detail: &'static str, wait: std::time::Duration) -> Self {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        Self::new(Code::RateLimited, detail).retry_after_ms(wait_ms)
    }

    fn audit_is_full() -> Self {
        Self::new(Code::Overloaded, "The audit log cannot be written now.").retry_after_ms(1_000)
    }
}

//! What a request notes in the audit log: its line begins at its admission, and each of its calls
//! adds what it is about.
//!
//! A request has one line, on the server that handles it. No note contains a secret.

use super::lines::fill;
use super::{RequestContext, Target};
use crate::access::Admitted;
use crate::audit::Outcome;
use crate::http::error::Problem;
use crate::http::origin::Origin;
use hyper::StatusCode;
use keypeg_client::Code;
use keypeg_client::routes::{self, Route};
use keypeg_core::KeyRef;
use keypeg_store::{Call, Reply};
use std::sync::{Arc, Mutex, PoisonError};

impl RequestContext<'_> {
    /// Reserves the place of the request's line, if the audit log records its route. Without a place
    /// the request must be refused.
    pub(in crate::http) fn begin_audit(
        &mut self,
        Target { method, path }: Target<'_>,
        origin: &Origin,
    ) -> Result<(), Problem> {
        if self.app.server.audit.is_none() {
            return Ok(());
        }
        let route = routes::find(method, path).ok_or_else(|| Problem::unrouted(path))?;
        self.begin_line(route, path, origin)
    }

    /// Like [`begin_audit`](Self::begin_audit), for the request's route.
    pub(super) fn begin_line(
        &mut self,
        route: &Route,
        path: &str,
        origin: &Origin,
    ) -> Result<(), Problem> {
        let audit = self.app.server.audit.as_ref().filter(|_| route.is_audited());
        if let Some(audit) = audit {
            let mut entry = audit.begin().ok_or_else(Problem::audit_unavailable)?;
            fill(&mut entry.line, route, path, origin);
            entry.line.token = self.admitted.as_ref().map(|it| Arc::clone(&it.shown.token.name));
            self.entry = Some(Box::new(Mutex::new(entry)));
        }
        Ok(())
    }

    /// Takes the line back: another server handles the request, and writes it.
    pub(in crate::http) fn discard_audit(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.into_inner().unwrap_or_else(PoisonError::into_inner).discard();
        }
    }

    /// Completes the audit entry with the outcome of the request. Returns the admission, which
    /// counts as in flight until the response is sent.
    pub(in crate::http) fn finish_audit(
        self,
        result: Result<StatusCode, &Problem>,
    ) -> Option<Admitted> {
        let Self { admitted, entry, .. } = self;
        let Some(entry) = entry else { return admitted };
        let entry = entry.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (status, code) = match result {
            Ok(status) => (status, None),
            Err(problem) => (problem.status(), Some(problem.code())),
        };
        // A compatibility API may refuse with a response of its own instead of a problem.
        let is_applied = code.is_none() && status < StatusCode::BAD_REQUEST;
        let outcome = if is_applied { Outcome::Applied } else { Outcome::Refused };
        entry.end(outcome, status.as_u16(), code.map(Code::as_str));
        admitted
    }

    /// Notes the key that a call is about, before the call can delete it.
    pub(super) async fn audit_target(&self, call: &Call) {
        let Some(entry) = &self.entry else { return };
        // The replies of all other calls name their keys, if they concern any.
        let (Call::ForceRelease { pool, key }
        | Call::QuarantineKey { pool, key, .. }
        | Call::EndQuarantine { pool, key }
        | Call::DeleteKey { pool, key }
        | Call::Reveal { pool, key }) = call
        else {
            return;
        };
        let id = match key {
            KeyRef::Id(id) => *id,
            // The Django API names keys by their values, which must not be logged.
            KeyRef::Value(_) => {
                let show = Call::GetKey { pool: pool.clone(), key: key.clone() };
                let Reply::Key(view) = self.submit(show, None).await else { return };
                view.id
            }
        };
        entry.lock().unwrap_or_else(PoisonError::into_inner).line.keys([id].into_iter());
    }

    pub(super) fn audit_reply(&self, reply: &Reply) {
        let Some(entry) = &self.entry else { return };
        let line = &mut entry.lock().unwrap_or_else(PoisonError::into_inner).line;
        if let Reply::Keys(keys) = reply {
            line.keys(keys.iter().map(|key| key.id));
        }
        if let Reply::Granted { lease, .. } | Reply::Renewed(lease) = reply {
            line.keys([lease.key_id].into_iter());
            line.fencing_token = Some(lease.token);
            line.holder.clone_from(&lease.holder);
            line.label = lease.label.as_deref().map(Into::into);
        }
        if let Reply::Key(key) = reply {
            line.keys([key.id].into_iter());
            line.label = key.label.as_deref().map(Into::into);
        }
        if let Reply::Released { holder }
        | Reply::KeyReleased { holder, .. }
        | Reply::KeyQuarantined { holder, .. } = reply
        {
            line.holder.clone_from(holder);
        }
    }

    /// Notes the shard that a request moves, and the server that is to own it.
    pub(in crate::http) fn audit_move(&self, shard: usize, server: &str) {
        if let Some(entry) = &self.entry {
            let line = &mut entry.lock().unwrap_or_else(PoisonError::into_inner).line;
            (line.shard, line.server) = (Some(shard), Some(server.into()));
        }
    }

    /// Notes the lease that a request is about: its fencing token, never its id, with which a
    /// reader of the log could release the lease.
    pub(in crate::http) fn audit_lease(&self, fencing_token: u64) {
        if let Some(entry) = &self.entry {
            let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
            entry.line.fencing_token = Some(fencing_token);
        }
    }
}

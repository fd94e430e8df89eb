//! Admission: checks a request's access token and scope, and writes its audit entry.
//!
//! An admitted request gets a [`RequestContext`], which is a handler's only way to the engine. The
//! scope that a route requires stands in its row of keypeg-client's route table; a path without a
//! row reaches no handler. Does not know what the calls do. Which tokens exist, and the rules for
//! them, belong to `access`.

mod lines;
mod notes;
mod problems;

use super::app::App;
use super::body_memory::{BodyMemory, until_reply};
use super::connection::places::Place;
use super::error::Problem;
use super::event_stream::StreamPermit;
use super::long_work::WorkPermit;
use super::origin::Origin;
use super::verified_keys::VerifiedKeys;
use crate::access::{Admitted, Attempt, Gate, Refused, Shown};
use crate::audit::Entry;
use crate::share::{CallerId, Exceeded, Held, network};
use crate::tls::ClientCertificate;
use hyper::header::AUTHORIZATION;
use hyper::http::HeaderMap;
use keypeg_client as wire;
use keypeg_client::routes::{self, Access, Route, Scope};
use keypeg_client::{Code, UnixMs};
use keypeg_core::{PoolFilter, PoolName};
use keypeg_store::{Answer, Call, CallerNumber, Idempotency, PendingReply, Principal};
use keypeg_store::{Reply, Request, TypedCall};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Carries the token and the audit entry of an admitted request.
#[derive(Debug)]
pub(super) struct RequestContext<'a> {
    app: &'a App,
    admitted: Option<Admitted>,
    /// The client's address: without tokens, its network is the caller.
    client_ip: Option<IpAddr>,
    /// How long the request has waited at servers that then lost the pool.
    waited_ms: u64,
    /// The permit of the request's long work, until its response is built.
    permit: Mutex<Option<WorkPermit>>,
    /// The memory of the request's body, until its response is built.
    body: Mutex<Option<Arc<BodyMemory>>>,
    /// The audit entry. Only this request locks it, and briefly: the mutex makes the handler's
    /// future `Send`.
    entry: Option<Box<Mutex<Entry>>>,
}

impl Deref for RequestContext<'_> {
    type Target = App;

    fn deref(&self) -> &App {
        self.app
    }
}

/// The method and the path of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
}

/// Admits a request, or returns the problem to report. `bearer` reads the token that the request
/// presents; it is not called for a route that needs no token. Without a token, the `certificate` of
/// the client counts.
pub(super) fn admit<'a, 'b>(
    app: &'a App,
    Target { method, path }: Target<'_>,
    bearer: impl FnOnce() -> Result<Option<&'b [u8]>, Problem>,
    certificate: Option<&ClientCertificate>,
    origin: &Origin,
) -> Result<RequestContext<'a>, Problem> {
    let target = Target { method, path };
    let (mut context, route) = admit_unaudited(app, target, bearer, certificate, origin)?;
    if let Some(route) = route {
        context.begin_line(route, path, origin)?;
    }
    Ok(context)
}

/// Like [`admit`], for a request that another server may handle. Only a refusal has a line in the
/// audit log of this one, until [`RequestContext::begin_audit`].
pub(super) fn admit_elsewhere<'a, 'b>(
    app: &'a App,
    target: Target<'_>,
    bearer: impl FnOnce() -> Result<Option<&'b [u8]>, Problem>,
    certificate: Option<&ClientCertificate>,
    origin: &Origin,
) -> Result<RequestContext<'a>, Problem> {
    admit_unaudited(app, target, bearer, certificate, origin).map(|(context, _)| context)
}

/// Admits a request without a line in the audit log. Returns its route if it was needed.
fn admit_unaudited<'a, 'b>(
    app: &'a App,
    Target { method, path }: Target<'_>,
    bearer: impl FnOnce() -> Result<Option<&'b [u8]>, Problem>,
    certificate: Option<&ClientCertificate>,
    origin: &Origin,
) -> Result<(RequestContext<'a>, Option<&'static Route>), Problem> {
    let (access, audit) = (&app.server.access, app.server.audit.as_ref());
    let client_ip = origin.client_ip;
    if access.gate.is_none() && audit.is_none() {
        return Ok((RequestContext::new(app, origin, None), None));
    }
    let route = routes::find(method, path).ok_or_else(|| Problem::unrouted(path))?;
    let pool = route.pool_of(path);
    let audit = audit.filter(|_| route.is_audited());
    let gate = access.gate.as_ref().filter(|_| route.access != Access::Open);
    let admitted = gate.map(|gate| {
        let token = bearer().map_err(|problem| (None, problem))?;
        let (from, now) = (client_ip, origin.started);
        check_token(gate, Attempt { route, pool, token, certificate, from, now })
    });
    let admitted = admitted.transpose().map_err(|(shown, problem)| {
        if let Some(audit) = audit {
            lines::refusal(audit, shown.as_ref(), &problem, origin, |line| {
                lines::fill(line, route, path, origin);
            });
        }
        problem
    })?;
    Ok((RequestContext::new(app, origin, admitted), Some(route)))
}

/// Returns the caller of a request: its token, or its address where the server needs no token.
pub(super) fn caller(admitted: Option<&Admitted>, client_ip: Option<IpAddr>) -> CallerId {
    match admitted {
        Some(admitted) => CallerId::Token(Arc::clone(&admitted.shown.token.name)),
        None => CallerId::of_address(client_ip),
    }
}

/// Checks the presented token; an error carries the token if it is known, for the audit log.
fn check_token(gate: &Gate, attempt: Attempt<'_>) -> Result<Admitted, (Option<Shown>, Problem)> {
    gate.admit(attempt).map_err(|(shown, refused)| {
        let problem = match refused {
            Refused::NoToken => Problem::unauthorized(None),
            Refused::BadToken => Problem::unauthorized(Some("invalid_token")),
            Refused::Certificate => Problem::unknown_certificate(),
            Refused::Guesses(wait) => {
                let detail = "Too many invalid access tokens from this address: wait, then retry.";
                Problem::rate_limited(detail, wait).closing()
            }
            Refused::Scope(scope) => Problem::missing_scope(scope),
            Refused::Pool => Problem::other_pool(),
            Refused::TooOften(wait) => {
                let detail = "The access token reached its requests_per_second: wait, then retry.";
                Problem::rate_limited(detail, wait)
            }
            Refused::TooMany => {
                let detail = "The access token has too many requests in progress (its share of the \
                              server's connections): let some finish, then retry.";
                Problem::rate_limited(detail, Duration::from_secs(1)).closing()
            }
        };
        (shown, problem)
    })
}

/// Returns the token in a request's headers, see RFC 6750, 2.1. The RFC's other two methods are not
/// supported: they put the token into bodies and queries.
pub(super) fn bearer_of(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::unauthorized(Some("invalid_token")));
    }
    Ok(bearer(first.as_bytes()))
}

/// Returns the token in an Authorization header's value.
pub(super) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let end = value.iter().position(|&byte| byte == b' ').unwrap_or(value.len());
    let (scheme, token) = value.split_at(end);
    // Another scheme counts as no token.
    scheme.eq_ignore_ascii_case(b"bearer").then(|| token.trim_ascii())
}

impl<'a> RequestContext<'a> {
    fn new(app: &'a App, origin: &Origin, admitted: Option<Admitted>) -> Self {
        let (permit, body) = (Mutex::new(None), Mutex::new(None));
        let client_ip = origin.client_ip;
        Self { app, admitted, client_ip, waited_ms: 0, permit, body, entry: None }
    }
}

impl RequestContext<'_> {
    /// Runs a call and waits for its answer; a refusal becomes its problem.
    pub(super) async fn execute<A: Answer>(&self, call: TypedCall<A>) -> Result<A, Problem> {
        self.execute_once(call, None).await
    }

    /// Like [`execute`](RequestContext::execute), at most once under an Idempotency-Key.
    pub(super) async fn execute_once<A: Answer>(
        &self,
        call: TypedCall<A>,
        idempotency: Option<Idempotency>,
    ) -> Result<A, Problem> {
        let call = call.into_call();
        self.audit_target(&call).await;
        let (is_long, units) = (call.is_long(), call.units());
        // An import waits for the disk, maybe twice: other long work goes on meanwhile.
        let is_import = matches!(call, Call::Import { .. });
        if is_import {
            self.end_long_work();
        } else if is_long {
            self.begin_long_work(units).await;
        }
        let reply = self.reply_to(call, idempotency).await;
        if is_import && is_long {
            self.begin_long_work(units).await;
        }
        self.answer(reply)
    }

    /// Like [`execute`](RequestContext::execute), for a further part of long work that has begun.
    pub(super) async fn execute_next<A: Answer>(&self, call: TypedCall<A>) -> Result<A, Problem> {
        let reply = self.reply_to(call.into_call(), None).await;
        self.answer(reply)
    }

    async fn reply_to(&self, call: Call, idempotency: Option<Idempotency>) -> Reply {
        let pending = self.submit(call, idempotency.map(Box::new));
        let body = self.body.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match body {
            None => pending.await,
            Some(memory) => until_reply(pending, memory).await,
        }
    }

    /// Returns the leased keys that this core has verified.
    pub(super) fn verified_keys(&self) -> &VerifiedKeys {
        &self.app.verified_keys
    }

    /// Submits a call that needs no audit note beforehand. The caller must pass the reply to
    /// [`answer`](RequestContext::answer).
    pub(super) fn submit(
        &self,
        call: Call,
        mut idempotency: Option<Box<Idempotency>>,
    ) -> PendingReply {
        if let (None, Some(idempotency)) = (&self.admitted, &mut idempotency) {
            idempotency.network = self.client_ip.map_or(0, network);
        }
        if let Some(entry) = &self.entry
            && let Call::Acquire { holder, .. } = &call
        {
            entry.lock().unwrap_or_else(PoisonError::into_inner).line.holder.clone_from(holder);
        }
        let by = self.principal();
        let caller = self.caller_number(&by);
        self.app.lanes.of_call(&call).submit(Request { by, caller, idempotency, call })
    }

    /// Submits a call that concerns no pool to one shard.
    /// Such calls have no notes in the audit log.
    pub(super) fn submit_to_shard(&self, shard: usize, call: Call) -> PendingReply {
        let by = self.principal();
        let caller = self.caller_number(&by);
        let lane = self.app.lanes.of_shard(shard);
        lane.submit(Request { by, caller, idempotency: None, call })
    }

    /// Keeps the memory of the request's body until the request has its answer, and until each of
    /// its calls has its reply.
    pub(super) fn hold_body(&self, memory: BodyMemory) {
        if !memory.is_empty() {
            *self.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(memory));
        }
    }

    /// Returns the name of the caller's token, if the server needs one.
    pub(super) fn token_name(&self) -> Option<&Arc<str>> {
        self.admitted.as_ref().map(|admitted| &admitted.shown.token.name)
    }

    fn principal(&self) -> Principal {
        self.admitted.as_ref().map_or(Principal::Anyone, |admitted| {
            Principal::Token(Arc::clone(&admitted.shown.token.caller))
        })
    }

    /// Returns the caller whose share of the time the request takes: its token, or its network.
    fn caller_number(&self, by: &Principal) -> CallerNumber {
        match (by, self.client_ip) {
            (Principal::Anyone, Some(address)) => {
                let network = network(address);
                // An IPv4 address is in the lower half, a network of IPv6 in the upper one.
                let folded = (network >> 64) ^ (network & u128::from(u64::MAX));
                CallerNumber(u64::try_from(folded).expect("invariant: 64 bits"))
            }
            _ => by.caller_number(),
        }
    }

    /// Waits until the caller's long work may begin. It is in progress until the response is built,
    /// or until the next long work of the same request.
    pub(super) async fn begin_long_work(&self, units: u32) {
        // Work that waits must not hold a permit, or all could wait for each other.
        self.end_long_work();
        let caller = self.caller_number(&self.principal());
        let permit = self.app.long_work.permit(caller, units).await;
        *self.permit.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
    }

    fn end_long_work(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Takes the answer from a reply and notes it for the audit log; a refusal becomes its problem.
    pub(super) fn answer<A: Answer>(&self, reply: Reply) -> Result<A, Problem> {
        self.audit_reply(&reply);
        A::of(reply).map_err(|refusal| Problem::refused(&refusal))
    }

    /// Passes on the arguments parsed from a request. If they are invalid and the pool does not
    /// exist, reports the unknown pool instead of the invalid argument.
    pub(super) async fn or_unknown_pool<T>(
        &self,
        pool: &PoolName,
        parsed: Result<T, Problem>,
    ) -> Result<T, Problem> {
        match parsed {
            Ok(parsed) => Ok(parsed),
            Err(problem) => {
                self.execute(Call::get_pool(pool.clone())).await?;
                Err(problem)
            }
        }
    }

    /// Refuses a request whose token lacks a scope that its body requires beyond its route.
    pub(super) fn require(&self, scope: Scope) -> Result<(), Problem> {
        let allows = |admitted: &Admitted| admitted.shown.token.allows(scope);
        if self.admitted.as_ref().is_none_or(allows) {
            return Ok(());
        }
        Err(Problem::missing_scope(scope.as_str()))
    }

    /// Refuses a request that has waited if its token was revoked or has expired meanwhile.
    pub(super) fn admit_again(&self) -> Result<(), Problem> {
        let (Some(admitted), Some(gate)) = (&self.admitted, &self.app.server.access.gate) else {
            return Ok(());
        };
        if gate.still_admits(&admitted.shown) {
            return Ok(());
        }
        Err(Problem::unauthorized(Some("invalid_token")))
    }

    /// Returns the pools that the token may list; `None` allows all pools.
    pub(super) fn listed_pools(&self) -> Option<Arc<PoolFilter>> {
        self.admitted.as_ref().map(|admitted| Arc::clone(&admitted.shown.token.pools))
    }

    /// Returns what the token allows; without tokens, everything.
    pub(super) fn allowed(&self) -> wire::Access {
        let token = self.admitted.as_ref().map(|admitted| &admitted.shown.token);
        let allows = |scope: &Scope| token.is_none_or(|token| token.allows(*scope));
        let pools = token.map_or_else(|| vec!["*".into()], |token| token.pools.texts());
        wire::Access {
            token: token.map(|token| token.name.as_ref().into()),
            scopes: Scope::ALL
                .iter()
                .filter(|scope| allows(scope))
                .map(|it| it.as_str().into())
                .collect(),
            pools,
            expires_at: token.and_then(|token| token.expires_at_ms()).map(UnixMs),
        }
    }

    /// Begins the request on the place of its connection. Returns `false` if the server must close
    /// the connection without a response. On a server with tokens, a request without a valid one
    /// does not keep its connection open.
    pub(super) fn begins_on(&self, place: &Place, now: Instant) -> bool {
        if self.admitted.is_none() && self.app.server.access.gate.is_some() {
            return true;
        }
        place.begin(|| self.token(), now)
    }

    fn token(&self) -> Option<CallerId> {
        let admitted = self.admitted.as_ref()?;
        Some(CallerId::Token(Arc::clone(&admitted.shown.token.name)))
    }

    /// Returns the owner of what the request takes: its token, or else its address.
    pub(super) fn owner(&self, origin: &Origin) -> CallerId {
        self.token().unwrap_or_else(|| CallerId::of_address(origin.client_ip))
    }

    /// Takes a place for an event stream.
    pub(super) fn stream_place(&self) -> Result<Held, Problem> {
        let streams = &self.app.server.streams;
        streams.admit(&self.caller(), 1).map_err(|exceeded| match exceeded {
            Exceeded::Bound => Problem::too_many_streams(streams.max()),
            Exceeded::Share => {
                let detail = format!(
                    "The event streams of {} use its share of the {} of the server. Close a \
                     stream, or try again later.",
                    self.caller_kind(),
                    streams.max()
                );
                Problem::new(Code::RateLimited, detail).retry_after_ms(1_000)
            }
        })
    }

    /// Notes how long the request has waited at servers that then lost the pool, in milliseconds.
    pub(super) fn set_waited_ms(&mut self, waited_ms: u64) {
        self.waited_ms = waited_ms;
    }

    /// Returns how long the request has waited before, in milliseconds.
    pub(super) fn waited_ms(&self) -> u64 {
        self.waited_ms
    }

    /// Returns the address of the client, if it is known.
    pub(super) fn client_ip(&self) -> Option<IpAddr> {
        self.client_ip
    }

    /// Returns the permit that a long-lived response checks repeatedly; `None` without access
    /// tokens.
    pub(super) fn stream_permit(&self) -> Option<StreamPermit> {
        let gate = Arc::clone(self.app.server.access.gate.as_ref()?);
        Some(StreamPermit::new(gate, self.admitted.as_ref()?.shown.clone()))
    }

    /// Returns the caller, which owns the shares that the request takes.
    pub(super) fn caller(&self) -> CallerId {
        caller(self.admitted.as_ref(), self.client_ip)
    }

    /// Returns what a message calls the caller.
    pub(super) fn caller_kind(&self) -> &'static str {
        if self.admitted.is_some() { "the access token" } else { "your address" }
    }
}

#[cfg(test)]
mod tests;

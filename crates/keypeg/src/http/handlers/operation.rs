//! The frequent operations: acquire, renew, release, verify, and the keep-alive of one key.
//!
//! Both paths run them here. Each path parses its request into an [`Operation`] and sends the
//! [`Payload`] that it returns; how the engine's reply becomes a payload or a problem stands here
//! only. Does not know HTTP requests or responses.

use super::gateway::authorized_lines;
use super::payload::{Payload, kept_alive, renewed_lease, verification};
use crate::clock;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::lanes::Lanes;
use crate::http::metrics::Family;
use crate::http::parse::keys::ActiveStates;
use crate::http::parse::leases::AcquireArgs;
use crate::http::verified_keys::{ActiveKey, Question};
use keypeg_client::KeyState;
use keypeg_core::{
    KeyRef, KeyView, LeaseId, LeaseView, PoolName, Refusal, ReleaseOptions, Released, Secret,
};
use keypeg_store::{Call, Idempotency, Lane, Reply, RequestError};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

/// An operation with its parsed arguments.
pub(crate) struct Operation {
    call: Call,
    idempotency: Option<Box<Idempotency>>,
    kind: OperationKind,
}

/// The kind of an operation, with what its payload needs from the request.
enum OperationKind {
    /// Since when the request may have waited for a key.
    Acquire {
        since: Option<Instant>,
    },
    Renew(PoolName),
    Release(LeaseId),
    KeepAlive,
    Verify(Verify),
}

/// A verification: the states that are active, and what the answer is kept by.
struct Verify {
    active: ActiveStates,
    question: Option<Question>,
}

impl Operation {
    /// Acquires a random available key under a lease.
    pub(crate) fn acquire(
        pool: PoolName,
        args: AcquireArgs,
        idempotency: Option<Idempotency>,
    ) -> Self {
        let call = Call::acquire(pool, args.into_terms()).into_call();
        let idempotency = idempotency.map(Box::new);
        let since = call.may_wait().then(clock::stopwatch);
        Self { call, idempotency, kind: OperationKind::Acquire { since } }
    }

    /// Renews a lease; without a TTL, for the pool's.
    pub(crate) fn renew(pool: PoolName, lease: LeaseId, ttl_ms: Option<u64>) -> Self {
        let kind = OperationKind::Renew(pool.clone());
        Self { call: Call::renew(pool, lease, ttl_ms).into_call(), idempotency: None, kind }
    }

    /// Releases a lease, optionally with a rest or a quarantine for its key.
    pub(crate) fn release(pool: PoolName, lease: LeaseId, options: ReleaseOptions) -> Self {
        let call = Call::release(pool, lease, options).into_call();
        Self { call, idempotency: None, kind: OperationKind::Release(lease) }
    }

    /// Keeps one key alive.
    pub(crate) fn keep_alive(pool: PoolName, key: KeyRef) -> Self {
        let call = Call::keep_alive(pool, key).into_call();
        Self { call, idempotency: None, kind: OperationKind::KeepAlive }
    }

    /// Verifies a key by its value.
    pub(crate) fn verify(pool: PoolName, value: Secret, active: ActiveStates) -> Self {
        let call = Call::get_key(pool, KeyRef::Value(value)).into_call();
        Self {
            call,
            idempotency: None,
            kind: OperationKind::Verify(Verify { active, question: None }),
        }
    }

    /// Returns the part of the API that the operation belongs to.
    pub(crate) fn family(&self) -> Family {
        match self.kind {
            OperationKind::Acquire { .. } | OperationKind::Renew(_) | OperationKind::Release(_) => {
                Family::Leases
            }
            OperationKind::KeepAlive => Family::Keys,
            OperationKind::Verify(_) => Family::Verify,
        }
    }

    /// Returns whether the operation can wait for a key.
    pub(crate) fn may_wait(&self) -> bool {
        self.call.may_wait()
    }

    /// Returns the pool of the operation.
    pub(crate) fn pool(&self) -> Option<&PoolName> {
        self.call.pool()
    }

    /// Returns the lane that the operation's call goes to.
    pub(crate) fn lane<'a>(&self, lanes: &'a Lanes) -> &'a Lane {
        lanes.of_call(&self.call)
    }

    /// Runs the operation. Dropping the future removes its call from the wait queue.
    ///
    /// Not an `async fn`: its future would keep room for the call beside the pending reply, on
    /// every connection of the fast path.
    pub(crate) fn run(
        self,
        context: &RequestContext<'_>,
    ) -> impl Future<Output = Result<Payload, Problem>> + Unpin {
        let Self { call, idempotency, mut kind } = self;
        let answered = match &mut kind {
            OperationKind::Verify(verify) => verify.begin(context, &call).transpose(),
            OperationKind::Acquire { .. }
            | OperationKind::Renew(_)
            | OperationKind::Release(_)
            | OperationKind::KeepAlive => None,
        };
        let mut pending = match answered {
            None => Ok(context.submit(call, idempotency)),
            answered => Err(answered),
        };
        std::future::poll_fn(move |cx| {
            if kind.may_wait()
                && let Err(problem) = context.admit_again()
            {
                // Dropped, the call leaves the wait queue, and a grant of it is revoked.
                pending = Err(None);
                return Poll::Ready(Err(kind.after_wait(problem)));
            }
            match &mut pending {
                Ok(reply) => Pin::new(reply).poll(cx).map(|reply| kind.payload(context, reply)),
                Err(answered) => {
                    let answered = answered.take();
                    Poll::Ready(answered.expect("invariant: a future is polled until it is ready"))
                }
            }
        })
    }
}

impl OperationKind {
    fn may_wait(&self) -> bool {
        self.waited().is_some()
    }

    /// Returns how long the request may have waited for a key.
    fn waited(&self) -> Option<Duration> {
        match self {
            Self::Acquire { since } => since.map(|since| since.elapsed()),
            Self::Renew(_) | Self::Release(_) | Self::KeepAlive | Self::Verify(_) => None,
        }
    }

    fn after_wait(&self, problem: Problem) -> Problem {
        problem.after_wait(self.waited().unwrap_or_default())
    }

    /// Maps the engine's reply to the payload.
    fn payload(&self, context: &RequestContext<'_>, reply: Reply) -> Result<Payload, Problem> {
        Ok(match self {
            Self::Acquire { .. } => {
                let refused = |problem| self.after_wait(Problem::of_grant(problem));
                Payload::Granted(context.answer(reply).map_err(refused)?)
            }
            Self::Renew(pool) => {
                let lease: Box<LeaseView> = context.answer(reply)?;
                Payload::Renewed(Box::new(renewed_lease(pool, *lease)))
            }
            Self::Release(lease) => {
                let Released { .. } = context.answer(reply)?;
                context.audit_lease(lease.token());
                Payload::Released
            }
            Self::KeepAlive => Payload::KeptAlive(kept_alive(context.answer(reply)?)),
            Self::Verify(Verify { active, question }) => {
                let refusal =
                    if let Reply::Refused(refusal) = &reply { Some(refusal) } else { None };
                let key = match refusal {
                    Some(RequestError::Refused(Refusal::UnknownKey)) => {
                        count_unknown_key(context);
                        None
                    }
                    // Its keep-alive deadline has passed. It is not active now, whatever a crash
                    // of a server with a full disk would do to it.
                    Some(RequestError::StorageFull) => None,
                    _ => Some(*context.answer::<Box<KeyView>>(reply)?),
                };
                if let (Some(key), Some(question)) = (&key, question) {
                    context.verified_keys().keep(*question, key, || active_key(key));
                }
                Payload::Verified(Box::new(verification(key, *active)))
            }
        })
    }
}

impl Verify {
    /// Returns the kept answer, if there is one.
    fn begin(
        &mut self,
        context: &RequestContext<'_>,
        call: &Call,
    ) -> Result<Option<Payload>, Problem> {
        check_unknown_keys(context)?;
        let Call::GetKey { pool, key: KeyRef::Value(value) } = call else { return Ok(None) };
        // Only answers for leased keys are kept.
        if !self.active.contain(KeyState::Leased) {
            return Ok(None);
        }
        match context.verified_keys().find(pool, value) {
            Ok(key) => return Ok(Some(Payload::Kept(key))),
            Err(question) => self.question = question,
        }
        Ok(None)
    }
}

/// Writes both answers for a leased key.
fn active_key(key: &KeyView) -> ActiveKey {
    let verification = verification(Some(key.clone()), ActiveStates::default());
    let json = serde_json::to_vec(&verification).expect("invariant: wire types always serialise");
    let lines = authorized_lines(&verification);
    ActiveKey { verification, json: json.into(), lines: lines.into() }
}

/// Refuses to verify a key for an address that has sent too many unknown values.
fn check_unknown_keys(context: &RequestContext<'_>) -> Result<(), Problem> {
    let Some(address) = context.client_ip() else { return Ok(()) };
    let unknown_keys = &context.server.access.unknown_keys;
    unknown_keys.check(address, clock::stopwatch()).map_err(|wait| {
        let detail = "Too many unknown keys from this address: wait, then retry. All clients of a \
                      gateway count as one address, unless the server names the gateway with \
                      --behind-proxy and the gateway sends X-Forwarded-For.";
        Problem::rate_limited(detail, wait)
    })
}

/// Counts a value that no key has.
fn count_unknown_key(context: &RequestContext<'_>) {
    if let Some(address) = context.client_ip() {
        context.server.access.unknown_keys.count(address, clock::stopwatch());
    }
}

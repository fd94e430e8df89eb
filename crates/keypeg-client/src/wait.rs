//! Acquiring with a wait that is longer than the server allows for one request.
//!
//! One Idempotency-Key covers the whole wait. Before a request's own wait ends, a repeat takes its
//! place in the wait queue, so the order of the waiters is kept; and an answer that was lost is
//! repeated, so no lease is left behind. The lease counts from the sending of the answered request.

use crate::backoff::Backoff;
use crate::error::Error;
use crate::source::ClientSource;
use crate::{AcquireRequest, Code, Grant, Seconds};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// The longest wait that a server allows for one request.
const REQUEST_WAIT_MAX: Duration = Duration::from_mins(5);
/// How long the server's answer may take after the wait has ended.
const ANSWER_SLACK: Duration = Duration::from_secs(5);
/// The pauses between attempts that failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long to wait for a key, over as many requests as that needs.
pub struct LongWait<'a> {
    /// The whole wait.
    pub total: Duration,
    /// The wait of one request; at most 300 s, the limit of the server.
    pub per_request: Duration,
    /// Returns a new, unique Idempotency-Key.
    pub new_key: &'a mut dyn FnMut() -> String,
    /// Gets each failure after which the request is repeated.
    pub on_retry: &'a mut dyn FnMut(&Error),
}

impl<'a> LongWait<'a> {
    /// Creates a wait whose requests wait for as long as the server allows.
    pub fn new(
        total: Duration,
        new_key: &'a mut dyn FnMut() -> String,
        on_retry: &'a mut dyn FnMut(&Error),
    ) -> Self {
        Self { total, per_request: REQUEST_WAIT_MAX, new_key, on_retry }
    }
}

/// A grant, and when the request that it answers was sent: the time from which the lease counts.
#[derive(Debug)]
pub struct SentGrant {
    /// The grant.
    pub grant: Grant,
    /// When the answered request was sent.
    pub sent_at: Instant,
}

impl ClientSource {
    /// Acquires a random available key; sends one request.
    pub async fn acquire(&self, pool: &str, request: &AcquireRequest) -> Result<SentGrant, Error> {
        let sent_at = Instant::now();
        let client = self.client();
        match client.acquire(pool, request).await {
            Err(error) if is_unauthorized(&error) && self.refresh(&client) => {
                let sent_at = Instant::now();
                Ok(SentGrant { grant: self.client().acquire(pool, request).await?, sent_at })
            }
            answer => Ok(SentGrant { grant: answer?, sent_at }),
        }
    }

    /// Acquires a random available key, and waits for one until `wait.total` has passed. While the
    /// server cannot be reached or accepts no requests, the request is repeated; other refusals are
    /// returned at once, also that the pool is draining. The `wait_seconds` of `request` are ignored.
    pub async fn acquire_within(
        &self,
        pool: &str,
        request: &AcquireRequest,
        wait: LongWait<'_>,
    ) -> Result<SentGrant, Error> {
        let LongWait { total, per_request, new_key, on_retry } = wait;
        let deadline = Instant::now() + total;
        let per_request = per_request.min(REQUEST_WAIT_MAX).min(total);
        let wait_seconds = u64::try_from(per_request.as_millis()).map(Seconds::from_ms).ok();
        let request = AcquireRequest { wait_seconds, ..request.clone() };
        let mut attempts = Attempts {
            source: self,
            pool,
            request: &request,
            per_request,
            deadline,
            key: new_key(),
        };
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let mut was_accepted = false;
        loop {
            let client = self.client();
            let error = match attempts.wait_once().await {
                Ok(granted) => return Ok(granted),
                Err(error) => error,
            };
            let code = error.problem().map(|problem| problem.code);
            was_accepted |= code == Some(Code::NoKeyAvailable);
            if is_unauthorized(&error) {
                if self.refresh(&client) {
                    continue;
                }
                // A token that was never accepted is a mistake; another one is being replaced.
                if !was_accepted {
                    return Err(error);
                }
            } else if matches!(code, Some(Code::LeaseEnded | Code::KeysGone)) {
                // The answer was lost, and its lease has ended since.
                attempts.key = new_key();
            } else if code == Some(Code::NoKeyAvailable) && !is_draining(&error) {
                backoff.reset();
            } else if matches!(error, Error::WaitEnded { .. }) {
                return Err(Error::WaitEnded { waited: total, last: None });
            } else if !is_temporary(&error) {
                return Err(error);
            }
            let pause = backoff.pause();
            if Instant::now() + pause >= deadline {
                return Err(Error::WaitEnded { waited: total, last: Some(Box::new(error)) });
            }
            if code != Some(Code::NoKeyAvailable) {
                on_retry(&error);
            }
            sleep(pause).await;
        }
    }
}

/// The requests of one wait, which share an Idempotency-Key and a body.
struct Attempts<'a> {
    source: &'a ClientSource,
    pool: &'a str,
    request: &'a AcquireRequest,
    per_request: Duration,
    deadline: Instant,
    key: String,
}

impl Attempts<'_> {
    /// Waits in the queue, and keeps the place there with repeats, until a request fails, for
    /// example because the server stops, or a key is granted.
    async fn wait_once(&self) -> Result<SentGrant, Error> {
        let mut sent_at = Instant::now();
        let mut waiting = Box::pin(self.send(sent_at));
        loop {
            let repeat_at = sent_at + self.per_request * 4 / 5;
            if sent_at + self.per_request >= self.deadline {
                return waiting.await;
            }
            tokio::select! {
                answer = &mut waiting => return answer,
                () = sleep_until(repeat_at) => {}
            }
            sent_at = Instant::now();
            let mut repeat = Box::pin(self.send(sent_at));
            tokio::select! {
                answer = &mut repeat => return answer,
                // An error is usual: the server gives the place to the repeat, which still waits.
                answer = &mut waiting => if answer.is_ok() { return answer },
            }
            waiting = repeat;
        }
    }

    async fn send(&self, sent_at: Instant) -> Result<SentGrant, Error> {
        let client = self.source.client().with_idempotency_key(&self.key);
        let ends_in_time = sent_at + self.per_request <= self.deadline + PAUSE.0;
        let cut = if ends_in_time { self.deadline + ANSWER_SLACK } else { self.deadline };
        let waited = self.per_request;
        let answer = timeout_at(cut, client.acquire(self.pool, self.request)).await;
        let answer = answer.unwrap_or(Err(Error::WaitEnded { waited, last: None }));
        Ok(SentGrant { grant: answer?, sent_at })
    }
}

pub(crate) fn is_unauthorized(error: &Error) -> bool {
    error.problem().is_some_and(|problem| problem.code == Code::Unauthorized)
}

/// Returns whether the pool is draining: it grants no key until an operator ends that.
fn is_draining(error: &Error) -> bool {
    let problem = error.problem();
    problem.is_some_and(|problem| problem.extensions.cause.as_deref() == Some("draining"))
}

/// Returns whether the same request can succeed later.
fn is_temporary(error: &Error) -> bool {
    match error {
        Error::Unreachable(_) => true,
        Error::Refused(problem) => {
            problem.code == Code::TakenOver || matches!(problem.status, 408 | 429 | 500 | 503)
        }
        Error::Unexpected { .. } => error.is_proxy_failure(),
        Error::WaitEnded { .. } | Error::InvalidInput(_) => false,
    }
}

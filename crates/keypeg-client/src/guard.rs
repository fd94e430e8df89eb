//! A guard of a lease: a task renews the lease well before its end, and dropping releases it.
//!
//! The guard counts the time of a lease from when it sent the request, as the contract requires. So
//! the lease ends for the guard no later than for the server.

use crate::client::Client;
use crate::error::Error;
use crate::{AcquireRequest, Code, Grant, RenewRequest, Seconds};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// The minimum pause between two attempts to renew.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// Holds a lease: a task renews it until the guard is released or dropped, or the lease cannot be
/// renewed any more. Dropping the guard starts a release in the background; if that fails, the
/// lease ends by time.
#[derive(Debug)]
pub struct LeaseGuard {
    client: Client,
    grant: Grant,
    /// The end of the lease; `None` after it has ended.
    valid_until: watch::Receiver<Option<Instant>>,
    renewal_task: JoinHandle<()>,
    released: bool,
}

impl Client {
    /// Acquires a random available key, and renews the lease until the guard is dropped or the
    /// maximum hold of the pool is reached. Must be called on a tokio runtime.
    pub async fn acquire_guard(
        &self,
        pool: &str,
        request: &AcquireRequest,
    ) -> Result<LeaseGuard, Error> {
        LeaseGuard::acquire(self.clone(), pool, request).await
    }
}

impl LeaseGuard {
    async fn acquire(client: Client, pool: &str, request: &AcquireRequest) -> Result<Self, Error> {
        let sent_at = Instant::now();
        let grant = client.acquire(pool, request).await?;
        let end = sent_at + duration(grant.waited_seconds) + duration(grant.expires_in_seconds);
        let (end_sender, valid_until) = watch::channel(Some(end));
        let renewal = Renewal {
            client: client.clone(),
            pool: grant.pool.clone(),
            lease: grant.id.clone(),
            request: RenewRequest { ttl_seconds: request.ttl_seconds },
            end_sender,
        };
        let renewal_task = tokio::spawn(renewal.run(end));
        Ok(Self { client, grant, valid_until, renewal_task, released: false })
    }

    /// Returns the grant, with the value of the key. Its times are not updated by renewals.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Returns until when the key may be used, as currently known; `None` after the lease has
    /// ended.
    pub fn valid_until(&self) -> Option<Instant> {
        self.valid_until.borrow().filter(|end| *end > Instant::now())
    }

    /// Waits until the lease ends, by time or by a request.
    pub async fn ended(&self) {
        let mut valid_until = self.valid_until.clone();
        // An error means that the task has stopped: it renews no more, so the lease has ended.
        let _ = valid_until.wait_for(Option::is_none).await;
    }

    /// Releases the lease. The error [`Code::LeaseEnded`] means that it had already ended.
    pub async fn release(mut self) -> Result<(), Error> {
        self.renewal_task.abort();
        let released = self.client.release(&self.grant.pool, &self.grant.id).await;
        self.released = true;
        released
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewal_task.abort();
        if self.released {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, pool, lease) =
            (self.client.clone(), self.grant.pool.clone(), self.grant.id.clone());
        runtime.spawn(async move {
            // There is no caller to report an error to; the lease ends by time.
            let _ = client.release(&pool, &lease).await;
        });
    }
}

/// The task of a guard.
struct Renewal {
    client: Client,
    pool: String,
    lease: String,
    request: RenewRequest,
    end_sender: watch::Sender<Option<Instant>>,
}

impl Renewal {
    async fn run(self, mut end: Instant) {
        let mut pause = (end - Instant::now()) / 2;
        loop {
            sleep_until((Instant::now() + pause).min(end)).await;
            let sent_at = Instant::now();
            if sent_at >= end {
                break;
            }
            let renewal = self.client.renew(&self.pool, &self.lease, &self.request);
            match tokio::time::timeout_at(end, renewal).await {
                Ok(Ok(lease)) => {
                    end = sent_at + duration(lease.expires_in_seconds);
                    self.end_sender.send_replace(Some(end));
                    pause = (end - sent_at) / 2;
                }
                Ok(Err(error)) if has_ended(&error) => break,
                Ok(Err(error)) if is_max_hold(&error) => {
                    sleep_until(end).await;
                    break;
                }
                // No answer or a temporary refusal: retry, more often as the end comes closer.
                Ok(Err(_)) => pause = ((end - sent_at) / 8).max(RETRY_MIN),
                Err(_) => break,
            }
        }
        self.end_sender.send_replace(None);
    }
}

fn duration(seconds: Seconds) -> Duration {
    Duration::from_millis(seconds.ms)
}

fn has_ended(error: &Error) -> bool {
    let code = error.problem().map(|problem| problem.code);
    matches!(code, Some(Code::LeaseEnded | Code::UnknownPool))
}

fn is_max_hold(error: &Error) -> bool {
    error.problem().is_some_and(|problem| problem.code == Code::MaxHoldReached)
}

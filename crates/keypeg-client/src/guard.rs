//! A lease that is kept: renewed well within its time, given back at the end.
//!
//! Its time is counted as the contract says: from when the request was sent, so that the guard
//! believes the lease over no later than the server does.

use crate::{AcquireRequest, Client, Code, Error, Grant, RenewRequest, Seconds};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// The shortest pause between two tries to renew.
const RETRY_MIN: Duration = Duration::from_millis(10);

/// Holds a key: a task renews the lease until the guard is released or dropped, or the lease can
/// be kept no longer. Dropping gives the key back as well as that goes without waiting; what
/// fails then is left to the lease's own end.
#[derive(Debug)]
pub struct LeaseGuard {
    client: Client,
    grant: Grant,
    until: watch::Receiver<Option<Instant>>,
    renewing: JoinHandle<()>,
    released: bool,
}

impl LeaseGuard {
    pub(crate) async fn acquire(
        client: Client,
        pool: &str,
        request: &AcquireRequest,
    ) -> Result<Self, Error> {
        let sent = Instant::now();
        let grant = client.acquire(pool, request).await?;
        let end = sent + length(grant.waited_seconds) + length(grant.expires_in_seconds);
        let (told, until) = watch::channel(Some(end));
        let renewal = Renewal {
            client: client.clone(),
            pool: grant.pool.clone(),
            lease: grant.id.clone(),
            request: RenewRequest { ttl_seconds: request.ttl_seconds },
            told,
        };
        let renewing = tokio::spawn(renewal.run(end));
        Ok(Self { client, grant, until, renewing, released: false })
    }

    /// What was granted, the key's value included. Its times are those of the grant.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Until when the key may be used, as far as is known now; `None` when the lease is over.
    pub fn until(&self) -> Option<Instant> {
        self.until.borrow().filter(|end| *end > Instant::now())
    }

    /// Waits until the lease is over: its time ran out, or somebody ended it.
    pub async fn ended(&self) {
        let mut until = self.until.clone();
        // A task that is gone renews no more, so what it told last is the end.
        let _ = until.wait_for(Option::is_none).await;
    }

    /// Gives the key back. An error of [`Code::LeaseEnded`] says that the lease was over before.
    pub async fn release(mut self) -> Result<(), Error> {
        self.renewing.abort();
        let released = self.client.release(&self.grant.pool, &self.grant.id).await;
        self.released = true;
        released
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.released {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, pool, lease) =
            (self.client.clone(), self.grant.pool.clone(), self.grant.id.clone());
        runtime.spawn(async move {
            // Nobody is left to tell; the lease ends by itself.
            let _ = client.release(&pool, &lease).await;
        });
    }
}

/// What the task of a guard does.
struct Renewal {
    client: Client,
    pool: String,
    lease: String,
    request: RenewRequest,
    told: watch::Sender<Option<Instant>>,
}

impl Renewal {
    async fn run(self, mut end: Instant) {
        let mut pause = (end - Instant::now()) / 2;
        loop {
            sleep_until((Instant::now() + pause).min(end)).await;
            let sent = Instant::now();
            if sent >= end {
                break;
            }
            let asked = self.client.renew(&self.pool, &self.lease, &self.request);
            match tokio::time::timeout_at(end, asked).await {
                Ok(Ok(lease)) => {
                    end = sent + length(lease.expires_in_seconds);
                    self.told.send_replace(Some(end));
                    pause = (end - sent) / 2;
                }
                Ok(Err(error)) if is_over(&error) => break,
                Ok(Err(error)) if is_longest(&error) => {
                    sleep_until(end).await;
                    break;
                }
                // No answer, or not now: again, ever sooner as the end comes near.
                Ok(Err(_)) => pause = ((end - sent) / 8).max(RETRY_MIN),
                Err(_) => break,
            }
        }
        self.told.send_replace(None);
    }
}

fn length(seconds: Seconds) -> Duration {
    Duration::from_millis(seconds.ms)
}

fn is_over(error: &Error) -> bool {
    let code = error.problem().map(|problem| problem.code);
    matches!(code, Some(Code::LeaseEnded | Code::UnknownPool))
}

fn is_longest(error: &Error) -> bool {
    error.problem().is_some_and(|problem| problem.code == Code::MaxHoldReached)
}

//! A guard of a lease: a task renews the lease well before its end, and dropping releases it.
//!
//! The guard counts the time of a lease from when it sent the request, as the contract requires. So
//! the lease ends for the guard no later than for the server. What the server answers to a renewal,
//! and what an event means, is in `lease_end`.

use crate::client::Client;
use crate::error::Error;
use crate::follow::{Stream, follow};
use crate::lease_end::LeaseEnd;
use crate::renewal::{Renewal, Term, duration};
use crate::source::ClientSource;
use crate::wait::SentGrant;
use crate::{AcquireRequest, Code, Grant, ReleaseRequest, RenewRequest, Seconds};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Options of a guard.
#[derive(Clone, Debug, Default)]
pub struct GuardOptions {
    /// The lease TTL of each renewal. Default: `lease_ttl_seconds` of the pool.
    pub ttl_seconds: Option<Seconds>,
    /// Whether the guard follows the pool's events, to learn at once that its lease or key is gone.
    /// While it cannot, for example because the token does not allow it, it renews the lease at
    /// least every 800 ms.
    pub follow_events: bool,
}

/// Holds a lease: a task renews it until the guard is released or dropped, or the lease cannot be
/// renewed any more. Dropping the guard starts a release in the background; if that fails, the
/// lease ends by time.
#[derive(Debug)]
pub struct LeaseGuard {
    source: ClientSource,
    grant: Grant,
    term: watch::Receiver<Term>,
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
        let sent_at = Instant::now();
        let grant = self.acquire(pool, request).await?;
        let options = GuardOptions { ttl_seconds: request.ttl_seconds, ..GuardOptions::default() };
        let sent = SentGrant { grant, sent_at };
        Ok(LeaseGuard::new(ClientSource::fixed(self.clone()), sent, &options))
    }
}

impl LeaseGuard {
    /// Guards a lease that was just acquired. Must be called on a tokio runtime.
    pub fn new(source: ClientSource, granted: SentGrant, options: &GuardOptions) -> Self {
        let SentGrant { grant, sent_at } = granted;
        let end = sent_at + duration(grant.waited_seconds) + duration(grant.expires_in_seconds);
        let (term_sender, term) = watch::channel(Term::Until { end, failure: None });
        let (stream_sender, stream) = watch::channel(Stream::default());
        let renewal = Renewal {
            source: source.clone(),
            pool: grant.pool.clone(),
            lease: grant.id.clone(),
            request: RenewRequest { ttl_seconds: options.ttl_seconds },
            stream: options.follow_events.then_some(stream),
        };
        let (events_of, held, is_following) =
            (source.clone(), grant.clone(), options.follow_events);
        let renewal_task = tokio::spawn(async move {
            let followed = async {
                if !is_following {
                    std::future::pending::<()>().await;
                }
                follow(&events_of, &held, &stream_sender).await
            };
            let cause = tokio::select! {
                cause = renewal.run(end, &term_sender) => cause,
                cause = followed => cause,
            };
            term_sender.send_replace(Term::Ended(cause));
        });
        Self { source, grant, term, renewal_task, released: false }
    }

    /// Returns the grant, with the value of the key. Its times are not updated by renewals.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Returns until when the key may be used, as currently known; `None` after the lease has
    /// ended.
    pub fn valid_until(&self) -> Option<Instant> {
        match &*self.term.borrow() {
            Term::Until { end, .. } => Some(*end).filter(|end| *end > Instant::now()),
            Term::Ended(_) => None,
        }
    }

    /// Waits until the lease ends, by time or by a request; returns why.
    pub async fn ended(&self) -> LeaseEnd {
        let mut term = self.term.clone();
        let ended = term.wait_for(|term| matches!(term, Term::Ended(_))).await;
        match ended.as_deref() {
            Ok(Term::Ended(cause)) => cause.clone(),
            // An error means that the task has stopped: it renews no more.
            Ok(Term::Until { .. }) | Err(_) => LeaseEnd::NotRenewed(None),
        }
    }

    /// Waits until the lease ends within `lead`, because no renewal has moved its end, or has ended;
    /// returns why. For a holder that needs this time to stop its work.
    pub async fn ends_within(&self, lead: Duration) -> LeaseEnd {
        let mut term = self.term.clone();
        loop {
            let (end, failure) = match &*term.borrow_and_update() {
                Term::Until { end, failure } => (*end, failure.clone()),
                Term::Ended(cause) => return cause.clone(),
            };
            let failure = failure.unwrap_or(LeaseEnd::NotRenewed(None));
            tokio::select! {
                () = sleep_until(end.checked_sub(lead).unwrap_or(end)) => return failure,
                changed = term.changed() => if changed.is_err() { return failure },
            }
        }
    }

    /// Waits until the end of the lease differs from `known`, and returns it; never returns after
    /// the lease has ended.
    pub async fn next_end(&self, known: Option<Instant>) -> Instant {
        let mut term = self.term.clone();
        let is_other = |term: &Term| matches!(term, Term::Until { end, .. } if Some(*end) != known);
        match term.wait_for(is_other).await.as_deref() {
            Ok(Term::Until { end, .. }) => *end,
            Ok(Term::Ended(_)) | Err(_) => std::future::pending().await,
        }
    }

    /// Releases the lease. The error [`Code::LeaseEnded`] means that it had already ended.
    pub async fn release(mut self) -> Result<(), Error> {
        let released = self.release_with(&ReleaseRequest::default()).await;
        self.released = true;
        released
    }

    /// Stops renewing the lease, and does not release it: it ends by time.
    pub fn leave_to_expire(&mut self) {
        self.renewal_task.abort();
        self.released = true;
    }

    /// Stops renewing the lease, and sends one release with a rest, a quarantine or a reason. After
    /// an error other than [`Code::LeaseEnded`] it can be called again.
    pub async fn release_with(&mut self, request: &ReleaseRequest) -> Result<(), Error> {
        self.renewal_task.abort();
        let client = self.source.client();
        let released = client.release_with(&self.grant.pool, &self.grant.id, request).await;
        let code = |error: &Error| error.problem().map(|problem| problem.code);
        self.released =
            released.as_ref().map_or_else(|error| code(error) == Some(Code::LeaseEnded), |()| true);
        if released.as_ref().is_err_and(|error| code(error) == Some(Code::Unauthorized)) {
            self.source.refresh(&client);
        }
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
            (self.source.client(), self.grant.pool.clone(), self.grant.id.clone());
        runtime.spawn(async move {
            // There is no caller to report an error to; the lease ends by time.
            let _ = client.release(&pool, &lease).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, UnixMs};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    /// A release without an answer may have released: a later renewal would only be refused.
    #[tokio::test]
    async fn a_release_stops_the_renewals_also_if_no_answer_arrives() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let grant = Grant {
            id: "l".into(),
            pool: "p".into(),
            key_id: "k".into(),
            key: Secret("a value".into()),
            fencing_token: 1,
            holder: None,
            label: None,
            granted_at: UnixMs(0),
            waited_seconds: Seconds { ms: 0 },
            expires_at: UnixMs(0),
            expires_in_seconds: Seconds { ms: 3_600_000 },
            key_expires_at: None,
        };
        let source = ClientSource::fixed(Client::new(&url).unwrap());
        let granted = SentGrant { grant, sent_at: Instant::now() };
        let mut guard = LeaseGuard::new(source, granted, &GuardOptions::default());
        let close = async move { drop(listener.accept().await.unwrap()) };
        let request = ReleaseRequest::default();
        let (released, ()) = tokio::join!(guard.release_with(&request), close);
        assert!(matches!(released, Err(Error::Unreachable(_))), "{released:?}");
        let renewals = timeout(Duration::from_mins(1), &mut guard.renewal_task).await;
        assert!(renewals.expect("they stop").unwrap_err().is_cancelled());
    }
}

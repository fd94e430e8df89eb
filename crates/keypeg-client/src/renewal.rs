//! The renewals of a guard: when they are sent, and what their answers mean.
//!
//! An answer extends the lease from when its request was sent. A renewal that is not answered is
//! repeated on another connection long before the lease ends; one that is refused is repeated with
//! growing pauses. The task ends with the lease, to the millisecond, whatever is in flight.

use crate::backoff::Backoff;
use crate::client::Client;
use crate::error::Error;
use crate::follow::Stream;
use crate::lease_end::LeaseEnd;
use crate::source::ClientSource;
use crate::wait::is_unauthorized;
use crate::{Code, Lease, RenewRequest, Seconds};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The time between renewals while the events of the pool cannot be followed.
const CHECK_EVERY: Duration = Duration::from_millis(800);
/// The minimum pause between two attempts to renew.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// The range of the maximum pause between two attempts to renew.
const RETRY_MAX: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The number of renewals without an answer, each on a connection of its own.
const ATTEMPTS_MAX: usize = 4;
/// The range of the time after which a renewal without an answer is repeated.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// The present knowledge of a lease.
#[derive(Clone, Debug)]
pub(crate) enum Term {
    /// The lease runs until `end`, unless it is renewed or ended by a request.
    Until {
        /// The end, as far as an answer has confirmed it.
        end: Instant,
        /// Why the last renewal did not move the end.
        failure: Option<LeaseEnd>,
    },
    /// The lease has ended.
    Ended(LeaseEnd),
}

/// The task of a guard.
pub(crate) struct Renewal {
    pub(crate) source: ClientSource,
    pub(crate) pool: String,
    pub(crate) lease: String,
    pub(crate) request: RenewRequest,
    /// The state of the event stream; `None` if no events are to be followed.
    pub(crate) stream: Option<watch::Receiver<Stream>>,
}

/// A renewal that was sent: when, by which client, and its answer.
struct Answered {
    sent_at: Instant,
    client: Client,
    answer: Result<Lease, Error>,
}

impl Renewal {
    /// Renews the lease that ends at `end`, and reports each new end; returns why it has ended.
    pub(crate) async fn run(mut self, mut end: Instant, term: &watch::Sender<Term>) -> LeaseEnd {
        let mut length = end - Instant::now();
        let mut backoff = retries(length);
        let mut failure = None;
        let mut attempts = JoinSet::new();
        let mut next = Instant::now() + self.pause(length);
        loop {
            let answered = tokio::select! {
                () = sleep_until(next.min(end)) => None,
                () = changed(&mut self.stream) => None,
                Some(joined) = attempts.join_next() => match joined {
                    Ok(answered) => Some(answered),
                    // An attempt that the last answer made needless. No answer waits behind it.
                    Err(_) => continue,
                },
            };
            let now = Instant::now();
            if now >= end {
                return failure.unwrap_or(LeaseEnd::NotRenewed(None));
            }
            let Some(Answered { sent_at, client, answer }) = answered else {
                // An earlier attempt may still be answered. It must not be waited for alone.
                if attempts.len() < ATTEMPTS_MAX {
                    attempts.spawn(self.attempt());
                }
                next = now + (length / 8).clamp(ATTEMPT.0, ATTEMPT.1);
                continue;
            };
            match answer {
                Ok(lease) => {
                    attempts.abort_all();
                    length = duration(lease.expires_in_seconds);
                    // An earlier renewal whose answer was lost can have moved it further.
                    end = end.max(sent_at + length);
                    (next, backoff, failure) = (now + self.pause(length), retries(length), None);
                }
                Err(error) => {
                    if let Some(cause) = LeaseEnd::of_refusal(&error) {
                        return cause;
                    }
                    if is_max_hold_reached(&error) {
                        failure = Some(LeaseEnd::MaxHold);
                        next = now + self.pause(end - now).max(RETRY_MIN);
                    } else {
                        let is_new_token = is_unauthorized(&error) && self.source.refresh(&client);
                        next = now + if is_new_token { Duration::ZERO } else { backoff.pause() };
                        failure = Some(LeaseEnd::NotRenewed(Some(words(&error))));
                    }
                }
            }
            term.send_replace(Term::Until { end, failure: failure.clone() });
        }
    }

    /// Sends one renewal.
    fn attempt(&self) -> impl Future<Output = Answered> + Send + 'static {
        let (client, pool, lease) = (self.source.client(), self.pool.clone(), self.lease.clone());
        let request = self.request.clone();
        async move {
            let sent_at = Instant::now();
            let answer = client.renew(&pool, &lease, &request).await;
            Answered { sent_at, client, answer }
        }
    }

    /// Returns the time until the next renewal of a lease with this length.
    fn pause(&self, length: Duration) -> Duration {
        let is_checked_by_renewals =
            self.stream.as_ref().is_some_and(|stream| !stream.borrow().is_connected);
        if is_checked_by_renewals { CHECK_EVERY.min(length / 2) } else { length / 2 }
    }
}

/// Waits until the event stream needs a renewal: its state changed, so events may have been missed.
async fn changed(stream: &mut Option<watch::Receiver<Stream>>) {
    if let Some(stream) = stream
        && stream.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn retries(length: Duration) -> Backoff {
    Backoff::new(RETRY_MAX.0, (length / 16).clamp(RETRY_MAX.0, RETRY_MAX.1))
}

fn is_max_hold_reached(error: &Error) -> bool {
    error.problem().is_some_and(|problem| problem.code == Code::MaxHoldReached)
}

/// Returns the error in words, with the status and the code of a refusal.
fn words(error: &Error) -> String {
    error.problem().map_or_else(
        || error.to_string(),
        |problem| format!("{error} (status {}, {})", problem.status, problem.code.as_str()),
    )
}

pub(crate) fn duration(seconds: Seconds) -> Duration {
    Duration::from_millis(seconds.ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UnixMs;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;
    use tokio::time::timeout;

    /// Reads one request and answers it with a lease of this length, later than it arrives; returns
    /// when it has arrived.
    async fn lend_again(connection: &mut TcpStream, length: Duration) -> Instant {
        let lease = Lease {
            id: "l".into(),
            pool: "p".into(),
            key_id: "k".into(),
            fencing_token: 1,
            holder: None,
            label: None,
            granted_at: UnixMs(0),
            expires_at: UnixMs(0),
            expires_in_seconds: Seconds::from_ms(u64::try_from(length.as_millis()).unwrap()),
            key_expires_at: None,
        };
        let body = serde_json::to_string(&lease).unwrap();
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(connection.read_buf(&mut request).await.unwrap() > 0);
        }
        let received = Instant::now();
        while Instant::now() <= received {
            yield_now().await;
        }
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        connection.write_all(answer.as_bytes()).await.unwrap();
        received
    }

    /// Regression: if a server accepted connections but answered no request, the guard sent a further
    /// renewal at each event.
    #[tokio::test]
    async fn renewals_without_an_answer_are_limited_and_end_with_the_lease() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changes, stream) = watch::channel(Stream::default());
        let renewal = Renewal {
            source: ClientSource::fixed(Client::new(&url).unwrap()),
            pool: "p".into(),
            lease: "l".into(),
            request: RenewRequest::default(),
            stream: Some(stream),
        };
        let end = Instant::now() + Duration::from_secs(5);
        let (term, _) = watch::channel(Term::Until { end, failure: None });
        let mut run = pin!(renewal.run(end, &term));
        let mut connections = Vec::new();
        // Each change of the event stream makes a renewal due.
        for _ in 0..ATTEMPTS_MAX {
            changes.send_replace(Stream::default());
            tokio::select! {
                ended = &mut run => panic!("{ended:?}"),
                accepted = listener.accept() => connections.push(accepted.unwrap()),
            }
        }
        for _ in 0..100 {
            changes.send_replace(Stream::default());
            for _ in 0..10 {
                tokio::select! {
                    biased;
                    ended = &mut run => panic!("{ended:?}"),
                    accepted = listener.accept() => connections.push(accepted.unwrap()),
                    () = yield_now() => {}
                }
            }
        }
        assert_eq!(connections.len(), ATTEMPTS_MAX);
        let ended = timeout(Duration::from_mins(1), run).await.expect("it ends with the lease");
        assert!(matches!(ended, LeaseEnd::NotRenewed(None)), "{ended:?}");
    }

    /// Regression: after a renewal that needed several attempts, the answer of a later renewal was
    /// read only at the repetition of that renewal, once for each attempt that was no longer needed.
    /// Near the end of a lease on a slow server that was too late.
    #[tokio::test]
    async fn attempts_that_are_not_needed_do_not_delay_a_later_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changes, stream) = watch::channel(Stream::default());
        let renewal = Renewal {
            source: ClientSource::fixed(Client::new(&url).unwrap()),
            pool: "p".into(),
            lease: "l".into(),
            request: RenewRequest::default(),
            stream: Some(stream),
        };
        let end = Instant::now() + Duration::from_hours(1);
        let (term, mut terms) = watch::channel(Term::Until { end, failure: None });
        let answered = async {
            let mut connections = Vec::new();
            for _ in 1..ATTEMPTS_MAX {
                changes.send_replace(Stream::default());
                connections.push(listener.accept().await.unwrap());
            }
            for _ in 0..2 {
                changes.send_replace(Stream::default());
                let (mut connection, _) = listener.accept().await.unwrap();
                lend_again(&mut connection, Duration::from_hours(2)).await;
                tokio::select! {
                    biased;
                    seen = terms.changed() => seen.unwrap(),
                    _ = listener.accept() => panic!("renewed again before the answer was read"),
                }
            }
        };
        tokio::select! {
            ended = renewal.run(end, &term) => panic!("{ended:?}"),
            answered = timeout(Duration::from_mins(1), answered) => answered.expect("an answer"),
        }
    }

    /// The server counts the lease from its answer, which the client cannot know: an end counted from
    /// the arrival would be later than that of the server.
    #[tokio::test]
    async fn a_renewal_extends_the_lease_from_when_it_was_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changes, stream) = watch::channel(Stream::default());
        let renewal = Renewal {
            source: ClientSource::fixed(Client::new(&url).unwrap()),
            pool: "p".into(),
            lease: "l".into(),
            request: RenewRequest::default(),
            stream: Some(stream),
        };
        let before = Instant::now() + Duration::from_mins(10);
        let (term, mut terms) = watch::channel(Term::Until { end: before, failure: None });
        let length = Duration::from_hours(1);
        let answered = async {
            // The change makes a renewal due.
            changes.send_replace(Stream::default());
            let (mut connection, _) = listener.accept().await.unwrap();
            let received = lend_again(&mut connection, length).await;
            terms.changed().await.unwrap();
            let Term::Until { end, .. } = terms.borrow().clone() else { panic!("it runs") };
            (received, end, connection)
        };
        let (received, end, _) = tokio::select! {
            ended = renewal.run(before, &term) => panic!("{ended:?}"),
            answered = timeout(Duration::from_mins(1), answered) => answered.expect("an answer"),
        };
        assert!(end > before, "it is renewed");
        assert!(end <= received + length, "counted from the answer");
    }

    /// A renewal never shortens a lease. An earlier one whose answer was lost can have moved the end
    /// further.
    #[tokio::test]
    async fn an_answer_moves_the_end_forward_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (changes, stream) = watch::channel(Stream::default());
        let renewal = Renewal {
            source: ClientSource::fixed(Client::new(&url).unwrap()),
            pool: "p".into(),
            lease: "l".into(),
            request: RenewRequest::default(),
            stream: Some(stream),
        };
        let before = Instant::now() + Duration::from_hours(1);
        let (term, mut terms) = watch::channel(Term::Until { end: before, failure: None });
        let answered = async {
            changes.send_replace(Stream::default());
            let (mut connection, _) = listener.accept().await.unwrap();
            lend_again(&mut connection, Duration::from_mins(10)).await;
            terms.changed().await.unwrap();
            let Term::Until { end, .. } = terms.borrow().clone() else { panic!("it runs") };
            end
        };
        let end = tokio::select! {
            ended = renewal.run(before, &term) => panic!("{ended:?}"),
            answered = timeout(Duration::from_mins(1), answered) => answered.expect("an answer"),
        };
        assert_eq!(end, before);
    }
}

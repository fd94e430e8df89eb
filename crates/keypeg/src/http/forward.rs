//! Requests whose pool another server serves: sent there once, and the answer streamed back.
//!
//! Where a pool is served is a hint, and the server that is asked decides. What surely was not
//! applied is tried elsewhere for a while; what may have been applied is never sent again, except by
//! its client under an Idempotency-Key. A forwarded request is not forwarded again. Admission is
//! made on both servers, and the owner writes the audit log. Knows neither handlers nor the router.

mod headers;
mod link;
mod link_places;

pub(crate) use headers::{Forwarded, mark_refused, mark_shards};
pub(crate) use link::{Links, PeerFaults};
pub(crate) use link_places::LinkPlaces;

use super::all_pools::ListedShards;
use super::app::App;
use super::connection::request_peer::RequestPeer;
use super::error::Problem;
use super::forwarded_answer::{ForwardedAnswer, StreamWatch};
use super::kept_body::{KeptBody, Reader};
use super::message::{Body, Response};
use super::metrics::ForwardOutcome;
use super::origin::Origin;
use super::parse::path::shard_number;
use crate::clock;
use crate::tls::ClientCertificate;
use headers::{Answered, Forwarding};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE};
use hyper::http::{request, response};
use hyper::{Method, Version};
use keypeg_client::routes;
use keypeg_core::PoolName;
use keypeg_store::{Cluster, Peer, Place, WAIT_MAX_MS};
use link::{Link, SendError};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::time::{interval, sleep, timeout};

/// How long this server looks for the server of a pool.
pub(crate) const SEARCH_TIME: Duration = Duration::from_secs(10);
/// The pauses between two attempts: the first one, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(500)];
/// An attempt that took longer than this has reached a server of the pool, so the search begins
/// again.
const SERVED_TIME: Duration = Duration::from_secs(1);
/// How often a request that waits for its answer looks whether the pool is still served there.
const LOOK_TIME: Duration = Duration::from_millis(500);
/// How soon a request of a client that has left is looked at again, if it is not sent yet.
const RECHECK_TIME: Duration = Duration::from_millis(5);
/// How long the former server of a pool still has to answer.
const FORMER_TIME: Duration = Duration::from_secs(2);
/// The longest time until the head of an answer arrives.
const ANSWER_TIME: Duration = Duration::from_millis(WAIT_MAX_MS + 30_000);
/// The largest answer that is read as a whole before the client gets any of it, in bytes.
const WHOLE_MAX: u64 = 16 << 10;

/// Returns the shard that a request concerns, by its pool or by its number; `None` if every server
/// answers it alike.
pub(super) fn shard_of(cluster: &dyn Cluster, method: &Method, path: &str) -> Option<usize> {
    let route = routes::find(method.as_str(), path)?;
    if let Some(shard) = route.shard_of(path) {
        return shard_number(shard, cluster.shards());
    }
    let pool = PoolName::parse(route.pool_of(path)?)?;
    Some(cluster.shard_of(&pool))
}

/// A request that another server may have to answer.
pub(super) struct Outbound<'a> {
    pub(super) app: &'a App,
    pub(super) cluster: &'a Arc<dyn Cluster>,
    pub(super) shard: usize,
    pub(super) head: &'a request::Parts,
    pub(super) body: &'a Arc<KeptBody>,
    pub(super) peer: &'a RequestPeer,
    pub(super) origin: &'a Origin,
    pub(super) certificate: Option<&'a ClientCertificate>,
}

/// How an attempt to get an answer ended.
pub(super) enum Attempt {
    Answered(Response),
    /// The request was surely not applied, and another server may handle it.
    NotThere,
    /// The request may have been applied.
    Lost,
    /// The client has left, and its request waits no more.
    Abandoned,
    /// This server stops, and the request waits no more. It may have been applied.
    Stopped,
}

/// The search for the server of a pool.
pub(super) struct Search {
    began: Instant,
    since: Instant,
    pause: Duration,
    attempts: u32,
}

impl Search {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, since: now, pause: PAUSES[0], attempts: 0 }
    }

    /// Notes the begin of an attempt. Returns how long the request has waited, in milliseconds; 0
    /// for the first attempt.
    pub(super) fn begin(&mut self, now: Instant) -> u64 {
        self.attempts += 1;
        if self.attempts == 1 {
            return 0;
        }
        let waited = now.saturating_duration_since(self.began);
        u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes the end of an attempt that began at `began`. Returns how long to pause before the next
    /// one; `None` at the end of the search.
    pub(super) fn next(&mut self, began: Instant, now: Instant) -> Option<Duration> {
        if now.saturating_duration_since(began) > SERVED_TIME {
            (self.since, self.pause) = (now, PAUSES[0]);
        }
        if now.saturating_duration_since(self.since) >= SEARCH_TIME {
            return None;
        }
        let pause = self.pause;
        self.pause = (2 * pause).min(PAUSES[1]);
        Some(pause)
    }
}

impl Attempt {
    fn outcome(&self) -> ForwardOutcome {
        match self {
            Self::Answered(_) => ForwardOutcome::Answered,
            Self::NotThere => ForwardOutcome::NotThere,
            Self::Lost | Self::Stopped => ForwardOutcome::Lost,
            Self::Abandoned => ForwardOutcome::Abandoned,
        }
    }
}

impl Outbound<'_> {
    /// Sends the request to the server `to`, and counts how that ended.
    pub(super) async fn send(&self, to: &Peer, body: Reader, waited_ms: u64) -> Attempt {
        let attempt = self.attempt(to, body, waited_ms).await;
        self.app.counts.forwarded(attempt.outcome());
        attempt
    }

    async fn attempt(&self, to: &Peer, body: Reader, waited_ms: u64) -> Attempt {
        let links = &self.app.links;
        let Ok(mut link) = links.link(&to.address).await else { return Attempt::NotThere };
        let answered = timeout(ANSWER_TIME, self.answer(&mut link, to, body, waited_ms)).await;
        let (mut head, incoming) = match answered {
            Ok(Ok(answer)) => answer.into_parts(),
            Ok(Err(SendError::NotSent)) => return Attempt::NotThere,
            Ok(Err(SendError::Abandoned)) => return Attempt::Abandoned,
            Ok(Err(SendError::Stopped)) => return Attempt::Stopped,
            Ok(Err(SendError::Lost)) | Err(_) => return self.lost(),
        };
        let Answered { is_refused, shards } = Answered::take(&mut head.headers);
        if is_refused {
            return Attempt::NotThere;
        }
        if !shards.is_empty() {
            head.extensions.insert(ListedShards(shards));
        }
        let is_head = self.head.method == Method::HEAD;
        match incoming.size_hint().exact() {
            Some(len) if is_head || len <= WHOLE_MAX => {
                let Ok(whole) = timeout(ANSWER_TIME, incoming.collect()).await else {
                    return self.lost();
                };
                let Ok(whole) = whole else { return self.lost() };
                links.keep(to.address.clone(), link);
                Attempt::Answered(Response::from_parts(head, whole.to_bytes().into()))
            }
            _ => Attempt::Answered(self.stream(head, incoming, link, to)),
        }
    }

    /// A read can be sent again.
    fn lost(&self) -> Attempt {
        let route = routes::find(self.head.method.as_str(), self.head.uri.path());
        let is_read = matches!(self.head.method, Method::GET | Method::HEAD);
        // Some routes of the older APIs lend a key by GET.
        if is_read && !route.is_some_and(routes::Route::lends) {
            return Attempt::NotThere;
        }
        Attempt::Lost
    }

    /// Waits for the head of the answer.
    async fn answer(
        &self,
        link: &mut Link,
        to: &Peer,
        body: Reader,
        waited_ms: u64,
    ) -> Result<hyper::Response<Incoming>, SendError> {
        let mut request = hyper::Request::new(body);
        *request.method_mut() = self.head.method.clone();
        *request.version_mut() = Version::HTTP_11;
        let target = self.head.uri.path_and_query().cloned();
        *request.uri_mut() = target.map_or_else(Default::default, Into::into);
        let host = self.head.uri.authority().map_or(to.address.as_str(), |host| host.as_str());
        let forwarding = Forwarding {
            secret: self.cluster.peer_secret(),
            origin: self.origin,
            certificate: self.certificate,
            waited_ms,
            host: host.split_once("://").map_or(host, |(_, host)| host),
        };
        *request.headers_mut() = forwarding.headers(&self.head.headers);
        let is_move = self.moves_the_shard();
        let closing = link.closing();
        let mut sending = pin!(link.send(request));
        let mut looks = interval(LOOK_TIME);
        let (mut moved_at, mut closed) = (None, None);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(answered) = sending.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            // Before that, what arrives is the request's body.
            if closed.is_none() && self.body.was_read() && self.peer.poll_closed(cx).is_ready() {
                // Hyper sends the request after the first poll, so a later look finds it sent.
                if closing.is_flushed() {
                    closing.close_sending();
                    closed = Some(SendError::Abandoned);
                } else {
                    looks.reset_after(RECHECK_TIME);
                }
            }
            while let Poll::Ready(now) = looks.poll_tick(cx) {
                // A request that waits would outlast this server. Any other one gets its answer.
                if closed.is_none() && self.is_stopping() && closing.is_flushed() {
                    closing.close_sending();
                    closed = Some(SendError::Stopped);
                }
                if is_move || self.is_served_by(to) {
                    moved_at = None;
                } else if *moved_at.get_or_insert(now) + FORMER_TIME <= now {
                    return Poll::Ready(Err(SendError::Lost));
                }
            }
            Poll::Pending
        })
        .await
        .map_err(|error| closed.unwrap_or(error))
    }

    /// Returns whether this server stops, and the request has arrived with its whole body.
    fn is_stopping(&self) -> bool {
        self.app.server.stopping.load(Ordering::Relaxed) && self.body.was_read()
    }

    /// Returns whether the owner answers after it has handed the shard over.
    fn moves_the_shard(&self) -> bool {
        let route = routes::find(self.head.method.as_str(), self.head.uri.path());
        route.is_some_and(|route| route.shard_of(self.head.uri.path()).is_some())
    }

    fn is_served_by(&self, to: &Peer) -> bool {
        is_served_by(&**self.cluster, self.shard, to)
    }

    /// Returns an answer that is passed on as it arrives.
    fn stream(&self, head: response::Parts, incoming: Incoming, link: Link, to: &Peer) -> Response {
        let is_events = head.headers.get(CONTENT_TYPE).is_some_and(|it| it == "text/event-stream");
        let watch = is_events.then(|| {
            let (cluster, shard, to) = (Arc::clone(self.cluster), self.shard, to.clone());
            StreamWatch::new(self.peer.clone(), move || is_served_by(&*cluster, shard, &to))
        });
        let (links, address) = (self.app.links.clone(), to.address.clone());
        let answer = ForwardedAnswer::new(incoming, move || links.keep(address, link), watch);
        let mut response = Response::from_parts(head, Body::Forwarded(Box::new(answer)));
        if is_events {
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        response
    }
}

/// Returns the problem of a request whose search for the server of its pool has ended.
pub(super) fn no_owner(app: &App, cluster: &dyn Cluster, shard: usize) -> Problem {
    if let Place::There(to) = cluster.place(shard)
        && app.server.peer_faults.of(&to.address, clock::stopwatch()).is_some()
    {
        return Problem::owner_unreachable(&to.name);
    }
    Problem::no_owner()
}

fn is_served_by(cluster: &dyn Cluster, shard: usize, peer: &Peer) -> bool {
    matches!(cluster.place(shard), Place::There(there) if there.name == peer.name)
}

/// Waits before the next attempt, and asks the shard's thread to look where the pool is served.
pub(super) async fn pause(cluster: &dyn Cluster, shard: usize, time: Duration) {
    cluster.look(shard);
    sleep(time).await;
}

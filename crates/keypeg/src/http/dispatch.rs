//! Where a request is answered: by the router of this server, or by the server of its pool.
//!
//! Makes the attempts in their order, each after a look at where the pool is served now. An attempt
//! here has a line in the audit log; one elsewhere has it there. Does not know how a request is
//! forwarded, nor what the handlers do.

mod history;
mod list;

use super::admit::{self, RequestContext, Target};
use super::app::App;
use super::error::Problem;
use super::forward::{self, Attempt, Forwarded, Outbound, Search};
use super::message::{Kept, Request};
use super::metrics::Family;
use super::origin::Origin;
use super::parse::body::malformed;
use super::request_log::RequestLog;
use super::respond::HandlerResult;
use super::route::route;
use crate::clock;
use crate::share::Held;
use crate::tls::ClientCertificate;
use hyper::Method;
use hyper::body::Body as _;
use hyper::http::request::Parts;
use keypeg_client::{Code, routes};
use keypeg_store::{Cluster, Place};
use std::sync::Arc;

/// A request that has passed the checks before its admission.
pub(super) struct Checked<'a> {
    pub(super) app: &'a App,
    pub(super) origin: &'a Origin,
    pub(super) certificate: Option<&'a ClientCertificate>,
    /// What the server said that forwarded it.
    pub(super) forwarded: Option<&'a Forwarded>,
    pub(super) family: Family,
    pub(super) is_change: bool,
    /// What the request holds until its response is sent.
    pub(super) in_flight: &'a mut Option<Held>,
    pub(super) log: &'a mut RequestLog,
}

impl Checked<'_> {
    /// Returns the response to the request.
    pub(super) async fn answer(self, request: Request) -> HandlerResult {
        if self.forwarded.is_none()
            && let Some(cluster) = self.app.lanes.cluster()
            && let Some(shard) =
                forward::shard_of(&**cluster, request.method(), request.uri().path())
        {
            // Boxed, so that no other request has room for it.
            return Box::pin(self.answer_for_shard(request, cluster, shard)).await;
        }
        if self.forwarded.is_none()
            && let Some(cluster) = self.app.lanes.cluster()
            && matches!(*request.method(), Method::GET | Method::HEAD)
        {
            match request.uri().path() {
                routes::POOLS => return Box::pin(self.list_all(request, cluster)).await,
                routes::HISTORY => return Box::pin(self.sum_histories(request, cluster)).await,
                _ => {}
            }
        }
        self.answer_here(request).await
    }

    /// Answers a request that only this server can answer.
    async fn answer_here(self, mut request: Request) -> HandlerResult {
        let target = Target { method: request.method().as_str(), path: request.uri().path() };
        let bearer = || admit::bearer_of(request.headers());
        let mut context = admit::admit(self.app, target, bearer, self.certificate, self.origin)?;
        self.log.set_token(context.token_name());
        if !context.begins_on(request.body().place(), self.origin.started) {
            return request.body().peer().clone().abandon().await;
        }
        if let Some(forwarded) = self.forwarded {
            context.set_waited_ms(forwarded.waited_ms);
        }
        if !request.body().is_end_stream() {
            let caller = context.owner(self.origin);
            request.body_mut().set_room(&self.app.server.bodies, caller);
        }
        let result = route(&context, request).await;
        self.finish(context, result)
    }

    /// Answers a request on a pool, which another server may serve.
    async fn answer_for_shard(
        self,
        request: Request,
        cluster: &Arc<dyn Cluster>,
        shard: usize,
    ) -> HandlerResult {
        let (head, body) = request.into_parts();
        let target = Target { method: head.method.as_str(), path: head.uri.path() };
        let bearer = || admit::bearer_of(&head.headers);
        let (app, origin, certificate) = (self.app, self.origin, self.certificate);
        let mut context = admit::admit_elsewhere(app, target, bearer, certificate, origin)?;
        self.log.set_token(context.token_name());
        let kept = body.keep();
        if !context.begins_on(&kept.place, origin.started) {
            return kept.peer.abandon().await;
        }
        kept.body.set_room(&app.server.bodies, context.owner(origin));
        let (head, body, peer) = (&head, &kept.body, &kept.peer);
        let outbound = Outbound { app, cluster, shard, head, body, peer, origin, certificate };
        let mut search = Search::new(origin.started);
        loop {
            let began = clock::stopwatch();
            let waited_ms = search.begin(began);
            let attempt = match cluster.place(shard) {
                Place::Unknown => Attempt::NotThere,
                Place::There(to) => match kept.body.reader() {
                    Some(reader) => outbound.send(&to, reader, waited_ms).await,
                    None => return Err(Problem::no_owner()),
                },
                Place::Here => {
                    context.begin_audit(target, origin)?;
                    context.set_waited_ms(waited_ms);
                    let result = self.attempt_here(&context, head, &kept).await;
                    let is_here = cluster.place(shard) == Place::Here;
                    match result {
                        Err(problem) if is_not_served(&problem, is_here) => {
                            context.discard_audit();
                            Attempt::NotThere
                        }
                        result => return self.finish(context, result),
                    }
                }
            };
            match attempt {
                Attempt::Answered(response) => return self.finish(context, Ok(response)),
                Attempt::Lost | Attempt::Stopped | Attempt::NotThere if kept.body.has_failed() => {
                    return Err(malformed());
                }
                Attempt::Lost => return Err(Problem::owner_lost()),
                Attempt::Stopped => return Err(Problem::stopped_while_waiting()),
                Attempt::Abandoned => return kept.peer.abandon().await,
                Attempt::NotThere => {}
            }
            let Some(pause) = search.next(began, clock::stopwatch()) else {
                return Err(forward::no_owner(app, &**cluster, shard));
            };
            forward::pause(&**cluster, shard, pause).await;
        }
    }

    async fn attempt_here(
        &self,
        context: &RequestContext<'_>,
        head: &Parts,
        kept: &Kept,
    ) -> HandlerResult {
        let reader = kept.body.reader().ok_or_else(Problem::no_owner)?;
        let mut request = Request::from_parts(head.clone(), kept.request_body(reader));
        if !request.body().is_end_stream() {
            let caller = context.owner(self.origin);
            request.body_mut().set_room(&self.app.server.bodies, caller);
        }
        route(context, request).await
    }

    fn finish(self, context: RequestContext<'_>, result: HandlerResult) -> HandlerResult {
        let result =
            result.and_then(|response| context.count_answer(response, self.is_change, self.family));
        let admitted = context.finish_audit(result.as_ref().map(hyper::Response::status));
        *self.in_flight = admitted.and_then(|admitted| admitted.in_flight);
        result
    }
}

/// Returns whether another server may handle what this one has refused.
fn is_not_served(problem: &Problem, is_served_here: bool) -> bool {
    problem.code() == Code::NotOwner || (problem.code() == Code::ShuttingDown && !is_served_here)
}

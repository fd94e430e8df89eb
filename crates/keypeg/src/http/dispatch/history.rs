//! The history of the pools of all servers: each server keeps that of the pools that it serves, and
//! the sums are added.
//!
//! A server that does not answer is left out, so that charts go on while a server is lost.

use super::Checked;
use crate::http::admit::{self, Target};
use crate::http::all_histories::sum;
use crate::http::error::Problem;
use crate::http::forward::{Attempt, Outbound};
use crate::http::message::{Request, Response};
use crate::http::respond::{HandlerResult, json_response};
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use keypeg_client::History;
use keypeg_store::Cluster;
use std::sync::Arc;

impl Checked<'_> {
    /// Answers a request for the history of all pools.
    pub(super) async fn sum_histories(
        self,
        request: Request,
        cluster: &Arc<dyn Cluster>,
    ) -> HandlerResult {
        let (mut head, body) = request.into_parts();
        let target = Target { method: head.method.as_str(), path: head.uri.path() };
        let bearer = || admit::bearer_of(&head.headers);
        let (app, origin, certificate) = (self.app, self.origin, self.certificate);
        let context = admit::admit_elsewhere(app, target, bearer, certificate, origin)?;
        self.log.set_token(context.token_name());
        let kept = body.keep();
        if !context.begins_on(&kept.place, origin.started) {
            return kept.peer.abandon().await;
        }
        head.method = Method::GET;
        let own = self.attempt_here(&context, &head, &kept).await?;
        let mut histories = vec![history(own).await.ok_or_else(Problem::no_owner)?];
        let servers = cluster.status().servers.into_iter();
        for server in servers.filter(|it| it.is_live && it.peer.name != cluster.server()) {
            let Some(reader) = kept.body.reader() else { break };
            // Any shard that it owns: the server is given up when it serves that shard no more.
            let shard = server.owns.first().copied().unwrap_or(0);
            let (head, body, peer) = (&head, &kept.body, &kept.peer);
            let outbound = Outbound { app, cluster, shard, head, body, peer, origin, certificate };
            match outbound.send(&server.peer, reader, 0).await {
                Attempt::Answered(response) => histories.extend(history(response).await),
                Attempt::Abandoned => return kept.peer.abandon().await,
                Attempt::NotThere | Attempt::Lost | Attempt::Stopped => {}
            }
        }
        let sum = sum(&histories).expect("invariant: this server has a history");
        self.finish(context, Ok(json_response(StatusCode::OK, &sum)))
    }
}

/// Reads the history of a server; `None` for any other answer.
async fn history(response: Response) -> Option<History> {
    if response.status() != StatusCode::OK {
        return None;
    }
    let body = response.into_body().collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}

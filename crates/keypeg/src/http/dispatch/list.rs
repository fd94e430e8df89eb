//! The list of the pools of all servers: each server lists the pools of its shards, and the pages
//! become one.
//!
//! A list without the pools of some shard is refused: a reader would take them for deleted.

use super::Checked;
use crate::clock;
use crate::http::admit::{self, Target};
use crate::http::all_pools::{ListedShards, merge};
use crate::http::error::Problem;
use crate::http::forward::{self, Attempt, Outbound, Search};
use crate::http::message::{Request, Response};
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response};
use http_body_util::BodyExt as _;
use hyper::{Method, StatusCode};
use keypeg_client::Pools;
use keypeg_store::{Cluster, PAGE_MAX, Place};
use std::sync::Arc;

impl Checked<'_> {
    /// Answers a list of pools.
    pub(super) async fn list_all(
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
        let mut search = Search::new(origin.started);
        loop {
            let began = clock::stopwatch();
            search.begin(began);
            let own = self.attempt_here(&context, &head, &kept).await?;
            let limit = Query::read(head.uri.query(), &["limit", "cursor"])?.limit(PAGE_MAX)?;
            let (page, mut listed) = page(own).await?;
            let mut pages = vec![page];
            let mut shard = 0;
            while shard < cluster.shards() {
                let to = match cluster.place(shard) {
                    Place::There(to) if !listed.contains(&shard) => to,
                    Place::There(_) | Place::Here | Place::Unknown => {
                        shard += 1;
                        continue;
                    }
                };
                let Some(reader) = kept.body.reader() else { return Err(Problem::no_owner()) };
                let (head, body, peer) = (&head, &kept.body, &kept.peer);
                let outbound =
                    Outbound { app, cluster, shard, head, body, peer, origin, certificate };
                match outbound.send(&to, reader, 0).await {
                    Attempt::Answered(response) if response.status() == StatusCode::OK => {
                        let (page, more) = self::page(response).await?;
                        pages.push(page);
                        listed.extend(more);
                    }
                    Attempt::Answered(response) => return self.finish(context, Ok(response)),
                    Attempt::Abandoned => return kept.peer.abandon().await,
                    Attempt::NotThere | Attempt::Lost | Attempt::Stopped => {}
                }
                shard += 1;
            }
            let missing = (0..cluster.shards()).find(|shard| !listed.contains(shard));
            let Some(missing) = missing else {
                let all = merge(pages, limit);
                return self.finish(context, Ok(json_response(StatusCode::OK, &all)));
            };
            let Some(pause) = search.next(began, clock::stopwatch()) else {
                return Err(forward::no_owner(app, &**cluster, missing));
            };
            forward::pause(&**cluster, missing, pause).await;
        }
    }
}

/// Reads the page of a server, and which shards it has.
async fn page(mut response: Response) -> Result<(Pools, Vec<usize>), Problem> {
    let shards = response.extensions_mut().remove::<ListedShards>().unwrap_or_default();
    let body = response.into_body().collect().await.map_err(|_| Problem::no_owner())?;
    let pools = serde_json::from_slice(&body.to_bytes()).map_err(|_| Problem::no_owner())?;
    Ok((pools, shards.0))
}

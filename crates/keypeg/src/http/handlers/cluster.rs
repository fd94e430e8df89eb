//! The routes about the servers that share the pools: who serves which shard, and moving one.
//!
//! Knows the shards by [`Cluster`] only. A move ends when the new owner serves the shard, so that a
//! script can do one step after the other.

use crate::clock;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::cluster::MoveShardBody;
use crate::http::parse::path::shard_number;
use crate::http::parse::precondition;
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response};
use hyper::{Method, StatusCode};
use keypeg_client as wire;
use keypeg_client::Seconds;
use keypeg_store::{Cluster, ClusterStatus, MoveError, ServerStatus, ShardRole, ShardStatus};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::sleep;

/// How long a move may take.
const MOVE_TIME: Duration = Duration::from_mins(1);
/// How often a move in progress is looked at.
const LOOK_TIME: Duration = Duration::from_millis(200);

/// Shows the servers and shards of the installation.
pub(crate) fn show(context: &RequestContext<'_>, request: &Request) -> HandlerResult {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(Problem::unrouted(request.uri().path()));
    }
    Query::read(request.uri().query(), &[])?;
    let cluster = context.lanes.cluster().ok_or_else(Problem::no_cluster)?;
    let (faults, now) = (&context.server.peer_faults, clock::stopwatch());
    let mut shown = wire_cluster(cluster.server(), cluster.status());
    for server in &mut shown.servers {
        server.unreachable = faults.of(&server.address, now);
    }
    Ok(json_response(StatusCode::OK, &shown))
}

/// Moves a shard that this server serves to another server, and waits until that one owns it.
pub(crate) async fn move_shard(
    context: &RequestContext<'_>,
    shard: &str,
    request: Request,
) -> HandlerResult {
    if *request.method() != Method::POST {
        return Err(Problem::unrouted(request.uri().path()));
    }
    Query::read(request.uri().query(), &[])?;
    precondition::refuse_any(request.headers())?;
    let cluster = context.lanes.cluster().ok_or_else(Problem::no_cluster)?;
    let server = body::read::<MoveShardBody>(context, request).await?.server()?;
    let last = cluster.shards() - 1;
    let shard = shard_number(shard, cluster.shards())
        .ok_or_else(|| Problem::out_of_range("shard", &format!("0..{last}")))?;
    context.audit_move(shard, &server);
    begin_move(context, cluster, shard, &server).await?;
    let began = clock::stopwatch();
    loop {
        // Read before the owner, which a move that has just ended then shows.
        let is_moving = cluster.is_moving(shard, &server);
        let found = cluster.status().shards.swap_remove(shard);
        if found.owner.as_deref() == Some(&*server) {
            return Ok(json_response(StatusCode::OK, &wire_shard(shard, found)));
        }
        if !is_moving || began.elapsed() > MOVE_TIME {
            return Err(Problem::move_unfinished(shard, &server, found.owner.as_deref()));
        }
        pause(context).await?;
    }
}

/// Begins a move, after the one that is in progress.
async fn begin_move(
    context: &RequestContext<'_>,
    cluster: &Arc<dyn Cluster>,
    shard: usize,
    server: &str,
) -> Result<(), Problem> {
    let began = clock::stopwatch();
    loop {
        match cluster.move_shard(shard, server) {
            Ok(()) => return Ok(()),
            Err(MoveError::Busy(_)) if began.elapsed() < MOVE_TIME => pause(context).await?,
            Err(error) => {
                return Err(Problem::not_moved(&error, &live_names(cluster.status())));
            }
        }
    }
}

/// Returns the names of the servers that a shard can move to.
fn live_names(status: ClusterStatus) -> Vec<String> {
    let live = status.servers.into_iter().filter(|server| server.is_live);
    live.map(|server| server.peer.name).collect()
}

/// Waits a little, unless the server stops: then another server has the shard soon.
async fn pause(context: &RequestContext<'_>) -> Result<(), Problem> {
    if context.server.stopping.load(Ordering::Relaxed) {
        return Err(Problem::refused(&keypeg_store::RequestError::ShuttingDown));
    }
    sleep(LOOK_TIME).await;
    Ok(())
}

fn wire_cluster(server: &str, status: ClusterStatus) -> wire::Cluster {
    let ClusterStatus { store, store_silent_ms, store_error, servers, shards } = status;
    wire::Cluster {
        server: server.to_owned(),
        store,
        store_silent_seconds: Seconds::from_ms(store_silent_ms),
        store_error: Some(store_error).filter(|error| !error.is_empty()),
        servers: servers.into_iter().map(wire_server).collect(),
        shards: shards.into_iter().enumerate().map(|(number, it)| wire_shard(number, it)).collect(),
    }
}

fn wire_server(status: ServerStatus) -> wire::ClusterServer {
    let ServerStatus { peer, is_live, silent_ms, owns, follows, has_tokens } = status;
    let numbers = |shards: Vec<usize>| shards.into_iter().map(wire_number).collect();
    wire::ClusterServer {
        server: peer.name,
        address: peer.address,
        live: is_live,
        silent_seconds: Seconds::from_ms(silent_ms),
        owns: numbers(owns),
        follows: numbers(follows),
        access_tokens: has_tokens,
        unreachable: None,
    }
}

fn wire_shard(shard: usize, status: ShardStatus) -> wire::ClusterShard {
    wire::ClusterShard {
        shard: wire_number(shard),
        owner: status.owner,
        unowned_seconds: Seconds::from_ms(status.unowned_ms),
        role: match status.role {
            ShardRole::Loading => wire::ShardRole::Loading,
            ShardRole::Following => wire::ShardRole::Following,
            ShardRole::Owner => wire::ShardRole::Owner,
        },
        preferred: status.preferred,
        pinned: status.is_pinned,
        position: status.position,
        behind_frames: status.behind_frames,
        behind_seconds: Seconds::from_ms(status.behind_ms),
        snapshot_position: status.snapshot,
        takeovers: status.takeovers,
        error: Some(status.error).filter(|error| !error.is_empty()),
    }
}

fn wire_number(shard: usize) -> u32 {
    u32::try_from(shard).expect("invariant: there are at most 128 shards")
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_store::Peer;

    #[test]
    fn a_refused_move_names_the_live_servers_alone() {
        let server = |name: &str, is_live| ServerStatus {
            peer: Peer { name: name.into(), address: "192.0.2.1:8000".into() },
            is_live,
            silent_ms: 0,
            owns: Vec::new(),
            follows: Vec::new(),
            has_tokens: None,
        };
        let servers = vec![server("s0", true), server("s1", false), server("s2", true)];
        let status = ClusterStatus {
            store: String::new(),
            store_silent_ms: 0,
            store_error: String::new(),
            servers,
            shards: Vec::new(),
        };
        assert_eq!(live_names(status), ["s0", "s2"]);
    }
}

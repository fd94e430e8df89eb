//! Fills the history: reads all pools once a second, page by page, as a listing does.
//!
//! It runs beside the requests of the first core, and the store serves it as one more client. A walk
//! that takes longer than a second skips seconds; it never runs twice at once.

use super::app::Server;
use super::history::{History, Walk};
use super::lanes::Lanes;
use crate::clock;
use keypeg_core::PoolListOptions;
use keypeg_store::{Answer as _, Call, Lane, PoolPage, Principal, Request, RequestError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Samples the pools until the server stops.
pub(super) async fn sample(server: Arc<Server>, lanes: Lanes) {
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        if let Err(RequestError::ShuttingDown) = walk(&server.history, &lanes).await {
            return;
        }
    }
}

/// Walks over all pools once. After a refusal, the next walk counts what this one did not.
async fn walk(history: &History, lanes: &Lanes) -> Result<(), RequestError> {
    let Some(mut walk) = history.begin(clock::stopwatch()) else { return Ok(()) };
    for lane in lanes.all() {
        match walk_shard(history, lane, &mut walk).await {
            // Another server samples the pools of this shard.
            Ok(()) | Err(RequestError::NotOwner) => {}
            Err(refusal) => return Err(refusal),
        }
    }
    history.end(&walk, clock::wall_ms());
    Ok(())
}

/// Walks over all pools of a shard.
async fn walk_shard(history: &History, lane: &Lane, walk: &mut Walk) -> Result<(), RequestError> {
    let mut options = PoolListOptions::default();
    loop {
        let call = Call::list_pools(options).into_call();
        let reply = lane.submit(Request::new(Principal::Server, call)).await;
        let page = PoolPage::of(reply)?;
        history.add(walk, &page.pools);
        if page.next.is_none() {
            return Ok(());
        }
        options = PoolListOptions { from: page.next, ..PoolListOptions::default() };
    }
}

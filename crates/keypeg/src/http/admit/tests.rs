//! Tests of a request's memory and calls, with a store that answers by hand.

use super::*;
use crate::clock;
use crate::http::connection::descriptors::DescriptorNeeds;
use crate::http::forward::LinkPlaces;
use crate::http::metrics::{Metrics, StartInfo};
use crate::http::origin::RequestId;
use crate::http::timeouts::Timeouts;
use crate::http::{app::Server, connection::places::Places};
use crate::memory::MemoryPlan;
use crate::share::{Budget, ReservedBudget};
use keypeg_core::{ImportOptions, Secret};
use keypeg_store::{EngineLane, LaneItem, Wakeup, lane};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

fn app(lane: keypeg_store::Lane) -> App {
    let memory = MemoryPlan::new(1 << 30, 1);
    let access =
        crate::access::Access::new(crate::access::Hosts::default(), None, clock::stopwatch());
    let access = Arc::new(access);
    let start_info = StartInfo {
        recovery: keypeg_store::StartReport::default(),
        access: Arc::clone(&access),
        audit: None,
        tls: None,
        peer_tls: None,
        proxies: crate::proxies::Proxies::default(),
        recovery_time: Duration::ZERO,
        metrics_pools: 10,
        memory,
        descriptors: DescriptorNeeds { cores: 1, has_ops: false, shards: None },
        store_metrics: Arc::default(),
        backups: None,
        key_versions: None,
        core_turns: None,
    };
    let now = clock::stopwatch();
    let server = Server {
        stopping: AtomicBool::new(false),
        was_ready: AtomicBool::new(false),
        run_id: 1,
        access,
        audit: None,
        tls: None,
        peer_tls: None,
        peer_faults: Arc::default(),
        link_places: Arc::new(LinkPlaces::new(1)),
        proxies: crate::proxies::Proxies::default(),
        timeouts: Timeouts::default(),
        bodies: Arc::new(ReservedBudget::new(memory.bodies, memory.bodies / 8)),
        heads: Budget::new(memory.connections),
        answers: Budget::new(memory.answers_of_all()),
        operator_answers: Budget::new(memory.answers_of_operators()),
        streams: Budget::new(1),
        backups: None,
        key_versions: None,
        streamed_requests: Budget::new(1),
        history: crate::http::history::History::new(1 << 20, now),
        verified_keys_of_core: memory.verified_keys,
        metrics: Metrics::new(start_info, Vec::new(), Vec::new(), Places::new(8, now)),
    };
    App::new(lane.into(), Arc::new(server), 0, Arc::default())
}

fn admitted(app: &App, sequence: u64) -> RequestContext<'_> {
    let id = RequestId { run_id: 1, core: 0, sequence };
    let origin = Origin { client_ip: None, id, started: clock::stopwatch() };
    let target = Target { method: "POST", path: "/v1/pools/default/keys" };
    admit(app, target, || Ok(None), None, &origin).expect("a server without tokens")
}

/// Reserves the memory of a body, as its reader does, and imports the value in it.
async fn import(app: &App, sequence: u64, body_bytes: usize) -> Result<usize, Problem> {
    let context = &admitted(app, sequence);
    let mut memory = BodyMemory::new(Some((Arc::clone(&app.server.bodies), context.caller())));
    memory.grow(body_bytes)?;
    context.hold_body(memory);
    let values = vec![Secret::new("value").expect("short")];
    let call = Call::import(PoolName::default_pool(), values, ImportOptions::default());
    Ok(context.execute(call).await?.len())
}

/// Waits until the store has this number of requests, and returns their slots.
async fn taken(engine: &mut EngineLane, count: usize) -> Vec<keypeg_store::CallSlot> {
    let mut slots = Vec::new();
    while slots.len() < count {
        tokio::task::yield_now().await;
        engine.take(|slot, item| {
            if let LaneItem::Request(_) = item {
                slots.push(slot);
            }
        });
    }
    slots
}

/// Regression: a body gave its memory back when it was parsed. The values of all imports that waited
/// for the store counted nowhere.
#[tokio::test]
async fn two_imports_in_flight_hold_both_bodies_until_their_replies() {
    const BODY: usize = 4 << 20;
    let (lane, mut engine) = lane(&Wakeup::default());
    let delivering = lane.clone();
    tokio::spawn(async move { delivering.run_delivery().await });
    let app = app(lane);
    // The first bytes of each body are free.
    let held = || app.server.bodies.ordinary().held().div_ceil(BODY as u64);
    let mut left = Box::pin(import(&app, 1, BODY));
    let mut stays = Box::pin(import(&app, 2, BODY));
    for import in [&mut left, &mut stays] {
        assert!(poll(import.as_mut()).is_pending(), "the store has not answered");
    }
    let slots = taken(&mut engine, 2).await;
    assert_eq!(held(), 2);
    // The client of the first import leaves. The store still has its values.
    drop(left);
    assert_eq!(held(), 2, "a queued call keeps its values when its client has left");
    for slot in slots {
        engine.answer(slot, Reply::Keys(Vec::new()));
    }
    engine.flush();
    assert_eq!(stays.await.map_err(|problem| problem.code()), Ok(0));
    while held() > 0 {
        tokio::task::yield_now().await;
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

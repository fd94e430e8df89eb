//! Lane tests that drive both ends of a lane by hand, without an engine.

use super::*;
use keypeg_core::{KeyId, LeaseId, LeaseView, PoolListOptions, PoolName, ReleaseOptions, Secret};
use std::pin::pin;

fn request(call: Call) -> Request {
    Request::new(Principal::Anyone, call)
}

fn acquire() -> Request {
    acquire_waiting(0)
}

fn acquire_waiting(wait_ms: u64) -> Request {
    let pool = PoolName::default_pool();
    request(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms })
}

fn granted(token: u128) -> Reply {
    let lease = LeaseView {
        id: LeaseId(token),
        key_id: KeyId(1),
        token: 1,
        holder: None,
        label: None,
        granted_at_ms: 0,
        expires_at_ms: 0,
        expires_in_ms: 0,
        key_expires_at_ms: None,
    };
    let value = Secret::new("x").expect("short");
    let pool = PoolName::default_pool();
    Reply::Granted { pool, lease: Box::new(lease), value, waited_ms: 0, redelivered: false }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn take_all(engine: &mut EngineLane) -> Vec<(CallSlot, LaneItem)> {
    let mut items = Vec::new();
    engine.take(|slot, item| items.push((slot, item)));
    items
}

#[test]
fn each_call_gets_its_own_reply() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut delivery = pin!(lane.run_delivery());
    let mut pending: Vec<_> = (0..3).map(|_| Box::pin(lane.submit(acquire()))).collect();
    let requests = take_all(&mut engine);
    for (index, (slot, _)) in requests.into_iter().enumerate().rev() {
        engine.answer(slot, granted(index as u128));
    }
    assert!(poll(pending[0].as_mut()).is_pending());
    engine.flush();
    assert!(poll(delivery.as_mut()).is_pending());
    for (index, reply) in pending.iter_mut().enumerate() {
        let Poll::Ready(Reply::Granted { lease, .. }) = poll(reply.as_mut()) else {
            panic!("no grant for call {index}")
        };
        assert_eq!(lease.id, LeaseId(index as u128));
    }
}

#[test]
fn an_undelivered_grant_is_revoked_whenever_its_call_was_dropped() {
    for drop_when in 0..3 {
        let (lane, mut engine) = lane(&Wakeup::default());
        let mut delivery = pin!(lane.run_delivery());
        let mut pending = Some(lane.submit(acquire()));
        if drop_when == 0 {
            pending = None;
        }
        let (slot, _) = take_all(&mut engine).pop().expect("a request");
        if drop_when == 1 {
            pending = None;
        }
        engine.answer(slot, granted(7));
        engine.flush();
        assert!(poll(delivery.as_mut()).is_pending());
        drop(pending);
        let revocations = take_all(&mut engine);
        let [(_, LaneItem::Request(Request { by: Principal::Server, call, .. }))] =
            &revocations[..]
        else {
            panic!("dropped at {drop_when}: {revocations:?}")
        };
        let Call::RevokeUndelivered { lease, .. } = call else {
            panic!("dropped at {drop_when}: {revocations:?}")
        };
        assert_eq!(*lease, LeaseId(7));
    }
}

#[test]
fn a_full_lane_refuses_new_work_first_and_releases_last() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let release = || {
        let (pool, lease) = (PoolName::default_pool(), LeaseId(1));
        request(Call::Release { pool, lease, options: ReleaseOptions::default() })
    };
    let refused = |request| {
        matches!(
            poll(pin!(lane.submit(request))),
            Poll::Ready(Reply::Refused(RequestError::Overloaded))
        )
    };
    for capacity in [LANE_MAX, 16] {
        lane.set_capacity(capacity);
        let acquires: Vec<_> = (0..capacity).map(|_| lane.submit(acquire())).collect();
        assert!(refused(acquire()));
        let releases: Vec<_> = (0..capacity).map(|_| lane.submit(release())).collect();
        assert!(refused(release()));
        let server_calls = [
            Call::list_pools(PoolListOptions::default()).into_call(),
            Call::RevokeUndelivered { pool: PoolName::default_pool(), lease: LeaseId(1) },
        ];
        let server_calls =
            server_calls.map(|call| lane.submit(Request::new(Principal::Server, call)));
        assert_eq!(
            take_all(&mut engine).len(),
            2 * capacity + server_calls.len(),
            "the server's own calls are not bounded"
        );
        assert!(!refused(acquire()), "a drained lane accepts at once");
        take_all(&mut engine);
        drop((acquires, server_calls, releases));
    }
}

#[test]
fn a_closed_lane_refuses_and_its_delivery_ends() {
    let (lane, engine) = lane(&Wakeup::default());
    engine.close_inbox();
    let reply = poll(pin!(lane.submit(acquire())));
    assert!(matches!(reply, Poll::Ready(Reply::Refused(RequestError::ShuttingDown))));
    engine.close_outbox();
    assert!(poll(pin!(lane.run_delivery())).is_ready());
}

/// A slot is reused only after the store has processed the notice that its call is abandoned.
#[test]
fn a_dropped_waiting_call_is_abandoned_before_its_slot_is_reused() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut delivery = pin!(lane.run_delivery());
    drop(lane.submit(acquire()));
    drop(lane.submit(acquire_waiting(1)));
    let items = take_all(&mut engine);
    let [
        (CallSlot(0), LaneItem::Request(_)),
        (CallSlot(1), LaneItem::Request(_)),
        (CallSlot(1), LaneItem::Abandoned),
    ] = items[..]
    else {
        panic!("{items:?}")
    };
    let pending = lane.submit(acquire_waiting(1));
    assert_eq!(take_all(&mut engine)[0].0, CallSlot(2), "slot 1 is not free yet");
    engine.answer(CallSlot(1), Reply::Done);
    engine.flush();
    assert!(poll(delivery.as_mut()).is_pending());
    drop(lane.submit(acquire()));
    assert_eq!(take_all(&mut engine)[0].0, CallSlot(1), "slot 1 is free after its answer");
    engine.answer(CallSlot(2), granted(7));
    engine.flush();
    assert!(poll(delivery.as_mut()).is_pending());
    drop(pending);
    let revocations = take_all(&mut engine);
    assert!(
        matches!(
            revocations[..],
            [(_, LaneItem::Request(Request { call: Call::RevokeUndelivered { .. }, .. }))]
        ),
        "{revocations:?}"
    );
}

#[test]
fn a_full_lane_accepts_notices_of_abandoned_calls() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let calls: Vec<_> = (0..LANE_MAX).map(|_| lane.submit(acquire_waiting(1))).collect();
    drop(calls);
    assert_eq!(take_all(&mut engine).len(), 2 * LANE_MAX);
}

#[test]
fn slots_are_reused() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut delivery = pin!(lane.run_delivery());
    for _ in 0..100 {
        let mut reply = pin!(lane.submit(acquire()));
        let (slot, _) = take_all(&mut engine).pop().expect("a request");
        engine.answer(slot, Reply::Done);
        engine.flush();
        assert!(poll(delivery.as_mut()).is_pending());
        assert!(poll(reply.as_mut()).is_ready());
    }
    assert_eq!(locked(&lane.shared.calls).states.len(), 1);
}

/// The queue of a lane holds up to 32 768 items.
#[test]
fn an_item_takes_no_more_memory_than_its_request() {
    assert_eq!(size_of::<LaneItem>(), size_of::<Request>());
}

/// Each request is moved through its lane, so rare arguments are boxed: those of a policy took 176
/// bytes in each item.
#[test]
fn an_item_has_no_room_for_arguments_that_few_requests_have() {
    let size = size_of::<(CallSlot, LaneItem)>();
    assert!(size <= 16 * size_of::<usize>(), "{size} bytes");
}

#[test]
fn refused_keep_alives_are_counted_until_the_store_takes_the_count() {
    let (lane, mut engine) = lane(&Wakeup::default());
    lane.set_capacity(16);
    let keep_alive = || request(Call::KeepAliveAll { pool: PoolName::default_pool() });
    let queued: Vec<_> = (0..32).map(|_| lane.submit(keep_alive())).collect();
    assert_eq!(engine.take_refused_keep_alives(), 0);
    for call in [keep_alive(), keep_alive(), acquire()] {
        let reply = poll(std::pin::pin!(lane.submit(call)));
        assert!(matches!(reply, Poll::Ready(Reply::Refused(RequestError::Overloaded))));
    }
    assert_eq!(engine.take_refused_keep_alives(), 2);
    lane.note_refused_keep_alive();
    assert_eq!([engine.take_refused_keep_alives(), engine.take_refused_keep_alives()], [1, 0]);
    drop(queued);
}

#[test]
fn a_store_that_loses_its_calls_answers_each_that_it_has_taken_once() {
    let (lane, mut engine) = lane(&Wakeup::default());
    engine.remember_taken();
    let mut delivery = pin!(lane.run_delivery());
    let mut pending: Vec<_> = (0..4).map(|_| Box::pin(lane.submit(acquire()))).collect();
    let taken = take_all(&mut engine);
    engine.answer(taken[1].0, granted(7));
    let mut queued = Box::pin(lane.submit(acquire()));
    engine.fail_taken(&Reply::Refused(RequestError::OutcomeUnknown));
    engine.fail_taken(&Reply::Refused(RequestError::Overloaded));
    engine.refuse(&RequestError::NotOwner);
    let mut refused_at_once = Box::pin(lane.submit(acquire()));
    let refused = poll(refused_at_once.as_mut());
    assert!(matches!(refused, Poll::Ready(Reply::Refused(RequestError::NotOwner))), "{refused:?}");
    assert!(poll(delivery.as_mut()).is_pending());
    for (index, reply) in pending.iter_mut().enumerate() {
        let reply = poll(reply.as_mut());
        let is_right = if index == 1 {
            matches!(reply, Poll::Ready(Reply::Granted { .. }))
        } else {
            matches!(reply, Poll::Ready(Reply::Refused(RequestError::OutcomeUnknown)))
        };
        assert!(is_right, "call {index}: {reply:?}");
    }
    let refused = poll(queued.as_mut());
    assert!(matches!(refused, Poll::Ready(Reply::Refused(RequestError::NotOwner))), "{refused:?}");
    engine.accept();
    let again = Box::pin(lane.submit(acquire()));
    assert_eq!(take_all(&mut engine).len(), 1);
    drop(again);
}

//! A lane played by hand from both of its ends.

use super::*;
use crate::core::{KeyId, LeaseId, LeaseView, PoolName, ReleaseOptions, Secret};
use std::pin::pin;

fn request(call: Call) -> Request {
    Request { by: Principal::Anyone, call }
}

fn acquire() -> Request {
    waiting(0)
}

fn waiting(wait_ms: u64) -> Request {
    let pool = PoolName::default_pool();
    request(Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms })
}

fn granted(token: u128) -> Reply {
    let lease = LeaseView {
        id: LeaseId(token),
        key_id: KeyId(1),
        token: 1,
        holder: None,
        granted_at_ms: 0,
        expires_at_ms: 0,
        expires_in_ms: 0,
        key_expires_at_ms: None,
    };
    let value = Secret::new("x").expect("short");
    let pool = PoolName::default_pool();
    Reply::Granted { pool, lease: Box::new(lease), value, waited_ms: 0, again: false }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn taken(engine: &mut EngineLane) -> Vec<(Slot, Request)> {
    let mut all = Vec::new();
    engine.take(|slot, request| all.push((slot, request)));
    all
}

#[test]
fn each_call_gets_its_own_answer() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut deliver = pin!(lane.run_delivery());
    let mut answers: Vec<_> = (0..3).map(|_| Box::pin(lane.submit(acquire()))).collect();
    let asked = taken(&mut engine);
    for (at, (slot, _)) in asked.into_iter().enumerate().rev() {
        engine.answer(slot, granted(at as u128));
    }
    assert!(poll(answers[0].as_mut()).is_pending());
    engine.flush();
    assert!(poll(deliver.as_mut()).is_pending());
    for (at, answer) in answers.iter_mut().enumerate() {
        let Poll::Ready(Reply::Granted { lease, .. }) = poll(answer.as_mut()) else {
            panic!("an answer")
        };
        assert_eq!(lease.id, LeaseId(at as u128));
    }
}

#[test]
fn a_grant_nobody_received_is_given_back_whenever_its_call_was_dropped() {
    for drop_when in 0..3 {
        let (lane, mut engine) = lane(&Wakeup::default());
        let mut deliver = pin!(lane.run_delivery());
        let mut answer = Some(lane.submit(acquire()));
        if drop_when == 0 {
            answer = None;
        }
        let (slot, _) = taken(&mut engine).pop().expect("asked");
        if drop_when == 1 {
            answer = None;
        }
        engine.answer(slot, granted(7));
        engine.flush();
        assert!(poll(deliver.as_mut()).is_pending());
        drop(answer);
        let back = taken(&mut engine);
        let [(_, Request { by: Principal::Server, call: Call::RevokeUndelivered { lease, .. } })] =
            &back[..]
        else {
            panic!("dropped at {drop_when}: {back:?}")
        };
        assert_eq!(*lease, LeaseId(7));
    }
}

#[test]
fn a_full_lane_refuses_new_work_first_and_giving_back_last() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let release = || {
        let (pool, lease) = (PoolName::default_pool(), LeaseId(1));
        request(Call::Release { pool, lease, verdict: ReleaseOptions::default() })
    };
    let refused = |request| {
        matches!(
            poll(pin!(lane.submit(request))),
            Poll::Ready(Reply::Refused(RequestError::Overloaded))
        )
    };
    for most in [LANE_MAX, 16] {
        lane.set_capacity(most);
        let kept: Vec<_> = (0..most).map(|_| lane.submit(acquire())).collect();
        assert!(refused(acquire()));
        let more: Vec<_> = (0..most).map(|_| lane.submit(release())).collect();
        assert!(refused(release()));
        let own = [
            Call::ListPools,
            Call::RevokeUndelivered { pool: PoolName::default_pool(), lease: LeaseId(1) },
        ];
        let own = own.map(|call| lane.submit(Request { by: Principal::Server, call }));
        assert_eq!(taken(&mut engine).len(), 2 * most + own.len(), "what the server asks has room");
        assert!(!refused(acquire()), "there is room again at once");
        taken(&mut engine);
        drop((kept, own, more));
    }
}

#[test]
fn a_closed_lane_refuses_and_its_delivery_ends() {
    let (lane, engine) = lane(&Wakeup::default());
    engine.close_inbox();
    let answer = poll(pin!(lane.submit(acquire())));
    assert!(matches!(answer, Poll::Ready(Reply::Refused(RequestError::ShuttingDown))));
    engine.close_outbox();
    assert!(poll(pin!(lane.run_delivery())).is_ready());
}

/// A slot that is left comes to somebody else only after the engine was told.
#[test]
fn a_call_that_waits_and_is_dropped_leaves_and_its_slot_is_used_after_that() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut deliver = pin!(lane.run_delivery());
    drop(lane.submit(acquire()));
    drop(lane.submit(waiting(1)));
    let asked = taken(&mut engine);
    let calls: Vec<_> = asked.iter().map(|(slot, request)| (*slot, &request.call)).collect();
    let [(0, Call::Acquire { .. }), (1, Call::Acquire { .. }), (1, Call::CancelWait)] = calls[..]
    else {
        panic!("{calls:?}")
    };
    let kept = lane.submit(waiting(1));
    assert_eq!(taken(&mut engine)[0].0, 2, "the slot is not free yet");
    engine.answer(1, Reply::Done);
    engine.flush();
    assert!(poll(deliver.as_mut()).is_pending());
    drop(lane.submit(acquire()));
    assert_eq!(taken(&mut engine)[0].0, 1, "and now it is");
    engine.answer(2, granted(7));
    engine.flush();
    assert!(poll(deliver.as_mut()).is_pending());
    drop(kept);
    let back = taken(&mut engine);
    assert!(
        matches!(back[..], [(_, Request { call: Call::RevokeUndelivered { .. }, .. })]),
        "{back:?}"
    );
}

#[test]
fn leaving_has_room_in_a_lane_that_is_full() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let calls: Vec<_> = (0..LANE_MAX).map(|_| lane.submit(waiting(1))).collect();
    drop(calls);
    assert_eq!(taken(&mut engine).len(), 2 * LANE_MAX);
}

#[test]
fn slots_are_used_again() {
    let (lane, mut engine) = lane(&Wakeup::default());
    let mut deliver = pin!(lane.run_delivery());
    for _ in 0..100 {
        let mut answer = pin!(lane.submit(acquire()));
        let (slot, _) = taken(&mut engine).pop().expect("asked");
        engine.answer(slot, Reply::Done);
        engine.flush();
        assert!(poll(deliver.as_mut()).is_pending());
        assert!(poll(answer.as_mut()).is_ready());
    }
    assert_eq!(locked(&lane.shared.calls).states.len(), 1);
}

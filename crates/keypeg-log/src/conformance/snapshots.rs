//! Cases about snapshots and trims.

use super::case::{Case, Outcome, ensure};
use super::steps::{Steps, surely};
use crate::error::LogError;
use crate::frame::{FrameKind, Tail};
use crate::log::{Completed, Guarantee};
use crate::snapshot::PART_MAX;
use bytes::Bytes;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a snapshot is listed when it is complete, not before, and is read as it was written",
        only: None,
        run: |steps| Box::pin(parts_first(steps)),
    },
    Case {
        name: "a complete snapshot is never replaced, and attempts do not mix their parts",
        only: None,
        run: |steps| Box::pin(never_replaced(steps)),
    },
    Case {
        name: "a part over the limit is refused with the limit",
        only: None,
        run: |steps| Box::pin(large_part(steps)),
    },
    Case {
        name: "a trim above the newest snapshot is refused and removes nothing",
        only: None,
        run: |steps| Box::pin(trim_needs_snapshot(steps)),
    },
    Case {
        name: "a trim removes older snapshots and parts, and keeps the snapshot at its position",
        only: None,
        run: |steps| Box::pin(trim_keeps_newest(steps)),
    },
    Case {
        name: "a server that was paused at a takeover cannot append after a trim",
        only: None,
        run: |steps| Box::pin(paused_owner(steps)),
    },
    Case {
        name: "a takeover at a position that was trimmed meanwhile is taken",
        only: Some(Guarantee::Created),
        run: |steps| Box::pin(late_takeover(steps)),
    },
];

async fn parts_first(steps: &mut Steps<'_>) -> Outcome {
    let at = steps.append_many(Tail::EMPTY, 3).await?;
    let large = vec![5; 1 << 20];
    let parts: [&[u8]; 3] = [b"first", &large, b""];
    let snapshot = steps.put_parts(at, &parts).await?;
    let listed = surely(|| steps.log.snapshots(steps.shard)).await;
    ensure!(listed == Ok(vec![]), "listed before it is complete: {listed:?}");
    for attempt in 1..=2 {
        let completed = surely(|| steps.log.complete(snapshot)).await;
        ensure!(completed == Ok(Completed::Created), "attempt {attempt}: {completed:?}");
    }
    let listed = surely(|| steps.log.snapshots(steps.shard)).await;
    ensure!(listed == Ok(vec![snapshot]), "listed {listed:?}");
    for (part, number) in parts.iter().zip(0..) {
        let read = surely(|| steps.log.get_part(snapshot, number)).await;
        ensure!(read.as_deref() == Ok(*part), "part {number} differs");
    }
    Ok(())
}

async fn never_replaced(steps: &mut Steps<'_>) -> Outcome {
    let at = steps.append_many(Tail::EMPTY, 2).await?;
    let first = steps.put_parts(at, &[b"one", b"two"]).await?;
    let second = steps.put_parts(at, &[b"ONE"]).await?;
    let completed = surely(|| steps.log.complete(first)).await;
    ensure!(completed == Ok(Completed::Created), "the first: {completed:?}");
    let completed = surely(|| steps.log.complete(second)).await;
    ensure!(completed == Ok(Completed::Exists), "the second: {completed:?}");
    let listed = surely(|| steps.log.snapshots(steps.shard)).await;
    ensure!(listed == Ok(vec![first]), "listed {listed:?}");
    let read = surely(|| steps.log.get_part(first, 0)).await;
    ensure!(read.as_deref() == Ok(b"one"), "the first part is {read:?}");
    Ok(())
}

async fn large_part(steps: &mut Steps<'_>) -> Outcome {
    let snapshot = steps.put_parts(Tail::EMPTY, &[]).await?;
    let bytes = Bytes::from(vec![0; PART_MAX + 1]);
    let put = steps.log.put_part(snapshot.id, 0, bytes).await;
    ensure!(matches!(put, Err(LogError::TooLarge { max: PART_MAX, .. })), "put: {put:?}");
    let put = steps.log.put_part(snapshot.id, u32::MAX, Bytes::new()).await;
    ensure!(matches!(put, Err(LogError::Unsuitable(_))), "put of the greatest part: {put:?}");
    Ok(())
}

async fn trim_needs_snapshot(steps: &mut Steps<'_>) -> Outcome {
    let middle = steps.append_many(Tail::EMPTY, 2).await?;
    steps.append_many(middle, 2).await?;
    for newest in [0, middle.position] {
        let trim = steps.trim(3).await;
        let is_refused = matches!(trim, Err(LogError::NotInSnapshot { through: 3, newest: found, .. })
            if found == newest);
        ensure!(is_refused, "with a snapshot at {newest}: {trim:?}");
        let read = steps.read_all(0).await;
        ensure!(read.as_ref().is_ok_and(|read| read.len() == 4), "read {read:?}");
        steps.snapshot(middle).await?;
    }
    Ok(())
}

async fn trim_keeps_newest(steps: &mut Steps<'_>) -> Outcome {
    let first = steps.append_many(Tail::EMPTY, 2).await?;
    let second = steps.append_many(first, 2).await?;
    let third = steps.append_many(second, 2).await?;
    let old = steps.snapshot(first).await?;
    let abandoned = steps.put_parts(first, &[b"never completed"]).await?;
    let (kept, newest) = (steps.snapshot(second).await?, steps.snapshot(third).await?);
    steps.trim(second.position).await.map_err(|error| error.to_string())?;
    let listed = surely(|| steps.log.snapshots(steps.shard)).await;
    ensure!(listed == Ok(vec![kept, newest]), "listed {listed:?}");
    for snapshot in [old, abandoned] {
        let read = surely(|| steps.log.get_part(snapshot, 0)).await;
        ensure!(matches!(read, Err(LogError::Gone { .. })), "{snapshot:?}: {read:?}");
    }
    let read = surely(|| steps.log.get_part(kept, 0)).await;
    ensure!(read.as_deref() == Ok(b"state"), "the kept part is {read:?}");
    let read = steps.read_all(second.position).await;
    ensure!(read.as_ref().is_ok_and(|read| read.len() == 2), "read {read:?}");
    let again = steps.trim(second.position).await;
    ensure!(again == Ok(()), "the same trim again: {again:?}");
    Ok(())
}

async fn paused_owner(steps: &mut Steps<'_>) -> Outcome {
    let tail = steps.append_many(Tail::EMPTY, 2).await?;
    let of_paused = steps.frame(tail);
    let takeover = steps.takeover(tail);
    ensure!(steps.append(&takeover).await?, "the takeover is taken");
    let end = steps.append_many(takeover.tail(), 2).await?;
    steps.snapshot(end).await?;
    steps.trim(end.position).await.map_err(|error| error.to_string())?;
    ensure!(!steps.append(&of_paused).await?, "the paused server has appended {of_paused:?}");
    let found = surely(|| steps.log.tail(steps.shard)).await;
    ensure!(found == Ok(end), "the tail is {found:?}, not {end:?}");
    Ok(())
}

/// The predecessor of the late frame is trimmed with the rest, or is a takeover frame, which stays.
async fn late_takeover(steps: &mut Steps<'_>) -> Outcome {
    let mut tail = Tail::EMPTY;
    for kind in [FrameKind::Turn, FrameKind::Takeover] {
        let before = steps.frame_with(tail, kind, 10);
        ensure!(steps.append(&before).await?, "{before:?} is taken");
        let late = steps.takeover(before.tail());
        let end = steps.append_many(before.tail(), 3).await?;
        steps.snapshot(end).await?;
        steps.trim(end.position).await.map_err(|error| error.to_string())?;
        let is_appended = steps.append(&late).await?;
        ensure!(!is_appended, "{late:?} is appended where a frame was trimmed");
        let found = surely(|| steps.log.tail(steps.shard)).await;
        ensure!(found == Ok(end), "the tail is {found:?}, not {end:?}");
        tail = end;
    }
    let next = steps.frame(tail);
    ensure!(steps.append(&next).await?, "the next frame is taken");
    Ok(())
}

//! Cases about reads: pages, the end of a log, and holes.

use super::case::{Case, Outcome, ensure};
use super::steps::{Steps, surely};
use crate::error::LogError;
use crate::frame::{Frame, Tail};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "an empty log has an empty tail, no frames and no snapshots",
        only: None,
        run: |steps| Box::pin(empty(steps)),
    },
    Case {
        name: "a page has at least one frame, and otherwise at most the bytes asked for",
        only: None,
        run: |steps| Box::pin(pages(steps)),
    },
    Case {
        name: "a read below a trimmed position is a hole",
        only: None,
        run: |steps| Box::pin(trimmed(steps)),
    },
    Case {
        name: "a read below a log whose frames are all trimmed is a hole",
        only: None,
        run: |steps| Box::pin(all_trimmed(steps)),
    },
];

async fn empty(steps: &mut Steps<'_>) -> Outcome {
    let tail = surely(|| steps.log.tail(steps.shard)).await;
    ensure!(tail == Ok(Tail::EMPTY), "the tail is {tail:?}");
    let frames = steps.read_all(0).await;
    ensure!(frames == Ok(vec![]), "read {frames:?}");
    let snapshots = surely(|| steps.log.snapshots(steps.shard)).await;
    ensure!(snapshots == Ok(vec![]), "the snapshots are {snapshots:?}");
    Ok(())
}

async fn pages(steps: &mut Steps<'_>) -> Outcome {
    let tail = steps.append_many(Tail::EMPTY, 6).await?;
    let frame_len = 64 + 100;
    for (bytes_max, expected) in [(0, 1), (1, 1), (frame_len, 1), (3 * frame_len, 3), (1 << 20, 6)]
    {
        let page = surely(|| steps.log.read(steps.shard, 0, bytes_max)).await;
        let positions = page.map(|page| page.iter().map(Frame::position).collect::<Vec<_>>());
        let expected: Vec<u64> = (1..=expected).collect();
        ensure!(positions == Ok(expected), "{bytes_max} bytes: {positions:?}");
    }
    for above in [tail.position, tail.position + 10] {
        let page = surely(|| steps.log.read(steps.shard, above, 1 << 20)).await;
        ensure!(page == Ok(vec![]), "above {above}: {page:?}");
    }
    Ok(())
}

async fn trimmed(steps: &mut Steps<'_>) -> Outcome {
    let middle = steps.append_many(Tail::EMPTY, 4).await?;
    let tail = steps.append_many(middle, 3).await?;
    steps.snapshot(middle).await?;
    steps.trim(middle.position).await.map_err(|error| error.to_string())?;
    for above in 0..middle.position {
        let page = surely(|| steps.log.read(steps.shard, above, 1 << 20)).await;
        let is_hole = matches!(page, Err(LogError::Hole { missing, found, .. })
            if missing == above + 1 && found > missing);
        ensure!(is_hole, "above {above}: {page:?}");
    }
    let read = steps.read_all(middle.position).await.map_err(|error| error.to_string())?;
    let chain = Frame::check_chain(steps.shard, middle, &read);
    ensure!(chain == Ok(tail), "the rest is {chain:?}, not {tail:?}");
    Ok(())
}

async fn all_trimmed(steps: &mut Steps<'_>) -> Outcome {
    let tail = steps.append_many(Tail::EMPTY, 3).await?;
    steps.snapshot(tail).await?;
    steps.trim(tail.position).await.map_err(|error| error.to_string())?;
    let page = surely(|| steps.log.read(steps.shard, 0, 1 << 20)).await;
    ensure!(matches!(page, Err(LogError::Hole { missing: 1, .. })), "above 0: {page:?}");
    let page = surely(|| steps.log.read(steps.shard, tail.position, 1 << 20)).await;
    ensure!(page == Ok(vec![]), "above the tail: {page:?}");
    let found = surely(|| steps.log.tail(steps.shard)).await;
    ensure!(found == Ok(tail), "the tail is {found:?}, not {tail:?}");
    let next = steps.append_many(tail, 2).await?;
    let read = steps.read_all(tail.position).await.map_err(|error| error.to_string())?;
    ensure!(Frame::check_chain(steps.shard, tail, &read) == Ok(next), "read {read:?}");
    Ok(())
}

//! Cases about appends: exactly one writer at each position, and the same bytes again.

use super::case::{Case, Outcome, ensure};
use super::steps::{Steps, surely};
use crate::frame::{FrameId, FrameKind, Tail};
use crate::log::Guarantee;
use futures_util::future::join;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "frames are appended one after the other, and are read as they were written",
        only: None,
        run: |steps| Box::pin(one_after_the_other(steps)),
    },
    Case {
        name: "of two frames at one position exactly one is appended",
        only: None,
        run: |steps| Box::pin(one_position(steps)),
    },
    Case {
        name: "of two writers that race for each position exactly one wins",
        only: None,
        run: |steps| Box::pin(races(steps)),
    },
    Case {
        name: "a frame that is appended again is appended once",
        only: None,
        run: |steps| Box::pin(same_bytes_again(steps)),
    },
    Case {
        name: "a frame that another frame has replaced stays out of the log",
        only: None,
        run: |steps| Box::pin(overtaken(steps)),
    },
    Case {
        name: "a frame after another predecessor is not appended",
        only: Some(Guarantee::Chained),
        run: |steps| Box::pin(another_predecessor(steps)),
    },
    Case {
        name: "an older frame that is repeated late changes nothing",
        only: None,
        run: |steps| Box::pin(late(steps)),
    },
    Case { name: "the shards are independent", only: None, run: |steps| Box::pin(shards(steps)) },
    Case {
        name: "a frame of nine megabytes and an empty one are stored",
        only: None,
        run: |steps| Box::pin(sizes(steps)),
    },
];

async fn one_after_the_other(steps: &mut Steps<'_>) -> Outcome {
    let (mut after, mut written) = (Tail::EMPTY, Vec::new());
    for _ in 0..10 {
        let frame = steps.frame(after);
        ensure!(steps.append(&frame).await?, "{frame:?} is taken");
        after = frame.tail();
        written.push(frame);
    }
    let read = steps.read_all(0).await.map_err(|error| error.to_string())?;
    ensure!(read == written, "read {read:?}, written {written:?}");
    let tail = surely(|| steps.log.tail(steps.shard)).await;
    ensure!(tail == Ok(after), "the tail is {tail:?}, not {after:?}");
    Ok(())
}

async fn one_position(steps: &mut Steps<'_>) -> Outcome {
    let (first, second) = (steps.frame(Tail::EMPTY), steps.frame(Tail::EMPTY));
    ensure!(steps.append(&first).await?, "the first is taken");
    ensure!(!steps.append(&second).await?, "the second is appended");
    let read = steps.read_all(0).await.map_err(|error| error.to_string())?;
    ensure!(read == [first], "read {read:?}");
    Ok(())
}

async fn races(steps: &mut Steps<'_>) -> Outcome {
    let (mut after, mut winners) = (Tail::EMPTY, Vec::new());
    for _ in 0..40 {
        let (one, other) = (steps.frame(after), steps.takeover(after));
        let won = match join(steps.append(&one), steps.append(&other)).await {
            (Ok(true), Ok(false)) => one,
            (Ok(false), Ok(true)) => other,
            (one, other) => return Err(format!("after {after:?}: {one:?} and {other:?}")),
        };
        after = won.tail();
        winners.push(won);
    }
    let read = steps.read_all(0).await.map_err(|error| error.to_string())?;
    ensure!(read == winners, "read {read:?}, won {winners:?}");
    Ok(())
}

async fn same_bytes_again(steps: &mut Steps<'_>) -> Outcome {
    let after = steps.append_many(Tail::EMPTY, 2).await?;
    let frame = steps.frame(after);
    for attempt in 1..=3 {
        ensure!(steps.append(&frame).await?, "attempt {attempt} is taken");
    }
    let read = steps.read_all(2).await.map_err(|error| error.to_string())?;
    ensure!(read == [frame], "read {read:?}");
    Ok(())
}

async fn overtaken(steps: &mut Steps<'_>) -> Outcome {
    let after = steps.append_many(Tail::EMPTY, 1).await?;
    let (stopped, takeover) = (steps.frame(after), steps.takeover(after));
    ensure!(steps.append(&takeover).await?, "the takeover is taken");
    for attempt in 1..=2 {
        ensure!(!steps.append(&stopped).await?, "attempt {attempt} of the frame is appended");
    }
    let next = steps.frame(takeover.tail());
    ensure!(steps.append(&next).await?, "the frame after the takeover is taken");
    ensure!(!steps.append(&stopped).await?, "the frame is appended below the tail");
    let read = steps.read_all(1).await.map_err(|error| error.to_string())?;
    ensure!(read == [takeover, next], "read {read:?}");
    Ok(())
}

async fn another_predecessor(steps: &mut Steps<'_>) -> Outcome {
    let after = steps.append_many(Tail::EMPTY, 2).await?;
    let strangers = [
        Tail { position: after.position, id: FrameId::new([0xee; 16]) },
        Tail { position: after.position, id: FrameId::NONE },
        Tail { position: after.position + 1, id: after.id },
        Tail { position: after.position - 1, id: after.id },
        Tail::EMPTY,
    ];
    for stranger in strangers {
        let frame = steps.frame(stranger);
        ensure!(!steps.append(&frame).await?, "{frame:?} is appended after {stranger:?}");
    }
    let frame = steps.frame(after);
    ensure!(steps.append(&frame).await?, "the frame after the tail is taken");
    Ok(())
}

async fn late(steps: &mut Steps<'_>) -> Outcome {
    let first = steps.frame(Tail::EMPTY);
    ensure!(steps.append(&first).await?, "the first is taken");
    let tail = steps.append_many(first.tail(), 3).await?;
    // Either answer is right: the frame stands, and another frame follows it.
    steps.append(&first).await?;
    let found = surely(|| steps.log.tail(steps.shard)).await;
    ensure!(found == Ok(tail), "the tail is {found:?}, not {tail:?}");
    let read = steps.read_all(0).await.map_err(|error| error.to_string())?;
    ensure!(read.len() == 4 && read[0] == first, "read {read:?}");
    Ok(())
}

async fn shards(steps: &mut Steps<'_>) -> Outcome {
    let tail = steps.append_many(Tail::EMPTY, 2).await?;
    let empty = surely(|| steps.log.tail(steps.other_shard)).await;
    ensure!(empty == Ok(Tail::EMPTY), "the other shard ends with {empty:?}");
    std::mem::swap(&mut steps.shard, &mut steps.other_shard);
    let other_tail = steps.append_many(Tail::EMPTY, 1).await?;
    for (shard, tail) in [(steps.shard, other_tail), (steps.other_shard, tail)] {
        let found = surely(|| steps.log.tail(shard)).await;
        ensure!(found == Ok(tail), "shard {shard} ends with {found:?}, not {tail:?}");
    }
    Ok(())
}

async fn sizes(steps: &mut Steps<'_>) -> Outcome {
    let large = steps.frame_with(Tail::EMPTY, FrameKind::Turn, 9 << 20);
    let empty = steps.frame_with(large.tail(), FrameKind::Turn, 0);
    for frame in [&large, &empty] {
        ensure!(steps.append(frame).await?, "{frame:?} is taken");
    }
    let read = steps.read_all(0).await.map_err(|error| error.to_string())?;
    ensure!(read == [large, empty], "read {read:?}");
    Ok(())
}

//! The part of a probe that every store shares: two frames at one position, one after the other and at
//! the same time. Some stores ignore the condition of an append, and some check it before they write.

use crate::error::LogError;
use crate::frame::{Frame, FrameId, FrameKind, Tail};
use crate::log::{Append, SharedLog};
use crate::shard::Shard;
use futures_util::future::join;

/// The races of which exactly one frame must win.
const ROUNDS: u8 = 24;
/// How often a call is made while the store does not answer.
const TRIES: u32 = 10;
/// The rounds after which a probe that other servers disturb ends.
const ROUNDS_MAX: u8 = 200;

/// Races appends in a shard that has no other use. Other servers may do the same at the same time:
/// then neither frame may win, but never both. `nonce` has random bytes.
pub async fn race(log: &dyn SharedLog, shard: Shard, nonce: [u8; 16]) -> Result<(), LogError> {
    let mut after = tail(log, shard).await?;
    let mut won = 0;
    for round in 0..ROUNDS_MAX {
        let frame = |writer: u8| {
            let mut id = nonce;
            id[14..].copy_from_slice(&[round, writer]);
            Frame::new(shard, after, FrameId::new(id), FrameKind::Turn, b"probe")
        };
        let (one, other) = (frame(1)?, frame(2)?);
        let (first, second) = if round % 4 == 0 {
            let first = append(log, &one).await;
            (first, append(log, &other).await)
        } else {
            join(append(log, &one), append(log, &other)).await
        };
        after = match (first, second) {
            (Append::Appended, Append::Appended) => return Err(both(after)),
            (Append::Appended, Append::Taken) => one.tail(),
            (Append::Taken, Append::Appended) => other.tail(),
            (Append::Taken, Append::Taken) => {
                after = tail(log, shard).await?;
                continue;
            }
            (Append::Unknown(error), _) | (_, Append::Unknown(error)) => return Err(error),
        };
        won += 1;
        if won == ROUNDS {
            return Ok(());
        }
    }
    let text = "the probe of the store was disturbed by other servers: start again";
    Err(LogError::Unavailable(text.to_owned()))
}

/// Appends a frame, a few times while its outcome is not known.
async fn append(log: &dyn SharedLog, frame: &Frame) -> Append {
    let mut outcome = log.append(frame).await;
    for _ in 1..TRIES {
        match outcome {
            Append::Unknown(LogError::Unavailable(_)) => outcome = log.append(frame).await,
            Append::Appended | Append::Taken | Append::Unknown(_) => return outcome,
        }
    }
    outcome
}

async fn tail(log: &dyn SharedLog, shard: Shard) -> Result<Tail, LogError> {
    let mut tail = log.tail(shard).await;
    for _ in 1..TRIES {
        match tail {
            Err(LogError::Unavailable(_)) => tail = log.tail(shard).await,
            result => return result,
        }
    }
    tail
}

fn both(after: Tail) -> LogError {
    LogError::Unsuitable(format!(
        "the store has accepted two frames at position {}: it does not enforce the condition of an \
         append, so keys could be lent twice; use another store, or a newer version of this one",
        after.position + 1
    ))
}

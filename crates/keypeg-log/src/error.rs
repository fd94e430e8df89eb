//! Why a call of a shared log failed, with the next step for an operator or for the engine.

use crate::shard::Shard;

/// Why a call of a shared log failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The store cannot be reached, did not answer in time, or has lost the connection. Whether it
    /// applied the call is not known.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// The store or its settings cannot be used. The text names the setting and the next step.
    #[error("{0}")]
    Unsuitable(String),
    /// The next frame is missing, although there are later ones.
    #[error(
        "shard {shard} has no frame {missing} and continues at {found}: begin at the newest snapshot"
    )]
    Hole {
        /// The shard.
        shard: Shard,
        /// The position that is missing.
        missing: u64,
        /// The next position that exists, as a frame or as a snapshot.
        found: u64,
    },
    /// Bytes in the store are not what a server wrote.
    #[error("shard {shard}, frame or snapshot {position} is damaged: {what}")]
    Damaged {
        /// The shard.
        shard: Shard,
        /// The position of the frame or of the snapshot.
        position: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A trim has removed the snapshot.
    #[error("the snapshot {position} of shard {shard} was removed: use the newest one")]
    Gone {
        /// The shard.
        shard: Shard,
        /// The position of the snapshot.
        position: u64,
    },
    /// The trim would remove frames that no snapshot holds.
    #[error(
        "shard {shard} cannot be trimmed through {through}: its newest snapshot is {newest}; \
         complete a snapshot at {through} or above first"
    )]
    NotInSnapshot {
        /// The shard.
        shard: Shard,
        /// The position up to which frames were to be removed.
        through: u64,
        /// The position of the newest snapshot; 0 without one.
        newest: u64,
    },
    /// A frame, a part or a heartbeat exceeds its limit.
    #[error("{what} has {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The greatest length in bytes.
        max: usize,
    },
}

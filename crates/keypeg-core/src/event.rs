//! What is told of a pool to those who follow it.
//!
//! Unlike a [`Fact`](crate::Fact) an event names its key by the public id, carries no value, and
//! tells of ends by time, which leave no fact. Nothing is made again from events: a pool that
//! nobody follows makes none, and spends nothing on them but the question.

use crate::ids::KeyId;
use crate::key::{KeyState, NewKey};

/// Something that happened to keys of a followed pool. Instants are lease time in microseconds.
///
/// Each tells enough to count states by it: where a key is from now on follows from the event, and
/// where it was is told wherever it could have been in more than one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Keys came to be, all by one call; they are available.
    KeysCreated {
        /// Whether they were brought in.
        imported: bool,
        /// The keys.
        keys: &'a [NewKey],
    },
    /// An available key was lent.
    Granted {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// Who said to hold it.
        holder: Option<&'a str>,
        /// When the lease ends.
        until_us: u64,
    },
    /// A lease was given more time.
    Renewed {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// When the lease ends now.
        until_us: u64,
    },
    /// A lease was ended by a call.
    Released {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// Until when the key rests; 0 for not at all: then it is available.
        rest_until_us: u64,
        /// Why it rests, where that was said.
        reason: Option<&'a str>,
    },
    /// A lease was ended by time.
    Expired {
        /// The key.
        key: KeyId,
        /// The fencing token.
        token: u64,
        /// Until when the key rests; 0 for not at all: then it is available.
        rest_until_us: u64,
    },
    /// A leased key was taken out of rotation by a call.
    Quarantined {
        /// The key.
        key: KeyId,
        /// The token of the lease that this ended.
        token: u64,
        /// Why, where that was said.
        reason: Option<&'a str>,
    },
    /// A key that rested or was out of rotation is available again, by a call or by time.
    KeyFreed {
        /// The key.
        key: KeyId,
        /// Where it was.
        was: KeyState,
    },
    /// A key was deleted by a call.
    Deleted {
        /// The key.
        key: KeyId,
        /// Where it was.
        was: KeyState,
    },
    /// A key was purged by time.
    Purged {
        /// The key.
        key: KeyId,
        /// Where it was.
        was: KeyState,
    },
}

//! How a thread of a shard waits for its log. A server parks the thread; a simulation lets time pass
//! and other servers act.

use keypeg_log::{Call, LogError};

/// Runs calls of a log to their end.
pub trait Executor {
    /// Waits for a call.
    fn run<T>(&self, call: Call<'_, T>) -> T;
}

/// How long an append is repeated whose outcome is not known.
pub trait Patience {
    /// Waits before the next try, which is the `attempt`th after this error; returns false if there is
    /// to be none.
    fn wait(&mut self, attempt: u32, error: &LogError) -> bool;
}

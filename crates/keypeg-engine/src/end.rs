//! How the engine ends the process: for an error of the disk, for a panic of one of its threads, or
//! because another server has its place.
//!
//! No reply that is not durable leaves after it. It does not know what failed, nor how the server
//! writes its log: the server's hook does that.

use std::sync::OnceLock;

/// The exit code of a process that cannot write its journal: `EX_IOERR` of sysexits.h.
pub(crate) const EXIT_IO: i32 = 74;

static HOOK: OnceLock<fn()> = OnceLock::new();

/// Sets the function that an engine calls just before it ends the process, to write the last lines
/// of the log. It must return in bounded time. For the whole process; only the first call counts.
pub fn set_exit_hook(hook: fn()) {
    // A second server in this process has the same log.
    let _ = HOOK.set(hook);
}

fn call_hook() {
    if let Some(hook) = HOOK.get() {
        hook();
    }
}

/// Logs why and ends the process with this exit code, without a clean stop: what follows is as after
/// a kill.
pub fn end_process(error: &impl std::fmt::Display, note: &str, code: i32) -> ! {
    tracing::error!("{error}; {note}");
    call_hook();
    std::process::exit(code)
}

/// Aborts the process when its thread panics, since the state it shares may be inconsistent.
#[derive(Debug)]
pub struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("an engine thread panicked: aborting, its state cannot be trusted");
            call_hook();
            std::process::abort();
        }
    }
}

//! Threads and tasks without which a server must not run: when one panics, the process ends.
//!
//! A server whose signals, tokens, audit log or replies have silently stopped looks healthy and is
//! not; its supervisor restarts a process that ended. What such a thread does is not known here.

use crate::failure::exit;
use crate::log;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

/// Starts a thread whose panic ends the process.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name.into());
    let name = name.to_owned();
    thread.spawn(move || {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            end_process(&format!("the thread {name} panicked"));
        }
    })
}

/// Reports a fault of the server itself and ends the process, with the code of a panic.
pub(crate) fn end_process(fault: &str) -> ! {
    tracing::error!("{fault}: the server ends, which is as safe as a crash; please report it");
    log::flush_streams();
    std::process::exit(exit::PANIC.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "KEYPEG_TEST_VITAL";

    /// Runs in a child process, which must end although its main thread waits.
    #[test]
    fn a_panic_of_a_vital_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let ends = spawn("ends", || {}).unwrap();
            ends.join().unwrap();
            log::start_streams();
            log::log_to_stderr(log::LogFormat::Text).unwrap();
            // Many writes: the end has to wait for the thread of the stream.
            log::report(&"x".repeat(32 << 10));
            let _panics = spawn("panics", || panic!("on purpose")).unwrap();
            std::thread::park_timeout(std::time::Duration::from_mins(1));
            return;
        }
        let name = "vital::tests::a_panic_of_a_vital_thread_ends_the_process";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", name]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit::PANIC.into()), "{said}");
        assert!(
            said.contains("the thread panics panicked: the server ends"),
            "why: {}",
            said.len()
        );
    }
}

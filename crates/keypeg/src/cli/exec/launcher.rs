//! The process that becomes the command: `keypeg exec-launcher`, an internal command.
//!
//! It sets what only the process itself can set, and then executes the command in its own place:
//! SIGTERM when `exec` dies, and the terminal before the command first reads from it.

use super::terminal::Terminal;
use crate::failure::{Failure, exit};
use clap::Args;
use rustix::process::{Pid, Signal, getpgrp, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Exit code of a shell for a command that cannot be run.
const CANNOT_RUN: u8 = 126;
/// Exit code of a shell for a command that is not found.
const NOT_FOUND: u8 = 127;

/// The arguments of the launcher.
#[derive(Debug, Args)]
pub struct LauncherArgs {
    /// Process id of `keypeg exec`
    #[arg(long)]
    pub(super) parent: i32,
    /// Take the terminal on stdin
    #[arg(long)]
    pub(super) terminal: bool,
    /// Command to run, with its arguments
    #[arg(required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

impl LauncherArgs {
    /// Becomes the command; returns only if that fails.
    pub(crate) fn launch(self) -> Failure {
        let failed = |error| Failure::new(exit::OS, format!("cannot prepare the command: {error}"));
        if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
            return failed(error);
        }
        // The parent may have died before the line above.
        if getppid().map(Pid::as_raw_pid) != Some(self.parent) {
            return Failure::new(exit::OS, "keypeg exec has ended");
        }
        if let Some(terminal) = Terminal::of_stdin().filter(|_| self.terminal) {
            terminal.give(getpgrp());
        }
        let (program, arguments) =
            self.command.split_first().expect("invariant: clap requires a command");
        let error = Command::new(program).args(arguments).exec();
        let code = if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
        Failure::new(code, format!("cannot run {}: {error}", program.display()))
    }
}

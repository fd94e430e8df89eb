//! The process that becomes the command: `keypeg exec-launcher`, an internal command.
//!
//! It sets what only the process itself can set, and then executes the command in its own place:
//! SIGTERM when `exec` dies, and the terminal before the command first reads from it. Between the two
//! it waits for `exec` at a gate, so that no command runs before its watchdog does.

use super::terminal::Terminal;
use crate::failure::{Failure, exit};
use clap::Args;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, getpgrp, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
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
    /// Inherited pipe from which one byte is read before the command runs
    #[arg(long)]
    pub(super) gate: i32,
    /// Take the terminal on stdin
    #[arg(long)]
    pub(super) terminal: bool,
    /// Command to run, with its arguments
    #[arg(required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

/// The side of `exec` of the gate: a pipe. Dropped closed, the launcher ends and runs no command.
#[derive(Debug)]
pub(super) struct Gate(File);

impl Gate {
    /// Returns a closed gate, and the launcher's end of it, which all processes inherit that are
    /// started before it is dropped.
    pub(super) fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfd(&read, FdFlags::empty())?;
        Ok((Self(File::from(write)), read))
    }

    /// Lets the launcher run the command.
    pub(super) fn open(mut self) {
        // Fails if the launcher has ended, which its exit code shows.
        let _ = self.0.write_all(b"\n");
    }
}

/// Returns the argument that names the launcher's end of a gate.
pub(super) fn gate_argument(read: &OwnedFd) -> String {
    read.as_raw_fd().to_string()
}

/// Waits until `exec` opens the gate; returns whether it did. Closes the inherited end, so that the
/// command does not inherit it.
fn pass(gate: i32) -> io::Result<bool> {
    let mut pipe = File::open(format!("/proc/self/fd/{gate}"))?;
    nix::unistd::close(gate)?;
    Ok(pipe.read(&mut [0])? == 1)
}

impl LauncherArgs {
    /// Becomes the command; returns only if that fails.
    pub(crate) fn launch(self) -> Failure {
        let failed = |error: io::Error| {
            Failure::new(exit::OS, format!("cannot prepare the command: {error}"))
        };
        if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
            return failed(error.into());
        }
        let may_run = match pass(self.gate) {
            Ok(may_run) => may_run,
            Err(error) => return failed(error),
        };
        // The parent may have died before its death was given a signal.
        if !may_run || getppid().map(Pid::as_raw_pid) != Some(self.parent) {
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

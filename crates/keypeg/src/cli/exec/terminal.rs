//! The terminal of a command: giving it to the command's process group, and taking it back.
//!
//! The process that calls this may be in the background of the terminal. So SIGTTOU is blocked
//! around each call that would otherwise stop it.

use super::processes::stat;
use crate::streams;
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Ttou};
use rustix::process::{Pid, getpgrp, getpid, getsid};
use rustix::stdio::stdin;
use rustix::termios::{isatty, tcgetpgrp, tcsetpgrp};
use std::io::IsTerminal;
use std::os::fd::BorrowedFd;

/// The controlling terminal, on stdin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    fd: BorrowedFd<'static>,
}

impl Terminal {
    /// Returns the terminal on stdin, if it is the one that controls this process.
    pub(super) fn of_stdin() -> Option<Self> {
        let fd = stdin();
        (isatty(fd) && tcgetpgrp(fd).is_ok()).then_some(Self { fd })
    }

    /// Returns whether the group of this process has the terminal.
    pub(super) fn is_ours(self) -> bool {
        self.is_of(getpgrp())
    }

    /// Returns whether a group has the terminal.
    pub(super) fn is_of(self, group: Pid) -> bool {
        tcgetpgrp(self.fd) == Ok(group)
    }

    /// Gives the terminal to a group of this session. Fails if the group has just ended.
    pub(super) fn give(self, group: Pid) {
        without_ttou(|| {
            let _ = tcsetpgrp(self.fd, group);
        });
    }

    /// Takes the terminal back from a group, unless another one has it, for example that of the
    /// shell.
    pub(super) fn take_back(self, group: Pid) {
        // An error means that the group that has it no longer exists.
        if tcgetpgrp(self.fd).map_or(true, |present| present == group) {
            self.give(getpgrp());
        }
    }
}

/// Returns whether the command is to get the terminal from its start. In a pipeline, as in
/// `keypeg exec … | less`, another process may need it: then the command gets it when it asks.
pub(super) fn is_given_at_start(terminal: Option<Terminal>) -> bool {
    std::io::stdout().is_terminal() && terminal.is_some_and(Terminal::is_ours)
}

/// Returns whether a shell with job control can continue this process after it has stopped: an
/// ancestor in the same session and another process group.
pub(super) fn has_job_control_shell() -> bool {
    let (group, session) = (getpgrp(), getsid(None).ok());
    let mut process = stat(getpid());
    while let Some(present) = process {
        let Some(parent) = present.parent.and_then(stat) else { return false };
        if Some(parent.session) != session.map(Pid::as_raw_pid) {
            return false;
        }
        if parent.group != group.as_raw_pid() {
            return true;
        }
        process = Some(parent);
    }
    false
}

/// Prints a line for people on stderr, also while another process group has the terminal.
pub(super) fn print_message(message: &str) {
    without_ttou(|| streams::print_message(message));
}

/// Calls a function while SIGTTOU is blocked in this thread.
pub(super) fn without_ttou(call: impl FnOnce()) {
    let mut set = SigSet::empty();
    set.add(Ttou::SIGTTOU);
    let earlier = set.thread_swap_mask(SigmaskHow::SIG_BLOCK);
    call();
    if let Ok(earlier) = earlier {
        let _ = earlier.thread_set_mask();
    }
}

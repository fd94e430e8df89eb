//! The command of `exec` with all the processes that it starts: starting, signalling, waiting,
//! stopping, ending.
//!
//! The command has a process group of its own. This process is the parent of the command and the
//! subreaper of its descendants, so it waits for all of them, and none is out of reach. The file
//! knows no lease.

use super::launcher::{Gate, gate_argument};
use super::processes::{OWN_PROGRAM, Process, descendants};
use super::terminal::{self, Terminal};
use crate::failure::{Failure, exit};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_current_process_group, kill_process,
    kill_process_group, set_child_subreaper, test_kill_process_group, wait,
};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A running command.
#[derive(Debug)]
pub(super) struct Job {
    /// The process of the command, which is also the id of its group.
    leader: Pid,
    /// What the command waits for before it runs.
    gate: Option<Gate>,
    /// How the command has ended.
    exited: Option<WaitStatus>,
    /// The signal by which the command has stopped.
    stopped: Option<i32>,
    terminal: Option<Terminal>,
    /// Whether the command had the terminal when it last ran.
    has_terminal: bool,
    /// Whether this process was asked to stop.
    is_stop_requested: bool,
}

impl Job {
    /// Starts the process that becomes the command, with these variables. The command runs from
    /// [`Self::proceed`].
    pub(super) fn start(
        command: &[OsString],
        variables: &[(&str, String)],
        removed: &[&str],
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::new(exit::OS, format!("cannot run the command: {error}"))
        };
        set_child_subreaper(Some(getpid())).map_err(|error| failed(error.into()))?;
        let terminal = Terminal::of_stdin();
        let has_terminal = terminal::is_given_at_start(terminal);
        let (gate, launcher_end) = Gate::new().map_err(failed)?;
        let mut launcher = Command::new(OWN_PROGRAM);
        launcher.args(["exec-launcher", "--parent", &getpid().as_raw_pid().to_string()]);
        launcher.args(["--gate", &gate_argument(&launcher_end)]);
        if has_terminal {
            launcher.arg("--terminal");
        }
        launcher.arg("--").args(command).process_group(0);
        for name in removed {
            launcher.env_remove(name);
        }
        launcher.envs(variables.iter().map(|(name, value)| (name, value)));
        let process = launcher.spawn().map_err(failed)?;
        let leader = Pid::from_child(&process);
        Ok(Self {
            leader,
            gate: Some(gate),
            exited: None,
            stopped: None,
            terminal,
            has_terminal,
            is_stop_requested: false,
        })
    }

    /// Lets the command run.
    pub(super) fn proceed(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.open();
        }
    }

    /// Returns the process group of the command.
    pub(super) fn group(&self) -> Pid {
        self.leader
    }

    /// Waits for all children that have ended or stopped, also for those that the command has left
    /// behind.
    pub(super) fn reap(&mut self) {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
        while let Ok(Some((pid, status))) = wait(options) {
            if pid != self.leader {
                continue;
            }
            if status.stopped() {
                self.stopped = status.stopping_signal();
            } else if status.continued() {
                self.stopped = None;
            } else {
                self.exited = Some(status);
            }
        }
    }

    /// Returns the exit code of the command as a shell reports it, if it has ended.
    pub(super) fn exit_code(&self) -> Option<u8> {
        let status = self.exited?;
        let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
        code.and_then(|code| u8::try_from(code).ok()).or(Some(exit::SOFTWARE))
    }

    /// Returns the processes of the command that still run, without `except`. Where `/proc` does
    /// not show them, the process group stands for all.
    pub(super) fn remaining(&self, except: Option<Pid>) -> Remaining {
        match descendants() {
            Some(mut found) => {
                found.retain(|process| Some(process.pid) != except);
                Remaining::Known(found)
            }
            None if self.exited.is_none() || test_kill_process_group(self.leader).is_ok() => {
                Remaining::Group
            }
            None => Remaining::Known(Vec::new()),
        }
    }

    /// Sends a signal to the process group of the command.
    pub(super) fn signal(&mut self, signal: Signal) {
        self.is_stop_requested |= signal == Signal::TSTP;
        // Fails if the group has just ended, which needs no signal.
        let _ = kill_process_group(self.leader, signal);
    }

    /// Sends a signal to the process group and to all other processes that the command has started.
    pub(super) fn signal_all(&self, signal: Signal, except: Option<Pid>) {
        let remaining = self.remaining(except);
        let is_in_group = |process: &Process| process.group == self.leader.as_raw_pid();
        let has_group = match &remaining {
            Remaining::Known(found) => self.exited.is_none() || found.iter().any(is_in_group),
            Remaining::Group => true,
        };
        if has_group {
            let _ = kill_process_group(self.leader, signal);
        }
        if let Remaining::Known(found) = remaining {
            for process in found.iter().filter(|process| !is_in_group(process)) {
                let _ = kill_process(process.pid, signal);
            }
        }
    }

    /// Acts on a stop of the command, as a shell with job control expects; returns whether this
    /// process stops too. It then runs again with SIGCONT, after which [`Self::resume`] is due.
    pub(super) fn on_stop(&mut self) -> bool {
        let Some(signal) = self.stopped.take() else { return false };
        let wants_terminal = [Signal::TTIN, Signal::TTOU].map(Signal::as_raw).contains(&signal);
        let is_ours = self.terminal.is_some_and(Terminal::is_ours);
        if wants_terminal && is_ours {
            self.has_terminal = true;
            self.resume();
            return false;
        }
        let is_of_terminal = wants_terminal
            || self.is_stop_requested
            || self.terminal.is_some_and(|terminal| terminal.is_of(self.leader));
        self.is_stop_requested = false;
        if !is_of_terminal {
            return false;
        }
        if !terminal::has_job_control_shell() {
            // Without such a shell nothing would continue the command.
            if !wants_terminal {
                self.signal(Signal::CONT);
            }
            return false;
        }
        self.take_terminal_back();
        // A pipeline or a script around exec stops with it. exec itself handles SIGTSTP.
        let _ = kill_current_process_group(Signal::TSTP);
        let _ = kill_process(getpid(), Signal::STOP);
        true
    }

    /// Continues the command, with the terminal if it had that and exec has it now.
    pub(super) fn resume(&mut self) {
        if let Some(terminal) = self.terminal.filter(|terminal| terminal.is_ours())
            && self.has_terminal
        {
            terminal.give(self.leader);
        }
        self.signal(Signal::CONT);
    }

    /// Takes the terminal back from the command.
    pub(super) fn take_terminal_back(&self) {
        if let Some(terminal) = self.terminal.filter(|_| self.has_terminal) {
            terminal.take_back(self.leader);
        }
    }
}

/// The processes of a command that still run.
#[derive(Debug)]
pub(super) enum Remaining {
    /// These.
    Known(Vec<Process>),
    /// The process group; `/proc` does not show more.
    Group,
}

impl Remaining {
    /// Returns whether no process runs.
    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::Known(found) if found.is_empty())
    }

    /// Returns the ids of the processes, as far as they are known.
    pub(super) fn pids(&self) -> impl Iterator<Item = Pid> {
        self.known().iter().map(|process| process.pid)
    }

    /// Returns the ids of the processes in a process group, as far as they are known.
    pub(super) fn in_group(&self, group: Pid) -> impl Iterator<Item = Pid> {
        let is_in = move |process: &&Process| process.group == group.as_raw_pid();
        self.known().iter().filter(is_in).map(|process| process.pid)
    }

    /// Returns the known processes without those with these ids.
    pub(super) fn without(&self, pids: &[Pid]) -> Self {
        let others = self.known().iter().filter(|process| !pids.contains(&process.pid));
        Self::Known(others.copied().collect())
    }

    /// Sends a signal to each known process.
    pub(super) fn signal(&self, signal: Signal) {
        for pid in self.pids() {
            // Fails if the process has just ended.
            let _ = kill_process(pid, signal);
        }
    }

    fn known(&self) -> &[Process] {
        match self {
            Self::Known(found) => found,
            Self::Group => &[],
        }
    }

    /// Returns the processes in words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Known(found) => {
                let pids: Vec<_> = found.iter().map(|it| it.pid.as_raw_pid().to_string()).collect();
                format!("processes {}", pids.join(", "))
            }
            Self::Group => "processes of its group".to_owned(),
        }
    }
}

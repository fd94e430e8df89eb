//! The processes of a command, as `/proc` shows them.
//!
//! `exec` is the subreaper of its command: a process that the command leaves behind becomes a child
//! of `exec`, also if it has left the process group and the session. So all of them are found. After
//! the death of `exec` those that have left the group are found by their environment.

use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::os::fd::OwnedFd;

/// This program, also after its file was replaced.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) parent: Option<Pid>,
    pub(super) group: i32,
    pub(super) session: i32,
    is_zombie: bool,
}

/// Returns the descendants of this process; `None` if `/proc` is missing or belongs to another pid
/// namespace.
pub(super) fn descendants() -> Option<Vec<Process>> {
    let own = getpid();
    let link = std::fs::read_link("/proc/self").ok()?;
    if link.to_str()?.parse() != Ok(own.as_raw_pid()) {
        return None;
    }
    let others: Vec<_> = all_pids().ok()?.filter_map(stat).collect();
    Some(below(own, &others))
}

fn all_pids() -> std::io::Result<impl Iterator<Item = Pid>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
}

/// Returns the processes outside a process group that were started with all these variables, each
/// as `NAME=value`, and whose environment this process may read: those of the same user.
pub(super) fn with_environment(variables: &[String], except_group: Pid) -> Vec<OwnedFd> {
    let own = getpid();
    let is_other = |pid: &Pid| {
        *pid != own && stat(*pid).is_some_and(|it| it.group != except_group.as_raw_pid())
    };
    let open = |pid: Pid| {
        // Opened before the environment is read, so it can mean no later process with this id.
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).ok()?;
        has_all(&environment, variables).then_some(process)
    };
    all_pids().into_iter().flatten().filter(is_other).filter_map(open).collect()
}

/// Returns whether an environment, as in `/proc/PID/environ` (proc(5)), has all these variables.
fn has_all(environment: &[u8], variables: &[String]) -> bool {
    let has = |variable: &String| {
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    variables.iter().all(has)
}

/// Returns the processes below `root` that still run.
fn below(root: Pid, all: &[Process]) -> Vec<Process> {
    let mut parents = vec![root];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == Some(parent)) {
            parents.push(process.pid);
            if !process.is_zombie {
                found.push(*process);
            }
        }
    }
    found
}

/// Reads one process; `None` if it has ended.
pub(super) fn stat(pid: Pid) -> Option<Process> {
    parse(&std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?)
}

/// Parses the first fields of `/proc/PID/stat` (proc(5)). The name, in parentheses, can contain
/// spaces and parentheses.
fn parse(text: &str) -> Option<Process> {
    let (pid, rest) = text.split_once(" (")?;
    let (_, rest) = rest.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let is_zombie = matches!(fields.next()?, "Z" | "X");
    let mut number = || fields.next()?.parse::<i32>().ok();
    Some(Process {
        pid: Pid::from_raw(pid.parse().ok()?)?,
        parent: Pid::from_raw(number()?),
        group: number()?,
        session: number()?,
        is_zombie,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(pid: i32) -> Pid {
        Pid::from_raw(pid).unwrap()
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let process = parse("7 (a) b (c) S 1 5 4 0 -1 4194304").unwrap();
        assert_eq!((process.pid, process.parent), (pid(7), Some(pid(1))));
        assert_eq!((process.group, process.session, process.is_zombie), (5, 4, false));
        assert_eq!(parse("1 (init) S 0 1 1 0").unwrap().parent, None);
        for bad in ["", "x (y) S 1 2 3", "7 (a) S 1", "7 a S 1 2 3"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn all_descendants_are_found_below_zombies_too() {
        let line = |line: &str| parse(line).unwrap();
        let all = [
            line("2 (a) S 1 2 1"),
            line("3 (b) Z 2 2 1"),
            line("4 (c) S 3 4 4"),
            line("5 (d) S 9 5 5"),
        ];
        let found: Vec<_> = below(pid(1), &all).iter().map(|process| process.pid).collect();
        assert_eq!(found, [pid(2), pid(4)]);
    }

    #[test]
    fn an_environment_has_a_variable_only_with_its_whole_value() {
        let both = ["A=1".to_owned(), "B=2".to_owned()];
        assert!(has_all(b"X=\0B=2\0A=1\0", &both));
        for other in [&b""[..], b"A=1\0", b"A=1\0B=22\0", b"A=1\0XB=2\0", b"A=1\0C=B=2\0"] {
            assert!(!has_all(other, &both), "{other:?}");
        }
    }

    #[test]
    fn the_processes_of_this_machine_can_be_read() {
        let own = stat(getpid()).unwrap();
        assert_eq!(own.pid, getpid());
        assert!(descendants().is_some());
    }
}

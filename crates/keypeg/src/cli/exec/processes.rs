//! The processes below `exec`, as `/proc` shows them.
//!
//! `exec` is the subreaper of its command: a process that the command leaves behind becomes a child
//! of `exec`, also if it has left the process group and the session. So all of them are found.

use rustix::process::{Pid, getpid};

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
    let mut others = Vec::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        others.extend(pid.and_then(Pid::from_raw).and_then(stat));
    }
    Some(below(own, &others))
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
    fn the_processes_of_this_machine_can_be_read() {
        let own = stat(getpid()).unwrap();
        assert_eq!(own.pid, getpid());
        assert!(descendants().is_some());
    }
}

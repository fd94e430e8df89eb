//! Processor time and memory of a server's processes, as Linux reports them in `/proc`.
//!
//! A process counts with all its descendants, including those that have exited, so that servers
//! with many processes are comparable with servers of one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The fields of `/proc/PID/stat` that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// User and system time of the process.
    ticks: u64,
    /// User and system time of its children that exited.
    exited_ticks: u64,
}

/// Returns the processor time used by these processes and their descendants; `None` if none exists.
pub(crate) fn cpu_seconds(roots: &[u32]) -> Option<f64> {
    let stats = stats();
    let pids = with_descendants(roots, &stats);
    let members = stats.iter().filter(|stat| pids.contains(&stat.pid));
    (!pids.is_empty()).then(|| members.map(used_seconds).sum())
}

/// Returns the resident memory of these processes and their descendants; a shared page counts once,
/// divided between its processes.
pub(crate) fn resident_bytes(roots: &[u32]) -> u64 {
    with_descendants(roots, &stats()).into_iter().map(memory_bytes).sum()
}

/// Returns the processor time used by this process.
pub(crate) fn own_cpu_seconds() -> f64 {
    let own = read(std::process::id(), "stat").and_then(|text| stat(&text));
    own.as_ref().map_or(0.0, used_seconds)
}

/// Returns the time of a process and its exited children. The kernel counts a process's time in
/// whole ticks of 10 ms, which rounds hundreds of processes with little work to zero. For live
/// threads it also reports nanoseconds, in `schedstat`.
fn used_seconds(stat: &Stat) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", stat.pid)).into_iter().flatten();
    let thread_ns = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let exact_seconds = Duration::from_nanos(thread_ns.sum()).as_secs_f64();
    ticks_to_seconds(stat.exited_ticks) + ticks_to_seconds(stat.ticks).max(exact_seconds)
}

fn stats() -> Vec<Stat> {
    pids().filter_map(|pid| stat(&read(pid, "stat")?)).collect()
}

/// Returns the processes that listen on an address of this machine; only for loopback addresses.
pub(crate) fn listening(addr: SocketAddr) -> Vec<u32> {
    if !addr.ip().is_loopback() {
        return Vec::new();
    }
    let file = match addr.ip() {
        IpAddr::V4(_) => "/proc/net/tcp",
        IpAddr::V6(_) => "/proc/net/tcp6",
    };
    let sockets: HashSet<String> =
        fs::read_to_string(file).map(|text| sockets(&text, addr.port())).unwrap_or_default();
    pids().filter(|&pid| has_socket(pid, &sockets)).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// Parses `/proc/PID/stat`. The name can contain anything, so fields count from the last
/// parenthesis.
fn stat(text: &str) -> Option<Stat> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |from: usize| {
        let both = fields.get(from..from + 2)?.iter().map(|ticks| ticks.parse::<u64>().ok());
        both.sum::<Option<u64>>()
    };
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { pid, parent, ticks: ticks(11)?, exited_ticks: ticks(13)? })
}

fn with_descendants(roots: &[u32], stats: &[Stat]) -> HashSet<u32> {
    let parents: HashMap<u32, u32> = stats.iter().map(|stat| (stat.pid, stat.parent)).collect();
    let is_member = |pid: &u32| {
        let mut ancestor = Some(*pid);
        // A chain of parents is at most as long as the list of processes.
        for _ in 0..=parents.len() {
            match ancestor {
                Some(pid) if roots.contains(&pid) => return true,
                Some(pid) => ancestor = parents.get(&pid).copied(),
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(is_member).collect()
}

/// Returns a process's proportional set size, or its resident size if that cannot be read.
fn memory_bytes(pid: u32) -> u64 {
    let proportional = read(pid, "smaps_rollup").and_then(|text| kib(&text, "Pss:"));
    let resident = || read(pid, "status").and_then(|text| kib(&text, "VmRSS:"));
    proportional.or_else(resident).unwrap_or(0) * 1024
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Returns the sockets that listen on a port, as they are named in `/proc/PID/fd`.
fn sockets(table: &str, port: u16) -> HashSet<String> {
    const LISTENS: &str = "0A";
    let local = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&local) && row[3] == LISTENS)
        .map(|row| format!("socket:[{}]", row[9]))
        .collect()
}

fn has_socket(pid: u32, sockets: &HashSet<String>) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links.into_iter().any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
}

#[expect(clippy::cast_precision_loss, reason = "ticks of one machine's uptime")]
fn ticks_to_seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_parsed_whatever_the_name_contains() {
        let line = "17 (a) b (c) S 4 17 17 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 9 0 77 1 2";
        assert_eq!(stat(line), Some(Stat { pid: 17, parent: 4, ticks: 120, exited_ticks: 4 }));
        assert_eq!(stat("17 (short) S 4"), None);
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let process = |pid, parent| Stat { pid, parent, ticks: 1, exited_ticks: 0 };
        let stats = [process(1, 0), process(5, 1), process(6, 5), process(7, 6), process(8, 1)];
        assert_eq!(with_descendants(&[5], &stats), HashSet::from([5, 6, 7]));
        assert_eq!(with_descendants(&[7, 8], &stats), HashSet::from([7, 8]));
        assert_eq!(with_descendants(&[99], &stats), HashSet::new());
    }

    #[test]
    fn a_listening_process_is_found_and_measured() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id();
        assert!(listening(listener.local_addr().unwrap()).contains(&own));
        assert!(resident_bytes(&[own]) > 100_000);
        let used = cpu_seconds(&[own]).unwrap();
        assert!(used > 0.0 && own_cpu_seconds() >= used * 0.5, "{used}");
        assert_eq!(cpu_seconds(&[u32::MAX]), None);
        assert!(listening("192.0.2.1:80".parse().unwrap()).is_empty());
    }
}

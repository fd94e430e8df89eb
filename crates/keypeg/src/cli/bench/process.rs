//! What a server's processes used: processor time and memory, as Linux tells them.
//!
//! A process counts with all its descendants, those that ended included, so that servers of many
//! processes can be compared with servers of one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// One line of `/proc/PID/stat`, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    parent: u32,
    /// Its own time, and that of its children that ended.
    ticks: u64,
    ended_ticks: u64,
}

/// Tells the processor time that these processes and their descendants have used; `None` when none
/// is there.
pub(super) fn cpu_seconds(roots: &[u32]) -> Option<f64> {
    let stats = stats();
    let family = family(roots, &stats);
    let members = stats.iter().filter(|stat| family.contains(&stat.pid));
    (!family.is_empty()).then(|| members.map(own_and_ended).sum())
}

/// Tells how much memory they have; what they share counts once, in parts.
pub(super) fn resident_bytes(roots: &[u32]) -> u64 {
    family(roots, &stats()).into_iter().map(resident).sum()
}

/// What this process has used of the processors.
pub(super) fn own_cpu_seconds() -> f64 {
    let own = read(std::process::id(), "stat").and_then(|text| stat(&text));
    own.as_ref().map_or(0.0, own_and_ended)
}

/// The kernel tells a process's time in whole ticks of 10 ms, which leaves nothing of hundreds of
/// processes that each ran a little; of threads that live it also tells nanoseconds.
fn own_and_ended(stat: &Stat) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", stat.pid)).into_iter().flatten();
    let each = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let exact = Duration::from_nanos(each.sum()).as_secs_f64();
    seconds(stat.ended_ticks) + seconds(stat.ticks).max(exact)
}

fn stats() -> Vec<Stat> {
    pids().filter_map(|pid| stat(&read(pid, "stat")?)).collect()
}

/// Finds the processes that listen on an address of this machine.
pub(super) fn listening(addr: SocketAddr) -> Vec<u32> {
    if !addr.ip().is_loopback() {
        return Vec::new();
    }
    let file = match addr.ip() {
        IpAddr::V4(_) => "/proc/net/tcp",
        IpAddr::V6(_) => "/proc/net/tcp6",
    };
    let sockets: HashSet<String> =
        fs::read_to_string(file).map(|text| sockets(&text, addr.port())).unwrap_or_default();
    pids().filter(|&pid| holds(pid, &sockets)).collect()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).ok()
}

/// A name can hold anything, so fields count from the last parenthesis.
fn stat(text: &str) -> Option<Stat> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |from: usize| {
        let both = fields.get(from..from + 2)?.iter().map(|ticks| ticks.parse::<u64>().ok());
        both.sum::<Option<u64>>()
    };
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { pid, parent, ticks: ticks(11)?, ended_ticks: ticks(13)? })
}

fn family(roots: &[u32], stats: &[Stat]) -> HashSet<u32> {
    let parents: HashMap<u32, u32> = stats.iter().map(|stat| (stat.pid, stat.parent)).collect();
    let belongs = |pid: &u32| {
        let mut at = Some(*pid);
        // No chain of parents is longer than there are processes.
        for _ in 0..=parents.len() {
            match at {
                Some(pid) if roots.contains(&pid) => return true,
                Some(pid) => at = parents.get(&pid).copied(),
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(belongs).collect()
}

/// Its share of the memory it shares, where that can be read.
fn resident(pid: u32) -> u64 {
    let share = read(pid, "smaps_rollup").and_then(|text| kib(&text, "Pss:"));
    let whole = || read(pid, "status").and_then(|text| kib(&text, "VmRSS:"));
    share.or_else(whole).unwrap_or(0) * 1024
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The sockets that listen on a port, as they are named in `/proc/PID/fd`.
fn sockets(table: &str, port: u16) -> HashSet<String> {
    const LISTENS: &str = "0A";
    let local = format!(":{port:04X}");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 9 && row[1].ends_with(&local) && row[3] == LISTENS)
        .map(|row| format!("socket:[{}]", row[9]))
        .collect()
}

fn holds(pid: u32, sockets: &HashSet<String>) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    links.into_iter().any(|link| link.to_str().is_some_and(|link| sockets.contains(link)))
}

#[expect(clippy::cast_precision_loss, reason = "ticks of one machine's life")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name_holds() {
        let line = "17 (a) b (c) S 4 17 17 0 -1 4194560 1 2 3 4 100 20 3 1 20 0 9 0 77 1 2";
        assert_eq!(stat(line), Some(Stat { pid: 17, parent: 4, ticks: 120, ended_ticks: 4 }));
        assert_eq!(stat("17 (short) S 4"), None);
    }

    #[test]
    fn a_family_is_all_that_descends() {
        let one = |pid, parent| Stat { pid, parent, ticks: 1, ended_ticks: 0 };
        let stats = [one(1, 0), one(5, 1), one(6, 5), one(7, 6), one(8, 1)];
        assert_eq!(family(&[5], &stats), HashSet::from([5, 6, 7]));
        assert_eq!(family(&[7, 8], &stats), HashSet::from([7, 8]));
        assert_eq!(family(&[99], &stats), HashSet::new());
    }

    #[test]
    fn who_listens_is_found_and_measured() {
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

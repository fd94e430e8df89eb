//! The limit on keys that follows from this machine's memory, and protection of that memory.
//!
//! The limit is half of the memory of the machine or of this process's control group, divided by a
//! measured upper bound of bytes per key.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::fs;

/// Resident bytes per key, all structures included: a measured upper bound.
const BYTES_PER_KEY: u64 = 100;
/// The memory size assumed when the system does not report one.
const MEMORY_UNKNOWN: u64 = 1 << 30;

/// Keeps keys and tokens in memory out of core dumps and away from debuggers of the same user.
pub(crate) fn keep_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = limited.and(hidden) {
        tracing::warn!(%error, "cannot disable core dumps: they can contain keys and tokens");
    }
}

/// Returns the maximum number of keys to store.
pub(crate) fn max_keys() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_limit(&text));
    let memory = machine.unwrap_or(MEMORY_UNKNOWN).min(group.unwrap_or(u64::MAX));
    memory / 2 / BYTES_PER_KEY
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Returns the lowest limit from this process's control group up to the root; a container sees its
/// own group as the root.
fn group_limit(cgroup: &str) -> Option<u64> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    std::path::Path::new(path)
        .ancestors()
        .filter_map(|group| group.strip_prefix("/").ok())
        .map(|group| std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max"))
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_memory_files_are_parsed() {
        let meminfo = "MemTotal:       16314540 kB\nMemFree:         1017864 kB\n";
        assert_eq!(mem_total(meminfo), Some(16_314_540 * 1024));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
        assert_eq!(
            group_limit("0::/there/is/no/such/group-here\n").filter(|&max| max < 4096),
            None
        );
        assert!(max_keys() > 100_000);
    }
}

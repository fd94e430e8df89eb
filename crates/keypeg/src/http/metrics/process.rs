//! The process itself as the operating system reports it: the metrics `process_*`, which every
//! program with Prometheus metrics has under the same names.
//!
//! A number that the system does not report is left out. Knows nothing of the server.

use crate::clock;
use rustix::process::{Resource, getrlimit};
use std::fs;
use std::io;

/// The numbers of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_us: u64,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
}

/// Reads the numbers of this process. O(open files) on kernels before 6.2, so not for the thread
/// of a core.
pub(super) fn read() -> Process {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page_bytes = rustix::param::page_size() as u64;
    let mut pages = statm.split(' ').map(|field| field.trim().parse::<u64>().ok());
    let mut bytes = || Some(pages.next()?? * page_bytes);
    let (virtual_bytes, resident_bytes) = (bytes(), bytes());
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    Process {
        cpu_us: clock::process_cpu_us(),
        open_fds: open_fds().ok(),
        max_fds: getrlimit(Resource::Nofile).current,
        virtual_bytes,
        resident_bytes,
        threads: threads.and_then(|count| count.trim().parse().ok()),
    }
}

fn open_fds() -> io::Result<u64> {
    // Since Linux 6.2 the size of the directory is the number of its entries.
    match fs::metadata("/proc/self/fd")?.len() {
        0 => Ok((fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1)),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_reports_every_number() {
        let process = read();
        assert!(process.open_fds.is_some_and(|count| count >= 3), "{process:?}");
        assert!(process.threads.is_some_and(|count| count >= 2), "{process:?}");
        assert!(process.resident_bytes > Some(1 << 20), "{process:?}");
        assert!(process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(read().cpu_us >= process.cpu_us);
    }
}

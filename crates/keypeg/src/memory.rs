//! The memory plan of the server: the bound of each part, in bytes; and protection of that
//! memory from other programs.
//!
//! The amount is `--memory`, or follows from the machine and the control group (cgroup v1 and v2).
//! A start divides it once. The parts never add up to more than the whole. The code that takes the
//! memory of a part decides how callers share that part.

use bytesize::ByteSize;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The memory size assumed when the system does not report one.
const MEMORY_UNKNOWN: u64 = 1 << 30;
/// The smallest amount of memory that can be divided, in bytes.
pub(crate) const MEMORY_MIN: u64 = 64 * MIB;

const MIB: u64 = 1 << 20;

/// The most bytes that one HTTP thread uses for the keys that it has verified.
pub(crate) const VERIFIED_KEYS_MAX: usize = 10 << 20;

/// The bounds of the server's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    /// All memory of the server: the sum of the other fields, and room for what the allocator
    /// wastes between the keys.
    pub(crate) total: u64,
    /// Keys, leases, stored answers, wait queues: all that pools store.
    pub(crate) keys: u64,
    /// Answers that are built, or that their clients have not read.
    pub(crate) answers: u64,
    /// Bodies of requests: their bytes, and the values read from them.
    pub(crate) bodies: u64,
    /// Connections: buffers for heads and for small answers.
    pub(crate) connections: u64,
    /// Events that subscribers have not read, and the streams of these subscribers.
    pub(crate) subscriptions: u64,
    /// The process itself: code, threads, queues, the batch of a turn, the database's cache.
    pub(crate) process: u64,
    /// The part of the process for the keys that the HTTP threads have verified, of all threads.
    pub(crate) verified_keys: u64,
}

impl MemoryPlan {
    /// Divides `total` bytes among the parts of a server with so many cores; an amount below
    /// [`MEMORY_MIN`] is divided like that amount.
    ///
    /// A part grows with the total, from what one request of the largest size needs to the most that
    /// the part can use. The keys get the rest.
    pub(crate) fn new(total: u64, cores: usize) -> Self {
        let total = total.max(MEMORY_MIN);
        let share = |part: u64, least_mib: u64, most_mib: u64| {
            (total / part).clamp(least_mib * MIB, most_mib * MIB)
        };
        let most = VERIFIED_KEYS_MAX.saturating_mul(cores) as u64;
        let verified_keys = share(64, 1, 64).min(most);
        let process = 20 * MIB + share(32, 2, 256) + verified_keys;
        // The largest body has 8 MiB, and is read into as many bytes of values.
        let bodies = share(8, 16, 256);
        let answers = share(8, 8, 512);
        let connections = share(8, 8, 640);
        let subscriptions = share(16, 4, 256);
        let rest = total - (process + bodies + answers + connections + subscriptions);
        // Allocators keep some memory between live blocks.
        let keys = rest - rest / 8;
        Self { total, keys, answers, bodies, connections, subscriptions, process, verified_keys }
    }

    /// Returns the part of the process that the database and the history share with code, threads and
    /// queues.
    fn shared_of_process(&self) -> u64 {
        self.process - self.verified_keys
    }

    /// Returns the bytes of responses that all callers share.
    pub(crate) fn answers_of_all(&self) -> u64 {
        self.answers - self.answers_of_operators()
    }

    /// Returns the bytes of responses that only operators need, such as metrics: a caller whose
    /// other responses use its share gets them from these.
    pub(crate) fn answers_of_operators(&self) -> u64 {
        self.answers / 4
    }

    /// Returns the bytes of pages that the database may keep, which are part of the process. Only
    /// purges of imported keys gain from more (`bench/RESULTS.md`, "Memory beside the keys").
    pub(crate) fn database_cache(&self) -> usize {
        let bytes = (self.shared_of_process() / 4).min(48 * MIB);
        usize::try_from(bytes).expect("invariant: at most 48 MiB")
    }

    /// Returns the bytes of the history of pools, which are part of the process: little of a small
    /// server, and at most what 1 000 busy pools take.
    pub(crate) fn history(&self) -> u64 {
        (self.shared_of_process() / 8).min(48 * MIB)
    }

    /// Returns the number of event streams. Half of the bytes for subscriptions are for the streams,
    /// the other half for the events that their pools keep.
    pub(crate) fn event_streams(&self) -> u64 {
        /// What a stream takes whose client reads nothing: a frame, and the socket's buffers.
        const STREAM_BYTES: u64 = 64 << 10;
        /// The most subscribers of a store.
        const STREAMS_MAX: u64 = 1_000;
        (self.subscriptions / 2 / STREAM_BYTES).min(STREAMS_MAX)
    }

    /// Returns each part with its name in metrics.
    pub(crate) fn parts(&self) -> [(&'static str, u64); 7] {
        [
            ("all", self.total),
            ("keys", self.keys),
            ("answers", self.answers),
            ("bodies", self.bodies),
            ("connections", self.connections),
            ("subscriptions", self.subscriptions),
            ("process", self.process),
        ]
    }
}

/// One line for the log.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [(_, total), parts @ ..] = self.parts();
        write!(f, "{}", ByteSize(total))?;
        for (index, (name, bytes)) in parts.into_iter().enumerate() {
            let separator = if index == 0 { ":" } else { "," };
            write!(f, "{separator} {} for {name}", ByteSize(bytes))?;
        }
        Ok(())
    }
}

/// Keeps the memory, the environment and the open files of this process away from debuggers and
/// `/proc` readers of the same user, and out of core dumps. Ends with the next execve.
pub(crate) fn hide_process() -> rustix::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Keeps keys and tokens in memory out of core dumps, also of all child processes, and away from
/// debuggers of the same user.
pub(crate) fn keep_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    let hidden = hide_process();
    if let Err(error) = limited.and(hidden) {
        tracing::warn!(%error, "cannot disable core dumps: they can contain keys and tokens");
    }
}

/// Returns the memory that the server takes by default, in bytes: half of the machine's, which other
/// programs use too, or three quarters of the control group's if that is less. The kernel charges
/// sockets and files to the group; the last quarter is for them.
pub(crate) fn of_machine() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| mem_total(&text));
    let group = read(Path::new("/proc/self/mounts"))
        .zip(read(Path::new("/proc/self/cgroup")))
        .and_then(|(mounts, groups)| group_limit(&mounts, &groups, read));
    amount(machine, group)
}

fn amount(machine: Option<u64>, group: Option<u64>) -> u64 {
    let half = machine.unwrap_or(MEMORY_UNKNOWN) / 2;
    group.map_or(half, |limit| half.min(limit / 4 * 3))
}

fn mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Returns the lowest limit from this process's control group up to the root, of both versions of
/// control groups; a container sees its own group as the root, whatever path it is given.
///
/// `mounts` and `groups` are the texts of the files in `/proc/self`.
fn group_limit(mounts: &str, groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let group_of = |version: &Version| {
        groups.lines().find_map(|line| {
            let (_, group) = line.split_once(':')?;
            let (controllers, path) = group.split_once(':')?;
            let is_it = match version {
                Version::One => controllers.split(',').any(|name| name == "memory"),
                Version::Two => controllers.is_empty(),
            };
            is_it.then_some(path)
        })
    };
    let files = mounts.lines().filter_map(memory_mount).flat_map(|(root, version)| {
        let path = Path::new(group_of(&version).unwrap_or("/"));
        let groups = path.ancestors().filter_map(|group| group.strip_prefix("/").ok());
        let files = groups.flat_map(|group| {
            version.files().iter().map(|file| root.join(group).join(file)).collect::<Vec<_>>()
        });
        files.collect::<Vec<_>>()
    });
    files.filter_map(|file| read(&file)?.trim().parse().ok()).min()
}

/// A version of control groups.
enum Version {
    One,
    Two,
}

impl Version {
    /// The files of a group that limit its memory. Without a limit they have the text `max`, or a
    /// number above the memory of every machine. The kernel slows down a group above `memory.high`.
    fn files(&self) -> &'static [&'static str] {
        match self {
            Self::One => &["memory.limit_in_bytes"],
            Self::Two => &["memory.max", "memory.high"],
        }
    }
}

/// Returns the directory and the version of a mounted hierarchy that can limit memory.
fn memory_mount(line: &str) -> Option<(PathBuf, Version)> {
    let mut fields = line.split(' ').skip(1);
    let (dir, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    let version = match kind {
        "cgroup2" => Version::Two,
        "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
        _ => return None,
    };
    Some((dir.into(), version))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_parts_fit_into_the_whole() {
        for total in [64 * MIB, 96 * MIB, 128 * MIB, 192 * MIB, 384 * MIB, GIB, 12 * GIB, 16 << 40]
        {
            let plan = MemoryPlan::new(total, 2);
            let [(_, all), parts @ ..] = plan.parts();
            let sum: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(all, total);
            assert!(sum <= total, "{plan}");
            assert!(sum + total / 8 >= total, "{plan}");
            assert!(plan.keys >= MIB && plan.bodies >= 16 * MIB, "{plan}");
        }
        assert_eq!(MemoryPlan::new(0, 2), MemoryPlan::new(MEMORY_MIN, 2));
        // Three quarters are for keys of about 96 bytes each, the rest is for leases on them.
        let key_count = |total| MemoryPlan::new(total, 2).keys / 4 * 3 / 96;
        assert!(key_count(96 * MIB) > 150_000 && key_count(12 * GIB) > 65_000_000);
    }

    /// Each HTTP thread once kept 4 MiB beside the plan, so 256 threads a GiB.
    #[test]
    fn the_verified_keys_of_all_threads_are_a_part_of_the_process() {
        for threads in [1, 2, 16, 256] {
            for total in [64 * MIB, 128 * MIB, GIB, 12 * GIB] {
                let plan = MemoryPlan::new(total, threads);
                assert!(plan.verified_keys <= (total / 64).max(MIB), "{plan:?}");
                assert!(plan.verified_keys <= (threads * VERIFIED_KEYS_MAX) as u64, "{plan:?}");
                assert!(plan.process >= 22 * MIB + plan.verified_keys, "{plan:?}");
                let sum: u64 = plan.parts()[1..].iter().map(|(_, bytes)| bytes).sum();
                assert!(sum <= total, "{plan:?}");
            }
        }
        assert_eq!(MemoryPlan::new(12 * GIB, 1).verified_keys, VERIFIED_KEYS_MAX as u64);
        assert_eq!(MemoryPlan::new(12 * GIB, 256).verified_keys, 64 * MIB);
    }

    #[test]
    fn the_log_has_one_line_with_every_part() {
        let line = MemoryPlan::new(12 * GIB, 1).to_string();
        assert!(line.starts_with("12.0 GiB: "), "{line}");
        for text in ["GiB for keys,", "512.0 MiB for answers,", "MiB for process"] {
            assert!(line.contains(text), "{line}");
        }
    }

    #[test]
    fn the_machine_is_shared_and_a_control_group_is_not() {
        assert_eq!(amount(Some(8 * GIB), None), 4 * GIB);
        assert_eq!(amount(Some(8 * GIB), Some(128 * MIB)), 96 * MIB);
        assert_eq!(amount(Some(8 * GIB), Some(8 * GIB)), 4 * GIB);
        assert_eq!(amount(None, Some(u64::MAX)), MEMORY_UNKNOWN / 2);
        assert_eq!(amount(Some(GIB), Some(0)), 0);
    }

    #[test]
    fn kernel_memory_files_are_parsed() {
        let meminfo = "MemTotal:       16314540 kB\nMemFree:         1017864 kB\n";
        assert_eq!(mem_total(meminfo), Some(16_314_540 * 1024));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
        assert!(of_machine() > 0);
    }

    /// Regression: only cgroup v2 was read, so on a host with cgroup v1 the limit of a container was
    /// unknown, and the kernel killed the server.
    #[test]
    fn the_lowest_limit_of_either_version_counts() {
        const ONE: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        const TWO: &str = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        const NONE_ONE: &str = "9223372036854771712\n";
        type Files<'a> = &'a [(&'a str, &'a str)];
        let one = "4:cpu:/x\n3:hugetlb,memory:/docker/abc\n0::/y\n";
        let in_one = "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes";
        let root_one = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        let in_two = "/sys/fs/cgroup/system.slice/keypeg.service/memory.max";
        let above_two = "/sys/fs/cgroup/system.slice/memory.high";
        let two = "0::/system.slice/keypeg.service\n";
        let cases: [(&str, &str, Files<'_>, Option<u64>); 8] = [
            (ONE, one, &[(in_one, "134217728\n"), (root_one, NONE_ONE)], Some(128 * MIB)),
            // The path of the host, of which the container sees the last group as the root.
            (ONE, one, &[(root_one, "268435456\n")], Some(256 * MIB)),
            (ONE, one, &[(in_one, NONE_ONE)], Some(9_223_372_036_854_771_712)),
            (TWO, two, &[(in_two, "max\n")], None),
            (TWO, two, &[(in_two, "536870912\n"), (above_two, "max")], Some(512 * MIB)),
            (TWO, two, &[(in_two, "536870912\n"), (above_two, "1048576")], Some(MIB)),
            (TWO, "", &[("/sys/fs/cgroup/memory.max", "1048576")], Some(MIB)),
            ("", one, &[(in_one, "1")], None),
        ];
        for (mounts, groups, files, expected) in cases {
            let read = |path: &Path| {
                let found = files.iter().find(|(file, _)| Path::new(file) == path);
                found.map(|(_, text)| (*text).to_owned())
            };
            assert_eq!(group_limit(mounts, groups, read), expected, "{groups:?} {files:?}");
        }
    }
}

//! Which other user could change or replace a file that gives power over the server or a client:
//! the one check for token files, the configuration, the data directory and the audit log.
//!
//! A path is safe if root or the user of this process owns every directory on the way to it, and no
//! other user can rename an entry there. The way to a symbolic link counts, and so does the way to
//! its target. Does not know what the files contain.

use rustix::fs::{FileType, Mode, Stat, statfs};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Symbolic links in one path; the limit of Linux.
const LINKS_MAX: u32 = 40;
/// The file system type of `/proc`, see statfs(2).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Whether other users could change or replace what a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No other user can.
    Safe,
    /// The members of a group could replace it; in words, with the next step.
    Doubtful(String),
    /// Another user could replace or change it; in words, with the next step.
    Exposed(String),
}

/// The users that may own the files and directories: root, and these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trusted {
    /// The user of this process.
    user: u32,
    /// A further one, that of the server for which a command prepares a file.
    also: Option<u32>,
}

/// The owner and the mode of a file or a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    owner: u32,
    group: u32,
    mode: Mode,
}

impl From<Stat> for Owned {
    fn from(stat: Stat) -> Self {
        let mode = Mode::from_raw_mode(stat.st_mode);
        Self { owner: stat.st_uid, group: stat.st_gid, mode }
    }
}

impl Trusted {
    /// Root and the user of this process.
    pub(crate) fn own() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), also: None }
    }

    /// Root, the user of this process and the owner of a file, if the file exists.
    pub(crate) fn and_owner_of(path: &Path) -> Self {
        let also = rustix::fs::stat(path).ok().map(|stat| stat.st_uid);
        Self { also, ..Self::own() }
    }

    fn has(self, user: u32) -> bool {
        user == 0 || user == self.user || Some(user) == self.also
    }

    /// Returns whether the members of a group count as the user: root's group, and the private
    /// group that has the number of its user.
    fn has_group(self, group: u32) -> bool {
        group == 0 || group == self.user || Some(group) == self.also
    }
}

/// Judges the directories on the way to `path`, which need not exist. `what` names it in a message,
/// such as `file`. O(length of the path).
pub(crate) fn examine_way(path: &Path, what: &str, trusted: Trusted) -> io::Result<Verdict> {
    let path = std::path::absolute(path)?;
    let mut pending: Vec<OsString> = components(&path);
    let (mut at, mut links, mut verdict) = (PathBuf::from("/"), 0, Verdict::Safe);
    while let Some(name) = pending.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let directory = Owned::from(rustix::fs::stat(&at)?);
        let path = at.join(name);
        let entry = match rustix::fs::lstat(&path) {
            Ok(entry) => Some(entry),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let names = Names { directory: &at, entry: &path, what };
        match judge(directory, entry.map(Owned::from), trusted, &names) {
            Verdict::Safe => {}
            doubtful @ Verdict::Doubtful(_) => verdict = doubtful,
            exposed @ Verdict::Exposed(_) => return Ok(exposed),
        }
        let Some(entry) = entry else { return Ok(verdict) };
        if FileType::from_raw_mode(entry.st_mode) != FileType::Symlink {
            at = path;
            continue;
        }
        if pending.is_empty() && at.ends_with("fd") && is_proc(&at) {
            // A descriptor that the caller has opened, such as /dev/fd/3: no path leads to it.
            return Ok(verdict);
        }
        let target = std::fs::read_link(&path)?;
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        pending.extend(components(&target));
    }
    Ok(verdict)
}

/// Judges an open file itself: its owner, and who can write to it. A device, such as `/dev/null`,
/// has no content to change.
pub(crate) fn examine_file(file: Stat, trusted: Trusted) -> Verdict {
    if FileType::from_raw_mode(file.st_mode) == FileType::CharacterDevice {
        return Verdict::Safe;
    }
    let file = Owned::from(file);
    if !trusted.has(file.owner) {
        let (owner, user) = (file.owner, trusted.user);
        return Verdict::Exposed(format!(
            "it belongs to the user {owner}, who can change it: run chown {user} on it"
        ));
    }
    let can_write = file.mode & (Mode::WGRP | Mode::WOTH);
    if can_write.contains(Mode::WOTH) || !can_write.is_empty() && !trusted.has_group(file.group) {
        return Verdict::Exposed("other users can write this file: run chmod 0600 on it".into());
    }
    Verdict::Safe
}

/// Returns the components of a path, the last one first. A doubled slash or a `.` names none.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn is_proc(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| found.f_type == PROC_SUPER_MAGIC)
}

/// The words of a message about one step of the way.
struct Names<'a> {
    directory: &'a Path,
    entry: &'a Path,
    what: &'a str,
}

/// Judges one step: whether another user can rename or replace `entry` in `directory`.
fn judge(directory: Owned, entry: Option<Owned>, trusted: Trusted, names: &Names<'_>) -> Verdict {
    let Names { directory: path, entry: entry_path, what } = names;
    let (path, entry_path) = (path.display(), entry_path.display());
    let mode = directory.mode.as_raw_mode() & 0o7777;
    if !trusted.has(directory.owner) {
        let (owner, user) = (directory.owner, trusted.user);
        return Verdict::Exposed(format!(
            "other users can replace this {what}, since {path} belongs to the user {owner}: run \
             keypeg as that user, run chown {user} on that directory, or use another one"
        ));
    }
    let is_shared = directory.mode.intersects(Mode::WGRP | Mode::WOTH);
    if is_shared && directory.mode.contains(Mode::SVTX) {
        // Only the owner of an entry can rename it, besides that of the directory. Any user can have
        // created the entry, so its owner proves nothing.
        let trusted = Trusted { also: None, ..trusted };
        return match entry.filter(|entry| !trusted.has(entry.owner)) {
            None => Verdict::Safe,
            Some(entry) => Verdict::Exposed(format!(
                "other users can replace this {what}, since {entry_path} belongs to the user {}: \
                 remove it, or run chown -h {} on it",
                entry.owner, trusted.user
            )),
        };
    }
    if directory.mode.contains(Mode::WOTH) {
        return Verdict::Exposed(format!(
            "other users can replace this {what}, since they can write to {path} (mode {mode:04o}): \
             run chmod o-w on that directory, or use another one"
        ));
    }
    // The group of root's directories is root's decision, for example that of a volume.
    let is_own = directory.owner == trusted.user && directory.owner != 0;
    if is_shared && is_own && !trusted.has_group(directory.group) {
        return Verdict::Doubtful(format!(
            "the group {} can replace this {what}, since it can write to {path} (mode {mode:04o}): \
             run chmod g-w on that directory",
            directory.group
        ));
    }
    Verdict::Safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::TempDir;
    use rustix::process::geteuid;
    use std::fs::{Permissions, create_dir, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const USER: Trusted = Trusted { user: 7, also: Some(8) };

    fn owned(owner: u32, group: u32, mode: u32) -> Owned {
        Owned { owner, group, mode: Mode::from_raw_mode(mode) }
    }

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Safe => "safe",
            Verdict::Doubtful(_) => "doubtful",
            Verdict::Exposed(_) => "exposed",
        }
    }

    #[test]
    fn a_directory_is_safe_if_no_other_user_can_rename_its_entries() {
        let names = Names { directory: Path::new("/d"), entry: Path::new("/d/e"), what: "file" };
        for (directory, entry, expected) in [
            (owned(7, 7, 0o700), Some(9), "safe"),
            (owned(0, 0, 0o755), Some(9), "safe"),
            (owned(8, 8, 0o755), None, "safe"),
            (owned(9, 9, 0o700), Some(7), "exposed"),
            (owned(9, 9, 0o1777), Some(7), "exposed"),
            (owned(7, 7, 0o777), Some(7), "exposed"),
            (owned(0, 0, 0o702), None, "exposed"),
            (owned(0, 0, 0o1777), Some(7), "safe"),
            (owned(0, 0, 0o1777), Some(0), "safe"),
            (owned(0, 0, 0o1777), None, "safe"),
            (owned(0, 0, 0o1777), Some(9), "exposed"),
            (owned(0, 0, 0o1777), Some(8), "exposed"),
            (owned(0, 5, 0o1775), Some(9), "exposed"),
            (owned(0, 5, 0o2775), Some(9), "safe"),
            (owned(7, 5, 0o775), Some(7), "doubtful"),
            (owned(7, 7, 0o775), Some(7), "safe"),
            (owned(7, 0, 0o775), Some(7), "safe"),
        ] {
            let judged = judge(directory, entry.map(|owner| owned(owner, 7, 0o600)), USER, &names);
            assert_eq!(word(&judged), expected, "{directory:?} {entry:?}");
        }
    }

    /// The file is judged by its own mode and owner, however it was reached.
    #[test]
    fn a_file_is_safe_if_only_root_and_the_user_can_write_to_it() {
        let stat = |owner, group, mode: u32| {
            let mut stat = rustix::fs::stat("/").unwrap();
            (stat.st_uid, stat.st_gid, stat.st_mode) = (owner, group, 0o100_000 | mode);
            stat
        };
        for (file, expected) in [
            (stat(7, 7, 0o600), "safe"),
            (stat(0, 0, 0o644), "safe"),
            (stat(8, 8, 0o600), "safe"),
            (stat(7, 7, 0o664), "safe"),
            (stat(7, 5, 0o664), "exposed"),
            (stat(7, 7, 0o602), "exposed"),
            (stat(9, 9, 0o600), "exposed"),
        ] {
            assert_eq!(word(&examine_file(file, USER)), expected, "{file:?}");
        }
    }

    /// A directory two levels up that every user can write to let another user become an
    /// administrator: it renamed the directory between, and put its own in place.
    #[test]
    fn every_directory_on_the_way_counts_and_both_ends_of_a_link() {
        let dir = TempDir::new();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        let of = |path: &str| root.join(path);
        let chmod = |path: &str, mode| {
            set_permissions(of(path), Permissions::from_mode(mode)).unwrap();
        };
        for path in ["a", "a/b", "a/b/c", "l", "l/m"] {
            create_dir(of(path)).unwrap();
        }
        write(of("a/b/c/file"), "").unwrap();
        symlink("../../a/b/../b/c", of("l/m/link")).unwrap();
        let verdict =
            |path: &str| word(&examine_way(&of(path), "file", Trusted::own()).unwrap()).to_owned();
        let paths = ["a/b/c/file", "a/b/c/new", "l/m/link/file"];
        assert_eq!(paths.map(verdict), ["safe"; 3]);
        for (shared, expected) in [
            ("a", ["exposed", "exposed", "exposed"]),
            ("a/b", ["exposed", "exposed", "exposed"]),
            ("a/b/c", ["exposed", "exposed", "exposed"]),
            ("l", ["safe", "safe", "exposed"]),
            ("l/m", ["safe", "safe", "exposed"]),
        ] {
            chmod(shared, 0o777);
            assert_eq!(paths.map(verdict), expected, "{shared}");
            chmod(shared, 0o1777);
            assert_eq!(paths.map(verdict), ["safe"; 3], "{shared} is sticky");
            chmod(shared, 0o755);
        }
        if geteuid().is_root() {
            for (given, expected) in [("a", ["exposed"; 3]), ("l", ["safe", "safe", "exposed"])] {
                chown(of(given), Some(12_345), None).unwrap();
                assert_eq!(paths.map(verdict), expected, "{given}");
                let trusted = Trusted::and_owner_of(&of(given));
                for path in paths {
                    let judged = examine_way(&of(path), "file", trusted).unwrap();
                    assert_eq!(judged, Verdict::Safe, "the owner is trusted");
                }
                chown(of(given), Some(0), None).unwrap();
            }
        }
    }

    #[test]
    fn a_loop_of_links_ends_and_a_descriptor_of_the_caller_is_safe() {
        let dir = TempDir::new();
        symlink("loop", dir.path().join("loop")).unwrap();
        let looped = examine_way(&dir.path().join("loop"), "file", Trusted::own());
        assert_eq!(looped.unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        let found = examine_way(Path::new("/dev/fd/0"), "file", Trusted::own());
        assert_eq!(found.unwrap(), Verdict::Safe);
    }
}

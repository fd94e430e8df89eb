//! Who else can read or change a data directory that existed before the server started.
//!
//! A directory that the engine creates has mode 0700, its files 0600. An existing directory and its
//! files keep their modes: this file only decides whether a start refuses them or warns. Knows the
//! names of the files, not their content.

use crate::disk::Directory;
use crate::layout;
use crate::start::StartError;
use rustix::fs::{Mode, Stat};

/// The owner and the mode of a directory or a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permissions {
    mode: Mode,
    owner: u32,
}

impl From<Stat> for Permissions {
    fn from(stat: Stat) -> Self {
        Self { mode: Mode::from_raw_mode(stat.st_mode), owner: stat.st_uid }
    }
}

/// Refuses a directory in which other users can replace the files, and returns a warning for each
/// of its permissions that an operator should correct. O(files).
pub(crate) fn examine(directory: &Directory, path: &str) -> Result<Vec<String>, StartError> {
    let failed = |error| StartError::Io { doing: format!("reading the mode of {path}"), error };
    let user = rustix::process::geteuid().as_raw();
    let dir = Permissions::from(directory.stat().map_err(failed)?);
    let mut warnings: Vec<String> = judge_directory(dir, path, user)?.into_iter().collect();
    let is_shared = dir.mode.intersects(Mode::WGRP | Mode::WOTH);
    let is_searchable = dir.mode.intersects(Mode::XGRP | Mode::XOTH);
    for name in directory.names().map_err(failed)? {
        if !layout::is_ours(&name) {
            continue;
        }
        let file = Permissions::from(directory.file_stat(&name).map_err(failed)?);
        let file_owner = file.owner;
        if is_shared && ![user, dir.owner, 0].contains(&file_owner) {
            let file = format!("{path}/{name}");
            return Err(StartError::Exposed(foreign_file(&file, file_owner, path, user)));
        }
        let everyone = Mode::RWXG | Mode::RWXO;
        if is_searchable && file.mode.intersects(everyone) {
            warnings.push(format!(
                "other users can read or write {path}/{name} (mode {:04o}), which contains values \
                 of keys: run chmod 0600 on it",
                file.mode.as_raw_mode() & 0o7777
            ));
        }
    }
    Ok(warnings)
}

/// Returns why a file of another user in a directory that others can write to is refused. Root can own
/// the directory of a server that runs as the other user, such as the root of a volume: with the file
/// as root's, that server could not start.
fn foreign_file(file: &str, owner: u32, dir: &str, user: u32) -> String {
    let step = if user == 0 {
        format!("if the server runs as that user, run the command as the user {owner}")
    } else {
        format!("if the file is yours, run chown {user} on it")
    };
    format!(
        "{file} belongs to the user {owner}, and other users can write to {dir}: {step}, else remove \
         the file"
    )
}

/// Judges the mode of the directory alone. Its listing is not secret, so others may read it.
fn judge_directory(dir: Permissions, path: &str, user: u32) -> Result<Option<String>, StartError> {
    let mode = dir.mode.as_raw_mode() & 0o7777;
    let is_sticky = dir.mode.contains(Mode::SVTX);
    if dir.mode.contains(Mode::WOTH) {
        if !is_sticky {
            return Err(StartError::Exposed(format!(
                "every user of this machine can replace the files in {path} (mode {mode:04o}): run \
                 chmod 0700 {path}, or use another directory as --data"
            )));
        }
        return Ok(Some(format!(
            "every user of this machine can create files in {path} (mode {mode:04o}): use a \
             directory below it as --data"
        )));
    }
    // The root of a volume often belongs to root and is writable for the group of the server, which
    // cannot change that.
    if dir.mode.contains(Mode::WGRP) && !is_sticky && dir.owner == user {
        return Ok(Some(format!(
            "the group of {path} can replace its files (mode {mode:04o}): run chmod g-w {path}"
        )));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root once got the advice to give itself the files of a server that runs as another user.
    #[test]
    fn the_advice_for_a_file_of_another_user_keeps_the_files_of_a_server() {
        let advice = |user| foreign_file("d/meta", 5, "d", user);
        assert!(
            advice(7).contains("if the file is yours, run chown 7 on it, else"),
            "{}",
            advice(7)
        );
        let of_root = advice(0);
        assert!(of_root.contains("run the command as the user 5, else"), "{of_root}");
        assert!(!of_root.contains("chown"), "{of_root}");
    }

    #[test]
    fn a_directory_is_accepted_warned_about_or_refused_by_its_mode() {
        for (mode, owner, expected) in [
            (0o700, 1, "accepted"),
            (0o755, 1, "accepted"),
            (0o750, 0, "accepted"),
            (0o770, 0, "accepted"),
            (0o2775, 0, "accepted"),
            (0o770, 1, "run chmod g-w"),
            (0o1770, 1, "accepted"),
            (0o1777, 0, "use a directory below it"),
            (0o777, 1, "run chmod 0700"),
            (0o702, 0, "run chmod 0700"),
        ] {
            let dir = Permissions { mode: Mode::from_raw_mode(mode), owner };
            let judged = match judge_directory(dir, "d", 1) {
                Ok(None) => "accepted".into(),
                Ok(Some(warning)) => warning,
                Err(refused) => format!("refused: {refused}"),
            };
            assert!(judged.contains(expected), "{mode:o}: {judged}");
            let is_refused = judged.starts_with("refused");
            assert_eq!(is_refused, mode & 0o1002 == 0o002, "{mode:o}: {judged}");
        }
    }
}

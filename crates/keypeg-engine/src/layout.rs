//! The names of the files in a data directory.
//!
//! It knows no file's content. A start creates a file under a temporary name and renames it once it
//! is complete.

use crate::frame::SegmentNumber;

/// The file that identifies a data directory.
pub(crate) const META: &str = "meta";
/// The database with all pools and keys.
pub(crate) const KEYSET: &str = "keyset";
/// The name of a file that only reserves space: it is deleted when the disk is full.
pub(crate) const BALLAST: &str = "ballast";
/// The file that exists while a restore is not complete.
pub(crate) const RESTORING: &str = "restoring";
/// The prefix of the names of the journal's segments.
pub(crate) const JOURNAL_PREFIX: &str = "journal-";
/// The suffix of the name of a file that is not complete yet.
pub(crate) const TEMPORARY: &str = ".new";

/// Returns the name of the file of a segment.
pub(crate) fn file_name(segment: SegmentNumber) -> String {
    format!("{JOURNAL_PREFIX}{:012}", segment.0)
}

/// Returns the segment whose file has this name.
pub(crate) fn parse_file_name(name: &str) -> Option<SegmentNumber> {
    let segment = SegmentNumber(name.strip_prefix(JOURNAL_PREFIX)?.parse().ok()?);
    (file_name(segment) == name).then_some(segment)
}

/// Returns whether a file of a data directory with this name is not complete.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY) && is_ours(name)
}

/// Returns whether a file with this name belongs to a data directory.
pub(crate) fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix(TEMPORARY).unwrap_or(name);
    [META, KEYSET, BALLAST, RESTORING].contains(&name) || parse_file_name(name).is_some()
}

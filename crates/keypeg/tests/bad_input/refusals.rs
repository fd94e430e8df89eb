//! Every refusal to start has its row and its page in `docs/operations/refusals`.
//!
//! The tests of refused starts pass each message to [`assert_explained`], so a new message without a
//! row fails its own test.

use crate::support::TempDir;
use keypeg_engine::StartError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A row of the table.
struct Row {
    exit: i32,
    /// `…` stands for any text.
    message: String,
    page: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations/refusals")
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let (exit, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
        let (message, link) = rest.split_once(" | [")?;
        let (_, page) = link.split_once("](")?;
        Some(Row {
            exit: exit.parse().ok()?,
            message: message.trim_matches('`').trim().to_owned(),
            page: page.split(')').next()?.to_owned(),
        })
    });
    rows.collect()
}

/// Returns whether `text` is `pattern`, in which `…` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Asserts that the table has the refusal that a start printed on stderr.
#[track_caller]
pub(crate) fn assert_explained(exit: i32, stderr: &str) {
    let stderr = format!("\n{}", stderr.trim_end());
    let of_program = stderr.rsplit_once("\nkeypeg: ").map(|(_, message)| message);
    let of_arguments = || stderr.find("\nerror: ").map(|at| &stderr[at + 1..]);
    let message = of_program.or_else(of_arguments).unwrap_or_else(|| panic!("{stderr}"));
    let is_explained = rows().iter().any(|row| row.exit == exit && matches(&row.message, message));
    assert!(is_explained, "docs/operations/refusals has no row for exit {exit}: {message}");
}

#[test]
fn each_row_has_a_page_and_each_page_a_row() {
    let rows = rows();
    assert!(rows.len() > 30, "{} rows", rows.len());
    for row in &rows {
        let page = std::fs::read_to_string(folder().join(&row.page)).unwrap();
        let (_, of_code) = page.split_once(&format!("\nExit code {}:\n", row.exit)).unwrap();
        let (messages, _) = of_code.split_once("\n```\n").unwrap();
        let has_message = messages.lines().any(|line| line == row.message);
        assert!(has_message, "{}: {} {}", row.page, row.exit, row.message);
        assert!(page.contains("**Cause.**") && page.contains("**Next step.**"), "{}", row.page);
    }
    let listed: BTreeSet<_> = rows.into_iter().map(|row| row.page).collect();
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let files = files.map(|name| name.into_string().unwrap()).filter(|name| name != "README.md");
    assert_eq!(files.collect::<BTreeSet<_>>(), listed);
}

/// A new variant does not compile without its page here.
#[test]
fn each_error_of_a_start_has_a_page() {
    let dir = TempDir::new().path().display().to_string();
    let failed = std::io::Error::other("disk");
    for error in [
        StartError::InUse { dir: dir.clone() },
        StartError::NotFound { dir },
        StartError::Exposed(
            "every user of this machine can replace the files in d (mode 0777): run \
                             chmod 0700 d, or use another directory as --data"
                .into(),
        ),
        StartError::Seal(
            "the data is sealed with the key 1f: give the file of that key with \
             --seal-key; nothing was changed"
                .into(),
        ),
        StartError::Corrupt("meta is damaged. Restore".into()),
        StartError::TooLarge { needed: 2, given: 1 },
        StartError::Io { doing: "opening d".into(), error: failed },
    ] {
        let (exit, page) = match &error {
            StartError::InUse { .. } => (75, "in-use.md"),
            StartError::NotFound { .. } => (66, "no-data.md"),
            StartError::Exposed(_) => (78, "exposed.md"),
            StartError::Seal(_) => (78, "seal-key.md"),
            StartError::Corrupt(_) => (65, "damaged.md"),
            StartError::TooLarge { .. } => (78, "memory.md"),
            StartError::Io { .. } => (74, "disk.md"),
        };
        let message = error.to_string();
        let rows = rows();
        let found = rows.iter().find(|row| row.exit == exit && matches(&row.message, &message));
        assert_eq!(found.map(|row| &*row.page), Some(page), "{message}");
    }
}

#[test]
fn a_pattern_matches_a_whole_message() {
    for (pattern, text, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("…", "", true),
        ("a…", "ab", true),
        ("…a", "ba", true),
        ("…a", "ab", false),
        ("a…b…c", "a1b2c", true),
        ("a…b…c", "a1c2b", false),
        ("…b…", "abc", true),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}

//! Which build of the program this is: version, commit, date and target, as `build.rs` found them.
//!
//! The date is that of the source (`SOURCE_DATE_EPOCH` or the commit), not of the compilation, so
//! that two builds of one commit are equal. What a build could not know is `None`.

use jiff::Timestamp;
use std::sync::LazyLock;

/// The name of the program.
pub(crate) const NAME: &str = env!("CARGO_PKG_NAME");
/// The version of the package.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The platform that the program was compiled for.
pub(crate) const TARGET: &str = env!("KEYPEG_BUILD_TARGET");
/// Digits of the commit in the short version.
const COMMIT_DIGITS: usize = 12;
/// What the texts have in place of a value that is not known.
const UNKNOWN: &str = "unknown";

/// Returns the commit of the source.
pub(crate) fn commit() -> Option<&'static str> {
    Some(env!("KEYPEG_BUILD_COMMIT")).filter(|commit| !commit.is_empty())
}

/// Returns the commit of the source, or `unknown`.
pub(crate) fn commit_or_unknown() -> &'static str {
    commit().unwrap_or(UNKNOWN)
}

/// Returns the date of the source, as RFC 3339 in UTC with whole seconds.
pub(crate) fn built_at() -> Option<&'static str> {
    static DATE: LazyLock<Option<String>> = LazyLock::new(|| date(env!("KEYPEG_BUILD_EPOCH")));
    DATE.as_deref()
}

fn date(seconds_since_1970: &str) -> Option<String> {
    let seconds = seconds_since_1970.parse().ok()?;
    Timestamp::from_second(seconds).ok().map(|date| date.to_string())
}

/// Returns the text of `-V` after the name of the program: version and commit.
pub(crate) fn short() -> &'static str {
    static SHORT: LazyLock<String> = LazyLock::new(|| match commit() {
        None => VERSION.into(),
        Some(commit) => {
            format!("{VERSION} ({})", commit.get(..COMMIT_DIGITS).unwrap_or(commit))
        }
    });
    &SHORT
}

/// Returns the text of `--version` after the name of the program: a line for each fact.
pub(crate) fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let (commit, built_at) = (commit_or_unknown(), built_at().unwrap_or(UNKNOWN));
        format!("{VERSION}\ncommit: {commit}\nbuilt: {built_at}\ntarget: {TARGET}")
    });
    &LONG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_the_source_is_a_timestamp_or_not_known() {
        for (seconds, expected) in [
            ("0", Some("1970-01-01T00:00:00Z")),
            ("1764115200", Some("2025-11-26T00:00:00Z")),
            ("", None),
            ("yesterday", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(date(seconds).as_deref(), expected, "{seconds:?}");
        }
    }

    #[test]
    fn both_texts_begin_with_the_version() {
        assert!(short().starts_with(VERSION), "{}", short());
        let lines: Vec<_> = long().lines().collect();
        assert_eq!(lines[0], VERSION);
        let names = lines[1..].iter().map(|line| line.split(": ").next().unwrap());
        assert_eq!(names.collect::<Vec<_>>(), ["commit", "built", "target"]);
    }
}

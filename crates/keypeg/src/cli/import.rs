//! `keypeg import`: imports the values of a file, one per line, in batches.
//!
//! The whole file is read and checked before the first batch, so an invalid file changes nothing. A
//! batch is imported completely or not at all. If a later batch fails, the earlier ones stay, and
//! the error names the lines. No message contains a value.

use super::output::{OutputFormat, RowPrinter};
use super::purge_warning::PurgeWarning;
use crate::failure::{Failure, exit};
use keypeg_client::{Client, Error, GenerateRequest, Outcome, Secret};
use std::collections::HashMap;
use std::io::{Read, Write as _};

/// The largest number of values in a batch, which is the server's limit.
const VALUES_MAX: usize = 10_000;
/// The largest size of a batch's values as JSON, in bytes: the server's limit of 8 MiB on a body,
/// less the JSON around the values.
const BYTES_MAX: usize = (8 << 20) - 64;
/// The longest value, in bytes.
const VALUE_MAX: usize = 4_096;
/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 30;

/// A value and its line in the file.
#[derive(Clone, Debug)]
struct Line {
    /// From 1.
    number: usize,
    value: Secret,
}

/// The options of an import.
#[derive(Clone, Copy, Debug)]
pub(super) struct Import<'a> {
    pub(super) pool: &'a str,
    /// A path, or `-` for stdin.
    pub(super) file: &'a str,
    pub(super) no_keepalive: bool,
    pub(super) allow_retired: bool,
    pub(super) format: OutputFormat,
}

/// Imports the values of a file and prints the created keys.
pub(super) async fn run(client: &Client, options: Import<'_>) -> Result<u8, Failure> {
    let lines = parse(&read(options.file)?)?;
    let mut rows = RowPrinter::new(options.format, "keys", &["id", "key", "expires_at"]);
    let mut warning = PurgeWarning::default();
    let mut rest = lines.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(batch_len(rest));
        let values = batch.iter().map(|line| line.value.clone()).collect();
        let request = GenerateRequest {
            values: Some(values),
            keepalive: options.no_keepalive.then_some(false),
            allow_retired: options.allow_retired.then_some(true),
            ..GenerateRequest::default()
        };
        match client.generate(options.pool, &request).await {
            Ok(imported) => {
                warning.note(&imported.keys);
                rows.print(&imported.keys)?;
            }
            Err(error) => {
                let imported = lines.len() - rest.len();
                let failure = batch_failure(error, batch, imported);
                // The output must be complete for the batches that were imported.
                rows.finish()?;
                print_warning(&warning, options.pool);
                return Err(failure);
            }
        }
        rest = after;
    }
    print_warning(&warning, options.pool);
    rows.finish()
}

fn print_warning(warning: &PurgeWarning, pool: &str) {
    if let Some(text) = warning.text(pool) {
        // With stderr closed there is no other place to report to.
        let _ = writeln!(std::io::stderr(), "keypeg: {text}");
    }
}

/// Reads the file, or stdin for `-`.
fn read(file: &str) -> Result<String, Failure> {
    let failed = |error| Failure::new(exit::NO_INPUT, format!("cannot read {file}: {error}"));
    let mut bytes = Vec::new();
    let mut source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    source.by_ref().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let message =
            format!("{file} is larger than {FILE_MAX} bytes: split it, and import the parts");
        return Err(Failure::new(exit::DATA, message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        invalid_line(line, "is not UTF-8")
    })
}

fn invalid_line(number: usize, what: &str) -> Failure {
    Failure::new(exit::DATA, format!("line {number} {what}; nothing was imported"))
}

/// Parses a text with one value per line; empty lines are skipped.
fn parse(text: &str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    let mut first_line_of = HashMap::new();
    for (index, value) in text.lines().enumerate().filter(|(_, value)| !value.is_empty()) {
        let number = index + 1;
        if value.len() > VALUE_MAX {
            return Err(invalid_line(number, &format!("has more than {VALUE_MAX} bytes")));
        }
        if let Some(before) = first_line_of.insert(value, number) {
            return Err(invalid_line(number, &format!("is the same as line {before}")));
        }
        lines.push(Line { number, value: Secret(value.into()) });
    }
    if lines.is_empty() {
        return Err(Failure::new(exit::DATA, "the file contains no values; nothing was imported"));
    }
    Ok(lines)
}

/// Returns how many of the lines fit into one batch, at least 1.
fn batch_len(lines: &[Line]) -> usize {
    let mut bytes = 0;
    let fits = |line: &Line| {
        let json = serde_json::to_string(&line.value.0).expect("invariant: a string serialises");
        bytes += json.len() + 1;
        bytes <= BYTES_MAX
    };
    lines.iter().take(VALUES_MAX).map(fits).take_while(|fits| *fits).count().max(1)
}

/// Returns the failure of a batch after `imported` values of the file were imported.
fn batch_failure(error: Error, batch: &[Line], imported: usize) -> Failure {
    let (first, last) = (batch[0].number, batch[batch.len() - 1].number);
    let problem = error.problem();
    let location = problem
        .and_then(|problem| usize::try_from(problem.extensions.index?).ok())
        .and_then(|index| batch.get(index))
        .map(|line| format!("line {}: ", line.number));
    let is_refused = problem.is_some_and(|problem| problem.outcome == Some(Outcome::NotApplied));
    let applied = if is_refused || matches!(error, Error::InvalidInput(_)) {
        "were not imported"
    } else {
        "may or may not have been imported"
    };
    let earlier = match imported {
        0 => "No line before them was imported.".to_owned(),
        imported => format!("The {imported} values before line {first} were imported."),
    };
    let cause = Failure::from(error);
    let location = location.unwrap_or_default();
    let message = format!(
        "{location}{cause} Lines {first} to {last} {applied}; no line after them was imported. \
         {earlier}"
    );
    Failure::new(cause.exit, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(usize, &str)], &str>) {
        let found = parse(text);
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let found: Vec<_> =
                    found.iter().map(|line| (line.number, &*line.value.0)).collect();
                assert_eq!(found, expected, "{text:?}");
            }
            (Err(failure), Err(says)) => {
                assert!(failure.to_string().contains(says), "{text:?}: {failure}");
            }
            (found, _) => panic!("{text:?}: {found:?}"),
        }
    }

    #[test]
    fn a_file_has_one_value_per_line() {
        check("a\nb", Ok(&[(1, "a"), (2, "b")]));
        check("a\r\n\r\n b \n\n", Ok(&[(1, "a"), (3, " b ")]));
        check("", Err("no value"));
        check("\n\n", Err("no value"));
        check("a\nb\n\na\n", Err("line 4 is the same as line 1"));
        check(&format!("a\n{}", "é".repeat(2_049)), Err("line 2 has more than 4096 bytes"));
    }

    #[test]
    fn a_batch_is_within_the_limits_of_the_server() {
        let lines = |count: usize, value: &str| {
            vec![Line { number: 1, value: Secret(value.into()) }; count]
        };
        assert_eq!(batch_len(&lines(3, "a")), 3);
        assert_eq!(batch_len(&lines(10_001, "a")), 10_000);
        // Two quotes and a comma for each value.
        assert_eq!(batch_len(&lines(10_000, &"a".repeat(4_096))), BYTES_MAX / 4_099);
        // An escaped control character takes six bytes.
        assert_eq!(batch_len(&lines(10_000, &"\u{1}".repeat(4_096))), BYTES_MAX / (6 * 4_096 + 3));
    }
}

//! `import`: values from a file, one a line, in as many calls as they need.
//!
//! The whole file is read and checked before the first call, so what is wrong with it changes
//! nothing. A call is all or nothing; when a later one fails, what the earlier ones did stands and
//! is told, by lines. A value is never repeated in a message.

use super::output::{Output, Rows};
use crate::failure::{Failure, exit};
use keypeg_client::{Client, Error, Outcome, Secret};
use std::collections::HashMap;
use std::io::Read;

/// The most values of a call, as the server has it.
const VALUES_MAX: usize = 10_000;
/// The most bytes of a call's values as JSON; the server takes 8 MiB with what is around them.
const BYTES_MAX: usize = (8 << 20) - 64;
/// The longest value in bytes.
const VALUE_MAX: usize = 4_096;
/// The largest file.
const FILE_MAX: u64 = 1 << 30;

/// A value and the line it came from, from 1.
type Line = (usize, Secret);

/// Brings a file's values in, and tells the keys that they became.
pub(super) async fn run(
    client: &Client,
    pool: &str,
    file: &str,
    output: Output,
) -> Result<u8, Failure> {
    let lines = values(&read(file)?)?;
    let mut rows = Rows::new(output, "keys", &["id", "key", "expires_at"]);
    let mut rest = lines.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(fitting(rest));
        let values = batch.iter().map(|(_, value)| value.clone()).collect();
        match client.import(pool, values).await {
            Ok(made) => rows.tell(&made.keys)?,
            Err(error) => {
                let before = lines.len() - rest.len();
                let failure = stopped(error, batch, before);
                // Those that are in the pool are told in full, whatever became of the rest.
                rows.end()?;
                return Err(failure);
            }
        }
        rest = after;
    }
    rows.end()
}

/// Reads the file, or stdin for `-`.
fn read(file: &str) -> Result<String, Failure> {
    let failed = |error| Failure::new(exit::NO_INPUT, format!("reading {file}: {error}"));
    let mut bytes = Vec::new();
    let mut source: Box<dyn Read> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    source.by_ref().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let message = format!("{file} has more than {FILE_MAX} bytes: import it in parts");
        return Err(Failure::new(exit::DATA, message));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.split(|byte| *byte == b'\n').count();
        wrong(line, "is not UTF-8")
    })
}

fn wrong(line: usize, what: &str) -> Failure {
    Failure::new(exit::DATA, format!("line {line} {what}; nothing was imported"))
}

/// Takes the values of a text, one a line; lines with nothing on them are none.
fn values(text: &str) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    let mut first = HashMap::new();
    for (at, value) in text.lines().enumerate().filter(|(_, value)| !value.is_empty()) {
        let line = at + 1;
        if value.len() > VALUE_MAX {
            return Err(wrong(line, &format!("has more than {VALUE_MAX} bytes")));
        }
        if let Some(before) = first.insert(value, line) {
            return Err(wrong(line, &format!("is the same as line {before}")));
        }
        lines.push((line, Secret(value.into())));
    }
    if lines.is_empty() {
        return Err(Failure::new(exit::DATA, "there is no value in it; nothing was imported"));
    }
    Ok(lines)
}

/// How many of the lines one call takes.
fn fitting(lines: &[Line]) -> usize {
    let mut bytes = 0;
    let fits = |(_, Secret(value)): &Line| {
        let json = serde_json::to_string(value).expect("invariant: a string serialises");
        bytes += json.len() + 1;
        bytes <= BYTES_MAX
    };
    lines.iter().take(VALUES_MAX).map(fits).take_while(|fits| *fits).count().max(1)
}

/// What is to be told when a call fails after `before` values were taken.
fn stopped(error: Error, batch: &[Line], before: usize) -> Failure {
    let (from, to) = (batch[0].0, batch[batch.len() - 1].0);
    let problem = error.problem();
    let culprit = problem
        .and_then(|problem| usize::try_from(problem.more.index?).ok())
        .and_then(|index| batch.get(index))
        .map(|(line, _)| format!("line {line}: "));
    let refused = problem.is_some_and(|problem| problem.outcome == Some(Outcome::NotApplied));
    let applied = if refused || matches!(error, Error::Unusable(_)) {
        "were not imported"
    } else {
        "may or may not have been imported"
    };
    let done = match before {
        0 => "Nothing was imported before.".to_owned(),
        before => format!("The {before} values before line {from} were imported."),
    };
    let why = Failure::from(error);
    let culprit = culprit.unwrap_or_default();
    let message =
        format!("{culprit}{why} Lines {from} to {to} {applied}, and none after them. {done}");
    Failure::new(why.exit, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(usize, &str)], &str>) {
        let found = values(text);
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let found: Vec<_> = found.iter().map(|(at, value)| (*at, &*value.0)).collect();
                assert_eq!(found, expected, "{text:?}");
            }
            (Err(failure), Err(says)) => {
                assert!(failure.to_string().contains(says), "{text:?}: {failure}");
            }
            (found, _) => panic!("{text:?}: {found:?}"),
        }
    }

    #[test]
    fn a_file_is_a_value_a_line() {
        check("a\nb", Ok(&[(1, "a"), (2, "b")]));
        check("a\r\n\r\n b \n\n", Ok(&[(1, "a"), (3, " b ")]));
        check("", Err("no value"));
        check("\n\n", Err("no value"));
        check("a\nb\n\na\n", Err("line 4 is the same as line 1"));
        check(&format!("a\n{}", "é".repeat(2_049)), Err("line 2 has more than 4096 bytes"));
    }

    #[test]
    fn a_call_takes_what_the_server_does() {
        let lines = |count: usize, value: &str| vec![(1, Secret(value.into())); count];
        assert_eq!(fitting(&lines(3, "a")), 3);
        assert_eq!(fitting(&lines(10_001, "a")), 10_000);
        // Two quotes and a comma around each.
        assert_eq!(fitting(&lines(10_000, &"a".repeat(4_096))), BYTES_MAX / 4_099);
        // An escape is six bytes.
        assert_eq!(fitting(&lines(10_000, &"\u{1}".repeat(4_096))), BYTES_MAX / (6 * 4_096 + 3));
    }
}

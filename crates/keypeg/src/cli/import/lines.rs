//! The values of a file to import, one per line.
//!
//! A credential must become one key, however its file was written: a value with invisible
//! characters or with blanks at its ends would be a second key for the same credential. No message
//! contains a value.

use crate::characters::{is_invisible, number};
use crate::failure::{Failure, exit};
use keypeg_client::Secret;
use keypeg_fields::VALUE_MAX;
use std::collections::HashMap;

/// A value and its line in the file.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: usize,
    pub(super) value: Secret,
}

/// How lines become values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LineOptions {
    /// Keep blanks at the ends of a line, and import lines that begin with `#`.
    pub(super) raw: bool,
    /// Skip lines that begin with `#`.
    pub(super) skip_comments: bool,
}

/// Parses the text of a file; empty lines are skipped. The error names the first invalid line.
pub(super) fn parse(file: &str, text: &str, options: LineOptions) -> Result<Vec<Line>, Failure> {
    let (mut lines, mut invalid) = (Vec::new(), Vec::new());
    let mut first_line_of = HashMap::new();
    for (index, line) in text.split('\n').enumerate() {
        let (number, value) = (index + 1, line.strip_suffix('\r').unwrap_or(line));
        let is_comment = value.trim_start().starts_with('#');
        if value.is_empty() || is_comment && options.skip_comments {
            continue;
        }
        match check(value, options.raw) {
            Err(what) => invalid.push((number, what)),
            Ok(()) => match first_line_of.insert(value, number) {
                Some(first) => invalid.push((number, format!("the same value as in line {first}"))),
                None => lines.push(Line { number, value: Secret(value.into()) }),
            },
        }
    }
    if let Some((number, what)) = invalid.first() {
        let more = match invalid.len() - 1 {
            0 => String::new(),
            1 => "; 1 more line is invalid".into(),
            more => format!("; {more} more lines are invalid"),
        };
        let message = format!("{file}:{number}: {what}{more}; nothing was imported");
        return Err(Failure::new(exit::DATA, message));
    }
    if lines.is_empty() {
        let message = format!("{file} contains no values; nothing was imported");
        return Err(Failure::new(exit::DATA, message));
    }
    Ok(lines)
}

/// Checks a line that is not empty.
fn check(value: &str, is_raw: bool) -> Result<(), String> {
    if value.len() > VALUE_MAX {
        return Err(format!("the value has more than {VALUE_MAX} bytes"));
    }
    if value.trim().is_empty() {
        return Err("the line has only blanks: remove it".into());
    }
    if let Some(invisible) = value.chars().find(|c| is_invisible(*c)) {
        let hint = match invisible {
            '\r' => "save the file with LF or CRLF at the end of each line",
            '\t' => "keep one value on each line",
            _ => "remove it",
        };
        let number = number(invisible);
        return Err(format!("the value contains the invisible character {number}: {hint}"));
    }
    if is_raw {
        return Ok(());
    }
    if value.trim_start().starts_with('#') {
        return Err("the line begins with #: add --skip-comments to skip such lines, or --raw to \
                    import them as values"
            .into());
    }
    if value.trim() != value {
        return Err(
            "the value begins or ends with a blank: remove it, or add --raw to import the \
                    value with it"
                .into(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: LineOptions = LineOptions { raw: true, skip_comments: false };
    const COMMENTS: LineOptions = LineOptions { raw: false, skip_comments: true };

    fn check(text: &str, options: LineOptions, expected: Result<&[(usize, &str)], &str>) {
        let found = parse("F", text, options);
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
        let plain = LineOptions::default();
        check("a\nb", plain, Ok(&[(1, "a"), (2, "b")]));
        check("a\r\n\r\nb c \u{a0} d#\n\n", plain, Ok(&[(1, "a"), (3, "b c \u{a0} d#")]));
        check("a\r\nb\r", plain, Ok(&[(1, "a"), (2, "b")]));
        check("", plain, Err("F contains no values"));
        check("\n\r\n", plain, Err("F contains no values"));
        check("a\nb\n\na\n", plain, Err("F:4: the same value as in line 1; nothing was imported"));
        check("a\r\na", plain, Err("F:2: the same value as in line 1"));
        let longest = "é".repeat(2_048);
        check(&longest, plain, Ok(&[(1, &longest)]));
        check(&format!("a\n{}", "é".repeat(2_049)), plain, Err("F:2: the value has more than"));
    }

    #[test]
    fn a_value_with_invisible_characters_is_refused_even_raw() {
        for options in [LineOptions::default(), RAW] {
            for (text, says) in [
                ("a\n\u{200b}", "F:2: the value contains the invisible character U+200B: remove"),
                ("a\u{200b}b", "U+200B"),
                ("a\n\u{1a}", "F:2: the value contains the invisible character U+001A"),
                ("a\0", "U+0000"),
                ("a\u{feff}", "U+FEFF"),
                ("a\u{202e}b", "U+202E"),
                ("a\rb\rc", "U+000D: save the file with LF or CRLF"),
                ("a\tb", "U+0009: keep one value on each line"),
                ("   \nb", "F:1: the line has only blanks"),
                ("\u{a0}\u{3000}", "F:1: the line has only blanks"),
                (
                    "a\n\0\n\0\n",
                    "F:2: the value contains the invisible character U+0000: remove \
                                 it; 1 more line is invalid; nothing was imported",
                ),
            ] {
                check(text, options, Err(says));
            }
        }
    }

    #[test]
    fn blanks_at_the_ends_and_comments_need_an_option() {
        let plain = LineOptions::default();
        for text in ["a ", " a", "a\u{a0}", "\u{3000}a", "a \r\n"] {
            check(text, plain, Err("F:1: the value begins or ends with a blank"));
            check(text, COMMENTS, Err("F:1: the value begins or ends with a blank"));
            check(text, RAW, Ok(&[(1, text.trim_end_matches(['\r', '\n']))]));
        }
        for text in ["# accounts\na", " # accounts\na", "#\na"] {
            check(text, plain, Err("F:1: the line begins with #: add --skip-comments"));
            check(text, COMMENTS, Ok(&[(2, "a")]));
            check(text, RAW, Ok(&[(1, text.split('\n').next().unwrap()), (2, "a")]));
        }
        check("# a\n", COMMENTS, Err("F contains no values"));
    }
}

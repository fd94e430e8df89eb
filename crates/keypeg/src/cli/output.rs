//! How answers are told: JSON as it is on the wire, or tables for people.

use crate::failure::{Failure, exit};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;

/// The form of what is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// One line of JSON, as the API has it
    Json,
    /// Columns
    Table,
}

impl Output {
    /// Tells one thing: a line for each of its fields.
    pub(super) fn fields(self, whole: &impl Serialize) -> Result<u8, Failure> {
        let value = value(whole);
        match (self, &value) {
            (Self::Table, Value::Object(fields)) => {
                let lines = fields.iter().map(|(name, value)| vec![name.clone(), text(value)]);
                print(&table(lines.collect()))
            }
            _ => print(&format!("{value}\n")),
        }
    }

    /// Tells many things: a row for each, with these of its fields.
    pub(super) fn rows(
        self,
        whole: &impl Serialize,
        rows: &[impl Serialize],
        columns: &[&str],
    ) -> Result<u8, Failure> {
        if self == Self::Json {
            return print(&format!("{}\n", value(whole)));
        }
        let mut lines = vec![columns.iter().map(|column| column.to_uppercase()).collect()];
        for row in rows.iter().map(value) {
            lines.push(columns.iter().map(|column| text(&row[column])).collect());
        }
        print(&table(lines))
    }
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("invariant: wire types always serialise")
}

/// A value as people read it: what a holder says of itself cannot steer their terminal.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Aligns columns; no line ends in blanks.
fn table(lines: Vec<Vec<String>>) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines.iter().map(|line: &Vec<String>| line[column].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Prints, or fails: a key that was lent or made and cannot be told must not look like success.
fn print(text: &str) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map(|()| 0)
        .map_err(|error| Failure::new(exit::IO, format!("writing to stdout: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let line = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let lines = vec![line(&["A", "LONG", "C"]), line(&["äöü", "b", ""])];
        assert_eq!(table(lines), "A    LONG  C\näöü  b\n");
        assert_eq!(table(Vec::new()), "");
    }

    #[test]
    fn what_a_table_shows_cannot_steer_a_terminal() {
        assert_eq!(text(&Value::String("a\u{1b}[2Jb\n".into())), "a?[2Jb?");
    }
}

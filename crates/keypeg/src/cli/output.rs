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

/// Tells many things as they come: rows under one head, or one JSON object with a list that grows.
/// What was told is whole whenever [`Rows::end`] is reached.
pub(super) struct Rows {
    form: Output,
    /// The list's name in JSON.
    name: &'static str,
    columns: &'static [&'static str],
    /// Of the columns, as the first rows have them.
    widths: Option<Vec<usize>>,
    begun: bool,
}

impl Rows {
    pub(super) fn new(form: Output, name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { form, name, columns, widths: None, begun: false }
    }

    /// Tells some more.
    pub(super) fn tell(&mut self, rows: &[impl Serialize]) -> Result<(), Failure> {
        print(&self.more(rows)).map(drop)
    }

    /// Tells that there are no more.
    pub(super) fn end(mut self) -> Result<u8, Failure> {
        print(&self.rest())
    }

    /// Nothing for no rows: the first ones that come tell how wide the columns are.
    fn more(&mut self, rows: &[impl Serialize]) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let text = match self.form {
            Output::Json => self.json(rows),
            Output::Table => self.table(rows),
        };
        self.begun = true;
        text
    }

    fn rest(&mut self) -> String {
        let none: &[Value] = &[];
        match self.form {
            Output::Json if self.begun => "]}\n".into(),
            Output::Json => format!("{}]}}\n", self.json(none)),
            Output::Table if self.begun => String::new(),
            Output::Table => self.table(none),
        }
    }

    fn json(&self, rows: &[impl Serialize]) -> String {
        let mut text = if self.begun { String::new() } else { format!("{{\"{}\":[", self.name) };
        for (at, row) in rows.iter().enumerate() {
            if self.begun || at > 0 {
                text.push(',');
            }
            text.push_str(&value(row).to_string());
        }
        text
    }

    fn table(&mut self, rows: &[impl Serialize]) -> String {
        let mut lines = Vec::new();
        if !self.begun {
            lines.push(self.columns.iter().map(|column| column.to_uppercase()).collect());
        }
        for row in rows.iter().map(value) {
            lines.push(self.columns.iter().map(|column| text(cell(&row, column))).collect());
        }
        let widths = self.widths.get_or_insert_with(|| widths(&lines));
        aligned(lines, widths)
    }
}

/// A row's member, or its member's member: `lease.holder`.
fn cell<'a>(row: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(row, |value, name| &value[name])
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
    let widths = widths(&lines);
    aligned(lines, &widths)
}

fn widths(lines: &[Vec<String>]) -> Vec<usize> {
    let columns = lines.first().map_or(0, Vec::len);
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    (0..columns).map(width).collect()
}

fn aligned(lines: Vec<Vec<String>>, widths: &[usize]) -> String {
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(widths).map(|(cell, &width)| format!("{cell:width$}"));
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

    /// Tells these parts one after the other; a page of a listing can be empty.
    fn told(form: Output, parts: &[&[Value]]) -> String {
        let mut rows = Rows::new(form, "keys", &["id", "lease.holder"]);
        let mut text: String = parts.iter().map(|part| rows.more(part)).collect();
        text.push_str(&rows.rest());
        text
    }

    #[test]
    fn a_list_that_grows_is_one_object_however_it_came() {
        let all = [1, 2, 3].map(Value::from);
        for parts in [&[&all[..2], &[], &all[2..]][..], &[&[], &all[..1], &all[1..]], &[&all]] {
            assert_eq!(told(Output::Json, parts), "{\"keys\":[1,2,3]}\n");
        }
        assert_eq!(told(Output::Json, &[&[]]), "{\"keys\":[]}\n");
    }

    #[test]
    fn later_rows_stand_under_the_first_ones_columns() {
        let row = |id, holder| serde_json::json!({ "id": id, "lease": { "holder": holder } });
        let free = serde_json::json!({ "id": "d", "lease": null });
        let (first, later) = ([row("abc", "x")], [free, row("efghi", "y")]);
        assert_eq!(
            told(Output::Table, &[&[], &first, &later]),
            "ID   LEASE.HOLDER\nabc  x\nd    -\nefghi  y\n"
        );
        assert_eq!(told(Output::Table, &[]), "ID  LEASE.HOLDER\n");
    }

    #[test]
    fn what_a_table_shows_cannot_steer_a_terminal() {
        assert_eq!(text(&Value::String("a\u{1b}[2Jb\n".into())), "a?[2Jb?");
    }
}

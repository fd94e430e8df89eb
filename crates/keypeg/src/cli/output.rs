//! Output of results: JSON with the names of the wire format, or aligned tables.
//!
//! Knows nothing of what it prints but its JSON form. An error while writing is a failure.

use crate::failure::{Failure, exit};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// JSON on one line, with the field names of the HTTP API
    Json,
    /// Aligned columns
    Table,
}

impl OutputFormat {
    /// Prints one object: in a table, one line per field.
    pub(super) fn print_fields(self, whole: &impl Serialize) -> Result<u8, Failure> {
        let value = value(whole);
        match (self, &value) {
            (Self::Table, Value::Object(fields)) => {
                let lines = fields.iter().map(|(name, value)| vec![name.clone(), text(value)]);
                print(&table(lines.collect()))
            }
            _ => print(&format!("{value}\n")),
        }
    }

    /// Prints a list: in a table, one row per element with these fields; in JSON, `whole`.
    pub(super) fn print_rows(
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

/// Prints a list page by page: rows under one header, or one JSON object with one array. The output
/// is complete after [`RowPrinter::finish`].
pub(super) struct RowPrinter {
    format: OutputFormat,
    /// The array's member name in JSON.
    name: &'static str,
    columns: &'static [&'static str],
    /// The widths of the columns, from the first page with rows.
    widths: Option<Vec<usize>>,
    has_started: bool,
}

impl RowPrinter {
    pub(super) fn new(
        format: OutputFormat,
        name: &'static str,
        columns: &'static [&'static str],
    ) -> Self {
        Self { format, name, columns, widths: None, has_started: false }
    }

    /// Prints a page of rows.
    pub(super) fn print(&mut self, rows: &[impl Serialize]) -> Result<(), Failure> {
        print(&self.page(rows)).map(drop)
    }

    /// Prints the end of the list.
    pub(super) fn finish(mut self) -> Result<u8, Failure> {
        print(&self.end())
    }

    /// Returns the text of a page; an empty page has none, since it has no column widths.
    fn page(&mut self, rows: &[impl Serialize]) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let text = match self.format {
            OutputFormat::Json => self.json(rows),
            OutputFormat::Table => self.table(rows),
        };
        self.has_started = true;
        text
    }

    fn end(&mut self) -> String {
        let no_rows: &[Value] = &[];
        match self.format {
            OutputFormat::Json if self.has_started => "]}\n".into(),
            OutputFormat::Json => format!("{}]}}\n", self.json(no_rows)),
            OutputFormat::Table if self.has_started => String::new(),
            OutputFormat::Table => self.table(no_rows),
        }
    }

    fn json(&self, rows: &[impl Serialize]) -> String {
        let mut text =
            if self.has_started { String::new() } else { format!("{{\"{}\":[", self.name) };
        for (index, row) in rows.iter().enumerate() {
            if self.has_started || index > 0 {
                text.push(',');
            }
            text.push_str(&value(row).to_string());
        }
        text
    }

    fn table(&mut self, rows: &[impl Serialize]) -> String {
        let mut lines = Vec::new();
        if !self.has_started {
            lines.push(self.columns.iter().map(|column| column.to_uppercase()).collect());
        }
        for row in rows.iter().map(value) {
            lines.push(self.columns.iter().map(|column| text(cell(&row, column))).collect());
        }
        let widths = self.widths.get_or_insert_with(|| widths(&lines));
        aligned(lines, widths)
    }
}

/// Returns a member of a row, or of a nested object: `lease.holder`.
fn cell<'a>(row: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(row, |value, name| &value[name])
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("invariant: wire types always serialise")
}

/// Formats a value for a table. Control characters are replaced, so that a text such as a holder's
/// name cannot control the terminal.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Aligns columns; no line ends in spaces.
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

/// Prints to stdout, or fails: an acquired or generated key that could not be printed must not look
/// like success.
fn print(text: &str) -> Result<u8, Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map(|()| 0)
        .map_err(|error| Failure::new(exit::IO, format!("cannot write to stdout: {error}")))
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

    /// Returns the output of these pages; a page of a listing can be empty.
    fn printed(format: OutputFormat, pages: &[&[Value]]) -> String {
        let mut rows = RowPrinter::new(format, "keys", &["id", "lease.holder"]);
        let mut text: String = pages.iter().map(|page| rows.page(page)).collect();
        text.push_str(&rows.end());
        text
    }

    #[test]
    fn a_list_is_one_json_object_however_it_is_paged() {
        let all = [1, 2, 3].map(Value::from);
        for pages in [&[&all[..2], &[], &all[2..]][..], &[&[], &all[..1], &all[1..]], &[&all]] {
            assert_eq!(printed(OutputFormat::Json, pages), "{\"keys\":[1,2,3]}\n");
        }
        assert_eq!(printed(OutputFormat::Json, &[&[]]), "{\"keys\":[]}\n");
    }

    #[test]
    fn later_pages_use_the_column_widths_of_the_first() {
        let row = |id, holder| serde_json::json!({ "id": id, "lease": { "holder": holder } });
        let free = serde_json::json!({ "id": "d", "lease": null });
        let (first, later) = ([row("abc", "x")], [free, row("efghi", "y")]);
        assert_eq!(
            printed(OutputFormat::Table, &[&[], &first, &later]),
            "ID   LEASE.HOLDER\nabc  x\nd    -\nefghi  y\n"
        );
        assert_eq!(printed(OutputFormat::Table, &[]), "ID  LEASE.HOLDER\n");
    }

    #[test]
    fn control_characters_are_replaced_in_a_table() {
        assert_eq!(text(&Value::String("a\u{1b}[2Jb\n".into())), "a?[2Jb?");
    }
}

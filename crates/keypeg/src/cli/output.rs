//! Output of results: JSON with the names of the wire format, or aligned tables.
//!
//! Knows nothing of what it prints but its JSON form. A table never alters a text silently. A reader
//! that ends early, such as `head`, is not a failure of a command that only reads.

use super::characters::is_invisible;
use crate::failure::{Failure, exit};
use crate::streams;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// JSON on one line, with the field names of the HTTP API
    Json,
    /// Aligned columns
    Table,
}

impl OutputFormat {
    /// Prints one object of a command that only reads: in a table, one line per field.
    pub(super) fn print_fields(self, whole: &impl Serialize) -> Result<u8, Failure> {
        printed(self.try_print_fields(whole))
    }

    /// Prints one object: in a table, one line per field. The caller decides what an error means.
    pub(super) fn try_print_fields(self, whole: &impl Serialize) -> io::Result<()> {
        let value = value(whole);
        match (self, &value) {
            (Self::Table, Value::Object(fields)) => {
                let mut escaper = Escaper::default();
                let row = |(name, value): (&String, _)| vec![name.clone(), escaper.cell(value)];
                let text = table(fields.iter().map(row).collect());
                escaper.report();
                streams::print(&text)
            }
            _ => streams::print(&format!("{value}\n")),
        }
    }

    /// Prints a list: in a table, one row per element with these fields; in JSON, `whole`. The caller
    /// decides what an error means.
    pub(super) fn try_print_rows(
        self,
        whole: &impl Serialize,
        rows: &[impl Serialize],
        columns: &[&str],
    ) -> io::Result<()> {
        if self == Self::Json {
            return streams::print(&format!("{}\n", value(whole)));
        }
        let mut escaper = Escaper::default();
        let mut lines = vec![columns.iter().map(|column| column.to_uppercase()).collect()];
        for row in rows.iter().map(value) {
            lines.push(columns.iter().map(|column| escaper.cell(&row[column])).collect());
        }
        let text = table(lines);
        escaper.report();
        streams::print(&text)
    }
}

/// Returns the exit code of a command that only reads and has printed its result. With a broken
/// pipe the reader has what it wanted.
pub(super) fn printed(result: io::Result<()>) -> Result<u8, Failure> {
    match result {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        Err(error) => Err(Failure::new(exit::IO, format!("cannot write to stdout: {error}"))),
    }
}

/// Prints a list page by page: rows under one header, or one JSON array, alone or as the member of
/// an object. The output is complete after [`RowPrinter::finish`].
pub(super) struct RowPrinter {
    format: OutputFormat,
    /// The array's member name in JSON; `None` prints the array alone.
    name: Option<&'static str>,
    columns: &'static [&'static str],
    /// The widths of the columns, from the first page with rows.
    widths: Option<Vec<usize>>,
    has_started: bool,
    escaper: Escaper,
}

impl RowPrinter {
    pub(super) fn new(
        format: OutputFormat,
        name: Option<&'static str>,
        columns: &'static [&'static str],
    ) -> Self {
        Self {
            format,
            name,
            columns,
            widths: None,
            has_started: false,
            escaper: Escaper::default(),
        }
    }

    /// Prints a page of rows.
    pub(super) fn print(&mut self, rows: &[impl Serialize]) -> io::Result<()> {
        streams::print(&self.page(rows))
    }

    /// Prints the end of the list.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.escaper.report();
        streams::print(&self.end())
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
            OutputFormat::Json => {
                let start = if self.has_started { String::new() } else { self.json(no_rows) };
                format!("{start}]{}\n", if self.name.is_some() { "}" } else { "" })
            }
            OutputFormat::Table if self.has_started => String::new(),
            OutputFormat::Table => self.table(no_rows),
        }
    }

    fn json(&self, rows: &[impl Serialize]) -> String {
        let mut text = match self.name {
            _ if self.has_started => String::new(),
            Some(name) => format!("{{\"{name}\":["),
            None => "[".into(),
        };
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
            let cells = self.columns.iter().map(|column| self.escaper.cell(member(&row, column)));
            lines.push(cells.collect());
        }
        let widths = self.widths.get_or_insert_with(|| widths(&lines));
        aligned(lines, widths)
    }
}

/// Returns a member of a row, or of a nested object: `lease.holder`.
fn member<'a>(row: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(row, |value, name| &value[name])
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("invariant: wire types always serialise")
}

/// Formats the cells of a table, and knows whether one of them was altered.
#[derive(Debug, Default)]
struct Escaper {
    has_altered: bool,
}

impl Escaper {
    /// Returns the text of a cell. A character that a reader would not see, or that would control
    /// the terminal or end the line, is written as an escape.
    fn cell(&mut self, value: &Value) -> String {
        let Value::String(text) = value else {
            return if value.is_null() { "-".into() } else { value.to_string() };
        };
        let is_hidden = |c: char| is_invisible(c) || c.is_whitespace() && c != ' ';
        if text.is_empty() {
            return "\"\"".into();
        }
        if text.trim_matches(' ') == text && !text.contains(is_hidden) {
            return text.clone();
        }
        self.has_altered = true;
        let (first, last) = (text.len() - text.trim_start().len(), text.trim_end().len());
        let mut cell = String::new();
        for (index, c) in text.char_indices() {
            match c {
                '\t' => cell.push_str("\\t"),
                '\n' => cell.push_str("\\n"),
                '\r' => cell.push_str("\\r"),
                '\\' => cell.push_str("\\\\"),
                c if is_hidden(c) || index < first || index >= last => {
                    write!(cell, "\\u{{{:x}}}", u32::from(c))
                        .expect("invariant: writing to a string never fails");
                }
                c => cell.push(c),
            }
        }
        cell
    }

    /// Prints to stderr that a cell was altered.
    fn report(&self) {
        if self.has_altered {
            streams::print_message(
                "the table shows blanks at the ends of a text and invisible characters as escapes \
                 such as \\n or \\u{200b}: --output json prints each text as it is",
            );
        }
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
        let mut rows = RowPrinter::new(format, Some("keys"), &["id", "lease.holder"]);
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
        let mut array = RowPrinter::new(OutputFormat::Json, None, &["id"]);
        let pages = [array.page(&all[..2]), array.page(&all[2..]), array.end()];
        assert_eq!(pages.concat(), "[1,2,3]\n");
        assert_eq!(RowPrinter::new(OutputFormat::Json, None, &["id"]).end(), "[]\n");
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
    fn a_table_never_alters_a_text_silently() {
        for (text, cell) in [
            ("a b\\n\u{e4}", "a b\\n\u{e4}"),
            ("a\u{1b}[2Jb\n", r"a\u{1b}[2Jb\n"),
            ("a\tb\\", r"a\tb\\"),
            (" a ", r"\u{20}a\u{20}"),
            ("a\u{200b}\u{a0}b\u{202e}", r"a\u{200b}\u{a0}b\u{202e}"),
            ("  ", r"\u{20}\u{20}"),
        ] {
            let mut escaper = Escaper::default();
            assert_eq!(escaper.cell(&text.into()), cell, "{text:?}");
            assert_eq!(escaper.has_altered, cell != text, "{text:?}");
        }
        let cells = [Value::Null, "".into()].map(|value| Escaper::default().cell(&value));
        assert_eq!(cells, ["-", "\"\""]);
    }
}

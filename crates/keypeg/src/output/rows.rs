//! A list that is printed page by page: rows under one header, one JSON array, or one field of each
//! row.
//!
//! Keeps one page at a time. The first page with rows decides the widths of the columns.

use super::table::{Escaper, Fit, Layout, terminal_width};
use super::{OutputArgs, OutputFormat, PrintError, field_line, member, value};
use crate::streams;
use serde::Serialize;
use serde_json::Value;

/// Prints a list page by page. The output is complete after [`RowPrinter::finish`].
pub(crate) struct RowPrinter {
    output: OutputArgs,
    /// The array's member name in JSON; `None` prints the array alone.
    name: Option<&'static str>,
    columns: &'static [(&'static str, Fit)],
    /// The width of the terminal; `None` without one, and then no line is made to fit.
    width: Option<usize>,
    /// The layout of the columns, from the first page with rows.
    layout: Option<Layout>,
    has_started: bool,
    escaper: Escaper,
}

impl RowPrinter {
    /// Creates the printer of a list. Each column is the name of a member of a row, with a dot
    /// before that of a nested object.
    pub(crate) fn new(
        output: &OutputArgs,
        name: Option<&'static str>,
        columns: &'static [(&'static str, Fit)],
    ) -> Self {
        Self {
            output: output.clone(),
            name,
            columns,
            width: terminal_width(&std::io::stdout()),
            layout: None,
            has_started: false,
            escaper: Escaper::default(),
        }
    }

    /// Prints a page of rows.
    pub(crate) fn print(&mut self, rows: &[impl Serialize]) -> Result<(), PrintError> {
        let text = self.page(rows)?;
        Ok(streams::print(&text)?)
    }

    /// Prints the end of the list.
    pub(crate) fn finish(mut self) -> Result<(), PrintError> {
        self.escaper.report();
        if let Some(layout) = &self.layout {
            layout.report();
        }
        Ok(streams::print(&self.end())?)
    }

    /// Returns the text of a page; an empty page has none, since it has no column widths.
    fn page(&mut self, rows: &[impl Serialize]) -> Result<String, PrintError> {
        if rows.is_empty() {
            return Ok(String::new());
        }
        let text = match (&self.output.field, self.output.format) {
            (Some(field), _) => {
                let lines: Result<Vec<_>, _> =
                    rows.iter().map(|row| field_line(&value(row), field)).collect();
                lines?.concat()
            }
            (None, OutputFormat::Json) => self.json(rows),
            (None, OutputFormat::Table) => self.table(rows),
        };
        self.has_started = true;
        Ok(text)
    }

    fn end(&mut self) -> String {
        let no_rows: &[Value] = &[];
        match self.output.format {
            _ if self.output.field.is_some() => String::new(),
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
        for row in rows.iter().map(value) {
            let cells = self.columns.iter().map(|(name, _)| self.escaper.cell(member(&row, name)));
            lines.push(cells.collect::<Vec<_>>());
        }
        let (columns, width) = (self.columns, self.width);
        let layout = self.layout.get_or_insert_with(|| Layout::new(columns, &lines, width));
        let head = if self.has_started { String::new() } else { layout.head() };
        lines.iter().fold(head, |text, line| text + &layout.line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[(&str, Fit)] = &[("id", Fit::Whole), ("lease.holder", Fit::Text)];

    fn output(format: OutputFormat, field: Option<&str>) -> OutputArgs {
        OutputArgs { format, field: field.map(str::to_owned), quiet: false }
    }

    /// Returns the output of these pages; a page of a listing can be empty.
    fn printed(output: &OutputArgs, pages: &[&[Value]]) -> String {
        let mut rows = RowPrinter::new(output, Some("keys"), COLUMNS);
        rows.width = None;
        let mut text: String = pages.iter().map(|page| rows.page(page).unwrap()).collect();
        text.push_str(&rows.end());
        text
    }

    #[test]
    fn a_list_is_one_json_object_however_it_is_paged() {
        let json = output(OutputFormat::Json, None);
        let all = [1, 2, 3].map(Value::from);
        for pages in [&[&all[..2], &[], &all[2..]][..], &[&[], &all[..1], &all[1..]], &[&all]] {
            assert_eq!(printed(&json, pages), "{\"keys\":[1,2,3]}\n");
        }
        assert_eq!(printed(&json, &[&[]]), "{\"keys\":[]}\n");
        let mut array = RowPrinter::new(&json, None, COLUMNS);
        let pages = [array.page(&all[..2]).unwrap(), array.page(&all[2..]).unwrap(), array.end()];
        assert_eq!(pages.concat(), "[1,2,3]\n");
        assert_eq!(RowPrinter::new(&json, None, COLUMNS).end(), "[]\n");
    }

    #[test]
    fn later_pages_use_the_column_widths_of_the_first() {
        let row = |id, holder| json!({ "id": id, "lease": { "holder": holder } });
        let free = json!({ "id": "d", "lease": null });
        let (first, later) = ([row("abc", "x")], [free, row("efghi", "y")]);
        let table = output(OutputFormat::Table, None);
        assert_eq!(
            printed(&table, &[&[], &first, &later]),
            "ID   LEASE.HOLDER\nabc  x\nd    -\nefghi  y\n"
        );
        assert_eq!(printed(&table, &[]), "ID  LEASE.HOLDER\n");
        let holders = output(OutputFormat::Table, Some("lease.holder"));
        assert_eq!(printed(&holders, &[&[], &first, &later]), "x\n\ny\n");
        assert_eq!(printed(&holders, &[]), "");
    }
}

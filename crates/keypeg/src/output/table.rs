//! Tables for people: aligned columns that fit the terminal, and cells without hidden characters.
//!
//! A table never alters a text silently: an escape, a cut cell and a column that is left out are
//! reported on stderr. Without a terminal nothing is cut, so a script gets each text whole.

use crate::characters::is_invisible;
use crate::streams;
use rustix::termios::tcgetwinsize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The width below which no cell is cut.
const CUT_MIN: usize = 8;
/// The blanks between two columns.
const GAP: usize = 2;

/// How a column is made to fit a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Its cells stay whole, because a part of an id, a value, a time or a number is of no use.
    Whole,
    /// Its cells can be cut.
    Text,
}

/// Returns the width of a terminal; `None` for any other stream, and for a terminal of unknown size.
pub(crate) fn terminal_width(stream: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = stream.is_terminal().then(|| tcgetwinsize(stream).ok())??;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

/// Returns the cell of a text, with escapes in place of hidden characters.
pub(crate) fn cell_of(text: &str) -> String {
    Escaper::default().cell(&text.into())
}

/// Returns a text of at most `width` columns, which ends in `…` if it was cut.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let (mut short, mut used) = (String::new(), 1);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width {
            break;
        }
        short.push(c);
    }
    if width > 0 {
        short.push('…');
    }
    short
}

/// Returns a text with blanks up to a width.
pub(crate) fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// The columns of a table: their widths, and which of them are shown.
#[derive(Debug)]
pub(crate) struct Layout {
    columns: Vec<Column>,
    /// Whether a cell was cut, or a cell with a value was left out.
    has_cut: bool,
}

#[derive(Debug)]
struct Column {
    name: &'static str,
    width: usize,
    is_shown: bool,
    /// The most columns of the terminal that a cell takes.
    max: usize,
}

impl Layout {
    /// Creates the layout for the rows of the first page, and for a terminal of `terminal` columns.
    ///
    /// If the table is too wide, columns without any value are left out first. Then the widest
    /// texts are cut, and then columns are left out from the right. The first one always stays.
    pub(crate) fn new(
        columns: &[(&'static str, Fit)],
        rows: &[Vec<String>],
        terminal: Option<usize>,
    ) -> Self {
        let width = |index: usize, name: &str| {
            rows.iter().map(|row| row[index].width()).chain([name.width()]).max().unwrap_or(0)
        };
        let mut made: Vec<Column> = columns
            .iter()
            .enumerate()
            .map(|(index, (name, _))| Column {
                name,
                width: width(index, name),
                is_shown: true,
                max: usize::MAX,
            })
            .collect();
        if let Some(terminal) = terminal {
            for index in (1..made.len()).rev() {
                if total(&made) <= terminal {
                    break;
                }
                made[index].is_shown = rows.iter().any(|row| row[index] != "-");
            }
            cut_texts(&mut made, columns, terminal);
            for index in (1..made.len()).rev() {
                if total(&made) <= terminal {
                    break;
                }
                made[index].is_shown = false;
            }
            for (column, (_, fit)) in made.iter_mut().zip(columns) {
                if *fit == Fit::Text {
                    column.max = column.width;
                }
            }
            // A longer text of a later page may take what is free at the right.
            let free = terminal.saturating_sub(total(&made));
            if let Some(last) = made.iter_mut().rfind(|column| column.is_shown) {
                last.max = last.max.saturating_add(free);
            }
        }
        Self { columns: made, has_cut: false }
    }

    /// Returns the line with the names of the columns.
    pub(crate) fn head(&self) -> String {
        let names = self.columns.iter().filter(|column| column.is_shown);
        let cells =
            names.map(|column| (cut(&column.name.to_uppercase(), column.max), column.width));
        joined(cells)
    }

    /// Returns the line of a row.
    pub(crate) fn line(&mut self, row: &[String]) -> String {
        let mut has_cut = self.has_cut;
        let cells = self.columns.iter().zip(row).filter_map(|(column, cell)| {
            if !column.is_shown {
                has_cut |= cell != "-";
                return None;
            }
            has_cut |= cell.width() > column.max;
            Some((cut(cell, column.max), column.width))
        });
        let line = joined(cells);
        self.has_cut = has_cut;
        line
    }

    /// Prints to stderr that the terminal does not show all.
    pub(crate) fn report(&self) {
        if !self.has_cut {
            return;
        }
        let hidden = self.columns.iter().filter(|column| !column.is_shown);
        let hidden: Vec<_> = hidden.map(|column| column.name).collect();
        let hidden = if hidden.is_empty() {
            "texts that end in … are cut".into()
        } else {
            format!("texts that end in … are cut, and it leaves out {}", hidden.join(", "))
        };
        streams::print_message(&format!(
            "the table fits the terminal: {hidden}; --output json prints all"
        ));
    }
}

/// Returns the width of the columns that are shown, with the gaps between them.
fn total(columns: &[Column]) -> usize {
    let shown: Vec<_> = columns.iter().filter(|column| column.is_shown).collect();
    shown.iter().map(|column| column.width).sum::<usize>() + GAP * shown.len().saturating_sub(1)
}

/// Cuts the widest texts, as far as the table is too wide for the terminal.
fn cut_texts(made: &mut [Column], columns: &[(&'static str, Fit)], terminal: usize) {
    while total(made) > terminal {
        let texts = made.iter_mut().zip(columns).filter(|(column, (_, fit))| {
            column.is_shown && *fit == Fit::Text && column.width > CUT_MIN
        });
        let Some((widest, _)) = texts.max_by_key(|(column, _)| column.width) else { return };
        widest.width -= 1;
    }
}

/// Joins cells of given widths to a line; no line ends in blanks.
fn joined(cells: impl Iterator<Item = (String, usize)>) -> String {
    let cells: Vec<_> = cells.map(|(cell, width)| padded(&cell, width)).collect();
    format!("{}\n", cells.join("  ").trim_end())
}

/// Aligns columns.
pub(crate) fn table(lines: Vec<Vec<String>>) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    lines.into_iter().map(|line| joined(line.into_iter().zip(widths.iter().copied()))).collect()
}

/// Formats the cells of a table, and knows whether one of them was altered.
#[derive(Debug, Default)]
pub(crate) struct Escaper {
    has_altered: bool,
}

impl Escaper {
    /// Returns the text of a cell. A character that a reader would not see, or that would control
    /// the terminal or end the line, is written as an escape.
    pub(crate) fn cell(&mut self, value: &Value) -> String {
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
    pub(crate) fn report(&self) {
        if self.has_altered {
            streams::print_message(
                "the table shows blanks at the ends of a text and invisible characters as escapes \
                 such as \\n or \\u{200b}: --output json prints each text as it is",
            );
        }
    }
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

    const COLUMNS: &[(&str, Fit)] = &[
        ("id", Fit::Whole),
        ("rests_until", Fit::Whole),
        ("holder", Fit::Text),
        ("reason", Fit::Text),
    ];

    /// Returns the lines, and whether something was left out.
    fn fitted(rows: &[[&str; 4]], terminal: usize) -> (Vec<String>, bool) {
        let rows: Vec<Vec<_>> =
            rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
        let mut layout = Layout::new(COLUMNS, &rows[..1], Some(terminal));
        let mut lines = vec![layout.head()];
        lines.extend(rows.iter().map(|row| layout.line(row)));
        (lines.iter().map(|line| line.trim_end().to_owned()).collect(), layout.has_cut)
    }

    #[test]
    fn a_table_fits_the_terminal_and_never_cuts_an_id() {
        let row = ["0123456789", "-", "a holder of a build job", "the key is worn out"];
        let whole = fitted(&[row], 80);
        assert!(whole.0[1].contains("the key is worn out") && !whole.1, "{whole:?}");
        let (lines, has_cut) = fitted(&[row], 57);
        assert_eq!(lines[0], "ID          HOLDER                   REASON");
        assert!(!has_cut, "a column without a value is no loss: {lines:?}");
        let (lines, has_cut) = fitted(&[row], 32);
        assert_eq!(lines, ["ID          HOLDER     REASON", "0123456789  a holder…  the key …"]);
        assert!(has_cut);
        let (lines, has_cut) = fitted(&[row], 20);
        assert_eq!(lines, ["ID          HOLDER", "0123456789  a holde…"]);
        assert!(has_cut);
        let (lines, has_cut) = fitted(&[row], 5);
        assert_eq!(lines, ["ID", "0123456789"]);
        assert!(has_cut);
    }

    /// The first page decides the layout. A later one has a value in a column that the first left
    /// out, or a longer text.
    #[test]
    fn what_a_later_page_loses_is_reported_too() {
        let first = ["0123456789", "-", "x", "-"];
        assert!(!fitted(&[first, first], 24).1);
        assert!(fitted(&[first, ["0123456789", "soon", "x", "-"]], 24).1);
        let (lines, has_cut) = fitted(&[first, ["0123456789", "-", "a long holder", "-"]], 24);
        assert_eq!((&*lines[2], has_cut), ("0123456789  a long hold…", true));
    }

    #[test]
    fn a_cut_text_counts_the_columns_of_the_terminal() {
        for (text, width, short) in [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("漢字漢字", 5, "漢字…"),
            ("漢字漢字", 4, "漢…"),
            ("a", 0, ""),
            ("ab", 1, "…"),
        ] {
            assert_eq!(cut(text, width), short, "{text} {width}");
        }
        assert_eq!(padded("漢", 4), "漢  ");
    }
}

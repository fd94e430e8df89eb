//! Output of results: JSON with the names of the wire format, aligned tables, or one field alone.
//!
//! Knows nothing of what it prints but its JSON form. A table never alters a text silently. A reader
//! that ends early, such as `head`, is not a failure of a command that only reads.

mod rows;
mod table;

pub(crate) use rows::RowPrinter;
pub(crate) use table::Fit;
#[cfg(feature = "cli")]
pub(crate) use table::{cell_of, cut, padded, terminal_width};

use crate::failure::{Failure, exit};
use crate::streams;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::io::{self, ErrorKind};
use table::Escaper;

/// An output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// JSON on one line, with the field names of the HTTP API
    Json,
    /// Aligned columns
    Table,
}

/// How a command prints its result, and what it prints besides.
#[derive(Clone, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Output format
    #[arg(short = 'o', long = "output", value_name = "FORMAT")]
    #[arg(value_enum, default_value_t = OutputFormat::Table)]
    pub(crate) format: OutputFormat,
    /// Print the value of this field and nothing else, such as id or lease.holder; for scripts
    ///
    /// A list prints one value per line. A field without a value prints an empty line.
    #[arg(long, value_name = "NAME", conflicts_with = "format")]
    pub(crate) field: Option<String>,
    /// Print no progress and no counts on stderr, only warnings and errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Why a result was not printed.
#[derive(Debug)]
pub(crate) enum PrintError {
    /// Stdout did not take it.
    Io(io::Error),
    /// The result does not have the field that the command line names.
    NoField(String),
}

impl OutputArgs {
    /// Returns whether people read the output: a table, and messages about it on stderr.
    pub(crate) fn is_for_people(&self) -> bool {
        self.format == OutputFormat::Table && self.field.is_none() && !self.quiet
    }

    /// Returns whether the result is a table.
    pub(crate) fn is_table(&self) -> bool {
        self.format == OutputFormat::Table && self.field.is_none()
    }

    /// Refuses a field that the result of a change does not have, before the change is made.
    pub(crate) fn require_field(&self, names: &[&str]) -> Result<(), Failure> {
        match &self.field {
            Some(field) if !names.contains(&&**field) => {
                Err(PrintError::no_field(field, names.iter().copied()).into())
            }
            _ => Ok(()),
        }
    }

    /// Prints one object of a command that only reads: in a table, one line per field.
    pub(crate) fn print_fields(&self, whole: &impl Serialize) -> Result<u8, Failure> {
        printed(self.try_print_fields(whole))
    }

    /// Prints one object: in a table, one line per field. The caller decides what an error means.
    pub(crate) fn try_print_fields(&self, whole: &impl Serialize) -> Result<(), PrintError> {
        let value = value(whole);
        let text = match (&self.field, self.format, &value) {
            (Some(field), _, _) => field_line(&value, field)?,
            (None, OutputFormat::Table, Value::Object(fields)) => {
                let mut escaper = Escaper::default();
                let row = |(name, value): (&String, _)| vec![name.clone(), escaper.cell(value)];
                let text = table::table(fields.iter().map(row).collect());
                escaper.report();
                text
            }
            _ => format!("{value}\n"),
        };
        Ok(streams::print(&text)?)
    }
}

impl PrintError {
    /// Returns whether the reader of stdout has ended.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::BrokenPipe)
    }

    fn no_field<'a>(field: &str, names: impl Iterator<Item = &'a str>) -> Self {
        let names: Vec<_> = names.collect();
        Self::NoField(format!("no field {field:?}: --field takes {}", names.join(", ")))
    }
}

impl fmt::Display for PrintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "cannot write to stdout: {error}"),
            Self::NoField(message) => f.write_str(message),
        }
    }
}

impl From<io::Error> for PrintError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<PrintError> for Failure {
    fn from(error: PrintError) -> Self {
        let code = match error {
            PrintError::Io(_) => exit::IO,
            PrintError::NoField(_) => exit::USAGE,
        };
        Self::new(code, error.to_string())
    }
}

/// Returns the exit code of a command that only reads and has printed its result. With a broken
/// pipe the reader has what it wanted.
pub(crate) fn printed(result: Result<(), PrintError>) -> Result<u8, Failure> {
    match result {
        Err(error) if !error.is_broken_pipe() => Err(error.into()),
        _ => Ok(0),
    }
}

/// Returns a member of a row, or of a nested object: `lease.holder`.
fn member<'a>(row: &'a Value, column: &str) -> &'a Value {
    column.split('.').fold(row, |value, name| &value[name])
}

/// Returns the line of one field: a text as it is, an empty line for null, and JSON for the rest. A
/// member of an object that is null is null; a member that no such object has is an error.
fn field_line(row: &Value, field: &str) -> Result<String, PrintError> {
    let mut found = row;
    for name in field.split('.') {
        if found.is_null() {
            break;
        }
        let Some(members) = found.as_object() else {
            let message = format!("no field {field:?}: {name:?} would be below a plain value");
            return Err(PrintError::NoField(message));
        };
        found = members.get(name).ok_or_else(|| {
            let own = row.as_object().into_iter().flatten();
            PrintError::no_field(field, own.map(|(name, _)| &**name))
        })?;
    }
    let text = if found.is_null() { String::new() } else { plain(found) };
    Ok(text + "\n")
}

/// Returns a text as it is, and any other value as JSON.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("invariant: wire types always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_is_printed_as_it_is_and_an_unknown_one_names_those_that_exist() {
        let row = json!({ "id": "a\tb", "n": 3, "lease": { "holder": "x" }, "none": null });
        for (field, line) in [
            ("id", "a\tb\n"),
            ("n", "3\n"),
            ("lease.holder", "x\n"),
            ("none", "\n"),
            ("none.holder", "\n"),
            ("lease", "{\"holder\":\"x\"}\n"),
        ] {
            assert_eq!(field_line(&row, field).expect(field), line);
        }
        for field in ["", "ids", "lease.x", "n.x", "."] {
            let error = field_line(&row, field).expect_err(field).to_string();
            assert!(error.contains(&format!("no field {field:?}")), "{error}");
        }
        let error = field_line(&row, "ids").expect_err("unknown").to_string();
        assert_eq!(error, "no field \"ids\": --field takes id, lease, n, none");
    }
}

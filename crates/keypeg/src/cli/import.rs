//! `keypeg import`: imports the values of a file, one per line, in batches.
//!
//! The whole file is read and checked before the first batch, so an invalid file changes nothing. A
//! batch is imported completely or not at all. If a later batch fails, the earlier ones stay, and
//! the error names the lines. No message contains a value.

mod lines;

use super::new_keys::{self, COLUMNS, COLUMNS_WITH_KEYS, NewKeyRow};
use super::progress::{Progress, Unit};
use super::purge_warning::PurgeWarning;
use crate::failure::{Failure, exit};
use crate::output::{OutputArgs, PrintError, RowPrinter};
use crate::{streams, text_file};
use keypeg_client::{Client, Code, Error, GenerateRequest, Outcome};
use keypeg_fields::VALUES_BODY_MAX;
use lines::{Line, LineOptions};
use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind, Read};

/// The largest number of values in a batch, which is the server's limit.
const VALUES_MAX: usize = keypeg_fields::GENERATE_MAX as usize;
/// The largest size of a batch's values as JSON, in bytes: the server's limit on a body,
/// less the JSON around the values.
const BYTES_MAX: usize = VALUES_BODY_MAX - 64;
/// The largest file, in bytes.
const FILE_MAX: u64 = 1 << 30;

/// The file to import, and how.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "one field for each flag")]
pub struct ImportArgs {
    /// Path of the file; - reads stdin
    #[arg(value_name = "FILE")]
    file: String,
    /// Skip values that are in the pool, or were in it once, and import the others
    #[arg(long)]
    skip_existing: bool,
    /// Skip lines that begin with #
    #[arg(long)]
    skip_comments: bool,
    /// Keep blanks at the ends of a line, and import lines that begin with #
    #[arg(long)]
    raw: bool,
    /// Print the values of the imported keys
    #[arg(long)]
    show_keys: bool,
    /// Label of all keys of the file
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Import keys that are never purged by time and need no keep-alives
    #[arg(long)]
    no_keepalive: bool,
    /// Also import values whose keys were deleted or purged; needs the scope admin
    #[arg(long)]
    allow_retired: bool,
}

impl ImportArgs {
    /// Returns the request that imports a batch.
    fn request(&self, batch: &[&Line]) -> GenerateRequest {
        GenerateRequest {
            values: Some(batch.iter().map(|line| line.value.clone()).collect()),
            label: self.label.clone(),
            keepalive: self.no_keepalive.then_some(false),
            allow_retired: self.allow_retired.then_some(true),
            ..GenerateRequest::default()
        }
    }
}

/// An import in progress.
struct Import<'a> {
    client: &'a Client,
    pool: &'a str,
    /// The name of the file in messages.
    file: &'a str,
    args: &'a ImportArgs,
    rows: RowPrinter,
    /// The first error of stdout; the import goes on without output.
    unprinted: Option<PrintError>,
    progress: Progress,
    imported: u64,
    /// The lines of values that are in the pool, or were in it once.
    skipped: u64,
    warning: PurgeWarning,
}

/// Imports the values of a file and prints the created keys.
pub(super) async fn run(
    client: &Client,
    pool: &str,
    output: &OutputArgs,
    args: &ImportArgs,
) -> Result<u8, Failure> {
    if new_keys::shows_values(args.show_keys, output)? {
        new_keys::require_stdout()?;
    }
    let file = if args.file == "-" { "stdin" } else { &args.file };
    let options = LineOptions { raw: args.raw, skip_comments: args.skip_comments };
    let lines = lines::parse(file, &read(&args.file, file)?, options)?;
    let columns = if args.show_keys { COLUMNS_WITH_KEYS } else { COLUMNS };
    let rows = RowPrinter::new(output, Some("keys"), columns);
    let total = Some(lines.len() as u64);
    let mut import = Import {
        client,
        pool,
        file,
        args,
        rows,
        unprinted: None,
        progress: Progress::new(output.quiet, "importing", Unit::Keys, total),
        imported: 0,
        skipped: 0,
        warning: PurgeWarning::default(),
    };
    let imported = import.all(&lines).await;
    import.finish(output, imported)
}

impl Import<'_> {
    /// Imports the lines in batches.
    async fn all(&mut self, lines: &[Line]) -> Result<(), Failure> {
        let mut rest: VecDeque<&Line> = lines.iter().collect();
        while !rest.is_empty() {
            let len = batch_len(&rest);
            let batch: Vec<_> = rest.iter().copied().take(len).collect();
            match self.client.generate(self.pool, &self.args.request(&batch)).await {
                Ok(new) => {
                    self.imported += batch.len() as u64;
                    self.warning.note(&new.keys);
                    self.progress.clear();
                    let rows = new.keys.iter().map(|key| NewKeyRow::of(key, self.args.show_keys));
                    let printed = self.rows.print(&rows.collect::<Vec<_>>());
                    self.unprinted = self.unprinted.take().or(printed.err());
                    rest.drain(..len);
                    self.progress.set(self.imported + self.skipped);
                }
                Err(error) => {
                    let known = known_indices(&error, len);
                    if known.is_empty() || !self.args.skip_existing {
                        return Err(self.batch_failure(error, &batch));
                    }
                    self.skipped += known.len() as u64;
                    let mut indices = 0..;
                    rest.retain(|_| indices.next().is_none_or(|index| !known.contains(&index)));
                }
            }
        }
        Ok(())
    }

    /// Ends the output, and reports what was skipped or not printed. The output is complete for the
    /// batches that were imported, also if a later one failed.
    fn finish(mut self, output: &OutputArgs, result: Result<(), Failure>) -> Result<u8, Failure> {
        self.progress.clear();
        let Self { file, imported, skipped, .. } = self;
        if let Some(text) = self.warning.text(self.pool) {
            streams::print_message(&text);
        }
        let unprinted = self.unprinted.or_else(|| self.rows.finish().err());
        let keys = new_keys::count(imported);
        if skipped > 0 && !output.quiet {
            let values =
                if skipped == 1 { "1 value was".into() } else { format!("{skipped} values were") };
            streams::print_message(&format!(
                "{file}: {keys} imported; {values} skipped: in the pool {:?}, or in it once",
                self.pool
            ));
        } else if output.is_for_people() && result.is_ok() {
            new_keys::print_count(&format!("{keys} imported"), self.args.show_keys);
        }
        result?;
        match unprinted {
            None => Ok(0),
            Some(error) if error.is_broken_pipe() && !self.args.show_keys => Ok(0),
            Some(error) => Err(Failure::new(
                exit::IO,
                format!(
                    "{file} was imported completely, {keys}, but the output is not complete: {error}; \
                     \"keypeg list --pool {}\" prints the ids",
                    self.pool
                ),
            )),
        }
    }

    /// Returns the failure of a batch.
    fn batch_failure(&self, error: Error, batch: &[&Line]) -> Failure {
        let (first, last) = (batch[0].number, batch[batch.len() - 1].number);
        let problem = error.problem();
        let index = problem.and_then(|problem| usize::try_from(problem.extensions.index?).ok());
        let line = index.and_then(|index| batch.get(index));
        let is_refused =
            problem.is_some_and(|problem| problem.outcome == Some(Outcome::NotApplied));
        let applied = if is_refused || matches!(error, Error::InvalidInput(_)) {
            "were not imported"
        } else {
            "may or may not have been imported"
        };
        let earlier = match self.imported {
            0 => "No line before them was imported.".to_owned(),
            imported => format!("The {imported} values before line {first} were imported."),
        };
        let file = self.file;
        let is_known = problem.is_some_and(|problem| problem.code == Code::KeyExists);
        let cause = Failure::from(error);
        let said = match line {
            Some(line) if is_known => format!(
                "{file}:{}: the value is in the pool, or was in it once: remove the line, or add \
                 --skip-existing, or --allow-retired if its key was deleted or purged (key_exists).",
                line.number
            ),
            // The server names the value by its index in a list that the user does not see.
            Some(line) => {
                let said = cause.to_string();
                let index = index.unwrap_or_default();
                let said = said.replace(&format!("values[{index}]"), "the value");
                format!("{file}:{}: {said}", line.number)
            }
            None => format!("{file}: {cause}"),
        };
        let message = format!(
            "{said} Lines {first} to {last} {applied}; no line after them was imported. {earlier}"
        );
        Failure::new(cause.exit, message)
    }
}

/// Returns the indices of the values of a batch that the server refused because the pool has or had
/// them; none, if it refused the batch for another reason.
fn known_indices(error: &Error, len: usize) -> HashSet<usize> {
    let problem = error.problem().filter(|problem| problem.code == Code::KeyExists);
    let extensions = problem.map(|problem| &problem.extensions);
    let indices = extensions.and_then(|it| it.indices.as_deref()).unwrap_or_default();
    let first = extensions.and_then(|it| it.index);
    let all = indices.iter().copied().chain(first);
    all.filter_map(|index| usize::try_from(index).ok()).filter(|index| *index < len).collect()
}

/// Reads the file, or stdin for `-`.
fn read(path: &str, file: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| {
        let is_denied = error.kind() == ErrorKind::PermissionDenied;
        let code = if is_denied { exit::PERMISSION } else { exit::NO_INPUT };
        Failure::new(code, format!("cannot read {file}: {error}; check the path of the file"))
    };
    let mut bytes = Vec::new();
    let mut source: Box<dyn Read> = match path {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(std::fs::File::open(path).map_err(failed)?),
    };
    source.by_ref().take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let message =
            format!("{file} is larger than {FILE_MAX} bytes: split it, and import the parts");
        return Err(Failure::new(exit::DATA, message));
    }
    text_file::decode(bytes)
        .map_err(|error| Failure::new(exit::DATA, format!("{file}: {error}; nothing was imported")))
}

/// Returns how many of the lines fit into one batch, at least 1.
fn batch_len(lines: &VecDeque<&Line>) -> usize {
    let mut bytes = 0;
    let fits = |line: &&Line| {
        let json = serde_json::to_string(&line.value.0).expect("invariant: a string serialises");
        bytes += json.len() + 1;
        bytes <= BYTES_MAX
    };
    lines.iter().take(VALUES_MAX).map(fits).take_while(|fits| *fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_client::Secret;

    #[test]
    fn a_batch_is_within_the_limits_of_the_server() {
        let len = |count: usize, value: &str| {
            let line = Line { number: 1, value: Secret(value.into()) };
            batch_len(&std::iter::repeat_n(&line, count).collect())
        };
        assert_eq!(len(3, "a"), 3);
        assert_eq!(len(10_001, "a"), 10_000);
        // Two quotes and a comma for each value.
        assert_eq!(len(10_000, &"a".repeat(4_096)), BYTES_MAX / 4_099);
        // An escaped quote takes two bytes.
        assert_eq!(len(10_000, &"\"".repeat(4_096)), BYTES_MAX / (2 * 4_096 + 3));
    }

    /// A server that names an index behind the batch must not make the command repeat the batch.
    #[test]
    fn known_values_are_those_of_the_batch_in_either_form_of_the_refusal() {
        for (code, index, indices, known) in [
            ("key_exists", None, Some(vec![0, 2]), vec![0, 2]),
            ("key_exists", Some(1), None, vec![1]),
            ("key_exists", Some(0), Some(vec![0, 2, 3, u64::MAX]), vec![0, 2]),
            ("key_exists", None, None, vec![]),
            ("invalid", Some(1), None, vec![]),
        ] {
            let problem = serde_json::from_value(serde_json::json!({
                "type": "", "title": "", "status": 409, "code": code, "detail": "d",
                "request_id": "r", "index": index, "indices": indices,
            }));
            let error = Error::Refused(Box::new(problem.unwrap()));
            let known: HashSet<_> = known.into_iter().collect();
            assert_eq!(known_indices(&error, 3), known, "{error:?}");
        }
    }
}

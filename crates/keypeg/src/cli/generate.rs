//! `keypeg generate`: generates keys, many of them in several calls.
//!
//! The server generates the keys of one call completely or not at all. If a later call fails, the
//! keys of the earlier ones stay and are printed, and the error states their number.

use super::new_keys::{self, COLUMNS, COLUMNS_WITH_KEYS, NewKeyRow, count};
use super::progress::{Progress, Unit};
use super::server::ServerArgs;
use crate::failure::{Failure, exit};
use crate::number::number;
use crate::output::{PrintError, RowPrinter};
use clap::Args;
use keypeg_client::{Client, Error, GenerateRequest, Outcome};
use keypeg_fields::GENERATE_MAX;

/// The largest number of keys for one command.
const COUNT_MAX: u64 = 100_000_000;

/// The options of `keypeg generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// Number of keys; more than 10000 are generated in several calls
    #[arg(short = 'n', long, default_value_t = 1)]
    #[arg(value_parser = number(1..=COUNT_MAX))]
    count: u64,
    /// Print the values of the keys
    #[arg(long)]
    show_keys: bool,
    /// Label of the keys
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// The server, the token, the pool and the output format.
    #[command(flatten)]
    server: ServerArgs,
}

impl GenerateArgs {
    /// Generates the keys and prints them.
    pub(super) async fn run(&self) -> Result<u8, Failure> {
        let Self { count: wanted, show_keys, label, server } = self;
        let output = &server.output;
        if new_keys::shows_values(*show_keys, output)? {
            new_keys::require_stdout()?;
        }
        let columns = if *show_keys { COLUMNS_WITH_KEYS } else { COLUMNS };
        let mut rows = RowPrinter::new(output, Some("keys"), columns);
        let progress = Progress::new(output.quiet, "generating", Unit::Keys, Some(*wanted));
        let label = label.clone();
        let mut made =
            Made { label, wanted: *wanted, generated: 0, shows_values: *show_keys, progress };
        let generated = made.all(&server.client()?, &server.pool, &mut rows).await;
        drop(made.progress);
        let happened = format!("{} generated", count(made.generated));
        let printed = match generated {
            Ok(printed) => printed.and_then(|()| rows.finish()),
            Err(failure) => {
                // What is printed stays valid, also as JSON.
                if made.generated > 0 {
                    let _ = rows.finish();
                }
                return Err(failure);
            }
        };
        match printed {
            Err(error) if *show_keys || !error.is_broken_pipe() => {
                let message = format!(
                    "{happened}{}, but the output is not complete: {error}; \"keypeg list --pool \
                     {}\" prints the ids",
                    if made.generated < *wanted { format!(" of {wanted}") } else { String::new() },
                    server.pool
                );
                Err(Failure::new(exit::IO, message))
            }
            _ => {
                if output.is_for_people() {
                    new_keys::print_count(&happened, *show_keys);
                }
                Ok(0)
            }
        }
    }
}

/// Keys that are being generated.
struct Made {
    label: Option<String>,
    wanted: u64,
    generated: u64,
    shows_values: bool,
    progress: Progress,
}

impl Made {
    /// Generates all keys, and prints those of each call. Ends early if values cannot be printed:
    /// they could only be revealed one by one.
    async fn all(
        &mut self,
        client: &Client,
        pool: &str,
        rows: &mut RowPrinter,
    ) -> Result<Result<(), PrintError>, Failure> {
        let mut printed = Ok(());
        while self.generated < self.wanted {
            let part = (self.wanted - self.generated).min(GENERATE_MAX.into());
            let request = GenerateRequest {
                count: u32::try_from(part).ok(),
                label: self.label.clone(),
                ..GenerateRequest::default()
            };
            let new = client.generate(pool, &request).await;
            let new = new.map_err(|error| self.failure(error, part))?;
            self.generated += part;
            if printed.is_ok() {
                self.progress.clear();
                let keys = new.keys.iter().map(|key| NewKeyRow::of(key, self.shows_values));
                printed = rows.print(&keys.collect::<Vec<_>>());
            }
            if printed.as_ref().is_err_and(|error| self.shows_values || !error.is_broken_pipe()) {
                break;
            }
            self.progress.add(part);
        }
        Ok(printed)
    }

    /// Returns the failure of a call that generates `part` keys.
    fn failure(&mut self, error: Error, part: u64) -> Failure {
        self.progress.clear();
        let outcome = error.problem().and_then(|problem| problem.outcome);
        let is_known =
            outcome == Some(Outcome::NotApplied) || matches!(error, Error::InvalidInput(_));
        let cause = Failure::from(error);
        if self.wanted == part {
            return cause;
        }
        let next = if is_known {
            String::new()
        } else {
            format!("; the next {part} may or may not have been generated")
        };
        let message = format!(
            "{cause}; {} of {} keys were generated before{next}",
            self.generated, self.wanted
        );
        Failure::new(cause.exit, message)
    }
}

//! The program on a store: runs the command of the command line, and reports why it ended.
//!
//! Does not know which store `serve` opens. Exit codes are those of sysexits.h.

use crate::command_line::{Cli, Command};
use crate::config::Config;
use crate::failure::{Failure, exit};
use clap::error::ErrorKind;
use keypeg_store::OpenedStore;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// Runs the program. `open` opens the store of `serve`; its arguments are the configuration and the
/// number of lanes.
pub fn run_program(open: impl FnOnce(&Config, usize) -> Result<OpenedStore, Failure>) -> ExitCode {
    crate::install_panic_hook();
    match run(open) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // With stderr closed there is no other place to report to.
            let _ = writeln!(std::io::stderr(), "keypeg: {failure}");
            ExitCode::from(failure.exit)
        }
    }
}

fn run(open: impl FnOnce(&Config, usize) -> Result<OpenedStore, Failure>) -> Result<u8, Failure> {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let is_requested =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            return Ok(if is_requested { 0 } else { exit::USAGE });
        }
    };
    match cli.command {
        Command::Serve(options) => serve(&Config::new(*options)?, open).map(|()| 0),
        Command::Check(args) => check(&args.data).map(|()| 0),
        Command::Token(command) => command.run().map(|()| 0),
        #[cfg(feature = "cli")]
        Command::Client(command) => command.run(),
    }
}

fn check(data: &Path) -> Result<(), Failure> {
    let report = crate::check(data)?;
    // A closed stdout is not a failure: the exit code carries the result too.
    let _ = writeln!(std::io::stdout(), "{report}");
    Ok(())
}

fn serve(
    config: &Config,
    open: impl FnOnce(&Config, usize) -> Result<OpenedStore, Failure>,
) -> Result<(), Failure> {
    crate::log_to_stderr()?;
    let stop = crate::stop_signal()?;
    let listener = crate::listen(config)?;
    crate::serve(
        config,
        |lanes| open(config, lanes),
        listener,
        stop,
        |ready| {
            let mut out = std::io::stdout().lock();
            // The server runs even when stdout is closed.
            let _ = writeln!(out, "{ready}").and_then(|()| out.flush());
        },
    )
}

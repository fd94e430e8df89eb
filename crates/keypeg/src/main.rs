//! The binary: parses the command line, runs the command, and reports why it ended.
//!
//! Everything else is in the library. Exit codes are those of sysexits.h.

use clap::error::ErrorKind;
use keypeg::{Cli, Command, Config, Failure, exit};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    keypeg::install_panic_hook();
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // With stderr closed there is no other place to report to.
            let _ = writeln!(std::io::stderr(), "keypeg: {failure}");
            ExitCode::from(failure.exit)
        }
    }
}

fn run() -> Result<u8, Failure> {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let is_requested =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            std::process::exit(if is_requested { 0 } else { exit::USAGE.into() });
        }
    };
    match cli.command {
        Command::Serve(options) => serve(&Config::new(*options)?).map(|()| 0),
        Command::Check(args) => check(&args.data).map(|()| 0),
        Command::Token(command) => command.run().map(|()| 0),
        #[cfg(feature = "cli")]
        Command::Client(command) => command.run(),
    }
}

fn check(data: &Path) -> Result<(), Failure> {
    let report = keypeg::check(data)?;
    // A closed stdout is not a failure: the exit code carries the result too.
    let _ = writeln!(std::io::stdout(), "{report}");
    Ok(())
}

fn serve(config: &Config) -> Result<(), Failure> {
    keypeg::log_to_stderr()?;
    for warning in keypeg::unknown_variables() {
        tracing::warn!("{warning}");
    }
    let stop = keypeg::stop_signal()?;
    let listener = keypeg::listen(config)?;
    keypeg::serve(config, listener, stop, |ready| {
        let mut out = std::io::stdout().lock();
        // The server runs even when stdout is closed.
        let _ = writeln!(out, "{ready}").and_then(|()| out.flush());
    })
}

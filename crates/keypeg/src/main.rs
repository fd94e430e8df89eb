//! The binary: parses the command line, runs the command, and reports why it ended.
//!
//! Everything else is in the library. Exit codes are those of sysexits.h.

use clap::error::ErrorKind;
use keypeg::{Cli, Command, Config, Failure, Options, exit};
use std::io::Write;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    keypeg::install_panic_hook();
    let code = match catch_unwind(run) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            keypeg::report(&format!("keypeg: {failure}"));
            failure.exit
        }
        // The hook has reported it.
        Err(_) => exit::PANIC,
    };
    keypeg::flush_streams();
    ExitCode::from(code)
}

fn run() -> Result<u8, Failure> {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let is_requested =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            if std::env::args_os().nth(1).is_some_and(|command| command == "serve") && !is_requested
            {
                keypeg::start_streams();
                keypeg::report_usage(&error);
                return Ok(exit::USAGE);
            }
            let _ = error.print();
            std::process::exit(if is_requested { 0 } else { exit::USAGE.into() });
        }
    };
    match cli.command {
        Command::Serve(options) => serve(*options).map(|()| 0),
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

fn serve(options: Options) -> Result<(), Failure> {
    // First, so that no message of a start can block it.
    keypeg::start_streams();
    let config = Config::new(options)?;
    keypeg::log_to_stderr()?;
    keypeg::raise_descriptor_limit()?;
    keypeg::warn_of_unknown_variables();
    let stop = keypeg::stop_signal()?;
    let listener = keypeg::listen(&config)?;
    keypeg::serve(&config, listener, stop, |ready| keypeg::print_line(&ready.to_string()))
}

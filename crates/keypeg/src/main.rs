//! The binary: parses the command line, runs the command, says why it ended.
//!
//! Everything else is the library's. Exit codes are those of sysexits.h.

use clap::error::ErrorKind;
use keypeg::{Cli, Command, Config, Failure, exit};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    keypeg::tell_panics();
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nobody left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr(), "keypeg: {failure}");
            ExitCode::from(failure.exit)
        }
    }
}

fn run() -> Result<u8, Failure> {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let _ = error.print();
            std::process::exit(if asked { 0 } else { exit::USAGE.into() });
        }
    };
    match cli.command {
        Command::Serve(args) => serve(&Config::new(*args)?).map(|()| 0),
        Command::Check(args) => check(&args.data).map(|()| 0),
        Command::Token(mint) => mint.run().map(|()| 0),
        #[cfg(feature = "cli")]
        Command::Ask(ask) => ask.run(),
    }
}

fn check(data: &Path) -> Result<(), Failure> {
    let found = keypeg::check(data)?;
    // A closed stdout is no reason to fail: the exit code tells too.
    let _ = writeln!(std::io::stdout(), "{found}");
    Ok(())
}

fn serve(config: &Config) -> Result<(), Failure> {
    keypeg::log_to_stderr()?;
    let stop = keypeg::stop_signal()?;
    let listener = keypeg::listen(config)?;
    keypeg::serve(config, listener, stop, |ready| {
        let mut out = std::io::stdout().lock();
        // A closed stdout is no reason not to serve.
        let _ = writeln!(out, "{ready}").and_then(|()| out.flush());
    })
}

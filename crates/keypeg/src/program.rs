//! The program on a store: runs the command of the command line, and reports why it ended.
//!
//! Does not know which store `serve` opens. Exit codes are those of sysexits.h.

use crate::command_line::{CheckArgs, Cli, Command};
use crate::config::Config;
use crate::failure::{Failure, exit};
use crate::log::{self, log_to_stderr, print_line, report_usage, start_streams};
use crate::options::Options;
use crate::supervisor::{self, Message};
use crate::{memory, signals, streams, variables};
use clap::CommandFactory;
use clap::error::ErrorKind;
use keypeg_store::OpenedStore;
use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;

/// Opens the store of `serve`, for a configuration and a number of lanes.
type OpenStore = fn(&Config, usize) -> Result<OpenedStore, Failure>;

/// Runs the program. `open` opens the store of `serve`; its arguments are the configuration and the
/// number of lanes.
pub fn run_program(open: OpenStore) -> ExitCode {
    crate::install_panic_hook();
    // First: the environment can contain an access token. A server reports a failure later.
    let _ = memory::hide_process();
    let code = match catch_unwind(|| run(open)) {
        Ok(Ok(code)) => code,
        Ok(Err(failure)) => {
            streams::print_message(&failure.to_string());
            failure.exit
        }
        // The hook has reported it.
        Err(_) => exit::PANIC,
    };
    supervisor::flush();
    crate::flush_streams();
    ExitCode::from(code)
}

fn run(open: OpenStore) -> Result<u8, Failure> {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => {
            let is_requested =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            if std::env::args_os().nth(1).is_some_and(|command| command == "serve") && !is_requested
            {
                start_streams();
                report_usage(&error);
                return Ok(exit::USAGE);
            }
            let _ = error.print();
            return Ok(if is_requested { 0 } else { exit::USAGE });
        }
    };
    // A server catches it with its other signals, after its streams have started.
    if !matches!(cli.command, Command::Serve(_)) {
        signals::catch_file_size_limit();
    }
    match cli.command {
        Command::Serve(options) => serve(*options, open).map(|()| 0),
        Command::Check(args) => check(&args).map(|()| 0),
        Command::Restore(args) => {
            print_result(&args.run()?);
            Ok(0)
        }
        Command::Token(command) => command.run().map(|()| 0),
        Command::Seal(command) => command.run().map(|()| 0),
        Command::Completions(args) => args.print(&Cli::command()).map(|()| 0),
        Command::Man(args) => args.write(Cli::command()).map(|()| 0),
        #[cfg(feature = "cli")]
        Command::Client(command) => command.run(),
    }
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let report = match &args.backup {
        Some(backup) => crate::check_backup(backup, &args.how)?,
        None => crate::check(&args.data, args.how.seal_key.as_deref())?.to_string(),
    };
    print_result(&report);
    Ok(())
}

/// Prints a result whose success the exit code carries too: a closed stdout is not a failure.
fn print_result(result: &str) {
    let _ = writeln!(std::io::stdout(), "{result}");
}

fn serve(options: Options, open: OpenStore) -> Result<(), Failure> {
    // First, so that no message of a start can block it.
    start_streams();
    // An error of the configuration has the format too, unless only the file names it.
    log::set_format(options.log_format.unwrap_or_default());
    let mut config = Config::new(options)?;
    log_to_stderr(config.log_format)?;
    // Before the store opens: it reads keys. For the whole process, which can run other servers.
    memory::keep_private();
    // Before the first runtime, which needs descriptors.
    crate::raise_descriptor_limit(&config)?;
    variables::warn_of_unknown(&Cli::command());
    // Before the engine's threads, and before the signals, which send messages.
    supervisor::start()?;
    let stop = crate::stop_signal()?;
    let listener = crate::listen(&config)?;
    let opening = match &mut config.cluster {
        Some(cluster) => {
            let addr = listener.local_addr().map_err(|error| {
                Failure::new(exit::OS, format!("cannot read the listen address: {error}"))
            })?;
            cluster.set_port(addr.port())?;
            "opening the store"
        }
        None => "recovering the data directory",
    };
    supervisor::notify(Message::Status(opening.into()));
    crate::serve(
        &config,
        |lanes| open(&config, lanes),
        listener,
        stop,
        |ready| {
            let line = ready.to_string();
            print_line(&line);
            supervisor::notify(Message::Ready(line));
        },
    )
}

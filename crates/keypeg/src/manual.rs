//! Texts for a shell and for `man` that are generated from the definitions of the commands:
//! completions and man pages.
//!
//! Knows no command by its name. The output depends on the program alone, so two runs are equal.

use crate::build_info;
use crate::failure::{Failure, exit};
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

/// The options of `keypeg completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to print completions for
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl CompletionsArgs {
    /// Prints the completions of `program` on stdout.
    pub(crate) fn print(&self, program: &Command) -> Result<(), Failure> {
        let mut text = Vec::new();
        // clap_complete proposes hidden commands too.
        let is_shown = |command: &&Command| !command.is_hide_set();
        let mut program = Command::new(build_info::NAME)
            .version(build_info::short())
            .args(program.get_arguments().cloned())
            .subcommands(program.get_subcommands().filter(is_shown).cloned());
        clap_complete::generate(self.shell, &mut program, build_info::NAME, &mut text);
        match io::stdout().lock().write_all(&text) {
            // As after `| head`: the reader has what it wants.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::new(exit::IO, format!("cannot write to stdout: {error}"))),
            Ok(()) => Ok(()),
        }
    }
}

/// The options of `keypeg man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory that gets the man pages, such as ~/.local/share/man/man1; created if missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    /// Writes a page for `program` and for each of its commands that the help shows.
    pub(crate) fn write(&self, program: Command) -> Result<(), Failure> {
        let dir = &self.out;
        std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(program, dir)).map_err(
            |error| {
                let message = format!(
                    "cannot write the man pages to {}: {error}; check --out",
                    dir.display()
                );
                Failure::new(exit::CANNOT_CREATE, message)
            },
        )
    }
}

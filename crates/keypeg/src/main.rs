//! The binary: the program on the embedded engine. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    keypeg::run_program(keypeg::open_store)
}

//! The program with guards of a shared log switched off: `bench/cluster --without` shows which faults
//! each guard is needed for.
//!
//! The variable `SABOTAGE` has the names of the defects, separated by commas. Without it this is the
//! program itself. No package contains it.

use keypeg_core::sabotage::{Sabotage, configure_process};
use std::process::ExitCode;

/// The exit code for a wrong command line, of sysexits.h.
const USAGE: u8 = 64;

#[expect(clippy::print_stderr, reason = "the streams of the program have not started")]
fn main() -> ExitCode {
    let names = std::env::var("SABOTAGE").unwrap_or_default();
    let names: Vec<_> = names.split(',').filter(|name| !name.is_empty()).collect();
    let named = |name: &&str| {
        Sabotage::OF_SHARDS.into_iter().find(|defect| format!("{defect:?}") == **name)
    };
    if let Some(unknown) = names.iter().find(|name| named(name).is_none()) {
        eprintln!("SABOTAGE: no defect {unknown:?}: use {:?}", Sabotage::OF_SHARDS);
        return ExitCode::from(USAGE);
    }
    configure_process(names.iter().filter_map(named).collect());
    keypeg::run_program(keypeg::open_store)
}

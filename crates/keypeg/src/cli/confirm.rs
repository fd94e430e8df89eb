//! Asks before a change that cannot be undone.
//!
//! A script cannot answer, so it must give `--yes`. Knows nothing of the change.

use crate::failure::{Failure, exit};
use crate::log;
use std::io::{self, IsTerminal};

/// Returns if the user agrees, by `--yes` or at the terminal; else an error that nothing was changed.
/// `change` completes the sentence "this deletes …".
pub(super) fn confirm(change: &str, has_yes: bool) -> Result<(), Failure> {
    if has_yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let message = format!("this deletes {change}: add --yes; nothing was changed");
        return Err(Failure::new(exit::USAGE, message));
    }
    log::report_text(format!("keypeg: this deletes {change}. Continue? [y/N] ").into_bytes());
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(exit::USAGE, "not confirmed; nothing was changed"))
}

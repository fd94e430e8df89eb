//! Whether another user could replace a directory of the server as a whole.
//!
//! It does not know what is in the directory.

use crate::failure::{Failure, exit};
use crate::permissions::{Trusted, Verdict, examine_way};
use std::path::Path;

/// Refuses a data directory that another user could replace as a whole. The engine judges what is
/// inside, whose owner it trusts, and reports a directory that cannot be read.
pub(super) fn refuse_exposed(data: &Path) -> Result<(), Failure> {
    let data_path = data.display();
    match examine_way(data, "directory", Trusted::and_owner_of(data)) {
        Ok(Verdict::Exposed(reason)) => {
            Err(Failure::new(exit::CONFIG, format!("data directory {data_path}: {reason}")))
        }
        Ok(Verdict::Doubtful(warning)) => {
            tracing::warn!("data directory {data_path}: {warning}");
            Ok(())
        }
        Ok(Verdict::Safe) | Err(_) => Ok(()),
    }
}

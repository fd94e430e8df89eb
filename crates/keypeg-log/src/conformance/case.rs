//! What a case of the suite is: one sentence of the contract, and how it fails.

use super::steps::Steps;
use crate::log::{Call, Guarantee};

/// The result of a case.
pub(super) type Outcome = Result<(), String>;

/// One sentence of the contract.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// The guarantee for which it holds; `None` for every log.
    pub(super) only: Option<Guarantee>,
    pub(super) run: for<'a> fn(&'a mut Steps<'a>) -> Call<'a, Outcome>,
}

/// Returns early with a text if a condition does not hold.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
pub(super) use ensure;

//! What the tests of several crates share: random numbers from a seed, temporary directories,
//! mutants of bytes, numbers from environment variables, the language of scripts, and the
//! conformance suite of every store.
//!
//! Only a dev-dependency: no crate of the server depends on it. Knows no store, disk or HTTP; what
//! the tests of one crate share is in that crate's `tests/support`.

pub mod conformance;
mod mutate;
mod random;
pub mod script;
mod temp_dir;

pub use mutate::mutate;
pub use random::{ScaledRandom, SeededRandom};
pub use temp_dir::TempDir;

/// Returns the number in an environment variable, if it is set.
///
/// # Panics
/// If the variable is set to anything but a number.
pub fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

//! What the tests of several crates share: random numbers from a seed, temporary directories,
//! mutants of bytes, and numbers from environment variables.
//!
//! Only a dev-dependency: no crate of the server depends on it. Knows nothing of pools, disks or
//! HTTP; what the tests of one crate share is in that crate's `tests/support`.

mod mutate;
mod random;
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

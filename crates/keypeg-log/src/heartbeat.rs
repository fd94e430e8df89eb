//! Heartbeats: which servers exist and where they are reached. Advisory: they never decide which
//! server may append.

use crate::error::LogError;
use std::fmt;

/// The greatest length of a server's name in bytes.
pub const NAME_MAX: usize = 64;
/// The greatest length of a heartbeat's text in bytes.
pub const ADDRESS_MAX: usize = 512;

/// The name of a server, unique in its installation: 1 to 64 of `a-z`, `A-Z`, `0-9`, `.`, `_`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(String);

impl ServerName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self, LogError> {
        let is_allowed = |sign: char| sign.is_ascii_alphanumeric() || "._-".contains(sign);
        let is_valid = (1..=NAME_MAX).contains(&name.len())
            && name.chars().all(is_allowed)
            && !name.starts_with('.');
        if is_valid {
            return Ok(Self(name.to_owned()));
        }
        Err(LogError::Unsuitable(format!(
            "the server name {name:?} is not valid: use 1 to {NAME_MAX} of a-z, A-Z, 0-9, '.', \
             '_', '-', not beginning with '.'"
        )))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a server stores about itself, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its name.
    pub server: ServerName,
    /// What the other servers must know of it, such as the URL at which they reach it. The log does
    /// not read it.
    pub address: String,
    /// A number that the server increases with each heartbeat.
    pub count: u64,
}

impl Heartbeat {
    /// Checks the length of the address.
    pub fn new(server: ServerName, address: &str, count: u64) -> Result<Self, LogError> {
        let len = address.len();
        if len > ADDRESS_MAX {
            return Err(LogError::TooLarge { what: "the address", len, max: ADDRESS_MAX });
        }
        Ok(Self { server, address: address.to_owned(), count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_place_in_a_store_is_refused() {
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", &"x".repeat(65)] {
            let error = ServerName::new(name).unwrap_err().to_string();
            assert!(error.contains("use 1 to 64"), "{name:?}: {error}");
        }
        for name in ["a", "node-1.example_2", &"x".repeat(64)] {
            assert_eq!(ServerName::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_long_address_is_refused_with_the_limit() {
        let error = Heartbeat::new(ServerName::new("a").unwrap(), &"x".repeat(513), 1);
        assert!(error.unwrap_err().to_string().contains("at most 512"));
    }
}

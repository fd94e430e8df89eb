//! The value of a key, which only its holder and its pool may see.
//!
//! A value is UTF-8 of bounded length, so a pool never checks it again.

pub use keypeg_fields::VALUE_MAX;
use std::fmt;
use zeroize::Zeroize as _;

/// A key's value. It has no `Display`, `Debug` does not show it, and its memory is overwritten when
/// it is dropped.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Returns a value of 1 to [`VALUE_MAX`] bytes of UTF-8; `None` for any other length.
    pub fn new(value: &str) -> Option<Self> {
        (1..=VALUE_MAX).contains(&value.len()).then(|| Self(value.as_bytes().into()))
    }

    /// Copies bytes that a pool stores, which are valid.
    pub(crate) fn from_stored(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Returns the value, for a response that may contain it.
    pub fn reveal(&self) -> &str {
        std::str::from_utf8(&self.0).expect("invariant: values are UTF-8 when they enter")
    }

    /// Returns the value's bytes, for hashing or storing.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

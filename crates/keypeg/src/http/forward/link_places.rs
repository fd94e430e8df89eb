//! Places of connections to other servers: so many file descriptors are for them, and no more, so that
//! forwarded requests take none that the journal needs.
//!
//! All cores share the places. A place is free again when the last descriptor of its connection is
//! closed. Does not know what a connection is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of all connections to other servers.
#[derive(Debug)]
pub(crate) struct LinkPlaces {
    free: AtomicUsize,
    max: usize,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct LinkPlace(Arc<LinkPlaces>);

impl LinkPlaces {
    pub(crate) fn new(max: usize) -> Self {
        Self { free: AtomicUsize::new(max), max }
    }

    /// Takes a place; `None` if all are taken.
    pub(super) fn enter(self: &Arc<Self>) -> Option<LinkPlace> {
        let one_less = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok()?;
        Some(LinkPlace(Arc::clone(self)))
    }

    /// Returns whether a connection without a request may be kept: while half of the places are free,
    /// so that kept connections, which another core cannot use, never take all.
    pub(super) fn can_keep(&self) -> bool {
        self.free.load(Ordering::Relaxed) >= self.max / 2
    }
}

impl Drop for LinkPlace {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_places_are_taken_than_there_are_and_half_of_them_can_be_kept() {
        let places = Arc::new(LinkPlaces::new(4));
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.push(places.enter().unwrap());
            assert!(places.can_keep());
        }
        for _ in 0..2 {
            taken.push(places.enter().unwrap());
            assert!(!places.can_keep());
        }
        assert!(places.enter().is_none());
        taken.pop();
        assert!(places.enter().is_some());
        taken.clear();
        assert!(places.can_keep() && places.free.load(Ordering::Relaxed) == 4);
    }
}

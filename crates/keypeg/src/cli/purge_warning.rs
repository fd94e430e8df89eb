//! The warning of `keypeg import`: the server will purge the imported keys, and nothing can create an
//! account again that exists elsewhere.
//!
//! It reads the deadline from the answers of the server, and does not know the policy of the pool.

use super::new_keys;
use keypeg_client::{NewKey, UnixMs};

/// The imported keys that the server purges unless they are kept alive.
#[derive(Debug, Default)]
pub(super) struct PurgeWarning {
    keys: u64,
    /// The first of their deadlines.
    first: Option<UnixMs>,
}

impl PurgeWarning {
    /// Notes the keys of one answer.
    pub(super) fn note(&mut self, keys: &[NewKey]) {
        let deadlines = keys.iter().filter_map(|key| key.expires_at);
        self.keys += deadlines.clone().count() as u64;
        self.first = self.first.into_iter().chain(deadlines).min_by_key(|at| at.0);
    }

    /// Returns the warning for the imported keys of a pool; `None` when time purges none of them.
    pub(super) fn text(&self, pool: &str) -> Option<String> {
        let (first, keys) = (self.first?, new_keys::count(self.keys));
        Some(format!(
            "warning: the server will purge {keys} of the pool \"{pool}\" at {first} or later unless \
             they are kept alive: run \"keypeg keepalive --all --pool {pool}\" before that, and \
             repeat it. To keep them without that, run \"keypeg pool set {pool} --keepalive-ttl \
             none\", which sets keepalive_ttl_seconds of the pool to null, and run keypeg keepalive \
             once. Import with --no-keepalive next time"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_client::{KeyState, Secret};

    fn key(expires_at: Option<u64>) -> NewKey {
        let (id, key, state) = ("0".into(), Secret("a".into()), KeyState::Available);
        let expires_at = expires_at.map(UnixMs);
        NewKey { id, key, state, label: None, created_at: UnixMs(0), expires_at }
    }

    #[test]
    fn it_names_the_first_deadline_and_the_number_of_keys_that_have_one() {
        let mut warning = PurgeWarning::default();
        warning.note(&[key(None)]);
        assert_eq!(warning.text("ci"), None);
        warning.note(&[key(Some(90_000)), key(Some(60_000)), key(None)]);
        let text = warning.text("ci").expect("two keys have a deadline");
        assert!(text.contains("2 keys of the pool \"ci\" at 1970-01-01T00:01:00.000Z"), "{text}");
        assert!(text.contains("--no-keepalive"), "{text}");
    }
}

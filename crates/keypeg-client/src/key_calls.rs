//! The calls about one key by its id, one request per method.
//!
//! None of them needs the id of a lease.

use crate::client::{Client, parse_json, path_segment};
use crate::error::Error;
use crate::{Key, KeyReleased, KeyRequest, QuarantineRequest, RevealedKey, routes};
use reqwest::Method;

impl Client {
    /// Returns one key, without its value.
    pub async fn key(&self, pool: &str, key: &str) -> Result<Key, Error> {
        self.get(routes::key(path_segment(pool)?, path_segment(key)?)).await
    }

    /// Gives a key a label, or removes it; returns the key.
    pub async fn set_label(
        &self,
        pool: &str,
        key: &str,
        label: Option<&str>,
    ) -> Result<Key, Error> {
        let route = routes::key(path_segment(pool)?, path_segment(key)?);
        let request = KeyRequest { label: label.map(Into::into) };
        parse_json(self.send(Method::PATCH, route, Some(&request)).await?).await
    }

    /// Deletes a key in any state, permanently.
    pub async fn delete_key(&self, pool: &str, key: &str) -> Result<(), Error> {
        let route = routes::key(path_segment(pool)?, path_segment(key)?);
        self.send::<()>(Method::DELETE, route, None).await.map(drop)
    }

    /// Force-releases a key: ends its lease, rest or quarantine.
    pub async fn force_release(&self, pool: &str, key: &str) -> Result<KeyReleased, Error> {
        self.post_empty(routes::key_release(path_segment(pool)?, path_segment(key)?)).await
    }

    /// Quarantines a key: at once, or when its lease ends; returns the key.
    pub async fn quarantine(
        &self,
        pool: &str,
        key: &str,
        request: &QuarantineRequest,
    ) -> Result<Key, Error> {
        let route = quarantine_of(path_segment(pool)?, path_segment(key)?);
        parse_json(self.send(Method::POST, route, Some(request)).await?).await
    }

    /// Puts a quarantined key back, or cancels the draining of a leased one; returns the key.
    pub async fn end_quarantine(&self, pool: &str, key: &str) -> Result<Key, Error> {
        let route = quarantine_of(path_segment(pool)?, path_segment(key)?);
        parse_json(self.send::<()>(Method::DELETE, route, None).await?).await
    }

    /// Reveals the value of a key in any state.
    pub async fn reveal(&self, pool: &str, key: &str) -> Result<RevealedKey, Error> {
        self.post_empty(routes::key_reveal(path_segment(pool)?, path_segment(key)?)).await
    }
}

fn quarantine_of(pool: &str, key: &str) -> String {
    format!("{}/quarantine", routes::key(pool, key))
}

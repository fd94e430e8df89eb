//! Listings page by page: the keys of a pool, and the pools.
//!
//! Requests the longest pages that the server allows, and follows their cursors. Keeps one page at
//! a time. Does not retry.

use crate::client::Client;
use crate::error::Error;
use crate::{Key, KeyFilter, KeyPage, Pool, Pools};

impl Client {
    /// Returns all pools that the token may see, sorted by name: the pools of all pages.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        let (mut pages, mut all) = (self.list_all_pools(), Vec::new());
        while let Some(pools) = pages.next().await? {
            all.extend(pools);
        }
        Ok(all)
    }

    /// Returns the pages of all pools that the token may see. It sends no request yet.
    pub fn list_all_pools(&self) -> PoolPages {
        PoolPages { client: self.clone(), rest: Rest::default() }
    }

    /// Returns the pages of the keys of a pool that pass a filter, which can be a state. It sends no
    /// request yet.
    pub fn list_all_keys(&self, pool: &str, filter: impl Into<KeyFilter>) -> KeyPages {
        let filter = filter.into();
        KeyPages { client: self.clone(), pool: pool.into(), filter, rest: Rest::default() }
    }
}

/// The pages of a list of keys; see [`Client::list_all_keys`].
#[derive(Clone, Debug)]
pub struct KeyPages {
    client: Client,
    pool: String,
    filter: KeyFilter,
    rest: Rest,
}

impl KeyPages {
    /// Ends the list after this number of keys.
    #[must_use]
    pub fn with_limit(self, keys: u64) -> Self {
        Self { rest: Rest { left: keys, ..self.rest }, ..self }
    }

    /// Returns the next page, which can be empty; `None` after the last page. After an error the
    /// same page can be requested again.
    pub async fn next(&mut self) -> Result<Option<Vec<Key>>, Error> {
        let Some(limit) = self.rest.page_limit() else { return Ok(None) };
        let (filter, cursor) = (self.filter.clone(), self.rest.cursor.as_deref());
        let page = self.client.list_keys(&self.pool, filter, Some(limit), cursor).await?;
        let KeyPage { keys, next_cursor } = page;
        self.rest.advance(keys.len(), next_cursor);
        Ok(Some(keys))
    }
}

/// The pages of a list of pools; see [`Client::list_all_pools`].
#[derive(Clone, Debug)]
pub struct PoolPages {
    client: Client,
    rest: Rest,
}

impl PoolPages {
    /// Ends the list after this number of pools.
    #[must_use]
    pub fn with_limit(self, pools: u64) -> Self {
        Self { rest: Rest { left: pools, ..self.rest }, ..self }
    }

    /// Returns the next page, which can be empty; `None` after the last page. After an error the
    /// same page can be requested again.
    pub async fn next(&mut self) -> Result<Option<Vec<Pool>>, Error> {
        let Some(limit) = self.rest.page_limit() else { return Ok(None) };
        let page = self.client.list_pools(Some(limit), self.rest.cursor.as_deref()).await?;
        let Pools { pools, next_cursor } = page;
        self.rest.advance(pools.len(), next_cursor);
        Ok(Some(pools))
    }
}

/// What is left of a listing.
#[derive(Clone, Debug)]
struct Rest {
    /// The most items that are still to be returned.
    left: u64,
    cursor: Option<String>,
    is_finished: bool,
}

/// Items on a page: the maximum that the server allows.
const PAGE_LIMIT: u32 = 1_000;

impl Default for Rest {
    fn default() -> Self {
        Self { left: u64::MAX, cursor: None, is_finished: false }
    }
}

impl Rest {
    /// Returns the number of items to request; `None` at the end.
    fn page_limit(&self) -> Option<u32> {
        let limit = u32::try_from(self.left).unwrap_or(PAGE_LIMIT).min(PAGE_LIMIT);
        (!self.is_finished && limit > 0).then_some(limit)
    }

    fn advance(&mut self, items: usize, next_cursor: Option<String>) {
        self.left = self.left.saturating_sub(items as u64);
        self.is_finished = next_cursor.is_none();
        self.cursor = next_cursor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends_with_its_last_page_or_at_its_limit() {
        let mut rest = Rest::default();
        assert_eq!(rest.page_limit(), Some(PAGE_LIMIT));
        rest.advance(0, Some("a".into()));
        assert_eq!(rest.page_limit(), Some(PAGE_LIMIT), "an empty page is not the end");
        rest.advance(1_000, None);
        assert_eq!(rest.page_limit(), None);
        let mut rest = Rest { left: 1_001, ..Rest::default() };
        for (limit, items) in [(1_000, 1_000), (1, 0), (1, 1)] {
            assert_eq!(rest.page_limit(), Some(limit));
            rest.advance(items, Some("a".into()));
        }
        assert_eq!(rest.page_limit(), None);
    }
}

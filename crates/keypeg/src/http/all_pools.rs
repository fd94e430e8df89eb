//! Lists of pools that several servers share: which shards a list has, and one list from several.
//!
//! Pure: does not know where a list comes from.

use keypeg_client::Pools;

/// The shards whose pools a response lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ListedShards(pub(super) Vec<usize>);

/// Makes one page of at most `limit` pools from pages that begin at the same name. A page without a
/// next one has all its pools from there on.
pub(super) fn merge(pages: Vec<Pools>, limit: usize) -> Pools {
    // Above the first end of a page, that page can lack pools.
    let end = pages.iter().filter_map(|page| page.next_cursor.clone()).min();
    let is_known = |name: &str| end.as_deref().is_none_or(|end| name < end);
    let mut pools: Vec<_> =
        pages.into_iter().flat_map(|page| page.pools).filter(|pool| is_known(&pool.pool)).collect();
    pools.sort_by(|one, other| one.pool.cmp(&other.pool));
    // A shard that moved between two answers is in both.
    pools.dedup_by(|one, other| one.pool == other.pool);
    let next = pools.get(limit).map(|pool| pool.pool.clone());
    pools.truncate(limit);
    Pools { pools, next_cursor: next.or(end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &str, next: Option<&str>) -> Pools {
        let pool = |name: &str| {
            let mut pool: keypeg_client::Pool = serde_json::from_str(EMPTY).unwrap();
            pool.pool = name.into();
            pool
        };
        let pools = names.split_terminator(' ').map(pool).collect();
        Pools { pools, next_cursor: next.map(str::to_owned) }
    }

    const EMPTY: &str = r#"{"pool":"","lease_ttl_seconds":1,"max_hold_seconds":null,
        "keepalive_ttl_seconds":null,"keepalive_every_seconds":null,"rest_seconds":0,
        "key_length":8,"key_prefix":"","max_keys":1,"available":0,"leased":0,"resting":0,
        "quarantined":0,"total":0,"waiting":0,"next_return_at":null,"next_purge_at":null}"#;

    #[test]
    fn a_page_of_all_servers_leaves_no_pool_out() {
        for (pages, limit, names, next) in [
            (vec![], 5, "", None),
            (vec![page("a c", None), page("b d", None)], 5, "a b c d", None),
            (vec![page("a c", None), page("b d", None)], 4, "a b c d", None),
            (vec![page("a c", None), page("b d", None)], 3, "a b c", Some("d")),
            (vec![page("a c", Some("e")), page("b d", Some("f"))], 2, "a b", Some("c")),
            // The second server has not said what it has from c on.
            (vec![page("a d e", None), page("b", Some("c"))], 9, "a b", Some("c")),
            (vec![page("", Some("c")), page("a d", Some("e"))], 9, "a", Some("c")),
            // The shard of b moved between the two answers.
            (vec![page("a b", None), page("b c", None)], 9, "a b c", None),
        ] {
            let merged = merge(pages, limit);
            let found: Vec<_> = merged.pools.iter().map(|pool| pool.pool.as_str()).collect();
            assert_eq!((found.join(" ").as_str(), merged.next_cursor.as_deref()), (names, next));
        }
    }
}

//! Pages of pools in the order of their names, and the pools that a caller may see.
//!
//! A page costs its own length and O(log n) for each pattern that it examines, whatever the number
//! of pools: the pools of a caller are found by their names, not chosen from all. A pool that
//! exists during a whole listing is listed exactly once. Knows nothing of access tokens.

use super::{PoolEntries, Pools};
use crate::indices::PoolIndex;
use crate::policy::PoolName;
use crate::pool::Pool;
use keypeg_fields::PAGE_MAX;
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::Arc;

/// The most patterns of a filter that one page examines.
const EXAMINED_MAX: usize = 1_024;

/// One pool by its name, or all pools whose names have a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolPattern {
    /// The pool of this name.
    Exact(PoolName),
    /// The pools whose names begin with this text; every pool if it is empty.
    Prefix(Box<str>),
}

impl PoolPattern {
    /// Parses a name such as `ci`, or a prefix such as `ci-*`; `None` when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('*') {
            Some("") => Some(Self::Prefix("".into())),
            Some(prefix) => PoolName::parse(prefix).map(|_| Self::Prefix(prefix.into())),
            None => PoolName::parse(text).map(Self::Exact),
        }
    }

    /// Returns the first text that the pattern can allow.
    fn start(&self) -> &str {
        match self {
            Self::Exact(name) => name.as_str(),
            Self::Prefix(prefix) => prefix,
        }
    }

    fn allows(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
        }
    }
}

/// The pools that a caller may see: patterns in order, none of which allows a pool of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFilter(Box<[PoolPattern]>);

impl PoolFilter {
    /// Returns the filter that allows the pools of all these patterns. O(patterns log patterns).
    pub fn new(mut patterns: Vec<PoolPattern>) -> Self {
        // A prefix sorts before all that it allows, so what it covers directly follows it.
        patterns.sort_unstable_by(|a, b| {
            let is_exact = |pattern: &PoolPattern| matches!(pattern, PoolPattern::Exact(_));
            a.start().cmp(b.start()).then(is_exact(a).cmp(&is_exact(b)))
        });
        patterns.dedup_by(|next, kept| kept.allows(next.start()));
        Self(patterns.into())
    }

    /// Returns the patterns as text, in order.
    pub fn texts(&self) -> Vec<String> {
        let text = |pattern: &PoolPattern| match pattern {
            PoolPattern::Exact(name) => name.as_str().to_owned(),
            PoolPattern::Prefix(prefix) => format!("{prefix}*"),
        };
        self.0.iter().map(text).collect()
    }

    /// Returns whether the filter allows every pool.
    pub fn allows_all(&self) -> bool {
        matches!(&*self.0, [PoolPattern::Prefix(prefix)] if prefix.is_empty())
    }

    /// Returns whether the filter allows this pool. O(log patterns).
    pub fn allows(&self, name: &str) -> bool {
        self.position(name).is_ok_and(|index| self.0[index].allows(name))
    }

    /// Finds the last pattern that starts at or before a text; `Err` if all start after it.
    fn position(&self, text: &str) -> Result<usize, ()> {
        let after = self.0.partition_point(|pattern| pattern.start() <= text);
        after.checked_sub(1).ok_or(())
    }
}

/// The options of a page of pools; the default is the first page of all pools, as long as allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolListOptions {
    /// The first name that the page may contain; `None` is the beginning.
    pub from: Option<PoolName>,
    /// The most pools in the page.
    pub limit: usize,
    /// The pools to list; all pools when `None`.
    pub filter: Option<Arc<PoolFilter>>,
}

impl Default for PoolListOptions {
    fn default() -> Self {
        Self { from: None, limit: PAGE_MAX, filter: None }
    }
}

impl Pools {
    /// Passes the pools of one page to `each`, in the order of their names. Returns where the next
    /// page starts; `None` after the last page. O(page + log n).
    pub fn list(&self, options: &PoolListOptions, mut each: impl FnMut(&Pool)) -> Option<PoolName> {
        let PoolListOptions { from, limit, filter } = options;
        let from = from.as_ref().map_or("", PoolName::as_str);
        let Some(PoolFilter(patterns)) = filter.as_deref() else {
            let mut page = Page { entries: &self.entries, left: *limit, each: &mut each };
            return page.add(from_name(&self.by_order, from), "");
        };
        let first = filter.as_deref().and_then(|filter| filter.position(from).ok()).unwrap_or(0);
        let mut page = Page { entries: &self.entries, left: *limit, each: &mut each };
        for (examined, pattern) in patterns[first..].iter().enumerate() {
            let start = pattern.start();
            if examined == EXAMINED_MAX {
                return PoolName::parse(start);
            }
            let next = match pattern {
                PoolPattern::Exact(_) if start < from => None,
                PoolPattern::Exact(name) => {
                    let found = self.by_order.get_key_value(name);
                    found.and_then(|(name, &index)| page.add_one(name, index))
                }
                PoolPattern::Prefix(prefix) => {
                    page.add(from_name(&self.by_order, start.max(from)), prefix)
                }
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

fn from_name<'a>(
    all: &'a BTreeMap<PoolName, PoolIndex>,
    name: &str,
) -> Range<'a, PoolName, PoolIndex> {
    all.range::<str, _>((Bound::Included(name), Bound::Unbounded))
}

/// A page while it is filled.
struct Page<'a, E> {
    entries: &'a PoolEntries,
    left: usize,
    each: &'a mut E,
}

impl<E: FnMut(&Pool)> Page<'_, E> {
    /// Adds pools while their names have the prefix; returns the first that has no room.
    fn add(&mut self, pools: Range<'_, PoolName, PoolIndex>, prefix: &str) -> Option<PoolName> {
        let mut pools = pools.take_while(|(name, _)| name.as_str().starts_with(prefix));
        pools.find_map(|(name, &index)| self.add_one(name, index))
    }

    /// Adds one pool; returns its name if there is no room.
    fn add_one(&mut self, name: &PoolName, index: PoolIndex) -> Option<PoolName> {
        let Some(left) = self.left.checked_sub(1) else { return Some(name.clone()) };
        self.left = left;
        (self.each)(&self.entries.get(index).pool);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Fact;
    use crate::ids::IdHashKey;
    use crate::policy::{Policy, PolicyPatch};
    use crate::shared::Limits;
    use crate::step::StepContext;
    use crate::{Now, RandomSource};

    struct NoRandom;

    impl RandomSource for NoRandom {
        fn below(&mut self, _: u32) -> u32 {
            0
        }

        fn fill(&mut self, _: &mut [u8]) {}
    }

    fn pools(names: &[&str]) -> Pools {
        let limits =
            Limits { pools: names.len(), keys: 1, bytes: u64::MAX, answers: crate::ANSWERS_MAX };
        let mut pools = Pools::new(IdHashKey::new([7; 32]), limits, 1);
        let mut facts = |_: &Fact<'_>| ();
        let mut step = StepContext {
            now: Now::default(),
            random: &mut NoRandom,
            facts: &mut facts,
            budget: 0,
            ended_by_time: false,
        };
        for name in names {
            let name = PoolName::parse(name).unwrap();
            let patch = PolicyPatch::default();
            pools.create_or_update(&mut step, &name, &Policy::default(), patch).unwrap();
        }
        pools
    }

    fn filter(patterns: &[&str]) -> PoolFilter {
        PoolFilter::new(patterns.iter().map(|text| PoolPattern::parse(text).unwrap()).collect())
    }

    /// Lists all pages of this length, and the number of pages.
    fn listed(pools: &Pools, limit: usize, filter: Option<&PoolFilter>) -> (Vec<String>, usize) {
        let filter = filter.map(|filter| Arc::new(filter.clone()));
        let (mut names, mut pages, mut from) = (Vec::new(), 0, None);
        loop {
            let options = PoolListOptions { from, limit, filter: filter.clone() };
            let before = names.len();
            from = pools.list(&options, |pool| names.push(pool.name().as_str().to_owned()));
            pages += 1;
            assert!(names.len() - before <= limit, "{names:?}");
            if from.is_none() {
                return (names, pages);
            }
        }
    }

    const NAMES: [&str; 9] = ["a", "b", "b-1", "b-2", "b.x", "ba", "c", "ci-1", "default"];

    #[test]
    fn pages_of_any_length_list_each_pool_once_in_the_order_of_the_names() {
        let mut shuffled = NAMES;
        shuffled.reverse();
        let pools = pools(&shuffled);
        for limit in 1..12 {
            let (names, pages) = listed(&pools, limit, None);
            assert_eq!(names, NAMES, "{limit}");
            assert_eq!(pages, NAMES.len().div_ceil(limit), "no empty page at the end");
        }
    }

    /// Compared with a walk over all pools and all patterns.
    #[test]
    fn a_filter_lists_exactly_the_pools_that_one_of_its_patterns_allows() {
        let pools = pools(&NAMES);
        let texts = ["a", "b", "b*", "b-*", "b-1", "ba", "c*", "ci-9", "default", "z*", "*"];
        for chosen in 1..1_u32 << texts.len() {
            let chosen: Vec<_> = (0..texts.len())
                .filter(|bit| chosen >> bit & 1 == 1)
                .map(|bit| texts[bit])
                .collect();
            let allows = |name: &str| {
                chosen.iter().any(|text| match text.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => *text == name,
                })
            };
            let filter = filter(&chosen);
            for name in NAMES.into_iter().chain(["b-", "bb", "ci", "zz", "0", ""]) {
                assert_eq!(filter.allows(name), allows(name), "{chosen:?} {name}");
            }
            let expected: Vec<_> = NAMES.into_iter().filter(|name| allows(name)).collect();
            for limit in [1, 2, 1_000] {
                assert_eq!(listed(&pools, limit, Some(&filter)).0, expected, "{chosen:?}");
            }
        }
    }

    #[test]
    fn a_page_examines_a_bounded_number_of_patterns() {
        let pools = pools(&["p0", "p3000", "p9999"]);
        let patterns = (0..10_000).map(|n| PoolPattern::parse(&format!("p{n}")).unwrap());
        let filter = PoolFilter::new(patterns.collect());
        let (names, pages) = listed(&pools, 1_000, Some(&filter));
        assert_eq!((names.len(), pages), (3, 10));
    }

    #[test]
    fn a_page_may_start_at_a_name_that_no_longer_exists() {
        let pools = pools(&["a", "c"]);
        let options = PoolListOptions { from: PoolName::parse("b"), ..PoolListOptions::default() };
        let mut names = Vec::new();
        assert_eq!(pools.list(&options, |pool| names.push(pool.name().clone())), None);
        assert_eq!(names, [PoolName::parse("c").unwrap()]);
    }
}

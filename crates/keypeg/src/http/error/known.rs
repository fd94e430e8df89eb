//! The refusal of an import that brings known values.
//!
//! It names them by their indices, never by themselves: the values are secrets.

use super::{Code, Problem};

impl Problem {
    /// Names the values by their indices: the values themselves are secrets.
    pub(super) fn keys_exist(indices: &[u32], more: bool) -> Self {
        let first = indices.first().copied().unwrap_or_default();
        let others = match indices.len() {
            0 | 1 => String::new(),
            2 => ", and so is 1 more (see indices)".into(),
            count => format!(", and so are {} more (see indices)", count - 1),
        };
        let detail = format!(
            "values[{first}] is in the pool, occurs twice, or was in the pool before{others}. Remove \
             it from the request. A value of a deleted or purged key comes back with allow_retired."
        );
        let mut problem = Self::new(Code::KeyExists, detail);
        problem.0.extensions.index = Some(u64::from(first));
        problem.0.extensions.indices = Some(indices.iter().copied().map(u64::from).collect());
        problem.0.extensions.more = Some(more);
        problem
    }
}

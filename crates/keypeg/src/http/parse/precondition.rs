//! The preconditions of changes: `If-Match`, `If-None-Match` and `If-Unmodified-Since` (RFC 9110,
//! 13.1).
//!
//! The server gives no entity tags and no modification dates: an answer that shows a pool has
//! counts, which change with every lease, and a tag of the policy alone would not be its validator.
//! So a condition can be about the existence of a pool only. Any other one is false or cannot be
//! checked, and is refused, never ignored.

use crate::http::error::Problem;
use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};
use keypeg_client::Code;

/// What a request requires of the pool that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolCondition {
    /// Nothing.
    None,
    /// The pool exists: `If-Match: *`.
    Exists,
    /// The pool does not exist: `If-None-Match: *`.
    Missing,
    /// Something that is never true, such as a certain entity tag.
    Never,
}

impl PoolCondition {
    /// Reads the condition of a change of a pool.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(IF_UNMODIFIED_SINCE) {
            return Self::Never;
        }
        // A list of tags matches no pool: `If-None-Match` is then true.
        let must_be_missing = any_value(headers, &IF_NONE_MATCH);
        match (headers.contains_key(IF_MATCH), must_be_missing) {
            (false, false) => Self::None,
            (false, true) => Self::Missing,
            (true, false) if any_value(headers, &IF_MATCH) => Self::Exists,
            (true, _) => Self::Never,
        }
    }
}

/// Returns whether a header's value is `*`.
fn any_value(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(name).iter().any(|value| value.as_bytes().trim_ascii() == b"*")
}

/// Refuses a change that supports no precondition, if it has one.
pub(crate) fn refuse_any(headers: &HeaderMap) -> Result<(), Problem> {
    let names = [
        (IF_MATCH, "If-Match"),
        (IF_NONE_MATCH, "If-None-Match"),
        (IF_UNMODIFIED_SINCE, "If-Unmodified-Since"),
    ];
    let Some((_, name)) = names.into_iter().find(|(name, _)| headers.contains_key(name)) else {
        return Ok(());
    };
    let detail = format!(
        "This call does not support {name}: only PUT and DELETE of a pool have preconditions. Send \
         the request without it."
    );
    Err(Problem::new(Code::PreconditionFailed, detail))
}

/// The condition of a change of a pool is false.
pub(crate) fn failed(condition: PoolCondition) -> Problem {
    let detail = match condition {
        PoolCondition::Missing => {
            "The pool exists, and If-None-Match: * requires that it does not. Send the request \
             without it to change the pool."
        }
        PoolCondition::Exists => {
            "The pool does not exist, and If-Match: * requires that it does. Send the request \
             without it to create the pool."
        }
        PoolCondition::None | PoolCondition::Never => {
            "The precondition is false: the server gives no entity tags and no modification dates. \
             Use If-Match: * (the pool exists), If-None-Match: * (it does not), or none."
        }
    };
    Problem::new(Code::PreconditionFailed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_condition_about_existence_is_read_and_any_other_is_never_true() {
        for (headers, expected) in [
            (&[][..], PoolCondition::None),
            (&[("if-match", "*")], PoolCondition::Exists),
            (&[("if-match", " * ")], PoolCondition::Exists),
            (&[("if-none-match", "*")], PoolCondition::Missing),
            (&[("if-none-match", "\"a\", W/\"b\"")], PoolCondition::None),
            (&[("if-match", "*"), ("if-none-match", "\"a\"")], PoolCondition::Exists),
            (&[("if-match", "\"a\"")], PoolCondition::Never),
            (&[("if-match", "")], PoolCondition::Never),
            (&[("if-match", "*"), ("if-none-match", "*")], PoolCondition::Never),
            (&[("if-unmodified-since", "x")], PoolCondition::Never),
            (&[("if-modified-since", "x")], PoolCondition::None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            assert_eq!(PoolCondition::of(&map), expected, "{headers:?}");
            let supports_none = headers.iter().all(|(name, _)| *name == "if-modified-since");
            assert_eq!(refuse_any(&map).is_ok(), supports_none, "{headers:?}");
        }
    }
}

//! The pages that explain the error codes: the type of a page, and the members of every problem.
//!
//! `texts` owns the text of each page; `html` and `markdown` render it, so the two forms cannot
//! differ. This file knows neither HTML nor Markdown, nor which codes exist.

mod backup_texts;
pub mod html;
pub mod markdown;
mod server_texts;
mod shard_texts;
mod texts;

/// The explanation of one error code. Its status and title are those of
/// [`Code`](keypeg_client::Code).
#[derive(Clone, Copy, Debug)]
struct ProblemPage {
    /// What the code means, in a few sentences.
    meaning: &'static str,
    /// What to do, one step each.
    remedy: &'static [&'static str],
    /// Extension members of the problem: name and meaning.
    members: &'static [(&'static str, &'static str)],
    /// Response headers that help to handle the problem: name and meaning.
    headers: &'static [(&'static str, &'static str)],
    /// Whether the server applied the request.
    applied: &'static str,
}

impl ProblemPage {
    /// Members that every problem has: name and meaning.
    const COMMON_MEMBERS: &'static [(&'static str, &'static str)] = &[
        ("type", "`/problems/<code>`: the path of the page that explains the code."),
        ("title", "The title of the code."),
        ("status", "The HTTP status."),
        ("code", "The error code. It never changes its meaning, so programs can match on it."),
        ("detail", "What went wrong with this request, in English for people."),
        ("request_id", "The id of the request, as in the `x-request-id` header."),
        (
            "outcome",
            "Whether the change was applied: `not_applied` or `unknown`. Only requests that change \
             something, or acquire a key, have it.",
        ),
    ];

    const fn new(
        meaning: &'static str,
        remedy: &'static [&'static str],
        applied: &'static str,
    ) -> Self {
        Self { meaning, remedy, members: &[], headers: &[], applied }
    }

    const fn members(mut self, members: &'static [(&'static str, &'static str)]) -> Self {
        self.members = members;
        self
    }

    const fn headers(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        self.headers = headers;
        self
    }
}

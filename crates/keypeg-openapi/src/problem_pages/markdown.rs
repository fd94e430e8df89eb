//! The problem pages as Markdown: `docs/problems/`.
//!
//! Lines have at most 120 columns. The texts contain no Markdown except backticks.

use super::{ProblemPage, texts};
use keypeg_client::Code;
use std::collections::BTreeMap;

/// Returns every file of the directory by name: an index, and one page for each code.
pub fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("README.md".to_owned(), index())]);
    for code in Code::ALL {
        files.insert(format!("{}.md", code.as_str()), page(code));
    }
    files
}

fn index() -> String {
    let about = wrapped(
        "Every error of Keypeg is a problem (RFC 9457). Its `type` is `/problems/<code>`: a page \
         of the server with the same text as the page here.",
        "",
    );
    let rows: Vec<_> = Code::ALL
        .map(|code| {
            let (word, status, title) = (code.as_str(), code.status(), code.title());
            format!("| [`{word}`]({word}.md) | {status} | {title} |\n")
        })
        .into();
    format!(
        "# Problems\n\n{about}\n| code | status | title |\n|---|---|---|\n{}\n\
         ## Members of every problem\n\n{}",
        rows.concat(),
        named(ProblemPage::COMMON_MEMBERS),
    )
}

fn page(code: Code) -> String {
    let ProblemPage { meaning, remedy, members, headers, applied } = texts::page(code);
    let steps: Vec<_> = remedy.iter().map(|step| wrapped(step, "- ")).collect();
    let (end, members) =
        if members.is_empty() { (".", String::new()) } else { (", and:\n", named(members)) };
    let headers = if headers.is_empty() {
        String::new()
    } else {
        format!("\n## Response headers\n\n{}", named(headers))
    };
    format!(
        "# {}\n\nCode `{}`, status {}.\n\n## What it means\n\n{}\n## What to do\n\n{}\n\
         ## Was the request applied?\n\n{}\n## What the problem contains\n\n\
         The [members of every problem](README.md#members-of-every-problem){end}\n\
         {members}{headers}",
        code.title(),
        code.as_str(),
        code.status(),
        wrapped(meaning, ""),
        steps.concat(),
        wrapped(applied, ""),
    )
}

/// Writes a list of names and their meanings.
fn named(rows: &[(&str, &str)]) -> String {
    rows.iter().map(|(name, text)| wrapped(&format!("`{name}`: {text}"), "- ")).collect()
}

/// Breaks a text into lines of at most 120 columns, the first of which begins with `bullet`.
fn wrapped(text: &str, bullet: &str) -> String {
    let (mut lines, mut line) = (String::new(), bullet.to_owned());
    for word in text.split(' ') {
        if line.len() + word.len() > 119 {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(bullet.len());
        }
        line += word;
        line.push(' ');
    }
    lines + line.trim_end() + "\n"
}

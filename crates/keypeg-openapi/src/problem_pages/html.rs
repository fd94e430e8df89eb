//! The problem pages as HTML, which the server embeds: an index, and one page for each code.
//!
//! Every text goes through `escaped` or `prose`, so no text becomes markup. The pages are
//! static: no script, nothing from other hosts.

use super::{ProblemPage, texts};
use crate::html::{escaped, prose, put};
use keypeg_client::{Code, routes};
use std::collections::BTreeMap;

/// Returns every page by its file name.
pub fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::from([("index.html".to_owned(), index())]);
    for code in Code::ALL {
        files.insert(format!("{}.html", code.as_str()), page(code));
    }
    files
}

/// Renders the index: every code with its status and title.
fn index() -> String {
    let mut main = String::from(
        "<h1>Keypeg problems</h1>\n\
         <p class=\"lead\">Every error of Keypeg is a problem (RFC 9457). Its <code>type</code> is \
         the path of one of these pages.</p>\n\
         <table>\n<tr><th>code</th><th>status</th><th>title</th></tr>\n",
    );
    for code in Code::ALL {
        put(
            &mut main,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                link(code),
                code.status(),
                escaped(code.title()),
            ),
        );
    }
    main.push_str("</table>\n<h2 id=\"members\">Members of every problem</h2>\n");
    main.push_str(&table(ProblemPage::COMMON_MEMBERS));
    document("Keypeg problems", &main)
}

/// Renders the page of one code.
fn page(code: Code) -> String {
    let (word, title) = (code.as_str(), escaped(code.title()));
    let ProblemPage { meaning, remedy, members, headers, applied } = texts::page(code);
    let mut main = format!(
        "<h1>{title} <small>{} <code>{word}</code></small></h1>\n\
         <h2 id=\"meaning\">What it means</h2>\n{}\n\
         <h2 id=\"remedy\">What to do</h2>\n<ul>\n",
        code.status(),
        prose(meaning),
    );
    for step in remedy {
        put(&mut main, format_args!("<li>{}</li>\n", prose(step)));
    }
    put(
        &mut main,
        format_args!(
            "</ul>\n<h2 id=\"applied\">Was the request applied?</h2>\n{}\n\
             <h2 id=\"members\">What the problem contains</h2>\n",
            prose(applied),
        ),
    );
    put(
        &mut main,
        format_args!(
            "<p>The <a href=\"{}#members\">members of every problem</a>{}</p>\n",
            routes::PROBLEMS,
            if members.is_empty() { "." } else { ", and:" },
        ),
    );
    main.push_str(&table(members));
    if !headers.is_empty() {
        main.push_str("<h2 id=\"headers\">Response headers</h2>\n");
        main.push_str(&table(headers));
    }
    document(&title, &main)
}

/// Returns a link to the page of a code.
pub(crate) fn link(code: Code) -> String {
    format!("<a href=\"{}\"><code>{}</code></a>", routes::problem(code), code.as_str())
}

fn table(rows: &[(&str, &str)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut html = String::from("<table>\n");
    for (name, text) in rows {
        let (name, text) = (escaped(name), prose(text));
        put(&mut html, format_args!("<tr><td><code>{name}</code></td><td>{text}</td></tr>\n"));
    }
    html.push_str("</table>\n");
    html
}

/// Puts the content into a document with the navigation of all problem pages.
fn document(title: &str, main: &str) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <link rel=\"stylesheet\" href=\"{}\">\n</head>\n<body>\n\
         <nav>\n<strong>Keypeg</strong>\n<a href=\"{}\">API</a>\n<a href=\"{}\">Problems</a>\n\
         <h3>Error codes</h3>\n",
        routes::DOCS_STYLE,
        routes::DOCS,
        routes::PROBLEMS,
    );
    for code in Code::ALL {
        put(
            &mut html,
            format_args!("<a href=\"{}\">{}</a>\n", routes::problem(code), code.as_str()),
        );
    }
    put(&mut html, format_args!("</nav>\n<main>\n{main}</main>\n</body>\n</html>\n"));
    html
}

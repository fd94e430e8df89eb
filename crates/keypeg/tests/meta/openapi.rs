//! The published documents, `docs/openapi.json` and `docs/problems/`: they match the code, the
//! server serves them, and the limits of every field are exactly those of the server.
//!
//! With `KEYPEG_BLESS=1` the tests write the files; the next build serves them.

use crate::support::{Client, Server};
use keypeg_client::{Code, ProblemPage};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn published() -> String {
    std::fs::read_to_string(docs().join("openapi.json")).unwrap()
}

fn is_blessing() -> bool {
    std::env::var_os("KEYPEG_BLESS").is_some()
}

const OUTDATED: &str = "is outdated: run KEYPEG_BLESS=1 cargo test -p keypeg --test server openapi";

#[test]
fn the_published_document_matches_the_code() {
    let mut document = serde_json::to_string_pretty(&keypeg_client::openapi::document()).unwrap();
    document.push('\n');
    if is_blessing() {
        std::fs::write(docs().join("openapi.json"), &document).unwrap();
    }
    let is_same = published() == document;
    assert!(is_same, "docs/openapi.json {OUTDATED}");
}

/// Every code has a page, and there is no page without a code.
#[test]
fn the_published_problem_pages_match_the_code() {
    let mut pages = BTreeMap::from([("README.md".to_owned(), problem_index())]);
    for code in Code::ALL {
        pages.insert(format!("{}.md", code.as_str()), problem_page(code));
    }
    let dir = docs().join("problems");
    if is_blessing() {
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in &pages {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
    for entry in std::fs::read_dir(&dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(pages.contains_key(&name), "docs/problems/{name} explains no error code");
    }
    for (name, text) in pages {
        let is_same = std::fs::read_to_string(dir.join(&name)).is_ok_and(|found| found == text);
        assert!(is_same, "docs/problems/{name} {OUTDATED}");
    }
}

fn problem_index() -> String {
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

fn problem_page(code: Code) -> String {
    let ProblemPage { meaning, remedy, members, headers, applied } = code.page();
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

#[test]
fn the_server_serves_the_published_document() {
    let server = Server::in_memory(&[]);
    let answer = server.client().ask("GET /openapi.json");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.body == published(), "the server embeds another document");
}

#[test]
fn the_page_loads_nothing_from_other_hosts() {
    let server = Server::in_memory(&[]);
    let client = &mut server.client();
    for (path, content_type) in [("/docs", "text/html"), ("/docs/style.css", "text/css")] {
        let answer = client.ask(&format!("GET {path}"));
        assert_eq!(answer.status, 200);
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; "), "{policy}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert!(answer.header("content-type").unwrap().starts_with(content_type));
        assert!(!answer.body.is_empty());
    }
    assert!(client.ask("GET /docs").body.contains("/v1/pools/{pool}/leases/{lease}/renew"));
}

fn sent(client: &mut Client, request: &str, body: &Value) -> (u16, Value) {
    let answer = client.send(request, body);
    let body = if answer.body.is_empty() { Value::Null } else { answer.json() };
    (answer.status, body["field"].clone())
}

/// Returns values at the limits of a schema, and values just outside of them.
fn edges(schema: &Map<String, Value>) -> (Vec<Value>, Vec<Value>) {
    let (mut allowed, mut rejected) = (Vec::new(), Vec::new());
    let is_integer = schema.get("type").is_some_and(|types| types.to_string().contains("integer"));
    for (name, step) in [("minimum", -1), ("maximum", 1)] {
        let Some(limit) = schema.get(name) else { continue };
        allowed.push(limit.clone());
        rejected.push(match limit.as_f64() {
            _ if is_integer => json!(limit.as_i64().unwrap() + step),
            // A number above zero is rounded up to milliseconds.
            _ if *limit == json!(0.001) => json!(0),
            limit => json!(limit.unwrap() + 0.0011 * f64::from(i32::try_from(step).unwrap())),
        });
    }
    let filled = |n: u64| match schema.get("items") {
        Some(_) => (0..n).map(|index| format!("edge-{n}-{index}")).collect::<Vec<_>>().into(),
        None => Value::from("x".repeat(usize::try_from(n).unwrap())),
    };
    for (keyword, is_minimum) in
        [("minLength", true), ("minItems", true), ("maxLength", false), ("maxItems", false)]
    {
        if let Some(limit) = schema.get(keyword).and_then(Value::as_u64) {
            allowed.push(filled(limit));
            rejected.push(filled(if is_minimum { limit - 1 } else { limit + 1 }));
        }
    }
    let nullable = schema["type"].as_array().is_some_and(|types| types.contains(&"null".into()));
    if nullable { &mut allowed } else { &mut rejected }.push(Value::Null);
    (allowed, rejected)
}

#[test]
fn the_limits_of_every_body_field_are_exactly_those_of_the_server() {
    let server = Server::in_memory(&["--lease-ttl", "604800s"]);
    let client = &mut server.client();
    let document = keypeg_client::openapi::document();
    client.ask("POST /v1/pools/default/keys").is(201, &json!({}));
    let lease = client.ask("POST /v1/pools/default/leases").text("id");
    let renew = format!("POST /v1/pools/default/leases/{lease}/renew");
    let release = "POST /v1/pools/default/leases/00000000000000000000000000/release";
    let mut count = 0;
    for (schema, request) in [
        ("PolicyRequest", "PUT /v1/pools/edges"),
        ("GenerateRequest", "POST /v1/pools/default/keys"),
        ("KeepAliveRequest", "POST /v1/pools/default/keepalive"),
        ("AcquireRequest", "POST /v1/pools/default/leases"),
        ("ReleaseRequest", release),
        ("RenewRequest", &renew),
    ] {
        let members = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        for (name, member) in members {
            let (allowed, rejected) = edges(member.as_object().unwrap());
            for value in allowed {
                // max_hold_seconds must not be less than lease_ttl_seconds: a limit between fields.
                if request.starts_with("PUT") {
                    client.ask("DELETE /v1/pools/edges");
                    client.send("PUT /v1/pools/edges", &json!({ "lease_ttl_seconds": 0.001 }));
                }
                let (status, field) = sent(client, request, &json!({ name.as_str(): value }));
                assert_ne!(status, 422, "{request} {name} {field}: {}", short(&value));
                count += 1;
            }
            for value in rejected {
                let (status, field) = sent(client, request, &json!({ name.as_str(): value }));
                assert_eq!((status, &field), (422, &json!(name)), "{request} {}", short(&value));
                count += 1;
            }
        }
        let unknown = sent(client, request, &json!({ "no_such_member": 1 }));
        assert_eq!(unknown, (422, json!("no_such_member")), "{request}");
    }
    assert!(count > 60, "{count} values");
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

//! The reference page, rendered from the `OpenAPI` document; terms and conventions come from
//! `intro.html`.
//!
//! It supports only what that document uses. Every text goes through [`escaped`] or [`prose`], so
//! no text becomes markup. The page is static: no script, nothing from other hosts.

use crate::document::{code_meanings, document};
use crate::html::{escaped, prose, put};
use crate::problem_pages::html::link;
use keypeg_client::{Code, routes};
use serde_json::{Map, Value};

const INTRO: &str = include_str!("intro.html");
/// The server address in the examples.
const BASE_URL: &str = "http://127.0.0.1:8000";

/// Renders the page.
pub fn reference_page() -> String {
    let document = document();
    let page = Page { document: &document };
    let version = escaped(page.text("/info/version"));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Keypeg API</title>\n\
         <link rel=\"stylesheet\" href=\"{}\">\n</head>\n<body>\n{}<main>\n\
         <h1>Keypeg API <small>{version}</small></h1>\n{INTRO}",
        routes::DOCS_STYLE,
        page.nav(),
    );
    for tag in page.tag_sections() {
        let name = text_of(tag, "name");
        let id = name.replace(' ', "-");
        put(&mut html, format_args!("<h2 id=\"{id}\">{name}</h2>\n"));
        html.push_str(&prose(text_of(tag, "description")));
        for (route, operation) in page.operations(name) {
            html.push_str(&page.article(route, operation));
        }
    }
    html.push_str(&Page::codes());
    html.push_str("</main>\n</body>\n</html>\n");
    html
}

struct Page<'a> {
    document: &'a Value,
}

impl<'a> Page<'a> {
    fn text(&self, pointer: &str) -> &'a str {
        self.document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn tag_sections(&self) -> &'a [Value] {
        self.document["tags"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Returns the operations with this tag, in the order of the table of routes.
    fn operations(&self, tag: &str) -> impl Iterator<Item = (&'static routes::Route, &'a Value)> {
        routes::ROUTES.iter().filter_map(move |route| {
            let operation = &self.document["paths"][route.path][route.method.to_ascii_lowercase()];
            (operation["tags"][0] == tag).then_some((route, operation))
        })
    }

    /// Follows a `$ref`, if the value is one.
    fn resolve(&self, schema: &'a Value) -> &'a Value {
        let Some(target) = schema["$ref"].as_str() else { return schema };
        self.document.pointer(target.trim_start_matches('#')).unwrap_or(schema)
    }

    fn nav(&self) -> String {
        let mut html = String::from(
            "<nav>\n<strong>Keypeg</strong>\n<a href=\"#terms\">Terms</a>\n\
             <a href=\"#conventions\">Conventions</a>\n<a href=\"#codes\">Error codes</a>\n\
             <a href=\"/openapi.json\">OpenAPI document</a>\n",
        );
        for tag in self.tag_sections() {
            let name = text_of(tag, "name");
            put(&mut html, format_args!("<h3>{name}</h3>\n"));
            for (route, _) in self.operations(name) {
                let summary = escaped(route.summary);
                put(&mut html, format_args!("<a href=\"#{}\">{summary}</a>\n", route.operation));
            }
        }
        html.push_str("</nav>\n");
        html
    }

    fn article(&self, route: &routes::Route, operation: &'a Value) -> String {
        let (method, path) = (route.method, escaped(route.path));
        let mut html = format!(
            "<article id=\"{}\">\n<h3><span class=\"method {method}\">{method}</span>{path}</h3>\n\
             <p><strong>{}.</strong></p>\n",
            route.operation,
            escaped(route.summary),
        );
        html.push_str(&prose(text_of(operation, "description")));
        if let Some(parameters) = operation["parameters"].as_array() {
            html.push_str("<h4>Parameters</h4>\n<table>\n");
            for parameter in parameters {
                let name = escaped(text_of(parameter, "name"));
                let place = escaped(text_of(parameter, "in"));
                let kind = self.kind(&parameter["schema"]);
                let text = prose(text_of(parameter, "description"));
                put(
                    &mut html,
                    format_args!(
                        "<tr><td><code>{name}</code></td><td class=\"kind\">{place}, {kind}</td>\
                         <td>{text}</td></tr>\n"
                    ),
                );
            }
            html.push_str("</table>\n");
        }
        let body = &operation["requestBody"];
        let schema = self.resolve(&body["content"]["application/json"]["schema"]);
        if let Some(members) = schema["properties"].as_object() {
            let optional = if body["required"] == true { "" } else { " (optional)" };
            put(
                &mut html,
                format_args!("<h4>Body{optional}</h4>\n{}", self.members(schema, members)),
            );
        }
        html.push_str(&self.answers(operation));
        put(&mut html, format_args!("<h4>Example</h4>\n<pre>{}</pre>\n", curl(route, operation)));
        html.push_str(&success(operation));
        html.push_str("</article>\n");
        html
    }

    fn members(&self, schema: &Value, members: &'a Map<String, Value>) -> String {
        let mut html = String::from("<table>\n");
        let order = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
        let first = order.iter().filter_map(|name| members.get_key_value(name.as_str()?));
        let rest = members.iter().filter(|(name, _)| !order.iter().any(|first| first == *name));
        for (name, member) in first.chain(rest) {
            let (name, kind) = (escaped(name), self.kind(member));
            let text = prose(text_of(member, "description"));
            put(
                &mut html,
                format_args!(
                    "<tr><td><code>{name}</code></td><td class=\"kind\">{kind}</td>\
                     <td>{text}</td></tr>\n"
                ),
            );
        }
        html.push_str("</table>\n");
        html
    }

    fn answers(&self, operation: &'a Value) -> String {
        let mut html = String::from("<h4>Answers</h4>\n<table>\n");
        let Some(answers) = operation["responses"].as_object() else { return html };
        for (status, answer) in answers {
            let text = prose(text_of(self.resolve(answer), "description"));
            put(
                &mut html,
                format_args!("<tr><td><code>{status}</code></td><td>{text}</td></tr>\n"),
            );
        }
        html.push_str("</table>\n");
        let success = answers.iter().find(|(status, _)| status.starts_with('2'));
        let schema = success
            .map(|(_, answer)| self.resolve(&answer["content"]["application/json"]["schema"]));
        if let Some(schema) = schema
            && let Some(members) = schema["properties"].as_object()
            && !members.is_empty()
        {
            put(
                &mut html,
                format_args!(
                    "<details><summary>Fields of the answer</summary>\n{}</details>\n",
                    self.members(schema, members)
                ),
            );
        }
        html
    }

    /// Describes the type and the limits of a value in a few words.
    fn kind(&self, schema: &'a Value) -> String {
        let schema = self.resolve(schema);
        if let Some(either) = schema["anyOf"].as_array() {
            return either.iter().map(|one| self.kind(one)).collect::<Vec<_>>().join(" or ");
        }
        if let Some(words) = schema["enum"].as_array() {
            let words = words.iter().filter_map(Value::as_str);
            let words = words.map(|word| format!("<code>{}</code>", escaped(word)));
            return words.collect::<Vec<_>>().join(", ");
        }
        let one = schema["type"].as_str().into_iter();
        let many = schema["type"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let types: Vec<_> = one.chain(many).collect();
        let mut kind = types.join(" or ");
        if schema["type"] == "array" {
            put(&mut kind, format_args!(" of {}", self.kind(&schema["items"])));
        }
        let limit = |name: &str| schema[name].is_number().then(|| schema[name].to_string());
        match (limit("minimum"), limit("maximum")) {
            (Some(min), Some(max)) => put(&mut kind, format_args!(", {min}..{max}")),
            (Some(min), None) if min != "0" => put(&mut kind, format_args!(", from {min}")),
            _ => {}
        }
        if let Some(max) = limit("maxLength").or_else(|| limit("maxItems")) {
            put(&mut kind, format_args!(", at most {max}"));
        }
        if let Some(format) = schema["format"].as_str().filter(|format| *format == "date-time") {
            put(&mut kind, format_args!(", {format}"));
        }
        kind
    }

    fn codes() -> String {
        let mut html = String::from(
            "<h2 id=\"codes\">Error codes</h2>\n<table>\n\
             <tr><th>code</th><th>status</th><th>meaning</th></tr>\n",
        );
        let meanings = code_meanings();
        for code in Code::ALL {
            put(
                &mut html,
                format_args!(
                    "<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                    link(code),
                    code.status(),
                    prose(&meanings[code.as_str()]),
                ),
            );
        }
        html.push_str("</table>\n");
        html
    }
}

/// Returns a curl command for the operation.
fn curl(route: &routes::Route, operation: &Value) -> String {
    let mut path = route.path.to_owned();
    let mut headers = String::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let (name, example) = (text_of(parameter, "name"), text_of(parameter, "example"));
        path = path.replace(&format!("{{{name}}}"), example);
    }
    if let Some(body) = shown_body(operation) {
        headers = format!(" \\\n  -H 'content-type: application/json' -d '{body}'");
    }
    let method =
        if route.method == "GET" { String::new() } else { format!(" -X {}", route.method) };
    escaped(&format!("curl{method} {BASE_URL}{path}{headers}"))
}

/// Returns the body of the request that is shown: the first example by name that has a field.
fn shown_body(operation: &Value) -> Option<&Value> {
    let examples = operation["requestBody"]["content"]["application/json"]["examples"].as_object();
    let mut values = examples?.values().map(|example| &example["value"]);
    values.find(|value| value.as_object().is_some_and(|value| !value.is_empty()))
}

/// Returns the example of the successful answer, as text.
fn success(operation: &Value) -> String {
    let text = success_example(operation).map(serde_json::to_string_pretty);
    let text = text.and_then(Result::ok);
    text.map_or_else(String::new, |text| format!("<pre>{}</pre>\n", escaped(&text)))
}

/// Returns the example of the successful answer.
fn success_example(operation: &Value) -> Option<&Value> {
    let answers = operation["responses"].as_object()?;
    let (_, answer) = answers.iter().find(|(status, _)| status.starts_with('2'))?;
    let example = &answer["content"]["application/json"]["example"];
    (!example.is_null()).then_some(example)
}

fn text_of<'v>(value: &'v Value, member: &str) -> &'v str {
    value[member].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: the page showed `{"all":true}` above an answer with a missing key, and a time of
    /// 30 seconds above a lease of 60.
    #[test]
    fn each_answer_fits_the_request_that_is_shown_above_it() {
        let document = document();
        let mut compared = 0;
        for route in routes::ROUTES {
            let operation = &document["paths"][route.path][route.method.to_ascii_lowercase()];
            let (Some(body), Some(answer)) = (shown_body(operation), success_example(operation))
            else {
                continue;
            };
            for (field, value) in body.as_object().unwrap() {
                let context = format!("{} {}: {field}", route.method, route.path);
                let answered = match field.as_str() {
                    "ttl_seconds" => answer["expires_in_seconds"].clone(),
                    "count" | "values" => answer["keys"].as_array().unwrap().len().into(),
                    "ids" => {
                        let missing = answer["missing"].as_array().unwrap().len() as u64;
                        (answer["kept"].as_u64().unwrap() + missing).into()
                    }
                    _ => answer[field].clone(),
                };
                let expected = value.as_array().map_or(value.clone(), |list| list.len().into());
                // What the answer does not repeat cannot contradict it.
                if !answered.is_null() {
                    assert_eq!(answered, expected, "{context}");
                    compared += 1;
                }
                assert_ne!(field, "all", "{context}: the answer names a missing key");
            }
        }
        assert!(compared > 6, "{compared} fields");
    }

    #[test]
    fn the_page_lists_each_route_and_each_code() {
        let page = reference_page();
        for route in routes::ROUTES {
            assert!(page.contains(&format!("<article id=\"{}\">", route.operation)), "{route:?}");
            assert!(page.contains(&format!("<a href=\"#{}\">", route.operation)), "{route:?}");
        }
        assert!(!page.contains("</code></td><td></td>"), "each answer has a description");
        for code in Code::ALL {
            let row = format!("<tr><td>{}</td><td>{}</td>", link(code), code.status());
            assert!(page.contains(&row), "{code:?}");
        }
        for forbidden in ["<script", "http://cdn", "https://", "style=", "src="] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}

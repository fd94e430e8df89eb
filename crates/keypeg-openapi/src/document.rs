//! The API as an `OpenAPI` 3.1 document, built from the table of routes, the wire types and the
//! table of error codes.
//!
//! The server does not build the document: it embeds `docs/openapi.json`, and a test compares that
//! file with [`document_json`].

mod call;
mod calls;
mod cluster_calls;
mod examples;
mod links;
mod parameters;
mod pool_calls;
mod schemas;

pub(crate) use schemas::code_meanings;

use call::{Answer, Call, RequestBody};
use calls::call;
use keypeg_client::Code;
use keypeg_client::routes::{Access, ROUTES, Route, Scope};
use schemas::CodeMeanings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The description of the whole API.
const DESCRIPTION: &str = "\
Keypeg keeps pools of API keys. It lends a random available key to a client under a lease, takes \
the key back when the lease ends, and purges keys that are not kept alive.\n\n\
HEAD is supported wherever GET is, unless GET would lend a key. OPTIONS of any path gets 204 with \
`Allow`. A path that is not listed here gets 404 `not_found`. A method that its path does not \
support gets 405 `method_not_allowed`, with `Allow`. A query parameter that is not listed gets 422 \
`invalid` below `/v1`. A change of keys or leases with `If-Match`, `If-None-Match` or \
`If-Unmodified-Since` gets 412 `precondition_failed`. A request head that is not valid HTTP gets \
400 `malformed`, and a head of more than 64 KiB gets 431 `too_large`. Every problem is `application/problem+json` (RFC 9457); its `type` is \
the path of a page of this server that explains it. Every answer has an `x-request-id`.";

const PROBLEM: &str = "application/problem+json";

/// The codes that no listed route answers: they are for paths and methods that do not exist.
const CODES_WITHOUT_ROUTE: [Code; 3] = [Code::NotFound, Code::MethodNotAllowed, Code::NotOwner];

/// The groups of operations, in order: name and description.
const TAGS: [(&str, &str); 6] = [
    ("Pools", "A named set of keys with one policy. `default` always exists."),
    ("Keys", "A secret value with a public id. The id reveals nothing about the value."),
    ("Leases", "The exclusive right to use one key for a limited time."),
    (
        "Django API",
        "The routes of the Django version, for its existing clients. They use the default pool.",
    ),
    ("Simple API", "A minimal API that many key services share. It uses the default pool."),
    ("Server", "Health, version, metrics and documentation of the server."),
];

/// Builds the document, as the text of `docs/openapi.json`.
pub fn document_json() -> String {
    let document = document();
    format!("{document:#}\n")
}

/// Builds the document.
pub(crate) fn document() -> Value {
    let mut schemas = schemas::all();
    let meanings = code_meanings();
    schemas.insert(
        "Empty".into(),
        json!({
            "description": "An object without fields.",
            "type": "object", "additionalProperties": false,
        }),
    );
    schemas.insert(
        "SeedAdd".into(),
        json!({
            "description": "The value to add. Without it the server generates one.",
            "type": "object",
            "properties": { "api_key": { "type": "string", "minLength": 1, "maxLength": keypeg_fields::VALUE_MAX } },
        }),
    );
    let mut shared = Map::new();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        let mut operation = operation(route, &call(route.operation));
        operation["responses"] = responses(route, &call(route.operation), &meanings, &mut shared);
        path[route.method.to_ascii_lowercase()] = operation;
    }
    let problems = Code::ALL
        .into_iter()
        .filter(|code| !CODES_WITHOUT_ROUTE.contains(code))
        .map(|code| (code.as_str().to_owned(), json!({ "value": examples::problem(code) })));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Keypeg", "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": TAGS.map(|(name, text)| json!({ "name": name, "description": text })),
        "paths": paths,
        "components": {
            "schemas": schemas, "headers": headers(), "responses": shared,
            "securitySchemes": { "token": {
                "type": "http", "scheme": "bearer",
                "description": "An access token. A server without access tokens requires none.",
            } },
            "examples": problems.collect::<Map<_, _>>(),
        },
    })
}

fn headers() -> Value {
    let header = |schema: Value, text| json!({ "schema": schema, "description": text });
    let string = || json!({ "type": "string" });
    json!({
        "RequestId": header(
            string(),
            "The id of the request, as in the `request_id` of a problem.",
        ),
        "CacheControl": header(
            json!({ "type": "string", "enum": ["no-store"] }),
            "The answer can contain a secret or a state that changes, so it must not be stored.",
        ),
        "Location": header(
            string(), "The path of the new pool, or of the new key if the call created one key."),
        "WwwAuthenticate": header(
            string(), "`Bearer`, with the error of RFC 6750 if the request carried a token."),
        "RetryAfter": header(
            json!({ "type": "integer", "minimum": 0 }),
            "Seconds after which the same request can succeed.",
        ),
        "PreferenceApplied": header(string(), "`wait=N`, if the request has `Prefer: wait=N`."),
    })
}

fn operation(route: &Route, call: &Call) -> Value {
    let mut parameters: Vec<_> = path_parameters(route.path).collect();
    parameters.extend(call.parameters.iter().cloned());
    let mut operation = json!({
        "operationId": route.operation,
        "summary": route.summary,
        "tags": [tag(route.path)],
    });
    let mut description = call.description.to_owned();
    match route.access {
        Access::Open => operation["security"] = json!([]),
        Access::Token => operation["security"] = json!([{}, { "token": [] }]),
        Access::Scope(scope) => {
            operation["security"] = json!([{}, { "token": [scope.as_str()] }]);
            let requires = format!("Required scope of the access token: `{}`.", scope.as_str());
            description = if description.is_empty() {
                requires
            } else {
                format!("{description}\n\n{requires}")
            };
        }
    }
    if !description.is_empty() {
        operation["description"] = description.into();
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    let (schema, examples, required) = match &call.body {
        RequestBody::None => return operation,
        RequestBody::Optional(schema, examples) => (schema, examples, false),
        RequestBody::Required(schema, examples) => (schema, examples, true),
    };
    let mut content = json!({ "schema": { "$ref": format!("#/components/schemas/{schema}") } });
    for (name, example) in examples {
        content["examples"][name] = json!({ "value": example });
    }
    operation["requestBody"] =
        json!({ "required": required, "content": { "application/json": content } });
    operation
}

fn path_parameters(path: &str) -> impl Iterator<Item = Value> {
    path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        let id = json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$" });
        let (schema, example, text) = match name {
            "pool" => {
                let name = json!({ "type": "string", "pattern": schemas::pool_name() });
                (name, "default".into(), "The name of the pool.")
            }
            "lease" => (id, examples::LEASE_ID.into(), "The id of the lease."),
            "shard" => {
                let number = json!({ "type": "integer", "minimum": 0, "maximum": 127 });
                (number, json!(1), "The number of the shard.")
            }
            _ => (id, examples::KEY_ID.into(), "The id of the key."),
        };
        Some(json!({
            "name": name, "in": "path", "required": true, "schema": schema, "example": example,
            "description": text,
        }))
    })
}

fn tag(path: &str) -> &'static str {
    let tag = match path {
        _ if path.contains("/leases") => "Leases",
        _ if path.ends_with("/events") || path.ends_with("/history") => "Pools",
        _ if path.starts_with("/v1/pools/{pool}/") => "Keys",
        _ if path.starts_with("/v1/pools") => "Pools",
        _ if path.starts_with("/api/") => "Django API",
        _ if path.starts_with("/keys") || path.starts_with("/keepalive") => "Simple API",
        _ => "Server",
    };
    debug_assert!(TAGS.iter().any(|(name, _)| *name == tag));
    tag
}

/// Returns whether the route changes something or lends a key.
fn changes(route: &Route) -> bool {
    route.method != "GET" || route.access == Access::Scope(Scope::Lend)
}

/// Returns whether the route reads a body, so that the body can be a reason to refuse.
fn reads_body(call: &Call) -> bool {
    !matches!(call.body, RequestBody::None)
}

/// Returns every problem code of a route: its own, and those that it shares.
fn codes(route: &Route, call: &Call) -> Vec<Code> {
    let mut codes = vec![Code::Malformed, Code::Misdirected, Code::Internal];
    codes.extend(call.problems);
    if route.access != Access::Open {
        codes.extend([Code::Unauthorized, Code::RateLimited]);
    }
    if changes(route) || matches!(route.access, Access::Scope(_)) {
        codes.push(Code::Forbidden);
    }
    // Below /v1 a parameter or a body that the route does not have is refused.
    let is_canonical = route.path.starts_with("/v1/");
    if is_canonical {
        codes.push(Code::Invalid);
    }
    if is_canonical && changes(route) {
        codes.push(Code::PreconditionFailed);
    }
    if reads_body(call) || (is_canonical && route.method == "DELETE") {
        codes.extend([Code::Timeout, Code::TooLarge, Code::UnsupportedMediaType, Code::Invalid]);
    }
    if matches!(route.access, Access::Scope(_)) {
        codes.extend([Code::Overloaded, Code::ShuttingDown]);
    }
    if route.pool_of(route.path).is_some() || route.shard_of(route.path).is_some() {
        codes.push(Code::NoOwner);
        if route.method != "GET" || route.lends() {
            codes.push(Code::OwnerLost);
        }
    }
    if route.path.contains("{pool}") && route.operation != "putPool" {
        codes.push(Code::UnknownPool);
    }
    // In the order of the table, each code once.
    Code::ALL.into_iter().filter(|code| codes.contains(code)).collect()
}

/// Returns the status of a code on a route. A full disk rejects grants with 503, because a grant
/// can succeed later.
fn status(route: &Route, code: Code) -> u16 {
    let grants = ["acquire", "seedAcquire", "plainAcquire"].contains(&route.operation);
    if code == Code::StorageFull && grants { 503 } else { code.status() }
}

/// Returns the responses of an operation. Problem responses without a text of their own go to
/// `shared`.
fn responses(
    route: &Route,
    call: &Call,
    meanings: &CodeMeanings,
    shared: &mut Map<String, Value>,
) -> Value {
    let mut problems: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes(route, call) {
        problems.entry(status(route, code)).or_default().push(code);
    }
    let mut responses = Map::new();
    for answer in &call.answers {
        let mut response = response_of(answer);
        if let Some(codes) = problems.remove(&answer.status) {
            let text = format!("{}\n\n{}", answer.text, status_descriptions(&codes, meanings));
            response["description"] = text.into();
            response["content"][PROBLEM] = problem(answer.status, &codes);
            response[CODES] = words(&codes);
        }
        response["headers"] = headers_of(route, answer.status, true);
        let links = links::links(route.operation);
        if answer.status < 300 && !links.is_null() {
            response["links"] = links;
        }
        responses.insert(answer.status.to_string(), response);
    }
    for (status, codes) in problems {
        let response = json!({
            "description": status_descriptions(&codes, meanings),
            "content": { PROBLEM: problem(status, &codes) },
            "headers": headers_of(route, status, false),
            CODES: words(&codes),
        });
        let mut name = component_name(status, &codes);
        if *shared.entry(&*name).or_insert_with(|| response.clone()) != response {
            name = format!("{name}Of{}", pascal_case(route.operation));
            shared.insert(name.clone(), response);
        }
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        responses.insert(status.to_string(), reference);
    }
    responses.into()
}

fn response_of(answer: &Answer) -> Value {
    let mut response = json!({ "description": answer.text });
    if let Some((content_type, schema, example)) = &answer.content {
        let mut content = json!({ "schema": schema });
        if !example.is_null() {
            content["example"] = example.clone();
        }
        response["content"][content_type] = content;
    }
    response
}

/// The extension that lists the problem codes of a response. Each of these is a plain [`Problem`],
/// because many generators of clients do not support narrowed schemas.
///
/// [`Problem`]: keypeg_client::Problem
const CODES: &str = "x-codes";

fn words(codes: &[Code]) -> Value {
    codes.iter().map(|code| code.as_str()).collect()
}

/// Returns a name for a shared response, which is an identifier in every language.
fn component_name(status: u16, codes: &[Code]) -> String {
    let words: String = codes.iter().map(|code| pascal_case(code.as_str())).collect();
    format!("Status{status}{words}")
}

/// Writes `snake_case` or `camelCase` as `PascalCase`.
fn pascal_case(word: &str) -> String {
    let parts = word.split('_').map(|part| {
        let (first, rest) = part.split_at(part.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    parts.collect()
}

/// Returns the descriptions of the codes, which are the doc comments of [`Code`].
fn status_descriptions(codes: &[Code], meanings: &CodeMeanings) -> String {
    let meaning = |code: &Code| format!("`{0}`: {1}", code.as_str(), meanings[code.as_str()]);
    codes.iter().map(meaning).collect::<Vec<_>>().join("\n\n")
}

fn problem(status: u16, codes: &[Code]) -> Value {
    let mut examples = json!({});
    // A code with more than one status has its example at its usual status only.
    for code in codes.iter().filter(|code| code.status() == status) {
        examples[code.as_str()] =
            json!({ "$ref": format!("#/components/examples/{}", code.as_str()) });
    }
    json!({
        "schema": { "$ref": "#/components/schemas/Problem" },
        "examples": examples,
    })
}

fn headers_of(route: &Route, status: u16, has_own_text: bool) -> Value {
    let header = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
    let mut headers = json!({ "x-request-id": header("RequestId") });
    let is_embedded = ["openapi", "docs", "docsStyle"].contains(&route.operation);
    if has_own_text && !is_embedded {
        headers["Cache-Control"] = header("CacheControl");
    }
    if has_own_text && status == 201 && ["putPool", "addKeys"].contains(&route.operation) {
        headers["Location"] = header("Location");
    }
    if status == 401 || status == 403 {
        headers["WWW-Authenticate"] = header("WwwAuthenticate");
    }
    if status == 503 || status == 429 || (route.operation == "acquire" && status == 404) {
        headers["Retry-After"] = header("RetryAfter");
    }
    if route.operation == "acquire" && [201, 404, 503].contains(&status) {
        headers["Preference-Applied"] = header("PreferenceApplied");
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reference_has_a_target_in_the_document() {
        fn check(part: &Value, whole: &Value, count: &mut u32) {
            if let Some(target) = part.get("$ref").and_then(Value::as_str) {
                assert!(whole.pointer(target.trim_start_matches('#')).is_some(), "{target}");
                *count += 1;
            }
            let (members, items) = (part.as_object(), part.as_array());
            members.into_iter().flat_map(Map::values).for_each(|part| check(part, whole, count));
            items.into_iter().flatten().for_each(|part| check(part, whole, count));
        }
        let (document, mut count) = (document(), 0);
        check(&document, &document, &mut count);
        assert!(count > 100, "{count}");
    }

    /// Generators of clients make types and functions of these names.
    #[test]
    fn each_component_name_is_an_identifier() {
        let document = document();
        let kinds = document["components"].as_object().unwrap();
        for name in kinds.values().flat_map(|kind| kind.as_object().unwrap().keys()) {
            let is_identifier = name.starts_with(|first: char| first.is_ascii_alphabetic())
                && name.chars().all(|symbol| symbol.is_ascii_alphanumeric() || symbol == '_');
            assert!(is_identifier, "{name}");
        }
    }

    /// Many generators of clients do not support these.
    #[test]
    fn no_schema_narrows_another_one_or_lists_constants() {
        let text = document().to_string();
        for keyword in ["\"allOf\"", "\"const\":\"", "\"enum\":[true]"] {
            assert!(!text.contains(keyword), "{keyword}");
        }
    }

    #[test]
    fn each_shared_part_is_used() {
        let document = document();
        let text = document.to_string();
        for (kind, parts) in document["components"].as_object().unwrap() {
            for name in parts.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
                let reference = format!("\"#/components/{kind}/{name}\"");
                assert!(text.contains(&reference), "{kind}/{name} is used nowhere");
            }
        }
    }

    #[test]
    fn each_code_is_documented_at_a_route_or_belongs_to_no_route() {
        for code in Code::ALL {
            let is_documented =
                ROUTES.iter().any(|route| codes(route, &call(route.operation)).contains(&code));
            assert_eq!(is_documented, !CODES_WITHOUT_ROUTE.contains(&code), "{code:?}");
        }
    }
}

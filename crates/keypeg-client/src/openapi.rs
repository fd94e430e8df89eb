//! The API as an `OpenAPI` 3.1 document, made from what the code has: the table of routes, the wire
//! types, the table of codes.
//!
//! The server does not make it: it embeds `docs/openapi.json`, which a test holds against this.

mod calls;
mod examples;
mod parameters;
mod schemas;

use crate::Code;
use crate::routes::{Access, ROUTES, Route, Scope};
use calls::{Call, Gives, Takes, call};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What the document begins with.
const ABOUT: &str = "\
Keypeg keeps pools of API keys, lends a random free one to whoever asks, takes it back in time, and \
forgets keys nobody keeps alive.\n\n\
HEAD is answered wherever GET is, but where GET would lend a key. A path that is none of these is \
refused with 404 `not_found`, a method that is none of its path's with 405 `method_not_allowed` and \
`Allow`, a head that is no HTTP with 400 `malformed`, one over 64 KiB with 431 `too_large`. Every problem is `application/problem+json` \
(RFC 9457) and every answer has its `x-request-id`.";

const PROBLEM: &str = "application/problem+json";

/// The groups of operations, in order, each with what it is about.
const TAGS: [(&str, &str); 6] = [
    ("Pools", "A named set of keys with one policy. `default` always exists."),
    ("Keys", "A secret value with a public id that tells nothing of it."),
    ("Leases", "The exclusive, time-bounded right to use one key."),
    ("Seed", "The Django version's calls, word for word, on the default pool."),
    ("Plain", "The shape most services of this kind share, on the default pool."),
    ("Server", "What tells about the server rather than about keys."),
];

/// Makes the document.
pub fn document() -> Value {
    let mut schemas = schemas::all();
    schemas.insert(
        "Empty".into(),
        json!({
            "description": "Nothing to say.", "type": "object", "additionalProperties": false,
        }),
    );
    schemas.insert(
        "SeedAdd".into(),
        json!({
            "description": "A key to be added; one is made when it is left out.", "type": "object",
            "properties": { "api_key": { "type": "string", "minLength": 1, "maxLength": 4096 } },
        }),
    );
    let mut shared = Map::new();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        let mut operation = operation(route, &call(route.operation));
        operation["responses"] = responses(route, &call(route.operation), &schemas, &mut shared);
        path[route.method.to_ascii_lowercase()] = operation;
    }
    let problems = Code::ALL
        .map(|code| (code.as_str().to_owned(), json!({ "value": examples::problem(code) })));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Keypeg", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT,
        },
        "servers": [{ "url": "/" }],
        "tags": TAGS.map(|(name, about)| json!({ "name": name, "description": about })),
        "paths": paths,
        "components": {
            "schemas": schemas, "headers": headers(), "responses": shared,
            "securitySchemes": { "token": {
                "type": "http", "scheme": "bearer",
                "description": "An access token, where the server has any: else nothing is wanted.",
            } },
            "examples": Map::from_iter(problems),
        },
    })
}

fn headers() -> Value {
    let header = |schema: Value, text| json!({ "schema": schema, "description": text });
    let string = || json!({ "type": "string" });
    json!({
        "RequestId": header(string(), "The request's id, as problems name it."),
        "CacheControl": header(json!({ "const": "no-store" }), "A secret may be in the body."),
        "WwwAuthenticate": header(
            string(), "`Bearer`, with the error of RFC 6750 where a token was shown."),
        "RetryAfter": header(
            json!({ "type": "integer", "minimum": 0 }),
            "Whole seconds after which asking again may help.",
        ),
        "PreferenceApplied": header(string(), "`wait=N`, where `Prefer` asked for a wait."),
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
    let mut about = call.about.to_owned();
    match route.access {
        Access::Open => {}
        Access::Token => operation["security"] = json!([{}, { "token": [] }]),
        Access::Scope(scope) => {
            operation["security"] = json!([{}, { "token": [scope.as_str()] }]);
            let wants = format!("A token wants the scope `{}`.", scope.as_str());
            about = if about.is_empty() { wants } else { format!("{about}\n\n{wants}") };
        }
    }
    if !about.is_empty() {
        operation["description"] = about.into();
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    let (schema, given, required) = match &call.takes {
        Takes::Nothing => return operation,
        Takes::Maybe(schema, given) => (schema, given, false),
        Takes::Object(schema, given) => (schema, given, true),
    };
    let mut content = json!({ "schema": { "$ref": format!("#/components/schemas/{schema}") } });
    for (name, example) in given {
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
                let name = json!({ "type": "string", "pattern": schemas::POOL_NAME });
                (name, "default", "The pool's name.")
            }
            "lease" => (id, examples::LEASE_ID, "The lease's id."),
            _ => (id, examples::KEY_ID, "The key's id."),
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
        _ if path.ends_with("/events") => "Pools",
        _ if path.starts_with("/v1/pools/{pool}/") => "Keys",
        _ if path.starts_with("/v1/pools") => "Pools",
        _ if path.starts_with("/api/") => "Seed",
        _ if path.starts_with("/keys") || path.starts_with("/keepalive") => "Plain",
        _ => "Server",
    };
    debug_assert!(TAGS.iter().any(|(name, _)| *name == tag));
    tag
}

/// Whether the route makes, ends or lends something.
fn changes(route: &Route) -> bool {
    route.method != "GET" || route.access == Access::Scope(Scope::Lend)
}

/// Whether a body's bytes can be why the route refuses.
fn reads_body(call: &Call) -> bool {
    !matches!(call.takes, Takes::Nothing)
}

/// Every problem of a route: its own, and those it shares.
fn codes(route: &Route, call: &Call) -> Vec<Code> {
    let mut codes = vec![Code::Malformed, Code::Misdirected, Code::Internal];
    codes.extend(call.refuses);
    if route.access != Access::Open {
        codes.extend([Code::Unauthorized, Code::RateLimited]);
    }
    if changes(route) || matches!(route.access, Access::Scope(_)) {
        codes.push(Code::Forbidden);
    }
    if reads_body(call) {
        codes.extend([Code::Timeout, Code::TooLarge, Code::UnsupportedMediaType, Code::Invalid]);
    }
    if matches!(route.access, Access::Scope(_)) {
        codes.extend([Code::Overloaded, Code::ShuttingDown]);
    }
    if route.path.contains("{pool}") && route.operation != "putPool" {
        codes.push(Code::UnknownPool);
    }
    // In the table's order, each once.
    Code::ALL.into_iter().filter(|code| codes.contains(code)).collect()
}

/// A full disk stops grants for a while: whoever asks for a key is told to come again.
fn status(route: &Route, code: Code) -> u16 {
    let grants = ["acquire", "seedAcquire", "plainAcquire"].contains(&route.operation);
    if code == Code::StorageFull && grants { 503 } else { code.status() }
}

/// An operation's answers. Those that say no in the common words alone go to `shared`.
fn responses(
    route: &Route,
    call: &Call,
    schemas: &Map<String, Value>,
    shared: &mut Map<String, Value>,
) -> Value {
    let mut refused: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes(route, call) {
        refused.entry(status(route, code)).or_default().push(code);
    }
    let mut responses = Map::new();
    for gives in &call.gives {
        let mut response = given(gives);
        if let Some(codes) = refused.remove(&gives.status) {
            let says = format!("{}\n\n{}", gives.says, meanings(&codes, schemas));
            response["description"] = says.into();
            response["content"][PROBLEM] = problem(route, gives.status, &codes);
        }
        response["headers"] = headers_of(route, gives.status, true);
        let links = calls::links(route.operation);
        if gives.status < 300 && !links.is_null() {
            response["links"] = links;
        }
        responses.insert(gives.status.to_string(), response);
    }
    for (status, codes) in refused {
        let response = json!({
            "description": meanings(&codes, schemas),
            "content": { PROBLEM: problem(route, status, &codes) },
            "headers": headers_of(route, status, false),
        });
        let words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
        let of = if route.method == "GET" { "" } else { ".change" };
        let mut name = format!("{status}.{}{of}", words.join("."));
        if *shared.entry(&*name).or_insert_with(|| response.clone()) != response {
            name = format!("{name}.{}", route.operation);
            shared.insert(name.clone(), response);
        }
        let to = json!({ "$ref": format!("#/components/responses/{name}") });
        responses.insert(status.to_string(), to);
    }
    responses.into()
}

fn given(gives: &Gives) -> Value {
    let mut response = json!({ "description": gives.says });
    if let Some((content_type, schema, example)) = &gives.content {
        let mut content = json!({ "schema": schema });
        if !example.is_null() {
            content["example"] = example.clone();
        }
        response["content"][content_type] = content;
    }
    response
}

/// The codes' sentences, as their type tells them.
fn meanings(codes: &[Code], schemas: &Map<String, Value>) -> String {
    let words = schemas["Code"]["oneOf"].as_array().expect("invariant: codes are words");
    let meaning = |code: &Code| {
        let word = words.iter().find(|word| word["const"] == code.as_str());
        let says = word.and_then(|word| word["description"].as_str());
        format!("`{}`: {}", code.as_str(), says.expect("invariant: a code says what it is"))
    };
    codes.iter().map(meaning).collect::<Vec<_>>().join("\n\n")
}

fn problem(route: &Route, status: u16, codes: &[Code]) -> Value {
    let words: Vec<_> = codes.iter().map(|code| code.as_str()).collect();
    let mut narrowed = json!({
        "properties": { "code": { "enum": words }, "status": { "const": status } },
    });
    if route.method != "GET" {
        narrowed["required"] = json!(["outcome"]);
    }
    let mut examples = json!({});
    // The one code whose status is not always the same has its example where it is the usual one.
    for code in codes.iter().filter(|code| code.status() == status) {
        examples[code.as_str()] =
            json!({ "$ref": format!("#/components/examples/{}", code.as_str()) });
    }
    json!({
        "schema": { "allOf": [{ "$ref": "#/components/schemas/Problem" }, narrowed] },
        "examples": examples,
    })
}

fn headers_of(route: &Route, status: u16, own: bool) -> Value {
    let header = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
    let mut headers = json!({ "x-request-id": header("RequestId") });
    if own && ["/v1/", "/api/", "/keys"].iter().any(|start| route.path.starts_with(start)) {
        headers["Cache-Control"] = header("CacheControl");
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

    /// Every `$ref` of the document leads to something in it.
    #[test]
    fn what_is_referred_to_is_there() {
        fn check(part: &Value, whole: &Value, count: &mut u32) {
            if let Some(to) = part.get("$ref").and_then(Value::as_str) {
                assert!(whole.pointer(to.trim_start_matches('#')).is_some(), "{to}");
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

    #[test]
    fn every_code_is_the_problem_of_some_route_or_of_none() {
        let of_none = [Code::NotFound, Code::MethodNotAllowed];
        for code in Code::ALL {
            let told =
                ROUTES.iter().any(|route| codes(route, &call(route.operation)).contains(&code));
            assert_eq!(told, !of_none.contains(&code), "{code:?}");
        }
    }
}

//! The wire types as JSON Schema: derived from the types, and narrowed by limits that a type cannot
//! express.
//!
//! All members of what the server writes are required; all members of what it reads are optional.
//! A limit on a member that does not exist is a panic, so no limit outlives its member.

use keypeg_client::{
    AcquireRequest, Code, GenerateRequest, Grant, KeepAliveRequest, KeptAlive, KeptAliveMany, Key,
    KeyLease, KeyPage, KeyReleased, KeyState, Lease, NewKey, NewKeys, Outcome, PolicyRequest, Pool,
    Pools, Problem, ReleaseRequest, RenewRequest, RevealedKey,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The pattern of a pool name.
pub(super) const POOL_NAME: &str = "^[a-z0-9][a-z0-9_.-]{0,63}$";
/// The maximum duration in seconds: seven days.
const DURATION_MAX: u32 = 604_800;
/// The maximum fencing token: below 2^53, so that every JSON parser can represent it.
const TOKEN_MAX: u64 = (1 << 53) - 1;

/// Returns all schemas by name.
pub(super) fn all() -> Map<String, Value> {
    let mut written = generator(true);
    add_written(&mut written);
    let mut read = generator(false);
    add_read(&mut read);
    let mut schemas = written.take_definitions(true);
    for (name, mut schema) in read.take_definitions(true) {
        schema["additionalProperties"] = false.into();
        schemas.insert(name, schema);
    }
    for (schema, member, limits) in limits() {
        narrow(&mut schemas, schema, member, limits);
    }
    // A member that does not apply is absent, never null.
    absent_not_null(&mut schemas["Problem"]);
    schemas["GenerateRequest"]["not"] = json!({ "required": ["count", "values"] });
    schemas["GenerateRequest"]["dependentRequired"] =
        json!({ "keepalive": ["values"], "allow_retired": ["values"] });
    schemas["KeepAliveRequest"]["oneOf"] =
        json!([{ "required": ["ids"] }, { "required": ["all"] }]);
    for schema in schemas.values_mut() {
        remove_rust_keywords(schema);
    }
    schemas
}

fn generator(written: bool) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let settings = if written { settings.for_serialize() } else { settings.for_deserialize() };
    settings.into_generator()
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

fn add_written(generator: &mut SchemaGenerator) {
    add::<Pools>(generator);
    add::<Pool>(generator);
    add::<KeyState>(generator);
    add::<Key>(generator);
    add::<KeyLease>(generator);
    add::<KeyPage>(generator);
    add::<NewKey>(generator);
    add::<NewKeys>(generator);
    add::<KeptAlive>(generator);
    add::<KeptAliveMany>(generator);
    add::<KeyReleased>(generator);
    add::<RevealedKey>(generator);
    add::<Grant>(generator);
    add::<Lease>(generator);
    add::<Problem>(generator);
    add::<Code>(generator);
    add::<Outcome>(generator);
}

fn add_read(generator: &mut SchemaGenerator) {
    add::<PolicyRequest>(generator);
    add::<GenerateRequest>(generator);
    add::<KeepAliveRequest>(generator);
    add::<AcquireRequest>(generator);
    add::<ReleaseRequest>(generator);
    add::<RenewRequest>(generator);
}

/// Returns the limits of members beyond their types: schema, member, keywords.
fn limits() -> Vec<(&'static str, &'static str, Value)> {
    let length = json!({ "minimum": 0.001, "maximum": DURATION_MAX });
    let rest = json!({ "minimum": 0, "maximum": DURATION_MAX, "type": "number" });
    let printable = |max: u32, text: &str| {
        json!({
            "type": "string", "maxLength": max, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
            "description": text,
        })
    };
    let described = |limits: &Value, text: &str| {
        let mut limits = limits.clone();
        limits["description"] = text.into();
        limits
    };
    let ttl = |text: &str| {
        json!({
            "type": "number", "minimum": 0.001, "maximum": DURATION_MAX, "description": text,
        })
    };
    let token = json!({ "minimum": 1, "maximum": TOKEN_MAX, "format": "int64" });
    let mut limits = vec![
        ("GenerateRequest", "count", json!({ "type": "integer", "minimum": 1, "maximum": 10_000 })),
        (
            "GenerateRequest",
            "values",
            json!({
                "type": "array", "minItems": 1, "maxItems": 10_000,
                "items": { "type": "string", "minLength": 1, "maxLength": 4096 },
                "description": "Values to import instead, each of 1 to 4096 bytes of UTF-8.",
            }),
        ),
        ("GenerateRequest", "keepalive", json!({ "type": "boolean" })),
        ("GenerateRequest", "allow_retired", json!({ "type": "boolean" })),
        (
            "KeepAliveRequest",
            "ids",
            json!({ "type": "array", "maxItems": 10_000, "description": "The ids of the keys." }),
        ),
        ("KeepAliveRequest", "all", json!({ "type": "boolean", "enum": [true] })),
        (
            "AcquireRequest",
            "ttl_seconds",
            ttl("How long the lease lasts. Maximum and default: `lease_ttl_seconds` of the pool."),
        ),
        (
            "RenewRequest",
            "ttl_seconds",
            ttl("How long the lease lasts from now. Maximum and default: `lease_ttl_seconds` of \
                 the pool."),
        ),
        (
            "AcquireRequest",
            "wait_seconds",
            json!({
                "type": "number", "minimum": 0, "maximum": 300,
                "description": "How long to wait if no key is available. Default: no wait.",
            }),
        ),
        (
            "AcquireRequest",
            "holder",
            printable(128, "A name for the holder: printable characters."),
        ),
        ("ReleaseRequest", "rest_seconds", rest.clone()),
        ("ReleaseRequest", "quarantine", json!({ "type": "boolean" })),
        ("ReleaseRequest", "reason", printable(256, "The reason: printable characters.")),
        (
            "PolicyRequest",
            "lease_ttl_seconds",
            described(&ttl(""), "The maximum length of a lease. Default of a new pool: 60."),
        ),
        (
            "PolicyRequest",
            "max_hold_seconds",
            described(
                &length,
                "The maximum length of a renewed lease, from its grant; not less than \
                 `lease_ttl_seconds`. Null, the default, is equal to `lease_ttl_seconds`, so that \
                 renewing cannot extend a lease beyond it.",
            ),
        ),
        (
            "PolicyRequest",
            "keepalive_ttl_seconds",
            described(
                &length,
                "How long a key lives without a keep-alive; null: it is never purged by time. \
                 Default of a new pool: 300.",
            ),
        ),
        (
            "PolicyRequest",
            "rest_seconds",
            described(
                &rest,
                "How long a key rests after every lease, however it ended. Default of a new pool: \
                 0.",
            ),
        ),
        (
            "PolicyRequest",
            "key_length",
            json!({
                "type": "integer", "minimum": 20, "maximum": 128,
                "description": "The number of symbols `[0-9A-Za-z]` in a generated value after the \
                                prefix: random ones, and four by which the pool recognises the \
                                value. Default of a new pool: 20.",
            }),
        ),
        (
            "PolicyRequest",
            "key_prefix",
            json!({
                "type": "string", "maxLength": 32, "pattern": "^[A-Za-z0-9_-]*$",
                "description": "The prefix of a generated value.",
            }),
        ),
        (
            "PolicyRequest",
            "max_keys",
            json!({
                "minimum": 1, "maximum": 1_000_000_000,
                "description": "The maximum number of keys in the pool. Null, the default: only \
                                the limit of the server applies.",
            }),
        ),
        (
            "Problem",
            "type",
            json!({
                "description": "`/problems/<code>`: the path of a page that explains the code.",
            }),
        ),
        ("Problem", "status", json!({ "minimum": 400, "maximum": 599 })),
    ];
    for (schema, member) in
        [("Grant", "fencing_token"), ("Lease", "fencing_token"), ("KeyLease", "fencing_token")]
    {
        limits.push((schema, member, token.clone()));
    }
    for schema in ["Pool", "Key", "Grant", "Lease"] {
        limits.push((schema, "pool", json!({ "pattern": POOL_NAME })));
    }
    limits
}

fn narrow(schemas: &mut Map<String, Value>, schema: &str, member: &str, limits: Value) {
    let found = schemas
        .get_mut(schema)
        .and_then(|schema| schema["properties"].get_mut(member))
        .and_then(Value::as_object_mut)
        .unwrap_or_else(|| panic!("invariant: {schema} has the member {member}"));
    let Value::Object(limits) = limits else { unreachable!("invariant: limits are keywords") };
    found.remove("default");
    found.extend(limits);
}

/// Makes the members of a schema absent instead of null.
fn absent_not_null(schema: &mut Value) {
    let members = schema["properties"].as_object_mut();
    for member in members.expect("invariant: an object has members").values_mut() {
        if let Some(first) = member["type"].as_array().and_then(|types| types.first()).cloned() {
            member["type"] = first;
        }
        let reference = member["anyOf"][0]["$ref"].as_str().map(str::to_owned);
        if let (Some(reference), Some(keywords)) = (reference, member.as_object_mut()) {
            keywords.remove("anyOf");
            keywords.insert("$ref".into(), reference.into());
        }
    }
}

/// Removes keywords that describe the Rust type rather than the wire.
fn remove_rust_keywords(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.retain(|name, value| {
                let is_rust_format =
                    name == "format" && value.as_str().is_some_and(|f| f.starts_with("uint"));
                !(is_rust_format || name == "default" && value.is_null())
            });
            keywords.values_mut().for_each(remove_rust_keywords);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_rust_keywords),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

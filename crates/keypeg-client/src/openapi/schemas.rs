//! The wire types as JSON Schema: derived from the types, and narrowed by the limits that a type
//! cannot say.
//!
//! What is written has all its members, so they are required; what is read may lack any. A limit
//! on a member that no type has is an error, so none outlives its member.

use crate::{
    AcquireRequest, Code, Freed, GenerateRequest, Grant, KeepAliveRequest, Kept, KeptMany, Key,
    KeyLease, KeyPage, KeyState, Lease, NewKey, NewKeys, Outcome, PolicyRequest, Pool, Pools,
    Problem, ReleaseRequest, RenewRequest, Revealed,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// What a pool may be called.
pub(super) const POOL_NAME: &str = "^[a-z0-9][a-z0-9_.-]{0,63}$";
/// Seven days.
const LENGTH_MAX: u32 = 604_800;
/// Fencing tokens are below 2^53, so that every JSON reader can hold one.
const TOKEN_MAX: u64 = (1 << 53) - 1;

/// All schemas by name.
pub(super) fn all() -> Map<String, Value> {
    let mut written = generator(true);
    write_those(&mut written);
    let mut read = generator(false);
    read_those(&mut read);
    let mut schemas = written.take_definitions(true);
    for (name, mut schema) in read.take_definitions(true) {
        schema["additionalProperties"] = false.into();
        schemas.insert(name, schema);
    }
    for (schema, member, limits) in limits() {
        narrow(&mut schemas, schema, member, limits);
    }
    // What may be left out is left out: it is never null.
    absent_not_null(&mut schemas["Problem"]);
    schemas["GenerateRequest"]["not"] = json!({ "required": ["count", "values"] });
    schemas["KeepAliveRequest"]["oneOf"] =
        json!([{ "required": ["ids"] }, { "required": ["all"] }]);
    for schema in schemas.values_mut() {
        plainer(schema);
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

fn with<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}

fn write_those(generator: &mut SchemaGenerator) {
    with::<Pools>(generator);
    with::<Pool>(generator);
    with::<KeyState>(generator);
    with::<Key>(generator);
    with::<KeyLease>(generator);
    with::<KeyPage>(generator);
    with::<NewKey>(generator);
    with::<NewKeys>(generator);
    with::<Kept>(generator);
    with::<KeptMany>(generator);
    with::<Freed>(generator);
    with::<Revealed>(generator);
    with::<Grant>(generator);
    with::<Lease>(generator);
    with::<Problem>(generator);
    with::<Code>(generator);
    with::<Outcome>(generator);
}

fn read_those(generator: &mut SchemaGenerator) {
    with::<PolicyRequest>(generator);
    with::<GenerateRequest>(generator);
    with::<KeepAliveRequest>(generator);
    with::<AcquireRequest>(generator);
    with::<ReleaseRequest>(generator);
    with::<RenewRequest>(generator);
}

/// What members may be beyond their types: schema, member, keywords. Null takes a keyword away.
fn limits() -> Vec<(&'static str, &'static str, Value)> {
    let length = json!({ "minimum": 0.001, "maximum": LENGTH_MAX });
    let rest = json!({ "minimum": 0, "maximum": LENGTH_MAX, "type": "number" });
    let printable = |max: u32, text: &str| {
        json!({
            "type": "string", "maxLength": max, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
            "description": text,
        })
    };
    let policy = |limits: &Value, text: &str| {
        let mut limits = limits.clone();
        limits["description"] = text.into();
        limits
    };
    let ttl = |text: &str| {
        json!({
            "type": "number", "minimum": 0.001, "maximum": LENGTH_MAX, "description": text,
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
                "description": "Values to bring in instead, each of 1 to 4096 bytes of UTF-8.",
            }),
        ),
        (
            "KeepAliveRequest",
            "ids",
            json!({ "type": "array", "maxItems": 10_000, "description": "The keys." }),
        ),
        ("KeepAliveRequest", "all", json!({ "type": "boolean", "enum": [true] })),
        (
            "AcquireRequest",
            "ttl_seconds",
            ttl("How long, up to the policy's `lease_ttl_seconds`; that when left out."),
        ),
        (
            "RenewRequest",
            "ttl_seconds",
            ttl("How long from now, up to the policy's `lease_ttl_seconds`; that when left out."),
        ),
        (
            "AcquireRequest",
            "wait_seconds",
            json!({
                "type": "number", "minimum": 0, "maximum": 300,
                "description": "How long to wait in line where no key is free; not at all when left out.",
            }),
        ),
        ("AcquireRequest", "holder", printable(128, "Who says to hold it: printable characters.")),
        ("ReleaseRequest", "rest_seconds", rest.clone()),
        ("ReleaseRequest", "quarantine", json!({ "type": "boolean" })),
        ("ReleaseRequest", "reason", printable(256, "Why: printable characters.")),
        (
            "PolicyRequest",
            "lease_ttl_seconds",
            policy(&ttl(""), "The longest a grant lasts. A new pool's default is 60."),
        ),
        (
            "PolicyRequest",
            "max_hold_seconds",
            policy(
                &length,
                "The longest a renewed lease lasts from its grant, not less than `lease_ttl_seconds`; null, the default, follows that, so that renewing cannot stretch a hold.",
            ),
        ),
        (
            "PolicyRequest",
            "keepalive_ttl_seconds",
            policy(
                &length,
                "How long a key lives without a keep-alive; null: never purged by time. A new pool's default is 300.",
            ),
        ),
        (
            "PolicyRequest",
            "rest_seconds",
            policy(
                &rest,
                "How long a key rests after every lease, however it ended. A new pool's default is 0.",
            ),
        ),
        (
            "PolicyRequest",
            "key_length",
            json!({ "type": "integer", "minimum": 16, "maximum": 128, "description": "Random symbols of `[0-9A-Za-z]` in a generated value. A new pool's default is 20." }),
        ),
        (
            "PolicyRequest",
            "key_prefix",
            json!({ "type": "string", "maxLength": 32, "pattern": "^[A-Za-z0-9_-]*$", "description": "What a generated value begins with." }),
        ),
        (
            "PolicyRequest",
            "max_keys",
            json!({ "minimum": 1, "maximum": 1_000_000_000, "description": "The most keys in this pool; null, the default, leaves only the server's own bound." }),
        ),
        ("Problem", "type", json!({ "description": "`/problems/<code>`." })),
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
        .unwrap_or_else(|| panic!("invariant: {schema} has a member {member}"));
    let Value::Object(limits) = limits else { unreachable!("invariant: limits are keywords") };
    found.remove("default");
    found.extend(limits);
}

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

/// Takes out what tells of Rust rather than of the wire.
fn plainer(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.retain(|name, value| {
                let rust =
                    name == "format" && value.as_str().is_some_and(|f| f.starts_with("uint"));
                !(rust || name == "default" && value.is_null())
            });
            keywords.values_mut().for_each(plainer);
        }
        Value::Array(values) => values.iter_mut().for_each(plainer),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

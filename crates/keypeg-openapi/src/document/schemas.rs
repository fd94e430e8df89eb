//! The wire types as JSON Schema: derived from the types, and narrowed by limits that a type cannot
//! express. Those of requests come from keypeg-fields.
//!
//! All members of what the server writes are required; all members of what it reads are optional.
//! A limit on a member that does not exist is a panic, so no limit outlives its member.

use keypeg_client::{
    Access, AcquireRequest, Cluster, ClusterServer, ClusterShard, Code, GenerateRequest, Grant,
    History, KeepAliveRequest, KeptAlive, KeptAliveMany, Key, KeyLease, KeyPage, KeyReleased,
    KeyRequest, KeyState, Lease, MoveShardRequest, NewKey, NewKeys, Outcome, PolicyRequest, Pool,
    Pools, Problem, QuarantineRequest, ReleaseRequest, RenewRequest, RevealedKey, Seconds,
    ShardRole, Verification, VerifyRequest,
};
use keypeg_fields::{Field, Item, Symbols, TextField};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Returns the pattern of a pool name.
pub(super) fn pool_name() -> String {
    format!("^{}$", keypeg_fields::POOL_NAMES)
}

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
    for (schema, fields) in REQUESTS {
        for &field in fields {
            narrow(&mut schemas, schema, field.name(), keywords(field));
        }
    }
    // A member that does not apply is absent, never null.
    absent_not_null(&mut schemas["Problem"]);
    absent_not_null(&mut schemas["Verification"]);
    // Null counts as left out. Generators of clients do not support more: that `keepalive` and
    // `allow_retired` need `values` stands in their descriptions.
    schemas["GenerateRequest"]["not"] = json!({
        "required": ["count", "values"],
        "properties": { "count": { "type": "integer" }, "values": { "type": "array" } },
    });
    for schema in schemas.values_mut() {
        remove_rust_keywords(schema);
        list_words(schema);
    }
    schemas
}

/// What each error code means: its word and the first paragraph of its documentation.
pub(crate) type CodeMeanings = BTreeMap<String, String>;

/// Returns what each error code means.
pub(crate) fn code_meanings() -> CodeMeanings {
    let mut written = generator(true);
    add::<Code>(&mut written);
    words_of(&written.take_definitions(true)["Code"]).expect("invariant: codes are constants")
}

/// Returns the words of an enumeration with their descriptions, if the schema is one.
fn words_of(schema: &Value) -> Option<BTreeMap<String, String>> {
    let word = |one: &Value| {
        let word = one["const"].as_str()?;
        let text = one["description"].as_str().expect("invariant: each word has a description");
        Some((word.to_owned(), text.to_owned()))
    };
    schema["oneOf"].as_array()?.iter().map(word).collect()
}

/// Writes an enumeration as a list of words, which every generator of clients supports. What each
/// word means moves to the description.
fn list_words(schema: &mut Value) {
    let Some(meanings) = words_of(schema) else { return };
    let alternatives = schema["oneOf"].as_array().into_iter().flatten();
    let words: Vec<_> = alternatives.filter_map(|one| one["const"].as_str()).collect();
    let meanings = words.iter().map(|word| format!("\n\n`{word}`: {}", meanings[*word]));
    let text = schema["description"].as_str().unwrap_or_default().to_owned();
    let text = text + &meanings.collect::<String>();
    *schema = json!({ "type": "string", "enum": words, "description": text });
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
    add::<Access>(generator);
    add::<History>(generator);
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
    add::<Verification>(generator);
    add::<Grant>(generator);
    add::<Lease>(generator);
    add::<Problem>(generator);
    add::<Code>(generator);
    add::<Outcome>(generator);
    add::<Cluster>(generator);
    add::<ClusterServer>(generator);
    add::<ClusterShard>(generator);
    add::<ShardRole>(generator);
}

fn add_read(generator: &mut SchemaGenerator) {
    add::<PolicyRequest>(generator);
    add::<GenerateRequest>(generator);
    add::<KeyRequest>(generator);
    add::<QuarantineRequest>(generator);
    add::<KeepAliveRequest>(generator);
    add::<AcquireRequest>(generator);
    add::<ReleaseRequest>(generator);
    add::<RenewRequest>(generator);
    add::<VerifyRequest>(generator);
    add::<MoveShardRequest>(generator);
}

/// The requests and their fields.
const REQUESTS: [(&str, &[Field]); 10] = [
    ("PolicyRequest", &keypeg_fields::POLICY),
    ("GenerateRequest", &keypeg_fields::ADD_KEYS),
    ("KeyRequest", &keypeg_fields::CHANGE_KEY),
    ("QuarantineRequest", &keypeg_fields::QUARANTINE_KEY),
    ("KeepAliveRequest", &keypeg_fields::KEEP_ALIVE),
    ("AcquireRequest", &keypeg_fields::ACQUIRE),
    ("ReleaseRequest", &keypeg_fields::RELEASE),
    ("RenewRequest", &keypeg_fields::RENEW),
    ("VerifyRequest", &keypeg_fields::VERIFY),
    ("MoveShardRequest", &keypeg_fields::MOVE_SHARD),
];

/// Returns the keywords of a field of a request. Null is allowed everywhere: it is a value, or
/// means that the field is left out.
fn keywords(field: Field) -> Value {
    match field {
        Field::Seconds(field) => json!({
            "type": ["number", "null"],
            "minimum": Seconds::from_ms(field.least_ms()),
            "maximum": Seconds::from_ms(field.most_ms()),
        }),
        Field::Integer(field) => json!({
            "type": ["integer", "null"], "minimum": field.least, "maximum": field.most,
        }),
        Field::Text(field) => {
            json!({
                "type": ["string", "null"], "maxLength": field.most, "pattern": pattern(field),
            })
        }
        // Also of a flag that must be true: generators of clients do not support a boolean with one
        // value.
        Field::Flag(_) => json!({ "type": ["boolean", "null"] }),
        Field::Word(field) => {
            let words = field.words.iter().map(|word| json!(word)).chain([Value::Null]);
            json!({ "type": ["string", "null"], "enum": words.collect::<Vec<_>>() })
        }
        Field::Value(field) => json!({
            "type": "string", "minLength": 1, "maxLength": field.bytes_max,
        }),
        Field::List(field) => {
            let mut keywords = json!({ "type": ["array", "null"], "maxItems": field.most });
            if field.least > 0 {
                keywords["minItems"] = field.least.into();
            }
            keywords["items"] = match field.item {
                Item::Value { bytes_max } => {
                    json!({ "type": "string", "minLength": 1, "maxLength": bytes_max })
                }
                Item::Text(field) => json!({
                    "type": "string", "maxLength": field.most, "pattern": pattern(field),
                }),
                Item::KeyId => json!({ "type": "string" }),
            };
            keywords
        }
    }
}

/// Returns the regular expression of a text.
fn pattern(field: &TextField) -> &'static str {
    match field.symbols {
        Symbols::Printable => r"^[^\u0000-\u001f\u007f-\u009f]*$",
        Symbols::WordAndHyphen => "^[A-Za-z0-9_-]*$",
    }
}

/// Returns the limits of the members of responses beyond their types: schema, member, keywords.
fn limits() -> Vec<(&'static str, &'static str, Value)> {
    let token = json!({ "minimum": 1, "maximum": TOKEN_MAX, "format": "int64" });
    let mut limits = vec![
        (
            "Problem",
            "type",
            json!({
                "description": "`/problems/<code>`: the path of a page that explains the code.",
            }),
        ),
        ("Problem", "status", json!({ "minimum": 400, "maximum": 599 })),
    ];
    for schema in ["Grant", "Lease", "KeyLease"] {
        limits.push((schema, "fencing_token", token.clone()));
    }
    for schema in ["Pool", "Key", "Grant", "Lease", "History"] {
        limits.push((schema, "pool", json!({ "pattern": pool_name() })));
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
            if let Some(Value::String(text)) = keywords.get_mut("description") {
                // The lines of a comment; an empty line ends a paragraph.
                *text = text
                    .split("\n\n")
                    .map(|part| part.replace('\n', " "))
                    .collect::<Vec<_>>()
                    .join("\n\n");
            }
            keywords.values_mut().for_each(remove_rust_keywords);
        }
        Value::Array(values) => values.iter_mut().for_each(remove_rust_keywords),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(schemas: &Map<String, Value>, schema: &str) -> Vec<String> {
        schemas[schema]["properties"].as_object().expect("an object").keys().cloned().collect()
    }

    /// A member without a row has no limits, and a row without a member is not documented.
    #[test]
    fn each_member_of_a_request_has_a_row_in_the_table_of_fields() {
        let schemas = all();
        for (schema, fields) in REQUESTS {
            let mut names: Vec<_> = fields.iter().map(|field| field.name().to_owned()).collect();
            names.sort();
            let mut found = members(&schemas, schema);
            found.sort();
            assert_eq!(found, names, "{schema}");
        }
    }

    #[test]
    fn a_pool_consists_of_its_policy_and_of_read_only_fields() {
        let mut names: Vec<_> = keypeg_fields::POLICY.iter().map(|field| field.name()).collect();
        names.extend(keypeg_fields::POOL_READ_ONLY);
        names.sort_unstable();
        let mut found = members(&all(), "Pool");
        found.sort();
        assert_eq!(found, names);
    }
}

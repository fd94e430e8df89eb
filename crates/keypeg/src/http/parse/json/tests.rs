//! Tests of the reader of bodies: what it accepts, in comparison with a naive reader that builds a
//! tree; what it reports; and how much memory it takes.

use super::super::keys::{AddKeysBody, ChangeKeyBody, KeepAliveBody};
use super::super::leases::{AcquireBody, ReleaseBody, RenewBody};
use super::super::members::NoFields;
use super::super::pools::PolicyBody;
use super::*;
use crate::http::origin::RequestId;
use keypeg_client::Seconds;
use keypeg_core::BodyDigest;
use keypeg_fields::Field;
use keypeg_testkit::{SeededRandom, env_number, mutate};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Returns the fields that a body sets, as JSON.
fn set_fields<B: BodyFields>(body: &mut B) -> BTreeMap<&'static str, Value> {
    let mut fields = BTreeMap::new();
    for member in B::MEMBERS {
        let place = member.place(body);
        if place.is_set() {
            fields.insert(member.name(), serde_json::to_value(place).unwrap());
        }
    }
    fields
}

fn rows<B: BodyFields>() -> Vec<&'static str> {
    B::MEMBERS.iter().map(Member::name).collect()
}

/// Every row of the table has a place in its request, in the table's order.
#[test]
fn each_request_reads_the_fields_of_its_table() {
    let names = |fields: &[Field]| fields.iter().map(|field| field.name()).collect::<Vec<_>>();
    assert_eq!(rows::<PolicyBody>(), names(&keypeg_fields::POLICY));
    assert_eq!(rows::<AddKeysBody>(), names(&keypeg_fields::ADD_KEYS));
    assert_eq!(rows::<ChangeKeyBody>(), names(&keypeg_fields::CHANGE_KEY));
    assert_eq!(rows::<KeepAliveBody>(), names(&keypeg_fields::KEEP_ALIVE));
    assert_eq!(rows::<AcquireBody>(), names(&keypeg_fields::ACQUIRE));
    assert_eq!(rows::<ReleaseBody>(), names(&keypeg_fields::RELEASE));
    assert_eq!(rows::<RenewBody>(), names(&keypeg_fields::RENEW));
    assert_eq!(rows::<NoFields>(), names(&[]));
}

/// A tree in which no object repeats a name.
struct Strict(Value);

impl<'de> serde::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StrictVisitor;
        impl<'de> Visitor<'de> for StrictVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
                Ok(flag.into())
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(number.into())
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(number.into())
            }

            fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
                Ok(number.into())
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(text.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(Strict(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(values.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut fields = Map::new();
                while let Some((name, Strict(value))) = map.next_entry()? {
                    if fields.insert(name, value).is_some() {
                        return Err(A::Error::custom("duplicate name"));
                    }
                }
                Ok(fields.into())
            }
        }
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

/// Reads a body by building a tree and then checking it against the table.
fn read_naively(
    body: &[u8],
    fields: &[Field],
    read_only: &[&str],
) -> Option<BTreeMap<&'static str, Value>> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.iter().all(|byte| b" \t\r\n".contains(byte)) {
        return Some(BTreeMap::new());
    }
    let pairs = match serde_json::from_slice(body).ok()? {
        Strict(Value::Object(pairs)) => pairs,
        Strict(value) => return value.is_null().then(BTreeMap::new),
    };
    let mut set = BTreeMap::new();
    for (name, value) in pairs {
        if read_only.contains(&name.as_str()) {
            continue;
        }
        let field = fields.iter().find(|field| field.name() == name)?;
        let is_nullable = match field {
            Field::Seconds(field) => field.is_nullable,
            Field::Integer(field) => field.is_nullable,
            Field::Text(field) => field.is_nullable,
            Field::Flag(_) | Field::Word(_) | Field::Value(_) | Field::List(_) => false,
        };
        if !value.is_null() {
            set.insert(field.name(), naive_value(*field, value)?);
        } else if is_nullable {
            set.insert(field.name(), Value::Null);
        }
    }
    Some(set)
}

fn naive_value(field: Field, value: Value) -> Option<Value> {
    match field {
        Field::Seconds(field) => {
            let seconds = value.as_f64().filter(|seconds| *seconds >= 0.0)?;
            let seconds = Seconds::from_number(seconds);
            field.allows(seconds.ms).then(|| serde_json::to_value(seconds).unwrap())
        }
        Field::Integer(field) => {
            let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
            // Minus zero is zero.
            let number: u64 = format!("{:.0}", number + 0.0).parse().ok()?;
            (field.least..=field.most).contains(&number).then(|| number.into())
        }
        Field::Text(field) => field.allows(value.as_str()?).then_some(value),
        Field::Flag(_) => value.is_boolean().then_some(value),
        Field::Word(field) => field.find(value.as_str()?).map(|_| value),
        Field::Value(field) => {
            let len = value.as_str()?.len();
            (1..=field.bytes_max).contains(&len).then_some(value)
        }
        Field::List(field) => {
            let items = value.as_array()?;
            let is_item = |item: &Value| match field.item {
                Item::Value { bytes_max } => {
                    item.as_str().is_some_and(|text| (1..=bytes_max).contains(&text.len()))
                }
                Item::Text(field) => item.as_str().is_some_and(|text| field.allows(text)),
                Item::KeyId => item.is_string(),
            };
            let fits = (field.least..=field.most).contains(&items.len());
            (fits && items.iter().all(is_item)).then_some(value)
        }
    }
}

#[track_caller]
fn compare<B: BodyFields>(json: &[u8], fields: &[Field]) -> bool {
    let read = read::<B>(json).ok().map(|mut body| set_fields(&mut body));
    let expected = read_naively(json, fields, B::READ_ONLY);
    assert_eq!(read, expected, "{}", String::from_utf8_lossy(json));
    read.is_some()
}

const VALUES: [&str; 44] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-0.0",
    "1",
    "-1",
    "1.0",
    "1.5",
    "2e0",
    "20",
    "60",
    "128",
    "129",
    "300",
    "300.001",
    "3600",
    "604800",
    "604800.001",
    "0.001",
    "0.0001",
    "1e-320",
    "1e15",
    "1e16",
    "1e300",
    "1e400",
    "10000",
    "10001",
    "1000000000",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "\"\"",
    "\"a\"",
    "\"ä\\n\"",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "[]",
    "[\"a\"]",
    "[\"a\",1]",
    "[\"\"]",
    "{}",
    "{\"a\":[{}]}",
];

/// Returns a random body: mostly an object with known names, which is then changed a little.
fn random_body(random: &mut SeededRandom, names: &[&str]) -> Vec<u8> {
    let mut json = Vec::new();
    let pick = |random: &mut SeededRandom, items: &[&str]| -> Vec<u8> {
        random.pick(items).map(|item| item.as_bytes().to_vec()).unwrap_or_default()
    };
    if random.below(8) == 0 {
        json.extend_from_slice(b"\xef\xbb\xbf");
    }
    json.extend(pick(random, &["", "", " ", "\r\n\t"]));
    if random.below(16) == 0 {
        json.extend(pick(random, &VALUES));
    } else if random.below(16) != 0 {
        json.push(b'{');
        for index in 0..random.below(4) {
            if index > 0 {
                json.push(b',');
            }
            let unknown = random.below(12) == 0;
            let name = if unknown { b"unknown".to_vec() } else { pick(random, names) };
            json.extend([b"\"", &*name, b"\":"].concat());
            json.extend(pick(random, &VALUES));
        }
        json.push(b'}');
    }
    json.extend(pick(random, &["", "", "", " ", "x", "{}"]));
    if random.below(2) == 0 {
        mutate(&mut json, &mut |bound| random.index_below(bound));
    }
    json
}

#[test]
fn the_reader_accepts_and_refuses_what_a_naive_reader_does() {
    let seed = env_number("KEYPEG_SEED").unwrap_or(1);
    let mut random = SeededRandom(seed);
    let names = |fields: &[Field], more: &[&'static str]| {
        fields.iter().map(|field| field.name()).chain(more.iter().copied()).collect::<Vec<_>>()
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..5_000 {
        let mut check = |is_accepted: bool| {
            *(if is_accepted { &mut accepted } else { &mut refused }) += 1;
        };
        let policy = names(&keypeg_fields::POLICY, &keypeg_fields::POOL_READ_ONLY);
        check(compare::<PolicyBody>(&random_body(&mut random, &policy), &keypeg_fields::POLICY));
        let add = names(&keypeg_fields::ADD_KEYS, &[]);
        check(compare::<AddKeysBody>(&random_body(&mut random, &add), &keypeg_fields::ADD_KEYS));
        let change = names(&keypeg_fields::CHANGE_KEY, &[]);
        let body = random_body(&mut random, &change);
        check(compare::<ChangeKeyBody>(&body, &keypeg_fields::CHANGE_KEY));
        let keep = names(&keypeg_fields::KEEP_ALIVE, &[]);
        check(compare::<KeepAliveBody>(
            &random_body(&mut random, &keep),
            &keypeg_fields::KEEP_ALIVE,
        ));
        let acquire = names(&keypeg_fields::ACQUIRE, &[]);
        check(compare::<AcquireBody>(&random_body(&mut random, &acquire), &keypeg_fields::ACQUIRE));
        let release = names(&keypeg_fields::RELEASE, &[]);
        check(compare::<ReleaseBody>(&random_body(&mut random, &release), &keypeg_fields::RELEASE));
    }
    assert!(accepted > 2_500 && refused > 2_500, "seed {seed}: {accepted} and {refused}");
}

/// Returns the problem of a body, as its members.
fn problem<B: BodyFields>(json: &str) -> Value {
    let problem = read::<B>(json.as_bytes()).err().expect("a problem");
    serde_json::from_slice(&problem.into_body(RequestId { run_id: 0, core: 0, sequence: 0 }, true))
        .unwrap()
}

#[test]
fn a_wrong_item_is_named_by_its_index() {
    for (json, index, detail) in [
        (
            r#"{"values":[{"":0}]}"#,
            0,
            "values[0] must be a string of 1..4096 bytes, not an object.",
        ),
        (r#"{"values":["a",1]}"#, 1, "values[1] must be a string of 1..4096 bytes, not a number."),
        (r#"{"values":["a",""]}"#, 1, "values[1] must be a string of 1..4096 bytes."),
        (r#"{"values":[null]}"#, 0, "values[0] must be a string of 1..4096 bytes, not null."),
    ] {
        let problem = problem::<AddKeysBody>(json);
        assert_eq!((&problem["field"], &problem["index"]), (&"values".into(), &index.into()));
        assert_eq!(problem["detail"], detail);
        assert_eq!(problem["allowed"], "an array of 1..10000 strings of 1..4096 bytes");
    }
    let problem = problem::<KeepAliveBody>(r#"{"ids":["x",[]]}"#);
    assert_eq!(problem["detail"], "ids[1] must be a key id, not an array.");
}

#[test]
fn malformed_json_is_reported_first_and_then_the_first_wrong_field() {
    for (json, code, detail) in [
        (r#"{"count":0,"values":7}"#, "invalid", "count must be 1..10000."),
        (
            r#"{"values":7,"count":0}"#,
            "invalid",
            "values must be an array of 1..10000 strings of 1..4096 bytes, not a number.",
        ),
        (
            r#"{"cuont":0,"count":0}"#,
            "invalid",
            "Unknown field cuont; allowed: count, values, keepalive, allow_retired, label, labels.",
        ),
        (r#"{"count":"1"}"#, "invalid", "count must be 1..10000, not a string."),
        (
            r#"{"count":1,"count":1}"#,
            "malformed",
            "The body is not valid JSON: duplicate name in an object at line 1 column 18.",
        ),
        (
            r#"{"count":[1,}"#,
            "malformed",
            "The body is not valid JSON: expected value at line 1 column 13.",
        ),
        (
            r#"{"count":1"#,
            "malformed",
            "The body is not valid JSON: EOF while parsing an object at line 1 column 10.",
        ),
        (
            r#"{"count":0,"values":7}x"#,
            "malformed",
            "The body is not valid JSON: trailing characters at line 1 column 23.",
        ),
        (
            r#"{"x":{"a":1,"a":2},"count":0}"#,
            "malformed",
            "The body is not valid JSON: duplicate name in an object at line 1 column 15.",
        ),
        (
            r#"{"x":0,"y":1,"count":0}"#,
            "invalid",
            "Unknown field x; allowed: count, values, keepalive, allow_retired, label, labels.",
        ),
        ("7", "invalid", "body must be an object, not a number."),
    ] {
        let problem = problem::<AddKeysBody>(json);
        assert_eq!(
            (&problem["code"], &problem["detail"]),
            (&code.into(), &detail.into()),
            "{json}"
        );
    }
}

/// A secret that a client puts into a wrong field must not stand in the problem.
#[test]
fn no_problem_repeats_a_value() {
    for json in [
        r#"{"count":"s3cret"}"#,
        r#"{"values":"s3cret"}"#,
        r#"{"values":["a",["s3cret"]]}"#,
        r#"{"values":[{"s3cret":"s3cret"}]}"#,
        r#"{"count":["s3cret"#,
        r#"{"count":{"s3cret":s3cret}}"#,
        r#""s3cret""#,
        r#"["s3cret"]"#,
    ] {
        assert!(!problem::<AddKeysBody>(json).to_string().contains("s3cret"), "{json}");
    }
}

#[test]
fn nested_values_are_refused_at_any_depth() {
    for depth in [1, 127, 128, 100_000] {
        let arrays = "[".repeat(depth) + &"]".repeat(depth);
        for json in [
            format!(r#"{{"count":{arrays}}}"#),
            format!(r#"{{"values":[{arrays}]}}"#),
            format!(r#"{{"unknown":{arrays}}}"#),
            arrays,
        ] {
            assert!(read::<AddKeysBody>(json.as_bytes()).is_err(), "{depth}");
        }
    }
}

/// The digest is stored with the answer of an Idempotency-Key, so it must not change with a version.
#[test]
fn the_digest_of_a_body_is_that_of_its_sorted_fields() {
    for (json, pairs) in [
        ("", "[]"),
        (" \n", "[]"),
        ("null", "[]"),
        (r#"{"holder":null}"#, "[]"),
        (
            r#"{"wait_seconds":0.5,"ttl_seconds":30}"#,
            r#"[["ttl_seconds",30],["wait_seconds",0.5]]"#,
        ),
        (r#"{"ttl_seconds":3e1}"#, r#"[["ttl_seconds",30]]"#),
        (r#"{ "holder" : "\u0061\"" }"#, r#"[["holder","a\""]]"#),
        (r#"{"holder":""}"#, r#"[["holder",""]]"#),
    ] {
        let digest = read::<AcquireBody>(json.as_bytes()).unwrap().digest();
        assert_eq!(digest, BodyDigest::of(pairs.as_bytes()), "{json}");
    }
    for (json, pairs) in [
        (r#"{"count":3.0}"#, r#"[["count",3]]"#),
        (r#"{"values":["b","a\"b"]}"#, r#"[["values",["b","a\"b"]]]"#),
    ] {
        let digest = read::<AddKeysBody>(json.as_bytes()).unwrap().digest();
        assert_eq!(digest, BodyDigest::of(pairs.as_bytes()), "{json}");
    }
}

/// Returns the greatest number of bytes that a body takes while it is read, beside its own.
fn memory_of<B: BodyFields>(json: &str) -> u64 {
    let info = allocation_counter::measure(|| drop(read::<B>(json.as_bytes())));
    info.bytes_max
}

/// A body of 8 MiB took 783 MiB: the server built a tree of it before it refused the first value.
#[test]
fn a_body_takes_about_as_much_memory_again_while_it_is_read() {
    /// The list and the rounding of 10 000 values, and a problem.
    const FREE: u64 = 512 << 10;
    let max = AddKeysBody::BYTES_MAX;
    let list = |item: &str| {
        let count = (max - 12) / (item.len() + 1);
        format!(r#"{{"values":[{}]}}"#, vec![item; count].join(","))
    };
    let object = |pair: &dyn Fn(usize) -> String| {
        let mut json = String::from("{\"values\":[{");
        for number in 0.. {
            let pair = pair(number);
            if json.len() + pair.len() + 4 > max {
                break;
            }
            json.push_str(&pair);
            json.push(',');
        }
        json.pop();
        json + "}]}"
    };
    for (what, json) in [
        ("objects", list(r#"{"":0}"#)),
        ("numbers", list("1")),
        ("arrays", list("[[]]")),
        ("names", object(&|number| format!("\"{number}\":0"))),
        ("nested objects", object(&|number| format!("\"{number}\":{{\"\":[0]}}"))),
        ("short values", list("\"a\"")),
    ] {
        let bytes = memory_of::<AddKeysBody>(&json);
        assert!(bytes < FREE, "{what}: {bytes} bytes for {}", json.len());
    }
    // Values that are kept take their own bytes once more.
    for (what, value) in [("plain", "v".repeat(4_096)), ("escaped", "\\n".repeat(4_096))] {
        let json = list(&format!("\"{value}\""));
        assert!(json.len() > max / 2 && read::<AddKeysBody>(json.as_bytes()).is_ok());
        let bytes = memory_of::<AddKeysBody>(&json);
        let free = json.len() as u64 + FREE;
        assert!(bytes < free, "{what}: {bytes} bytes for {}", json.len());
    }
    // One string is decoded as a whole before its length is known.
    let long = format!(r#"{{"values":["{}"]}}"#, "\\n".repeat((max - 20) / 2));
    let bytes = memory_of::<AddKeysBody>(&long);
    assert!(bytes < 2 * long.len() as u64, "{bytes} bytes for {}", long.len());
}

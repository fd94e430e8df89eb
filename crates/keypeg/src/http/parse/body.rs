//! Request bodies: read within size, time and memory limits, then field by field, so that every
//! error names its field and what is allowed.
//!
//! JSON is read strictly. The body is one JSON object, no object repeats a name, and no bytes follow
//! the object. An empty body, whatever its type, is read as an object without fields. The fields of
//! the routes are defined elsewhere.

use crate::http::error::Problem;
use crate::http::message::{Request, RequestBody};
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use keypeg_client::{Code, Seconds};
use keypeg_store::RequestError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest body, in bytes.
const BODY_MAX: usize = 1 << 20;
/// The largest body of a route that imports values, in bytes.
pub(crate) const VALUES_BODY_MAX: usize = 8 << 20;
/// The allowed values of a rest, for pools and for releases.
pub(crate) const REST: &str = "0, or 0.001..604800";
/// The memory that all arriving bodies may use together, in bytes, beyond [`BODY_FREE`] of each.
const BODIES_MAX: usize = 128 << 20;
/// The first bytes of a body, which are always accepted; most bodies are not longer.
const BODY_FREE: usize = 16 << 10;
/// The most bytes of a client's text that an error repeats.
const ECHO_MAX: usize = 64;

/// A JSON object's fields, each taken once.
#[derive(Debug, Default)]
pub(crate) struct Fields(Map<String, Value>);

/// The names of the fields that a request may have.
pub(crate) type KnownFields = &'static [&'static str];

impl Fields {
    /// Reads a request's body, an object with known fields only.
    pub(crate) async fn read(request: Request, known: KnownFields) -> Result<Self, Problem> {
        Self::read_up_to(BODY_MAX, request, known).await
    }

    /// Reads a request's body of at most `max` bytes, an object with known fields only.
    pub(crate) async fn read_up_to(
        max: usize,
        request: Request,
        known: KnownFields,
    ) -> Result<Self, Problem> {
        let fields = Self::read_object(max, request).await?;
        fields.refuse_unknown(known)?;
        Ok(fields)
    }

    /// Reads a request's body, an object with any fields.
    pub(crate) async fn read_any(request: Request) -> Result<Self, Problem> {
        Self::read_object(BODY_MAX, request).await
    }

    async fn read_object(max: usize, request: Request) -> Result<Self, Problem> {
        let (head, body) = request.into_parts();
        if body.is_end_stream() {
            return Ok(Self::default());
        }
        let bytes = collect(body, max).await?;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        check_content_type(&head.headers)?;
        Self::parse(&bytes)
    }

    /// Reads a complete body, given its Content-Type; returns `None` where [`Fields::read`] would
    /// refuse it. The caller has checked that there is no Content-Encoding.
    pub(crate) fn of_complete_body(
        body: &[u8],
        content_type: Option<&[u8]>,
        known: KnownFields,
    ) -> Option<Self> {
        if body.is_empty() {
            return Some(Self::default());
        }
        let fields =
            content_type.filter(|value| is_json(value)).and_then(|_| Self::parse(body).ok())?;
        fields.refuse_unknown(known).is_ok().then_some(fields)
    }

    fn parse(json: &[u8]) -> Result<Self, Problem> {
        let strict: Strict = serde_json::from_slice(json).map_err(|error| {
            Problem::new(Code::Malformed, format!("The body is not valid JSON: {error}."))
        })?;
        let Value::Object(fields) = strict.0 else {
            return Err(wrong_type("body", "an object", &strict.0));
        };
        Ok(Self(fields))
    }

    fn refuse_unknown(&self, known: KnownFields) -> Result<(), Problem> {
        let Some(field) = self.0.keys().find(|field| !known.contains(&field.as_str())) else {
            return Ok(());
        };
        let field = echo(field);
        let allowed = match known {
            [] => "no fields".into(),
            known => known.join(", "),
        };
        let detail = format!("Unknown field {field}; allowed: {allowed}.");
        Err(Problem::invalid(field, allowed, detail))
    }

    /// Returns the same bytes for the same fields, whatever their order and spacing.
    pub(crate) fn canonical(&self) -> Vec<u8> {
        let mut fields: Vec<_> = self.0.iter().collect();
        fields.sort_unstable_by_key(|(name, _)| *name);
        serde_json::to_vec(&fields).expect("invariant: parsed JSON can be written")
    }

    /// Takes a field's value of any type.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field)
    }

    /// Takes a non-negative number of seconds, in milliseconds rounded up. The caller checks
    /// narrower ranges: a number too large for any range saturates and stays too large.
    pub(crate) fn seconds(&mut self, field: &str, allowed: &str) -> Result<Option<u64>, Problem> {
        self.take(field).map(|value| seconds(field, allowed, &value)).transpose()
    }

    /// Takes a number of seconds or null.
    #[expect(clippy::option_option, reason = "absent, null and a value differ")]
    pub(crate) fn seconds_or_null(
        &mut self,
        field: &str,
        allowed: &str,
    ) -> Result<Option<Option<u64>>, Problem> {
        let value = self.take(field);
        value.map(|value| or_null(&value, || seconds(field, allowed, &value))).transpose()
    }

    /// Takes a non-negative integer.
    pub(crate) fn integer(&mut self, field: &str, allowed: &str) -> Result<Option<u64>, Problem> {
        self.take(field).map(|value| integer(field, allowed, &value)).transpose()
    }

    /// Takes a non-negative integer or null.
    #[expect(clippy::option_option, reason = "absent, null and a value differ")]
    pub(crate) fn integer_or_null(
        &mut self,
        field: &str,
        allowed: &str,
    ) -> Result<Option<Option<u64>>, Problem> {
        let value = self.take(field);
        value.map(|value| or_null(&value, || integer(field, allowed, &value))).transpose()
    }

    /// Takes true or false.
    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, Problem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Value::Bool(flag) = value else {
            return Err(wrong_type(field, "true or false", &value));
        };
        Ok(Some(flag))
    }

    /// Takes a string.
    pub(crate) fn text(&mut self, field: &str, allowed: &str) -> Result<Option<String>, Problem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Value::String(text) = value else { return Err(wrong_type(field, allowed, &value)) };
        Ok(Some(text))
    }
}

fn or_null<T>(
    value: &Value,
    read: impl FnOnce() -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    if value.is_null() { Ok(None) } else { read().map(Some) }
}

fn seconds(field: &str, allowed: &str, value: &Value) -> Result<u64, Problem> {
    let number = value.as_f64().ok_or_else(|| wrong_type(field, allowed, value))?;
    if number < 0.0 {
        return Err(Problem::out_of_range(field, allowed));
    }
    Ok(Seconds::from_number(number).ms)
}

fn integer(field: &str, allowed: &str, value: &Value) -> Result<u64, Problem> {
    let Value::Number(number) = value else { return Err(wrong_type(field, allowed, value)) };
    let integer = number.as_u64().or_else(|| number.as_f64().and_then(exact_integer));
    integer.ok_or_else(|| Problem::out_of_range(field, allowed))
}

/// Reads `3.0` as 3: JSON has one number type, and some clients write every number as a float.
fn exact_integer(number: f64) -> Option<u64> {
    /// 2^53, below which a float represents every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an integer that both types represent"
    )]
    (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
}

/// Reports a value of the wrong type. The detail names the type found but never the value, which
/// may be a secret.
pub(crate) fn wrong_type(field: &str, allowed: &str, value: &Value) -> Problem {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    Problem::invalid(field, allowed, format!("{field} must be {allowed}, not {found}."))
}

/// Cuts a client's text to the length that an error may repeat.
pub(crate) fn echo(text: &str) -> &str {
    &text[..text.floor_char_boundary(ECHO_MAX)]
}

/// Refuses a body that is not declared as plain JSON. An encoded body is never decoded.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "Content-Encoding is not supported: send the body uncompressed.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    if headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes())) {
        return Ok(());
    }
    let detail = "A body needs `Content-Type: application/json`.";
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

/// Returns whether a Content-Type is JSON's, ignoring its parameters.
fn is_json(value: &[u8]) -> bool {
    let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
    let is_visible = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
    value.iter().all(is_visible) && essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

async fn collect(mut body: RequestBody, max: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        let detail = format!("The body is larger than the {max} bytes that this route allows.");
        Problem::new(Code::TooLarge, detail).closing()
    };
    let malformed = || {
        let detail = "The body is incomplete, or its chunks are malformed.";
        Problem::new(Code::Malformed, detail).closing()
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let time = body.time();
    let reading = async {
        let mut bytes = Vec::new();
        let mut reserved = Reservation::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| malformed())?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > max {
                return Err(too_large());
            }
            reserved.grow(bytes.len() + data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    tokio::time::timeout(time, reading).await.unwrap_or_else(|_| {
        let detail = format!("The body did not arrive within {} s.", time.as_secs_f64());
        Err(Problem::new(Code::Timeout, detail).closing())
    })
}

/// The bytes of [`BODIES_MAX`] that are reserved now.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// One body's share of [`BODIES_MAX`], returned on drop.
#[derive(Default)]
struct Reservation {
    bytes: usize,
}

impl Reservation {
    /// Reserves memory for a body that has reached `len` bytes.
    fn grow(&mut self, len: usize) -> Result<(), Problem> {
        let more = len.saturating_sub(BODY_FREE).saturating_sub(self.bytes);
        self.bytes += more;
        if RESERVED.fetch_add(more, Ordering::Relaxed) + more > BODIES_MAX && more > 0 {
            return Err(Problem::refused(&RequestError::Overloaded).closing());
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A JSON value in which no object repeats a name.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Strict(value) = map.next_value()?;
            if fields.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate name in an object"));
            }
        }
        Ok(Value::Object(fields))
    }
}

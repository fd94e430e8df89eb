//! Bodies: read within their bounds, then field by field, so that every error names its field and
//! what it may be.
//!
//! JSON is taken strictly: one object, no name twice in any object, nothing after it. An empty
//! body is no body, whatever its type, and reads as an object without fields.

use super::Request;
use super::error::Problem;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use keypeg_client::{Code, Seconds};
use keypeg_engine::RequestError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The largest body.
const BODY_MAX: usize = 1 << 20;
/// The largest body of a route that takes values to bring in.
pub(super) const VALUES_BODY_MAX: usize = 8 << 20;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// What a key's rest may be, as the pools tell it too.
pub(super) const REST: &str = "0, or 0.001..604800";
/// Bytes that all bodies together may hold while they arrive, beyond the first of each.
const BODIES_MAX: usize = 128 << 20;
/// The first bytes of a body, which are always taken: as many as most bodies have.
const BODY_FREE: usize = 16 << 10;
/// Bytes of a client's own words that an error repeats.
const ECHO_MAX: usize = 64;

/// A JSON object's fields, each taken once.
#[derive(Debug, Default)]
pub(super) struct Fields(Map<String, Value>);

/// Which fields a request may have.
pub(super) type Known = &'static [&'static str];

impl Fields {
    /// Reads a request's body: an object with no fields but those known.
    pub(super) async fn read(request: Request, known: Known) -> Result<Self, Problem> {
        Self::read_up_to(BODY_MAX, request, known).await
    }

    /// Reads a request's body of at most `max` bytes: an object with no fields but those known.
    pub(super) async fn read_up_to(
        max: usize,
        request: Request,
        known: Known,
    ) -> Result<Self, Problem> {
        let fields = Self::read_object(max, request).await?;
        fields.refuse_unknown(known)?;
        Ok(fields)
    }

    /// Reads a request's body: an object with whatever fields.
    pub(super) async fn read_any(request: Request) -> Result<Self, Problem> {
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

    /// Reads a body that is all here, whose Content-Type and nothing else is known: `None` where
    /// [`Fields::read`] would refuse it.
    pub(super) fn of_whole(body: &[u8], content_type: Option<&[u8]>, known: Known) -> Option<Self> {
        if body.is_empty() {
            return Some(Self::default());
        }
        let fields = content_type.filter(|it| is_json(it)).and_then(|_| Self::parse(body).ok())?;
        fields.refuse_unknown(known).is_ok().then_some(fields)
    }

    fn parse(json: &[u8]) -> Result<Self, Problem> {
        let strict: Strict = serde_json::from_slice(json)
            .map_err(|error| Problem::new(Code::Malformed, format!("The body: {error}.")))?;
        let Value::Object(fields) = strict.0 else {
            return Err(wrong_type("body", "an object", &strict.0));
        };
        Ok(Self(fields))
    }

    fn refuse_unknown(&self, known: Known) -> Result<(), Problem> {
        let Some(field) = self.0.keys().find(|field| !known.contains(&field.as_str())) else {
            return Ok(());
        };
        let field = echo(field);
        let allowed = match known {
            [] => "no fields".into(),
            known => known.join(", "),
        };
        let detail = format!("There is no field {field} here; allowed: {allowed}.");
        Err(Problem::invalid(field, allowed, detail))
    }

    /// Bytes that tell these fields from others, in whatever order and spacing they came.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut fields: Vec<_> = self.0.iter().collect();
        fields.sort_unstable_by_key(|(name, _)| *name);
        serde_json::to_vec(&fields).expect("invariant: what was JSON is JSON")
    }

    /// Takes a field's value, whatever it is.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.0.remove(field)
    }

    /// Takes a number of seconds that is not negative, in milliseconds rounded up. Narrower ranges
    /// are for those who know them to check: what is beyond them all stays beyond.
    pub(super) fn seconds(&mut self, field: &str, allowed: &str) -> Result<Option<u64>, Problem> {
        self.take(field).map(|value| seconds(field, allowed, &value)).transpose()
    }

    /// Takes a number of seconds or null.
    #[expect(clippy::option_option, reason = "left out, null and a value are three things here")]
    pub(super) fn seconds_or_null(
        &mut self,
        field: &str,
        allowed: &str,
    ) -> Result<Option<Option<u64>>, Problem> {
        let given = self.take(field);
        given.map(|value| or_null(&value, || seconds(field, allowed, &value))).transpose()
    }

    /// Takes a whole number that is not negative.
    pub(super) fn integer(&mut self, field: &str, allowed: &str) -> Result<Option<u64>, Problem> {
        self.take(field).map(|value| integer(field, allowed, &value)).transpose()
    }

    /// Takes a whole number that is not negative, or null.
    #[expect(clippy::option_option, reason = "left out, null and a value are three things here")]
    pub(super) fn integer_or_null(
        &mut self,
        field: &str,
        allowed: &str,
    ) -> Result<Option<Option<u64>>, Problem> {
        let given = self.take(field);
        given.map(|value| or_null(&value, || integer(field, allowed, &value))).transpose()
    }

    /// Takes true or false.
    pub(super) fn boolean(&mut self, field: &str) -> Result<Option<bool>, Problem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Value::Bool(given) = value else {
            return Err(wrong_type(field, "true or false", &value));
        };
        Ok(Some(given))
    }

    /// Takes a string.
    pub(super) fn text(&mut self, field: &str, allowed: &str) -> Result<Option<String>, Problem> {
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
    let whole = number.as_u64().or_else(|| number.as_f64().and_then(whole));
    whole.ok_or_else(|| Problem::out_of_range(field, allowed))
}

/// Takes `3.0` for 3, as JSON does not tell them apart: some clients write all numbers so.
fn whole(number: f64) -> Option<u64> {
    /// Below it a float holds every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an integer within what both hold"
    )]
    (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
}

/// A value of another type than it must be; the value itself is not repeated.
pub(super) fn wrong_type(field: &str, allowed: &str, value: &Value) -> Problem {
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

pub(super) fn echo(text: &str) -> &str {
    &text[..text.floor_char_boundary(ECHO_MAX)]
}

/// Refuses a body that says it is anything but JSON as it stands: an encoded one is never decoded.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let detail = "A body has no Content-Encoding here.";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let json = headers.get(CONTENT_TYPE).is_some_and(|value| is_json(value.as_bytes()));
    if json {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "A body's Content-Type is application/json."))
}

/// Tells whether a Content-Type, whatever its parameters, is JSON's.
fn is_json(value: &[u8]) -> bool {
    let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
    let visible = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
    value.iter().all(visible) && essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

async fn collect(mut body: Incoming, max: usize) -> Result<Vec<u8>, Problem> {
    let too_large =
        || Problem::new(Code::TooLarge, format!("A body has at most {max} bytes here.")).closing();
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let reading = async {
        let mut bytes = Vec::new();
        let mut room = Room::default();
        while let Some(frame) = body.frame().await {
            let frame = frame
                .map_err(|_| Problem::new(Code::Malformed, "The body ended early.").closing())?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > max {
                return Err(too_large());
            }
            room.hold(bytes.len() + data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    tokio::time::timeout(BODY_TIME, reading).await.unwrap_or_else(|_| {
        let detail = format!("A body arrives within {} s.", BODY_TIME.as_secs());
        Err(Problem::new(Code::Timeout, detail).closing())
    })
}

/// Bytes that all bodies hold now.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// What one body holds of [`BODIES_MAX`], given back when it is dropped.
#[derive(Default)]
struct Room {
    held: usize,
}

impl Room {
    /// Holds room for a body of `len` bytes so far.
    fn hold(&mut self, len: usize) -> Result<(), Problem> {
        let more = len.saturating_sub(BODY_FREE).saturating_sub(self.held);
        self.held += more;
        if HELD.fetch_add(more, Ordering::Relaxed) + more > BODIES_MAX && more > 0 {
            return Err(Problem::refused(&RequestError::Overloaded).closing());
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// A JSON value in which no object has a name twice.
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
                return Err(A::Error::custom("a name twice in one object"));
            }
        }
        Ok(Value::Object(fields))
    }
}

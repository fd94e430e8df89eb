//! The fields of a request body, each with its row in keypeg-fields and its place in the request's
//! type.
//!
//! The kind of the row and the type of the place must fit, or the server does not compile. How the
//! values arrive is the business of `json.rs`.

use crate::http::error::Problem;
use keypeg_client::Seconds;
use keypeg_core::{BodyDigest, BodyHasher, KeyId, Secret};
use keypeg_fields::ValueField;
use keypeg_fields::{
    BODY_MAX, Field, FlagField, IntegerField, ListField, SecondsField, TextField, WordField,
};
use serde::{Serialize, Serializer};
use std::io;

/// The type of a request body.
pub(crate) trait BodyFields: Default + 'static {
    /// The fields, in the order of the table.
    const MEMBERS: &'static [Member<Self>];
    /// The fields that only the server sets; their values are ignored.
    const READ_ONLY: &'static [&'static str] = &[];
    /// Whether unknown fields are ignored, too.
    const IGNORES_UNKNOWN: bool = false;
    /// The largest body, in bytes.
    const BYTES_MAX: usize = BODY_MAX;

    /// Returns a digest that is the same for the same values, in any order and spacing.
    fn digest(&mut self) -> BodyDigest {
        let mut members: Vec<_> = Self::MEMBERS.iter().collect();
        members.sort_unstable_by_key(|member| member.name());
        // The digest of a list of pairs, as JSON. A stored digest must stay valid, so this does not
        // change.
        let mut writer = DigestWriter::default();
        writer.hasher.update(b"[");
        let mut separator = &b""[..];
        for member in members {
            let place = member.place(self);
            if place.is_set() {
                writer.hasher.update(separator);
                separator = b",";
                serde_json::to_writer(&mut writer, &(member.name(), place))
                    .expect("invariant: a hash takes every value");
            }
        }
        writer.hasher.update(b"]");
        writer.hasher.finish()
    }
}

/// The body of a request that has no fields.
#[derive(Debug, Default)]
pub(crate) struct NoFields;

impl BodyFields for NoFields {
    const MEMBERS: &'static [Member<Self>] = &[];
}

/// Key ids. A malformed one names no key, like an unknown one.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    pub(crate) keys: Vec<KeyId>,
    pub(crate) malformed: Vec<String>,
}

impl Ids {
    /// Returns about how many bytes these ids have as JSON.
    pub(crate) fn bytes(&self) -> u64 {
        let malformed: usize = self.malformed.iter().map(|id| id.len() + 3).sum();
        (self.keys.len() * KEY_ID_JSON + malformed) as u64
    }
}

/// The bytes of a key id as JSON: its 26 symbols, quotes and a comma.
const KEY_ID_JSON: usize = 29;

/// A value that a compatibility API checks by itself.
#[derive(Debug)]
pub(crate) enum Unchecked {
    Null,
    Text(Box<str>),
    Other,
}

/// An optional value that can be null.
pub(super) type OrNull<T> = Option<Option<T>>;

/// A field of the body `B`: its row, and where its value goes.
pub(crate) enum Member<B> {
    Ms(&'static SecondsField, fn(&mut B) -> &mut Option<u64>),
    MsOrNull(&'static SecondsField, fn(&mut B) -> &mut OrNull<u64>),
    Integer(&'static IntegerField, fn(&mut B) -> &mut Option<u64>),
    IntegerOrNull(&'static IntegerField, fn(&mut B) -> &mut OrNull<u64>),
    Text(&'static TextField, fn(&mut B) -> &mut Option<Box<str>>),
    TextOrNull(&'static TextField, fn(&mut B) -> &mut OrNull<Box<str>>),
    Texts(&'static ListField, fn(&mut B) -> &mut Option<Vec<Box<str>>>),
    /// Whether false is allowed is checked by the request: it can depend on another field.
    Flag(&'static FlagField, fn(&mut B) -> &mut Option<bool>),
    /// The value is the index of the word.
    Word(&'static WordField, fn(&mut B) -> &mut Option<usize>),
    Value(&'static ValueField, fn(&mut B) -> &mut Option<Secret>),
    Values(&'static ListField, fn(&mut B) -> &mut Option<Vec<Secret>>),
    Ids(&'static ListField, fn(&mut B) -> &mut Option<Ids>),
    Unchecked(&'static str, fn(&mut B) -> &mut Option<Unchecked>),
}

impl<B> Member<B> {
    /// Returns the name of the field.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Ms(field, _) | Self::MsOrNull(field, _) => field.name,
            Self::Integer(field, _) | Self::IntegerOrNull(field, _) => field.name,
            Self::Text(field, _) | Self::TextOrNull(field, _) => field.name,
            Self::Flag(field, _) => field.name,
            Self::Word(field, _) => field.name,
            Self::Value(field, _) => field.name,
            Self::Texts(field, _) | Self::Values(field, _) | Self::Ids(field, _) => field.name,
            Self::Unchecked(name, _) => name,
        }
    }

    /// Returns the place of the field in `body`.
    pub(super) fn place<'a>(&self, body: &'a mut B) -> Place<'a> {
        match self {
            Self::Ms(field, place) => Place::Ms(field, place(body)),
            Self::MsOrNull(field, place) => Place::MsOrNull(field, place(body)),
            Self::Integer(field, place) => Place::Integer(field, place(body)),
            Self::IntegerOrNull(field, place) => Place::IntegerOrNull(field, place(body)),
            Self::Text(field, place) => Place::Text(field, place(body)),
            Self::TextOrNull(field, place) => Place::TextOrNull(field, place(body)),
            Self::Texts(field, place) => Place::Texts(field, place(body)),
            Self::Flag(field, place) => Place::Flag(field, place(body)),
            Self::Word(field, place) => Place::Word(field, place(body)),
            Self::Value(field, place) => Place::Value(field, place(body)),
            Self::Values(field, place) => Place::Values(field, place(body)),
            Self::Ids(field, place) => Place::Ids(field, place(body)),
            Self::Unchecked(_, place) => Place::Unchecked(place(body)),
        }
    }
}

/// Where the value of a field goes.
#[derive(Debug)]
pub(super) enum Place<'a> {
    Ms(&'static SecondsField, &'a mut Option<u64>),
    MsOrNull(&'static SecondsField, &'a mut OrNull<u64>),
    Integer(&'static IntegerField, &'a mut Option<u64>),
    IntegerOrNull(&'static IntegerField, &'a mut OrNull<u64>),
    Text(&'static TextField, &'a mut Option<Box<str>>),
    TextOrNull(&'static TextField, &'a mut OrNull<Box<str>>),
    Texts(&'static ListField, &'a mut Option<Vec<Box<str>>>),
    Flag(&'static FlagField, &'a mut Option<bool>),
    Word(&'static WordField, &'a mut Option<usize>),
    Value(&'static ValueField, &'a mut Option<Secret>),
    Values(&'static ListField, &'a mut Option<Vec<Secret>>),
    Ids(&'static ListField, &'a mut Option<Ids>),
    Unchecked(&'a mut Option<Unchecked>),
}

impl Place<'_> {
    pub(super) fn is_set(&self) -> bool {
        match self {
            Self::Ms(_, into) | Self::Integer(_, into) => into.is_some(),
            Self::MsOrNull(_, into) | Self::IntegerOrNull(_, into) => into.is_some(),
            Self::Text(_, into) => into.is_some(),
            Self::TextOrNull(_, into) => into.is_some(),
            Self::Texts(_, into) => into.is_some(),
            Self::Flag(_, into) => into.is_some(),
            Self::Word(_, into) => into.is_some(),
            Self::Value(_, into) => into.is_some(),
            Self::Values(_, into) => into.is_some(),
            Self::Ids(_, into) => into.is_some(),
            Self::Unchecked(into) => into.is_some(),
        }
    }

    /// Returns the field's row; `None` for a value that the reader does not check.
    fn field(&self) -> Option<Field> {
        Some(match self {
            Self::Ms(field, _) | Self::MsOrNull(field, _) => Field::Seconds(field),
            Self::Integer(field, _) | Self::IntegerOrNull(field, _) => Field::Integer(field),
            Self::Text(field, _) | Self::TextOrNull(field, _) => Field::Text(field),
            Self::Flag(field, _) => Field::Flag(field),
            Self::Word(field, _) => Field::Word(field),
            Self::Value(field, _) => Field::Value(field),
            Self::Texts(field, _) | Self::Values(field, _) | Self::Ids(field, _) => {
                Field::List(field)
            }
            Self::Unchecked(_) => return None,
        })
    }
}

/// A value as it stands in the JSON.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    Null,
    Flag(bool),
    Number(Number),
    Text(&'a str),
    List,
    Object,
}

/// A number as it stands in the JSON.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Integer(u64),
    /// An integer below zero, which no field allows.
    Negative,
    Float(f64),
}

impl Found<'_> {
    /// Returns the type's name. A value never stands in an error: it may be a secret.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Flag(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List => "an array",
            Self::Object => "an object",
        }
    }
}

impl Number {
    /// Returns a number of seconds in milliseconds, rounded up; one that is too large saturates.
    fn ms(self) -> Option<u64> {
        match self {
            Self::Integer(seconds) => Some(seconds.saturating_mul(1_000)),
            Self::Negative => None,
            Self::Float(seconds) => (seconds >= 0.0).then(|| Seconds::from_number(seconds).ms),
        }
    }

    /// Returns a whole number; `3.0` is 3, because some clients write every number as a float.
    fn integer(self) -> Option<u64> {
        /// 2^53, below which a float represents every integer.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match self {
            Self::Integer(number) => Some(number),
            Self::Negative => None,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an integer that both types represent"
            )]
            Self::Float(number) => {
                (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
            }
        }
    }
}

/// Puts a value into its place, unless the field does not allow it.
pub(super) fn put(place: Place<'_>, found: Found<'_>) -> Result<(), Problem> {
    let field = place.field();
    let is_allowed = match (place, found) {
        (Place::Unchecked(into), found) => {
            *into = Some(match found {
                Found::Null => Unchecked::Null,
                Found::Text(text) => Unchecked::Text(text.into()),
                Found::Flag(_) | Found::Number(_) | Found::List | Found::Object => Unchecked::Other,
            });
            true
        }
        (Place::MsOrNull(_, into) | Place::IntegerOrNull(_, into), Found::Null) => {
            *into = Some(None);
            true
        }
        (Place::TextOrNull(_, into), Found::Null) => {
            *into = Some(None);
            true
        }
        // The field is left out.
        (_, Found::Null) => true,
        (Place::Ms(field, into), Found::Number(number)) => {
            *into = number.ms().filter(|&ms| field.allows(ms));
            into.is_some()
        }
        (Place::MsOrNull(field, into), Found::Number(number)) => {
            *into = number.ms().filter(|&ms| field.allows(ms)).map(Some);
            into.is_some()
        }
        (Place::Integer(field, into), Found::Number(number)) => {
            *into = number.integer().filter(|&number| field.allows(number));
            into.is_some()
        }
        (Place::IntegerOrNull(field, into), Found::Number(number)) => {
            *into = number.integer().filter(|&number| field.allows(number)).map(Some);
            into.is_some()
        }
        (Place::Text(field, into), Found::Text(text)) => {
            *into = field.allows(text).then(|| text.into());
            into.is_some()
        }
        (Place::TextOrNull(field, into), Found::Text(text)) => {
            *into = field.allows(text).then(|| Some(text.into()));
            into.is_some()
        }
        (Place::Word(field, into), Found::Text(text)) => {
            *into = field.find(text);
            into.is_some()
        }
        (Place::Value(_, into), Found::Text(text)) => {
            *into = Secret::new(text);
            into.is_some()
        }
        (Place::Flag(_, into), Found::Flag(flag)) => {
            *into = Some(flag);
            true
        }
        (_, found) => {
            let field = field.expect("invariant: only a checked field refuses a type");
            return Err(Problem::wrong_type(field.name(), &field.to_string(), found.as_str()));
        }
    };
    match field {
        Some(field) if !is_allowed => Err(Problem::not_allowed(field)),
        _ => Ok(()),
    }
}

/// Writes a field's value as JSON. Durations have one form, whatever the client wrote.
impl Serialize for Place<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = |ms: Option<u64>| ms.map(Seconds::from_ms);
        match self {
            Self::Ms(_, into) => seconds(**into).serialize(serializer),
            Self::MsOrNull(_, into) => seconds(into.flatten()).serialize(serializer),
            Self::Integer(_, into) => into.serialize(serializer),
            Self::IntegerOrNull(_, into) => into.serialize(serializer),
            Self::Text(_, into) => into.serialize(serializer),
            Self::TextOrNull(_, into) => into.serialize(serializer),
            Self::Texts(_, into) => into.serialize(serializer),
            Self::Flag(_, into) => into.serialize(serializer),
            Self::Word(field, into) => into.map(|index| field.words[index]).serialize(serializer),
            Self::Value(_, into) => into.as_ref().map(Secret::reveal).serialize(serializer),
            Self::Values(_, into) => {
                serializer.collect_seq(into.iter().flatten().map(Secret::reveal))
            }
            Self::Ids(_, into) => {
                let ids = into.as_ref();
                let keys = ids.into_iter().flat_map(|ids| &ids.keys).map(KeyId::to_string);
                let malformed = ids.into_iter().flat_map(|ids| ids.malformed.iter().cloned());
                serializer.collect_seq(keys.chain(malformed))
            }
            Self::Unchecked(into) => match into {
                Some(Unchecked::Text(text)) => text.serialize(serializer),
                Some(Unchecked::Null | Unchecked::Other) | None => serializer.serialize_unit(),
            },
        }
    }
}

/// Hashes what is written.
#[derive(Default)]
struct DigestWriter {
    hasher: BodyHasher,
}

impl io::Write for DigestWriter {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.hasher.update(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Reads the JSON of a request body into the request's type, field by field, without a tree.
//!
//! A body takes memory for what it sets and for no more: after the first value that the request does
//! not allow, the reader keeps nothing and only checks that the rest is JSON, so that malformed JSON
//! is reported first. It is strict: one object, no name twice, no unknown field, no bytes after the
//! object. Knows no particular request: a [`BodyFields`] lists its fields.

use super::members::{BodyFields, Found, Member, Number, Place, put};
use crate::http::error::Problem;
use keypeg_client::Code;
use keypeg_core::{KeyId, Secret};
use keypeg_fields::{Field, Item, ListField};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// The byte order mark, which some programs write before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The most bytes of a client's text that an error repeats.
const ECHO_MAX: usize = 64;

/// Reads a body. One without JSON, and one that is null, sets no field.
pub(crate) fn read<B: BodyFields>(body: &[u8]) -> Result<B, Problem> {
    let json = text_of(body);
    if json.is_empty() {
        return Ok(B::default());
    }
    let mut fault = None;
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let seed = BodyVisitor { fault: &mut fault, body: PhantomData };
    let read = deserializer.deserialize_any(seed);
    let read = read.and_then(|body| deserializer.end().map(|()| body));
    let body = read.map_err(|error| {
        Problem::new(Code::Malformed, format!("The body is not valid JSON: {error}."))
    })?;
    fault.map_or(Ok(body), Err)
}

/// Returns whether a body contains nothing but a byte order mark and blanks.
pub(crate) fn is_blank(body: &[u8]) -> bool {
    text_of(body).is_empty()
}

/// Returns a body without its byte order mark and the blanks before its JSON.
fn text_of(body: &[u8]) -> &[u8] {
    let text = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let start = text.iter().position(|byte| !b" \t\r\n".contains(byte));
    &text[start.unwrap_or(text.len())..]
}

/// Cuts a client's text to the length that an error may repeat.
pub(crate) fn echo(text: &str) -> &str {
    &text[..text.floor_char_boundary(ECHO_MAX)]
}

/// The first problem, after which the reader keeps nothing.
type Fault<'a> = &'a mut Option<Problem>;

/// The names of an object that were read, to find one that occurs twice.
#[derive(Default)]
struct Names<'de>(Vec<Cow<'de, str>>);

impl<'de> Names<'de> {
    /// The most names that are remembered, so that an object of any size takes little memory.
    const MAX: usize = 64;

    fn add<E: Error>(&mut self, name: Cow<'de, str>) -> Result<(), E> {
        if self.0.contains(&name) {
            return Err(E::custom("duplicate name in an object"));
        }
        if self.0.len() < Self::MAX {
            self.0.push(name);
        }
        Ok(())
    }
}

/// Reads the object that a body is.
struct BodyVisitor<'a, B> {
    fault: Fault<'a>,
    body: PhantomData<B>,
}

impl<B: BodyFields> BodyVisitor<'_, B> {
    fn no_object(self, found: Found<'_>) -> B {
        *self.fault = Some(Problem::wrong_type("body", "an object", found.as_str()));
        B::default()
    }
}

impl<'de, B: BodyFields> Visitor<'de> for BodyVisitor<'_, B> {
    type Value = B;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<B, A::Error> {
        let mut body = B::default();
        // One bit for each field that was read.
        let mut read: u32 = 0;
        let mut others = Names::default();
        const { assert!(B::MEMBERS.len() + B::READ_ONLY.len() <= 32, "a bit for each field") };
        while let Some(name) = map.next_key_seed(NameVisitor(PhantomData::<B>))? {
            let index = match name {
                Name::Known(index) => index,
                Name::Unknown(name) => {
                    if !B::IGNORES_UNKNOWN && self.fault.is_none() {
                        *self.fault = Some(unknown_field::<B>(&name));
                    }
                    others.add(name)?;
                    map.next_value_seed(Skip)?;
                    continue;
                }
            };
            if read & (1 << index) != 0 {
                return Err(A::Error::custom("duplicate name in an object"));
            }
            read |= 1 << index;
            match B::MEMBERS.get(index) {
                Some(member) if self.fault.is_none() => {
                    let place = member.place(&mut body);
                    map.next_value_seed(ValueVisitor { place, fault: &mut *self.fault })?;
                }
                _ => map.next_value_seed(Skip)?,
            }
        }
        Ok(body)
    }

    fn visit_unit<E: Error>(self) -> Result<B, E> {
        Ok(B::default())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<B, E> {
        Ok(self.no_object(Found::Flag(flag)))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<B, E> {
        Ok(self.no_object(Found::Number(Number::Integer(number))))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<B, E> {
        Ok(self.no_object(Found::Number(Number::Negative)))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<B, E> {
        Ok(self.no_object(Found::Number(Number::Float(number))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<B, E> {
        Ok(self.no_object(Found::Text(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<B, A::Error> {
        Skip.visit_seq(seq)?;
        Ok(self.no_object(Found::List))
    }
}

/// What the name of a field means.
enum Name<'de> {
    /// The index of a member, or behind the members, of a read-only field.
    Known(usize),
    Unknown(Cow<'de, str>),
}

/// Reads the name of a field.
struct NameVisitor<B>(PhantomData<B>);

impl<B: BodyFields> NameVisitor<B> {
    fn known(name: &str) -> Option<usize> {
        let members = B::MEMBERS.iter().map(Member::name);
        members.chain(B::READ_ONLY.iter().copied()).position(|known| known == name)
    }
}

impl<'de, B: BodyFields> DeserializeSeed<'de> for NameVisitor<B> {
    type Value = Name<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, B: BodyFields> Visitor<'de> for NameVisitor<B> {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
        Ok(Self::known(name).map_or(Name::Unknown(name.into()), Name::Known))
    }

    fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
        Ok(Self::known(name).map_or_else(|| Name::Unknown(name.to_owned().into()), Name::Known))
    }
}

fn unknown_field<B: BodyFields>(name: &str) -> Problem {
    let names: Vec<_> = B::MEMBERS.iter().map(Member::name).collect();
    let allowed = if names.is_empty() { "no fields".into() } else { names.join(", ") };
    let name = echo(name);
    let detail = format!("Unknown field {name}; allowed: {allowed}.");
    Problem::invalid(name, allowed, detail)
}

/// Reads the value of a field into its place.
struct ValueVisitor<'a> {
    place: Place<'a>,
    fault: Fault<'a>,
}

impl ValueVisitor<'_> {
    fn put(self, found: Found<'_>) {
        *self.fault = put(self.place, found).err();
    }
}

impl<'de> DeserializeSeed<'de> for ValueVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value of a field")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.put(Found::Null);
        Ok(())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<(), E> {
        self.put(Found::Flag(flag));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.put(Found::Number(Number::Integer(number)));
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.put(Found::Number(Number::Negative));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.put(Found::Number(Number::Float(number)));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.put(Found::Text(text));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        let Self { place, fault } = self;
        if let Place::Values(field, into) = place {
            let values = into.get_or_insert_default();
            read_list(seq, field, fault, |text| {
                Secret::new(text).map(|value| values.push(value)).is_some()
            })
        } else if let Place::Texts(field, into) = place {
            let texts = into.get_or_insert_default();
            let allows = |text: &str| match field.item {
                Item::Text(field) => field.allows(text),
                Item::Value { .. } | Item::KeyId => true,
            };
            read_list(seq, field, fault, |text| {
                let allowed = allows(text);
                if allowed {
                    texts.push(text.into());
                }
                allowed
            })
        } else if let Place::Ids(field, into) = place {
            let ids = into.get_or_insert_default();
            read_list(seq, field, fault, |text| {
                match KeyId::parse(text) {
                    Some(id) => ids.keys.push(id),
                    None => ids.malformed.push(text.into()),
                }
                true
            })
        } else {
            *fault = put(place, Found::List).err();
            Skip.visit_seq(seq)
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Skip.visit_map(map)?;
        self.put(Found::Object);
        Ok(())
    }
}

/// Reads a list of texts. `take` returns whether the list may contain the text.
fn read_list<'de, A: SeqAccess<'de>>(
    mut seq: A,
    field: &'static ListField,
    fault: Fault<'_>,
    mut take: impl FnMut(&str) -> bool,
) -> Result<(), A::Error> {
    let mut len = 0;
    loop {
        let item = ItemVisitor { field, index: len, fault: &mut *fault, take: &mut take };
        if seq.next_element_seed(item)?.is_none() {
            break;
        }
        len += 1;
        if fault.is_some() {
            return Skip.visit_seq(seq);
        }
    }
    if len < field.least {
        *fault = Some(Problem::not_allowed(Field::List(field)));
    }
    Ok(())
}

/// Reads an item of a list.
struct ItemVisitor<'a, T> {
    field: &'static ListField,
    index: usize,
    fault: Fault<'a>,
    take: T,
}

impl<T> ItemVisitor<'_, T> {
    fn wrong_type(self, found: Found<'_>) {
        *self.fault = Some(Problem::wrong_item(self.field, self.index, Some(found.as_str())));
    }
}

impl<'de, T: FnMut(&str) -> bool> DeserializeSeed<'de> for ItemVisitor<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: FnMut(&str) -> bool> Visitor<'de> for ItemVisitor<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an item of a list")
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        if self.index == self.field.most {
            *self.fault = Some(Problem::not_allowed(Field::List(self.field)));
        } else if !(self.take)(text) {
            *self.fault = Some(Problem::wrong_item(self.field, self.index, None));
        }
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.wrong_type(Found::Null);
        Ok(())
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<(), E> {
        self.wrong_type(Found::Flag(flag));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.wrong_type(Found::Number(Number::Integer(number)));
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.wrong_type(Found::Number(Number::Negative));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.wrong_type(Found::Number(Number::Float(number)));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        Skip.visit_seq(seq)?;
        self.wrong_type(Found::List);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Skip.visit_map(map)?;
        self.wrong_type(Found::Object);
        Ok(())
    }
}

/// Reads any JSON value and keeps nothing of it. The value must be valid, and nested no deeper than
/// `serde_json` allows.
struct Skip;

impl<'de> DeserializeSeed<'de> for Skip {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skip {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = Names::default();
        while let Some(name) = map.next_key_seed(AnyName)? {
            names.add(name)?;
            map.next_value_seed(Self)?;
        }
        Ok(())
    }
}

/// Reads any name.
struct AnyName;

impl<'de> DeserializeSeed<'de> for AnyName {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for AnyName {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(name.into())
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(name.to_owned().into())
    }
}

#[cfg(test)]
mod tests;

//! The kinds of fields. Each knows which values it allows, and its `Display` says so in an error.
//!
//! A field is described by its kind's type, so that the compiler refuses to read a number of
//! seconds into a text. Knows no particular field.

use std::fmt;

/// A field of any kind. Its `Display` is the text of the allowed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A length of time.
    Seconds(&'static SecondsField),
    /// A whole number.
    Integer(&'static IntegerField),
    /// A text.
    Text(&'static TextField),
    /// A truth value.
    Flag(&'static FlagField),
    /// The value of a key.
    Value(&'static ValueField),
    /// One of a few words.
    Word(&'static WordField),
    /// A list of texts.
    List(&'static ListField),
}

impl Field {
    /// Returns the name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seconds(field) => field.name,
            Self::Integer(field) => field.name,
            Self::Text(field) => field.name,
            Self::Flag(field) => field.name,
            Self::Value(field) => field.name,
            Self::Word(field) => field.name,
            Self::List(field) => field.name,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seconds(field) => field.fmt(f),
            Self::Integer(field) => field.fmt(f),
            Self::Text(field) => field.fmt(f),
            Self::Flag(field) => field.fmt(f),
            Self::Value(field) => field.fmt(f),
            Self::Word(field) => field.fmt(f),
            Self::List(field) => field.fmt(f),
        }
    }
}

/// A length of time: a number of seconds in requests, milliseconds everywhere else.
#[derive(Debug, PartialEq, Eq)]
pub struct SecondsField {
    /// The name in requests.
    pub name: &'static str,
    /// The least value.
    pub least: Least,
    /// The greatest value.
    pub most: Most,
    /// Whether null is a value. Otherwise null means that the field is left out.
    pub is_nullable: bool,
}

/// The least value of a [`SecondsField`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// A number of milliseconds.
    Ms(u64),
    /// Zero, which means none; any other value is at least this number of milliseconds.
    ZeroOrMs(u64),
    /// The value of another field of the same pool, which the pool checks.
    Field(&'static SecondsField),
}

/// The greatest value of a [`SecondsField`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// A number of milliseconds.
    Ms(u64),
    /// The value of a field of the pool's policy, which the pool checks.
    OfPool(&'static SecondsField),
}

impl SecondsField {
    /// Returns the least value that any pool allows, in milliseconds.
    pub fn least_ms(&self) -> u64 {
        match self.least {
            Least::Ms(ms) => ms,
            Least::ZeroOrMs(_) => 0,
            Least::Field(field) => field.least_ms(),
        }
    }

    /// Returns the greatest value that any pool allows, in milliseconds.
    pub fn most_ms(&self) -> u64 {
        match self.most {
            Most::Ms(ms) => ms,
            Most::OfPool(field) => field.most_ms(),
        }
    }

    /// Returns whether a pool can allow this number of milliseconds.
    pub fn allows(&self, ms: u64) -> bool {
        let is_enough = match self.least {
            Least::ZeroOrMs(least) => ms == 0 || ms >= least,
            Least::Ms(_) | Least::Field(_) => ms >= self.least_ms(),
        };
        is_enough && ms <= self.most_ms()
    }
}

impl fmt::Display for SecondsField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        or_null(f, self.is_nullable)?;
        match self.least {
            Least::Ms(ms) => Seconds(ms).fmt(f)?,
            Least::ZeroOrMs(ms) => write!(f, "0, or {}", Seconds(ms))?,
            Least::Field(field) => f.write_str(field.name)?,
        }
        f.write_str("..")?;
        match self.most {
            Most::Ms(ms) => Seconds(ms).fmt(f),
            Most::OfPool(field) => write!(f, "{} of the pool", field.name),
        }
    }
}

/// Writes milliseconds as seconds, without zeros at the end.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ms) = self;
        match ms % 1_000 {
            0 => write!(f, "{}", ms / 1_000),
            rest => f.write_str(format!("{}.{rest:03}", ms / 1_000).trim_end_matches('0')),
        }
    }
}

/// A whole number.
#[derive(Debug, PartialEq, Eq)]
pub struct IntegerField {
    /// The name in requests.
    pub name: &'static str,
    /// The least value.
    pub least: u64,
    /// The greatest value.
    pub most: u64,
    /// Whether null is a value. Otherwise null means that the field is left out.
    pub is_nullable: bool,
}

impl IntegerField {
    /// Returns whether a number is allowed.
    pub fn allows(&self, number: u64) -> bool {
        (self.least..=self.most).contains(&number)
    }
}

impl fmt::Display for IntegerField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        or_null(f, self.is_nullable)?;
        write!(f, "{}..{}", self.least, self.most)
    }
}

/// A text.
#[derive(Debug, PartialEq, Eq)]
pub struct TextField {
    /// The name in requests.
    pub name: &'static str,
    /// The greatest number of characters.
    pub most: usize,
    /// The allowed characters.
    pub symbols: Symbols,
    /// Whether null is a value. Otherwise null means that the field is left out.
    pub is_nullable: bool,
}

/// The characters of a [`TextField`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbols {
    /// All but control characters.
    Printable,
    /// `A-Z a-z 0-9 _ -`.
    WordAndHyphen,
}

impl TextField {
    /// Returns whether a text is allowed.
    pub fn allows(&self, text: &str) -> bool {
        let is_allowed = |c: char| match self.symbols {
            Symbols::Printable => !c.is_control(),
            Symbols::WordAndHyphen => c.is_ascii_alphanumeric() || c == '_' || c == '-',
        };
        // No character has more than four bytes.
        text.len() <= 4 * self.most
            && text.chars().count() <= self.most
            && text.chars().all(is_allowed)
    }
}

impl fmt::Display for TextField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        or_null(f, self.is_nullable)?;
        match self.symbols {
            Symbols::Printable => write!(f, "at most {} printable characters", self.most),
            Symbols::WordAndHyphen => write!(f, "at most {} of A-Z a-z 0-9 _ -", self.most),
        }
    }
}

/// A truth value. Null means that the field is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct FlagField {
    /// The name in requests.
    pub name: &'static str,
    /// Whether only true is allowed.
    pub only_true: bool,
}

impl FlagField {
    /// Returns whether a value is allowed.
    pub fn allows(&self, flag: bool) -> bool {
        flag || !self.only_true
    }
}

impl fmt::Display for FlagField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.only_true { "true" } else { "true or false" })
    }
}

/// One of a few words. Null means that the field is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct WordField {
    /// The name in requests.
    pub name: &'static str,
    /// The words.
    pub words: &'static [&'static str],
}

impl WordField {
    /// Returns the index of a word; `None` for a text that is not allowed.
    pub fn find(&self, text: &str) -> Option<usize> {
        self.words.iter().position(|word| *word == text)
    }
}

impl fmt::Display for WordField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" or "))
    }
}

/// The value of a key, which no error repeats. Null means that the field is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct ValueField {
    /// The name in requests.
    pub name: &'static str,
    /// The greatest number of bytes; the least is 1.
    pub bytes_max: usize,
}

impl fmt::Display for ValueField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Item::Value { bytes_max: self.bytes_max }.fmt(f)
    }
}

/// A list of texts. Null means that the field is left out.
#[derive(Debug, PartialEq, Eq)]
pub struct ListField {
    /// The name in requests.
    pub name: &'static str,
    /// The least number of items.
    pub least: usize,
    /// The greatest number of items.
    pub most: usize,
    /// What each item is.
    pub item: Item,
}

/// An item of a [`ListField`]. Its `Display` describes one item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The value of a key: 1 to this number of bytes.
    Value {
        /// The greatest number of bytes.
        bytes_max: usize,
    },
    /// A text, such as this field has.
    Text(&'static TextField),
    /// The id of a key. An unknown id is no error, and nor is a malformed one.
    KeyId,
}

impl fmt::Display for ListField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, .. } = self;
        match least {
            0 => write!(f, "an array of at most {most} ")?,
            _ => write!(f, "an array of {least}..{most} ")?,
        }
        match self.item {
            Item::Value { bytes_max } => write!(f, "strings of 1..{bytes_max} bytes"),
            Item::Text(field) => write!(f, "strings of {field}"),
            Item::KeyId => f.write_str("key ids"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { bytes_max } => write!(f, "a string of 1..{bytes_max} bytes"),
            Self::Text(field) => write!(f, "a string of {field}"),
            Self::KeyId => f.write_str("a key id"),
        }
    }
}

fn or_null(f: &mut fmt::Formatter<'_>, is_nullable: bool) -> fmt::Result {
    if is_nullable { f.write_str("null, or ") } else { Ok(()) }
}

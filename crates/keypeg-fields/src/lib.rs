//! The fields that requests can set: the name, the unit and the allowed values of each.
//!
//! The pools enforce these ranges, the server reads bodies by them, and the error texts and the
//! published documentation come from them. So each number stands here and nowhere else. Knows no
//! JSON, no HTTP and no pools.

mod kinds;
mod table;

pub use kinds::{
    Field, FlagField, IntegerField, Item, Least, ListField, Most, SecondsField, Symbols, TextField,
    ValueField, WordField,
};
pub use table::*;

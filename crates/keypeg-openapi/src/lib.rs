//! Writes the documentation that the server embeds, from the wire types, the table of routes and
//! the table of error codes.
//!
//! A development crate: the server embeds the files, and a test compares each file with the
//! function here that writes it. It knows no server and no engine, and does no I/O.

mod document;
mod html;
pub mod problem_pages;
mod reference;

pub use document::document_json;
pub use reference::reference_page;

//! A shared log in an object store: each frame is an object, which is created and never replaced.
//!
//! It does not know what frames contain. Invariant: a frame stands once the store has created its
//! object under the condition that there was none. Requests are never repeated by the HTTP client: a
//! repeated creation would find its own object and report that another server has won.

mod frames;
mod http;
mod log;
mod names;
mod objects;
mod settings;
mod snapshots;

pub use log::ObjectLog;
pub use settings::{PARAMETERS, Settings, TIMEOUT_S};

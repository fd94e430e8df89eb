//! A shared log in PostgreSQL: each append is one statement, which compares the head of the log,
//! moves it and inserts the frame.
//!
//! It does not know what frames contain. Invariant: [`Appended`](keypeg_log::Append::Appended) is
//! returned only after the server has committed on this connection, with its synchronous standbys,
//! without a notice. The log never sends a cancel request: PostgreSQL would end the wait for the
//! standby with it, and report success.

mod append;
mod connection;
mod fault;
mod hosts;
mod log;
mod schema;
mod settings;
mod tables;
mod tls;

pub use log::PostgresLog;
pub use settings::{Durability, PARAMETERS, Settings, TIMEOUT_S};

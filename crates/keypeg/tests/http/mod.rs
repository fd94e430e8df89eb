//! HTTP below the API: framing, the fast path beside hyper, mutated requests, and the protection
//! of browsers.

mod browser;
mod core_turns;
mod dashboard;
mod fast_path;
mod framing;
mod fuzz;
mod ops_listen;
mod places;
mod request_log;
mod slow_readers;
mod timeouts;
